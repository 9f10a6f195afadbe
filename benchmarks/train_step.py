"""Where the time of one fine-tuning iteration goes.

    python -m benchmarks.train_step [--config experiments/configs/avoid.py:m1]
        [--json [PATH]]

`step` is one whole jitted iteration with the settings of the configuration. Its parts
are timed alone, each as one program of the same size: physics (environments under
random actions), denoising (all sampling of a roll-out), and the gradients and optimizer
steps of all minibatches of policy and critic. `rest` is what they leave of `step`:
returns, shuffling, gathering. `GFLOP` counts the matrix products of the networks,
`floor s` is the time these would take at the matmul rate measured in this run at the
rows and width of the part, and `utilisation` is floor over measured. Compiling is
apart.
"""

import argparse
import functools
import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import timing
from dppo_jax import chain_losses, losses, optimizers
from dppo_jax.algorithms import ppo
from dppo_jax.envs.build import make_env
from dppo_jax.envs.tasks import make_task
from dppo_jax.minibatch import mean_over_parts, part_size
from dppo_jax.networks.critics import StateCritic
from dppo_jax.normalize import Normalizer
from dppo_jax.policies import make_policy
from dppo_jax.types import Array, Policy, PyTree, VecEnv

DEFAULT_CONFIG = "experiments/configs/avoid.py:m1"
MAX_SECONDS = 40.0


class Setup(NamedTuple):
    """What a fine-tuning run is made of."""

    config: ConfigDict
    env: VecEnv
    policy: Policy
    critic: StateCritic


class Part(NamedTuple):
    """One row before it is printed.

    flops: of matrix products; rows, width: their shape, for the floor.
    """

    name: str
    timed: timing.Timing
    flops: float = 0.0
    rows: int = 0
    width: int = 0


def load_config(spec: str) -> ConfigDict:
    """The configuration of FILE.py:VARIANT."""
    path, _, variant = spec.partition(":")
    module_spec = importlib.util.spec_from_file_location("benchmark_config", path)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"--config={spec}: {path} is no Python file.")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.get_config(*([variant] if variant else []))


def make_setup(config: ConfigDict) -> Setup:
    """Environment and networks; bounds of +-1 stand in for those of a data set."""
    task = make_task(config.env.task, engine=config.env.engine, **config.env.options)
    (obs_size,), (action_size,) = task.obs_shape["state"], task.action_shape
    normalizer = Normalizer(
        *(np.full(obs_size, x, np.float32) for x in (-1, 1)),
        *(np.full(action_size, x, np.float32) for x in (-1, 1)),
    )
    env = make_env(
        config.env,
        normalizer=normalizer,
        chunk=config.model.chunk,
        num_envs=config.finetune.num_envs,
    )
    policy = make_policy(config.model, config.finetune, action_dim=action_size)
    return Setup(config, env, policy, StateCritic(**config.critic))


def matmul_flops(params: PyTree) -> int:
    """Multiplications and additions of one row through all dense layers."""
    return sum(2 * x.size for x in jax.tree.leaves(params) if x.ndim == 2)


def measure_step(setup: Setup) -> Part:
    """The whole iteration."""
    algorithm = ppo.make_ppo(*setup[1:], setup.config.finetune)
    state = algorithm.init(jax.random.key(0))
    step = jax.jit(algorithm.step)
    return Part(
        "step", timing.measure(step, state, carry=True, max_seconds=MAX_SECONDS)
    )


def measure_physics(setup: Setup) -> Part:
    """All environment steps of a roll-out under random actions."""
    env, num_steps = setup.env, setup.config.finetune.num_steps

    @jax.jit
    def physics(state: Any, key: Array) -> Any:
        actions = jax.random.uniform(
            key, (num_steps, env.num_envs, *env.action_shape), minval=-1.0
        )
        return jax.lax.scan(lambda s, a: (env.step(s, a)[0], None), state, actions)[0]

    state = env.reset(jax.random.key(0))
    return Part("physics", timing.measure(physics, state, jax.random.key(1)))


def measure_denoising(setup: Setup) -> Part:
    """All chains of a roll-out."""
    env, policy = setup.env, setup.policy
    num_steps = setup.config.finetune.num_steps
    obs = env.reset(jax.random.key(0)).obs
    params = policy.init(jax.random.key(1), obs)

    @jax.jit
    def denoising(params: Any, key: Array) -> Array:
        def sample(total: Array, key: Array) -> tuple[Array, None]:
            chain, log_prob = policy.sample(params, key, obs)
            return total + log_prob.sum() + chain.sum(), None

        return jax.lax.scan(sample, jnp.zeros(()), jax.random.split(key, num_steps))[0]

    model = setup.config.model
    chain = model.diffusion.ddim_steps or model.diffusion.num_steps
    rows = env.num_envs
    return Part(
        "denoising",
        timing.measure(denoising, params, jax.random.key(2)),
        flops=float(matmul_flops(params.tuned)) * rows * num_steps * chain,
        rows=rows,
        width=model.network.hidden_sizes[0],
    )


def measure_updates(setup: Setup) -> list[Part]:
    """Gradients and optimizer steps of all minibatches, policy and critic apart."""
    config, policy, critic = setup.config.finetune, setup.policy, setup.critic
    rows = config.batch_size
    num_steps = config.num_envs * config.num_steps
    num_updates = config.epochs * (num_steps * policy.num_steps // rows)
    key = jax.random.key(0)
    obs = {
        k: jax.random.normal(key, (rows, *shape))
        for k, shape in setup.env.obs_shape.items()
    }
    x = jax.random.normal(
        key, (rows, setup.config.model.chunk, setup.env.action_shape[1])
    )
    step = jnp.arange(rows) % policy.num_steps
    advantage = jax.random.normal(key, (rows,))
    params = policy.init(key, obs).tuned
    old = policy.log_prob(params, x, 0.9 * x, obs, step)

    def actor_loss(params: PyTree, part: Any) -> Array:
        obs, x, next_x, step, old, advantage = part
        return chain_losses.surrogate_loss(
            *(policy.log_prob(params, x, next_x, obs, step), step, old, advantage),
            num_steps=policy.num_steps,
            clip_top=config.clip_top,
            clip_base=config.clip_base,
            clip_rate=config.clip_rate,
        )[0]

    def critic_loss(params: PyTree, part: Any) -> Array:
        obs, target = part
        value: Any = critic.apply(params, obs)
        return losses.value_loss(value, target)

    # As in an update: a value is needed once per environment step.
    steps = min(rows, num_steps)
    values = jax.tree.map(lambda x: x[:steps], (obs, advantage))
    moves = (obs, x, 0.9 * x, step, old, advantage)

    def updates(
        name: str, loss: Any, params: PyTree, batch: Any, size: int, width: int
    ) -> Part:
        optimizer = optimizers.adamw(weight_decay=0.0)

        @jax.jit
        def run(carry: Any) -> Any:
            def one(carry: Any, _: None) -> tuple[Any, None]:
                params, state = carry
                gradient = functools.partial(jax.grad(loss), params)
                grads = mean_over_parts(gradient, batch, size)
                return optimizers.update(optimizer, grads, state, params, 1e-5), None

            return jax.lax.scan(one, carry, None, length=num_updates)[0]

        start = (params, optimizer.init(params))
        # A backward pass costs two products for each one of the forward pass.
        flops = 3.0 * jax.tree.leaves(batch)[0].shape[0] * matmul_flops(params)
        return Part(
            name,
            timing.measure(run, start, max_seconds=MAX_SECONDS),
            flops * num_updates,
            size,
            width,
        )

    return [
        updates(
            *("policy update", actor_loss, params, moves),
            part_size(rows, config.get("micro_batch_size")),
            setup.config.model.network.hidden_sizes[0],
        ),
        updates(
            *("critic update", critic_loss, critic.init(key, obs), values),
            part_size(steps),
            setup.config.critic.hidden_sizes[0],
        ),
    ]


def measure_all(config: ConfigDict) -> list[dict[str, Any]]:
    """The table: one row a part, the whole step last."""
    setup = make_setup(config)
    parts = [measure_physics(setup), measure_denoising(setup), *measure_updates(setup)]
    whole = measure_step(setup)
    rest = whole.timed.median - sum(part.timed.median for part in parts)
    rows = [_row(part) for part in parts]
    rows.append(dict.fromkeys(rows[0]) | {"part": "rest", "median s": rest})
    rows.append(_row(whole))
    for row in rows:
        row["share"] = row["median s"] / whole.timed.median
    return rows


def _row(part: Part) -> dict[str, Any]:
    floor = None
    if part.flops:
        floor = part.flops / timing.matmul_rate(part.rows, part.width)
    return {
        "part": part.name,
        "median s": part.timed.median,
        "fastest": part.timed.fastest,
        "slowest": part.timed.slowest,
        "share": None,
        "GFLOP": part.flops / 1e9 if part.flops else None,
        "floor s": floor,
        "utilisation": floor / part.timed.median if floor else None,
        "compile s": part.timed.compile,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, if asked, keep the table."""
    parser = argparse.ArgumentParser("benchmarks.train_step")
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="FILE.py:VARIANT")
    parser.add_argument("--json", nargs="?", const="", help="keep the rows")
    options = parser.parse_args(arguments)
    report = timing.start() | {"config": options.config}
    rows = measure_all(load_config(options.config))
    timing.print_table(rows)
    if options.json is not None:
        path = options.json or timing.result_path("train_step", report)
        print(f"wrote {timing.write_json(path, rows, report)}")


if __name__ == "__main__":
    main()
