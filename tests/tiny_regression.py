"""Small runs of algorithms that regress or steer a policy."""

from typing import Any

from ml_collections import ConfigDict

from dppo_jax.algorithms import dawr, drwr, dsrl
from dppo_jax.policies import ChainPolicy
from dppo_jax.types import Algorithm, VecEnv
from tests import tiny


@tiny.shared
def make_tiny_drwr(
    policy: ChainPolicy | None = None, env: VecEnv | None = None, **changes: Any
) -> Algorithm:
    """DRWR on `point_env`, 4 chunks of 4 environments; as `tiny.make_tiny_ppo`."""
    settings = drwr.default_config()
    settings.update(epochs=2, batch_size=8)
    settings.actor.learning_rate = 1e-2
    return _make(drwr, "drwr", settings, policy, env, changes)


@tiny.shared
def make_tiny_dawr(
    policy: ChainPolicy | None = None, env: VecEnv | None = None, **changes: Any
) -> Algorithm:
    """DAWR on `point_env`: 8 updates of the policy and 4 of V for 16 new chunks."""
    settings = dawr.default_config()
    settings.update(capacity=64, batch_size=8, replay_ratio=4, critic_ratio=2)
    settings.reward_scale = 1.0
    for name in ("actor", "critic"):
        settings[name].learning_rate = 1e-2
    return _make(dawr, "dawr", settings, policy, env, changes)


@tiny.shared
def make_tiny_dsrl(
    policy: ChainPolicy | None = None, env: VecEnv | None = None, **changes: Any
) -> Algorithm:
    """DSRL on `point_env`: 4 rounds of 2 + 2 updates for 16 transitions."""
    settings = dsrl.default_config()
    settings.replay.update(capacity=400, batch_size=16, random_steps=16, min_fill=16)
    settings.replay.update(updates_per_round=4, updates_per_transition=1.0)
    settings.distillation_updates = 2
    settings.network.update(hidden_sizes=(16,), layer_norm=False)
    for name in ("actor", "critic", "temperature"):
        settings[name].learning_rate = 1e-2
    policy = decoder() if policy is None else policy
    return _make(dsrl, "dsrl", settings, policy, env, changes)


def decoder(**bounds: Any) -> ChainPolicy:
    """Two steps of DDIM."""
    return tiny.tiny_diffusion_policy(ddim_steps=2, num_tuned=1, **bounds)


def _make(
    module: Any,
    name: str,
    settings: ConfigDict,
    policy: ChainPolicy | None,
    env: VecEnv | None,
    changes: dict[str, Any],
) -> Algorithm:
    config = ConfigDict()
    config.rollout = dict(
        num_chunks=changes.pop("num_chunks", 4),
        reset_at_iteration=changes.pop("reset_at_iteration", False),
    )
    config.critic = dict(hidden_sizes=(16,), activation="tanh")
    config.model = dict(chunk=tiny.CHUNK, network=dict())
    settings.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    config.algorithm = {name: settings}
    env = tiny.point_env(4) if env is None else env
    policy = tiny.tiny_diffusion_policy() if policy is None else policy
    return module.make(env, policy, config)
