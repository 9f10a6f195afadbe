"""Measures the parts of one iteration of soft actor-critic, and their floors.

    python -m benchmarks.off_policy [--config experiments/configs/hopper.py:sac]
        [--set KEY=VALUE ...] [--json [PATH]]

`step` is one whole iteration with updates, with the settings of the configuration. Each
part is timed alone, as one program of the same size: physics (environments under random
actions), acting (the policy on the observations of a roll-out), replay (storing a
roll-out in a full buffer and drawing all batches of the iteration), and all updates of
the critics and of the actor, including targets and optimizer steps. The columns are
those of `benchmarks.train_step`. The floor of replay is the time to read and write all
stored and drawn bytes once at the rate of memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks import timing
from benchmarks.command_line import measure_iteration
from benchmarks.setups import (
    HOPPER_SAC,
    OffPolicySetup,
    Part,
    jitted,
    make_off_policy_setup,
    measure_part,
    random_obs,
)
from benchmarks.train_step import MAX_SECONDS, physics_part, split
from dppo_jax import replay as buffers
from dppo_jax.algorithms import make_algorithm, sac
from dppo_jax.learning import soft_settings
from dppo_jax.learning.learner import row_keys
from dppo_jax.learning.off_policy import OffPolicyState
from dppo_jax.learning.soft_actor_critic import SACState, Updates
from dppo_jax.replay import Replay
from dppo_jax.training import seeds
from dppo_jax.training.loop import compiled_step
from dppo_jax.types import Array, Metrics, PyTree, Transition


def step_part(setup: OffPolicySetup) -> Part:
    """A whole iteration of a run that has collected enough to make updates."""
    algorithm = make_algorithm(setup.env, setup.policy, setup.config)
    state: OffPolicyState = algorithm.init(jax.random.key(0))
    # The buffer may hold zeros: an iteration takes as long with them.
    length = state.replay.items.reward.shape[1]
    state = state._replace(
        replay=state.replay._replace(size=jnp.full_like(state.replay.size, length)),
        iteration=jnp.int32(_first_learning_iteration(setup.config)),
    )
    # A step overwrites its state.
    state = seeds.copy(state)
    return Part("step", timing.Call(compiled_step(algorithm), (state,), carry=True))


def _first_learning_iteration(config: ConfigDict) -> int:
    """The first iteration after the random actions and with enough data."""
    replay = config.algorithm.sac.replay
    rollout = config.rollout
    collected = max(replay.random_steps, replay.min_fill)
    return -(-collected // (rollout.num_envs * rollout.num_chunks))


def acting_part(setup: OffPolicySetup) -> Part:
    """All actions of a roll-out."""
    num_rows = setup.env.num_envs
    obs = random_obs(setup, num_rows)
    params = setup.policy.init(jax.random.key(1), obs)

    def run(params: PyTree, obs: Any, key: Array) -> Array:
        def one(total: Array, key: Array) -> tuple[Array, None]:
            action, _ = setup.policy.act(params, row_keys(key, num_rows), obs)
            return total + action.sum(), None

        keys = jax.random.split(key, setup.config.rollout.num_chunks)
        return jax.lax.scan(one, jnp.zeros(()), keys)[0]

    def unit(params: PyTree, keys: Array, obs: Any) -> Array:
        return setup.policy.act(params, keys, obs)[0]

    keys = row_keys(jax.random.key(2), num_rows)
    call = jitted(run, params, obs, jax.random.key(2))
    return Part("acting", call, (unit, params, keys, obs))


def replay_part(setup: OffPolicySetup) -> Part:
    """Store what a roll-out records, then draw the batches of all rounds."""
    config = setup.config.algorithm.sac.replay
    num_envs, num_chunks = setup.env.num_envs, setup.config.rollout.num_chunks
    drawn = config.updates_per_round * config.batch_size
    num_rounds = num_updates(setup.config) // config.updates_per_round
    rows = _transitions(setup, num_envs * num_chunks)
    collected = jax.tree.map(
        lambda x: x.reshape(num_chunks, num_envs, *x.shape[1:]), rows
    )
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
    replay = buffers.init(one, num_envs, config.capacity)
    length = replay.items.reward.shape[1]
    replay = replay._replace(size=jnp.full_like(replay.size, length))

    def run(carry: tuple[Replay, Transition, Array]) -> tuple[Any, Any]:
        replay, collected, key = carry
        replay = buffers.insert(replay, collected)
        next_key, key = jax.random.split(key)

        def draw(_: None, key: Array) -> tuple[None, Transition]:
            return None, buffers.sample(
                replay, key, drawn, num_groups=config.num_groups
            )

        _, batches = jax.lax.scan(draw, None, jax.random.split(key, num_rounds))
        return (replay, collected, next_key), batches

    start = (replay, collected, jax.random.key(0))
    call = timing.Call(jax.jit(run, donate_argnums=0), (start,), carry=True)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(rows))
    total = size * (1 + num_rounds * drawn / (num_envs * num_chunks))
    batches = _transitions(setup, num_rounds * drawn)
    return Part("replay", call, num_bytes=2 * total, stream=batches)


def critic_updates_part(setup: OffPolicySetup) -> Part:
    """Targets, gradients, optimizer steps and target networks of the critics."""
    return _updates_part("critic updates", setup, lambda x: x.critic, num_updates)


def actor_updates_part(setup: OffPolicySetup) -> Part:
    """Gradients and optimizer steps of the actor and the temperature."""
    return _updates_part("actor updates", setup, lambda x: x.actor, num_actor_updates)


def num_updates(config: ConfigDict) -> int:
    """Updates of the critics in an iteration; config: the whole configuration."""
    rollout, replay = config.rollout, config.algorithm.sac.replay
    collected = rollout.num_envs * rollout.num_chunks
    return round(replay.updates_per_transition * collected)


def num_actor_updates(config: ConfigDict) -> int:
    """Updates of the actor in an iteration."""
    settings = config.algorithm.sac
    num_rounds = num_updates(config) // settings.replay.updates_per_round
    return num_rounds * settings.actor_updates


def _updates_part(
    name: str,
    setup: OffPolicySetup,
    choose: Callable[
        [Updates], Callable[[SACState, Transition, Array], tuple[SACState, Metrics]]
    ],
    count: Callable[[ConfigDict], int],
) -> Part:
    """All updates of one kind, on the same batch, because all batches have its size."""
    settings = setup.config.algorithm.sac
    learner = sac.make_learner(setup.env, setup.policy, setup.critic, settings)
    _, updates = soft_settings.make_updates(
        setup.env, setup.policy, setup.critic, settings
    )
    update = choose(updates)
    state = learner.init(jax.random.key(0), random_obs(setup, 1))
    batch = _transitions(setup, settings.replay.batch_size)
    key = jax.random.key(1)

    def run(state: SACState, batch: Transition, key: Array) -> SACState:
        def one(state: SACState, key: Array) -> tuple[SACState, Metrics]:
            return update(state, batch, key)

        return jax.lax.scan(one, state, jax.random.split(key, count(setup.config)))[0]

    call = jitted(run, state, batch, key)
    return Part(name, call, (update, state, batch, key))


def _transitions(setup: OffPolicySetup, num_rows: int) -> Transition:
    """Transitions with made-up contents, leaves [num_rows, ...]."""
    obs = random_obs(setup, num_rows)
    # No two leaves share an array, because the timed program may overwrite them.
    return Transition(
        obs=obs,
        action=jnp.zeros((num_rows, *setup.env.action_shape)),
        reward=jax.random.normal(jax.random.key(3), (num_rows,)),
        next_obs=jax.tree.map(lambda x: 0.9 * x, obs),
        terminated=jnp.zeros(num_rows),
        truncated=jnp.zeros(num_rows),
        extras=(),
    )


def measure_all(
    config: ConfigDict, *, max_seconds: float = MAX_SECONDS
) -> list[dict[str, Any]]:
    """The table: one row per part, the whole step last."""
    setup = make_off_policy_setup(config)
    makers: tuple[Callable[[OffPolicySetup], Part], ...] = (
        physics_part,
        acting_part,
        replay_part,
        critic_updates_part,
        actor_updates_part,
    )
    rows = [measure_part(make(setup), max_seconds=max_seconds) for make in makers]
    return split(rows, measure_part(step_part(setup), max_seconds=max_seconds))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, if asked, keep the table."""
    measure_iteration("off_policy", HOPPER_SAC, measure_all, arguments)


if __name__ == "__main__":
    main()
