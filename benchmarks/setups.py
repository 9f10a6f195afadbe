"""Makes environment and networks of a configuration, and times parts of its work."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import floors, timing
from dppo_jax.envs.build import make_env, make_single
from dppo_jax.errors import SettingsError
from dppo_jax.networks.build_encoder import (
    make_state_action_critic,
    make_state_critic,
)
from dppo_jax.networks.critics import StateActionCritic, StateCritic
from dppo_jax.normalize import Normalizer
from dppo_jax.policies import ChainPolicy, SquashedPolicy, make_policy
from dppo_jax.types import Array, Obs, VecEnv

AVOID = "experiments/configs/avoid.py:m1"
HOPPER = "experiments/configs/hopper.py:v0_8"
HOPPER_SAC = "experiments/configs/hopper.py:sac"


class EnvSetup(NamedTuple):
    """The environment alone."""

    config: ConfigDict
    env: VecEnv


class Setup(NamedTuple):
    """Environment and networks of fine-tuning with PPO."""

    config: ConfigDict
    env: VecEnv
    policy: ChainPolicy
    critic: StateCritic


class OffPolicySetup(NamedTuple):
    """Environment and networks of soft actor-critic."""

    config: ConfigDict
    env: VecEnv
    policy: SquashedPolicy
    critic: StateActionCritic


class Part(NamedTuple):
    """Something to time, and the work that sets its floor.

    call: the part itself, jitted.
    unit: one evaluation or gradient of a network, or one chain of evaluations, as a
        function and its arguments. The part repeats its matrix products. None: no
        products.
    num_bytes: bytes that the part must move in addition, for example in an optimizer.
    stream: arrays of the sizes that are moved.
    floor: seconds, if none of the above gives the floor.
    """

    name: str
    call: timing.Call
    unit: tuple[Any, ...] | None = None
    num_bytes: float = 0.0
    stream: Any = None
    floor: float | None = None


def make_setup(config: ConfigDict) -> Setup:
    """Environment and networks of PPO."""
    env, policy = env_and_policy(config)
    if not isinstance(policy, ChainPolicy):
        raise SettingsError(
            f"model.kind={config.model.kind!r}: this program measures PPO over a "
            "chain; use 'diffusion', 'gaussian' or 'gmm', or benchmarks.off_policy."
        )
    return Setup(config, env, policy, make_state_critic(config.critic))


def make_off_policy_setup(config: ConfigDict) -> OffPolicySetup:
    """Environment and networks of soft actor-critic."""
    env, policy = env_and_policy(config)
    if not isinstance(policy, SquashedPolicy):
        raise SettingsError(
            f"model.kind={config.model.kind!r}: this program measures soft "
            "actor-critic; use 'squashed', or benchmarks.train_step."
        )
    num_critics = config.algorithm.sac.num_critics
    critic = make_state_action_critic(config.critic, num_critics=num_critics)
    return OffPolicySetup(config, env, policy, critic)


def unit_normalizer(config: ConfigDict) -> Normalizer:
    """Bounds of +-1, in place of those of a data set."""
    task = make_single(config.env)
    sizes = task.obs_shape["state"][-1], task.action_shape[-1]
    return Normalizer(
        *(np.full(size, x, np.float32) for size in sizes for x in (-1, 1))
    )


def env_and_policy(config: ConfigDict) -> tuple[VecEnv, ChainPolicy | SquashedPolicy]:
    """Environment and policy, with `unit_normalizer`."""
    normalizer = unit_normalizer(config)
    action_size = len(normalizer.action_min)
    env = make_env(
        config.env,
        normalizer=normalizer,
        chunk=config.model.chunk,
        num_envs=config.rollout.num_envs,
    )
    return env, make_policy(config.model, action_dim=action_size)


def set_compute_dtype(config: ConfigDict, dtype: str) -> None:
    """Make policy and critic compute in "float32" or "bfloat16"."""
    config.model.network.compute_dtype = config.critic.compute_dtype = dtype


def random_obs(setup: EnvSetup | Setup | OffPolicySetup, num_rows: int) -> Obs:
    """Normal observations and uniform pictures, leaves [num_rows, ...]."""
    key = jax.random.key(0)
    shapes = {name: (num_rows, *x) for name, x in setup.env.obs_shape.items()}
    return {
        name: (
            jax.random.randint(key, shape, 0, 256).astype(jnp.uint8)
            if name == "rgb"
            else jax.random.normal(key, shape)
        )
        for name, shape in shapes.items()
    }


def random_moves(setup: Setup, num_rows: int) -> tuple[Obs, Array, Array, Array]:
    """Observations, x, next x and the index of the move, of `num_rows` pairs."""
    obs = random_obs(setup, num_rows)
    shape = (num_rows, setup.config.model.chunk, setup.env.action_shape[-1])
    x = jax.random.normal(jax.random.key(1), shape)
    return obs, x, 0.9 * x, jnp.arange(num_rows) % setup.policy.num_tuned_steps


def measure_part(
    part: Part, *, max_seconds: float = 40.0, warmup: int = 1
) -> dict[str, Any]:
    """One row of a table: the part, timed in turns with the programs for its floor."""
    calls = {"part": part.call}
    total = replay = stream = None
    if part.unit is not None:
        replay = floors.Replay(*part.unit)
        calls |= replay.calls()
        total = float(floors.flops(part.call.function, *part.call.args))
    if part.stream is not None:
        stream = floors.Stream(part.stream)
        calls["stream"] = stream.call()
    timings = dict(
        zip(
            calls,
            timing.measure_together(
                list(calls.values()), max_seconds=max_seconds, warmup=warmup
            ),
        )
    )
    timed = timings.pop("part")
    row: dict[str, Any] = {
        "part": part.name,
        "median s": timed.median,
        "fastest": timed.fastest,
        "slowest": timed.slowest,
        "share": None,
        "GFLOP": None,
        "XLA GFLOP": None,
        "GFLOP/s": None,
        "matmul GFLOP/s": None,
        "in turn GFLOP/s": None,
        "floor s": part.floor,
        "utilisation": None,
        "compile s": timed.compile,
    }
    if stream is not None:
        moved = stream.rate(timings.pop("stream"))
        row["floor s"] = part.num_bytes / moved
        row |= {"GB": part.num_bytes / 1e9, "GB/s": moved / 1e9}
    if replay is not None and part.unit is not None and total is not None:
        rates = replay.rates(timings)
        rate = max(rates.values())
        row["floor s"] = (row["floor s"] or 0.0) + total / rate
        row["GFLOP"] = total / 1e9
        row["GFLOP/s"] = total / timed.median / 1e9
        row["matmul GFLOP/s"] = rate / 1e9
        row["in turn GFLOP/s"] = rates["in turn"] / 1e9
        counted = floors.cost_flops(*part.unit)
        if counted is not None:
            row["XLA GFLOP"] = counted / replay.flops_without_loops * total / 1e9
    if row["floor s"] is not None:
        row["utilisation"] = row["floor s"] / timed.median
    return row


def measure_alone(
    part: Part, about: dict[str, Any], *, max_seconds: float
) -> dict[str, Any]:
    """The row of a part that is no share of a whole, with `about` after its name."""
    row = measure_part(part, max_seconds=max_seconds)
    del row["share"]
    return {"part": row.pop("part")} | about | row


def jitted(function: Callable[..., Any], *args: Any, carry: bool = False):
    """A Call of `jax.jit(function)`."""
    return timing.Call(jax.jit(function), args, carry)
