"""Measures the parts of one fine-tuning iteration, and their floors.

    python -m benchmarks.train_step [--config experiments/configs/avoid.py:m1]
        [--set KEY=VALUE ...] [--json [PATH]]

`step` is one whole iteration, run as in fine-tuning, with the settings of the
configuration. Each part is timed alone, as one program of the same size: physics
(environments under random actions), denoising (all sampling of a roll-out), and PPO's
own functions: returns (values of all observations, and advantages), and the gradients
and optimizer steps of all minibatches of policy and critic. `rest` is `step` minus
these parts: shuffling, gathering, metrics.

`GFLOP` counts the matrix products of the part; `XLA GFLOP` is XLA's own count, which
includes elementwise arithmetic. `matmul GFLOP/s` is the rate of the device for exactly
these products and nothing else, measured in turns with the part
(`benchmarks/floors.py`). `in turn GFLOP/s` is the rate if each product waits for the
previous one. `floor s` is `GFLOP` divided by `matmul GFLOP/s`; for physics it is the
number of control steps divided by the rate of the engine alone. The floor of `step` is
the sum of the floors of its parts. `utilisation` is `floor s` divided by `median s`.
Times do not include compiling. `peak MB` of `step` is the most memory that the process
(or the accelerator) had in use until then, with all libraries and compilers.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks import physics, timing
from benchmarks.command_line import measure_iteration
from benchmarks.denoising import denoising_part
from benchmarks.setups import (
    AVOID,
    EnvSetup,
    OffPolicySetup,
    Part,
    Setup,
    jitted,
    make_setup,
    measure_part,
    random_moves,
    random_obs,
)
from dppo_jax.algorithms import make_algorithm
from dppo_jax.algorithms.ppo.collect import Collector, make_collector
from dppo_jax.algorithms.ppo.gradients import (
    Gradients,
    Moves,
    Steps,
    log_prob_of_moves,
    make_gradients,
    minibatch_sizes,
)
from dppo_jax.algorithms.ppo.settings import log_prob_mean
from dppo_jax.envs import TASKS
from dppo_jax.envs.physics import resolve_engine
from dppo_jax.learning import optimizers
from dppo_jax.learning.minibatch import micro_batch_size
from dppo_jax.learning.on_policy import Collected, OnPolicyState
from dppo_jax.policies import PolicyParams
from dppo_jax.rollout import env_keys
from dppo_jax.training import seeds
from dppo_jax.training.loop import compiled_step
from dppo_jax.types import Array, PyTree

MAX_SECONDS = 40.0
# Control steps of the engine alone, over all environments: a few environments need many
# steps to reach the states of a roll-out, and for many environments these take long.
PHYSICS_STEPS = 20_000


def step_part(setup: Setup) -> Part:
    """The whole iteration."""
    algorithm = make_algorithm(setup.env, setup.policy, setup.config)
    state = seeds.copy(algorithm.init(jax.random.key(0)))  # A step overwrites it.
    return Part("step", timing.Call(compiled_step(algorithm), (state,), carry=True))


def physics_part(setup: EnvSetup | Setup | OffPolicySetup) -> Part:
    """All environment steps of a roll-out under random actions."""
    env, num_chunks = setup.env, setup.config.rollout.num_chunks

    def run(state: Any, key: Array) -> Any:
        actions = jax.random.uniform(
            key, (num_chunks, env.num_envs, *env.action_shape), minval=-1.0
        )
        return jax.lax.scan(lambda s, a: (env.step(s, a)[0], None), state, actions)[0]

    state = env.reset(env_keys(jax.random.key(0), env.num_envs))
    call = jitted(run, state, jax.random.key(1))
    return Part("physics", call, floor=_physics_floor(setup))


def _physics_floor(setup: EnvSetup | Setup | OffPolicySetup) -> float | None:
    """Seconds that the engine alone takes for the control steps of a roll-out."""
    env, config = setup.env, setup.config.env
    if config.task not in TASKS:
        return None  # Simulators of other libraries cannot be stepped alone here.
    engine = config.engine
    if engine == "auto":
        engine = resolve_engine("auto", cpu_engine="mujoco")
    num_control_steps = setup.config.rollout.num_chunks * env.action_shape[0]
    recorded = min(num_control_steps, max(20, PHYSICS_STEPS // env.num_envs))
    rate = physics.engine_rate(
        config.task, engine, env.num_envs, recorded, **config.options
    )
    return env.num_envs * num_control_steps / rate


def ppo_of(setup: Setup) -> tuple[Collector, Gradients]:
    """The functions that an iteration of PPO consists of."""
    config, ppo = setup.config, setup.config.algorithm.ppo
    mean = log_prob_mean(ppo, setup.policy, executed=setup.env.action_shape[0])
    collector = make_collector(
        setup.env,
        setup.policy,
        setup.critic,
        ppo,
        num_chunks=config.rollout.num_chunks,
        reset_at_iteration=config.rollout.reset_at_iteration,
        mean=mean,
    )
    return collector, make_gradients(setup.policy, setup.critic, ppo, mean=mean)


def returns_part(setup: Setup) -> Part:
    """Values of a roll-out's observations, and advantages."""
    critic, num_envs = setup.critic, setup.env.num_envs
    shape = (setup.config.rollout.num_chunks, num_envs)
    flat = random_obs(setup, shape[0] * num_envs)
    params = critic.init(jax.random.key(0), flat)
    zero, unused = jnp.zeros(shape), jnp.zeros((*shape, 1))
    collected = Collected(
        obs=jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), flat),
        extras=(unused, unused, None),  # chains, their log-probabilities, no moments
        reward=jax.random.normal(jax.random.key(1), shape),
        terminated=zero,
        truncated=zero,
        end_value=zero,
    )
    state = make_algorithm(setup.env, setup.policy, setup.config).init(
        jax.random.key(2)
    )

    def run(state: OnPolicyState, collected: Collected) -> Steps:
        return ppo_of(setup)[0].evaluate_returns(state, collected)[1]

    call = jitted(run, state, collected)
    return Part("returns", call, (critic.apply, params, flat))


def policy_update_part(setup: Setup) -> Part:
    """Gradients and optimizer steps of all minibatches, of pairs or of chains."""
    config, policy = setup.config.algorithm.ppo, setup.policy
    moves_each, num_items, size = minibatch_sizes(config, policy)
    obs, x, next_x, step = random_moves(setup, num_items)
    params = policy.init(jax.random.key(3), obs).tuned
    moves = Moves(
        obs=obs,
        chain=jnp.stack([x, next_x] + [x] * (moves_each - 1), axis=1),
        step=(step[:, None] + jnp.arange(moves_each)) % policy.num_tuned_steps,
        old_log_prob=jnp.zeros((num_items, moves_each)),
        advantage=jax.random.normal(jax.random.key(2), (num_items, moves_each)),
    )
    mean = log_prob_mean(config, policy, executed=setup.env.action_shape[0])
    moves = moves._replace(old_log_prob=mean(log_prob_of_moves(policy, params, moves)))
    key = jax.random.key(4)

    def gradient(tuned: PyTree, moves: Moves) -> PyTree:
        whole = PolicyParams(params, tuned)
        return ppo_of(setup)[1].actor(whole, moves, key)[0]

    def loss(params: PyTree, moves: Moves) -> Array:
        return mean(log_prob_of_moves(policy, params, moves)).mean()

    micro_batch = jax.tree.map(lambda x: x[:size], moves)
    unit = (jax.grad(loss), params, micro_batch)
    return _update_part("policy update", setup, gradient, params, moves, unit)


def critic_update_part(setup: Setup) -> Part:
    """The same for the critic, which is evaluated at most once per environment step."""
    rollout, critic = setup.config.rollout, setup.critic
    _, num_items, _ = minibatch_sizes(setup.config.algorithm.ppo, setup.policy)
    num_rows = rollout.num_envs * rollout.num_chunks
    obs = random_obs(setup, num_rows)
    zero = jnp.zeros(num_rows)
    steps = Steps(
        obs=obs,
        chain=zero,
        log_prob=zero,
        advantage=zero,
        target=jax.random.normal(jax.random.key(2), (num_rows,)),
        value=zero,
    )
    row = jax.random.choice(jax.random.key(4), num_rows, (num_items,))
    params = critic.init(jax.random.key(3), obs)

    def gradient(params: PyTree, inputs: tuple[Steps, Array]) -> PyTree:
        return ppo_of(setup)[1].critic(params, *inputs)[0]

    def loss(params: PyTree, obs: Any) -> Array:
        apply: Callable[..., Any] = critic.apply
        # Not linear, so that the gradient needs the values, as PPO's does.
        return (apply(params, obs) ** 2).mean()

    size = micro_batch_size(min(num_items, num_rows))
    unit = (jax.grad(loss), params, jax.tree.map(lambda x: x[:size], obs))
    return _update_part("critic update", setup, gradient, params, (steps, row), unit)


def num_updates(config: ConfigDict) -> int:
    """Minibatches of an iteration, all epochs; config: the whole configuration."""
    rollout, ppo = config.rollout, config.algorithm.ppo
    chains = rollout.num_envs * rollout.num_chunks
    pairs = chains * config.model.sampling.num_tuned_steps
    return ppo.epochs * (pairs // ppo.batch_size)


def _update_part(
    name: str,
    setup: Setup,
    gradient: Callable[[PyTree, Any], PyTree],
    params: PyTree,
    batch: Any,
    unit: tuple[Any, ...],
) -> Part:
    """All updates of an iteration; `gradient` maps (params, batch) to a mean."""
    optimizer = optimizers.adamw(weight_decay=0.0)
    length = num_updates(setup.config)

    def run(carry: Any, batch: Any) -> Any:
        def one(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            grads = gradient(params, batch)
            return optimizers.update(optimizer, grads, state, params, 1e-5), None

        return jax.lax.scan(one, carry, None, length=length)[0]

    return Part(name, jitted(run, (params, optimizer.init(params)), batch), unit)


def parts_of(setup: Setup) -> dict[str, Any]:
    """Functions that make the parts, so that not all hold their arrays at once."""
    makers: dict[str, Callable[[Setup], Part]] = dict(
        physics=physics_part,
        denoising=denoising_part,
        returns=returns_part,
    )
    makers |= {"policy update": policy_update_part, "critic update": critic_update_part}
    return {name: functools.partial(make, setup) for name, make in makers.items()}


def measure_all(
    config: ConfigDict, *, max_seconds: float = MAX_SECONDS
) -> list[dict[str, Any]]:
    """The table: one row per part, the whole step last."""
    setup = make_setup(config)
    # First, so that its memory is not that of the parts.
    whole = measure_part(step_part(setup), max_seconds=max_seconds)
    whole["peak MB"] = timing.peak_memory()
    rows = [
        measure_part(make(), max_seconds=max_seconds)
        for make in parts_of(setup).values()
    ]
    return split(rows, whole)


def split(rows: list[dict[str, Any]], whole: dict[str, Any]) -> list[dict[str, Any]]:
    """Add the rows `rest` and `step` to those of the parts, and the share of each row.

    The floor of the whole is the sum of the floors of its parts, if all have one.
    """
    rest = whole["median s"] - sum(row["median s"] for row in rows)
    floors = [row["floor s"] for row in rows]
    if None not in floors:
        whole = whole | {"floor s": sum(floors)}
        whole["utilisation"] = whole["floor s"] / whole["median s"]
    rows = [*rows, dict.fromkeys(whole) | {"part": "rest", "median s": rest}, whole]
    for row in rows:
        row["share"] = row["median s"] / whole["median s"]
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, if asked, keep the table."""
    measure_iteration("train_step", AVOID, measure_all, arguments)


if __name__ == "__main__":
    main()
