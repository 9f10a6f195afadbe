"""Measures how fast actions are denoised, beside the network's matrix products alone.

    python -m benchmarks.denoising [--config experiments/configs/hopper.py:v0_8]
        [--batch 40 1000] [--calls N] [--set KEY=VALUE ...] [--json [PATH]]

As in a roll-out, one call draws a chunk for each of `batch` environments: all denoising
steps of the frozen and the tuned network, with the log-probabilities of the latter. A
timed program makes `calls` such calls one after another, each for observations of its
own. The other columns are those of `benchmarks.train_step`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks import command_line, timing
from benchmarks.setups import (
    HOPPER,
    Part,
    Setup,
    jitted,
    make_setup,
    measure_alone,
    random_obs,
)
from dppo_jax.types import Array

# The default number in one timed program; the time of a short one is mostly its start.
CHAINS = 4000


def denoising_part(
    setup: Setup, num_rows: int | None = None, num_calls: int | None = None
) -> Part:
    """All chains of a roll-out.

    Args:
        num_rows: chains at a time; None: the environments of the configuration.
        num_calls: number of calls; None: the chunks of an iteration.
    """
    policy = setup.policy
    num_rows = num_rows or setup.env.num_envs
    num_calls = num_calls or setup.config.rollout.num_chunks
    obs = random_obs(setup, num_calls * num_rows)
    # Of its own for every call; the compiler would encode shared ones only once.
    obs = jax.tree.map(lambda x: x.reshape(num_calls, num_rows, *x.shape[1:]), obs)
    params = policy.init(jax.random.key(1), random_obs(setup, 1))

    def sample(params: Any, key: Array, obs: Any) -> Array:
        keys = jax.random.split(key, num_rows)
        chain, log_prob = policy.sample(params, keys, obs)
        return log_prob.sum() + chain.sum()

    def run(params: Any, obs: Any, key: Array) -> Array:
        def add(total: Array, inputs: tuple[Array, Any]) -> tuple[Array, None]:
            return total + sample(params, *inputs), None

        inputs = jax.random.split(key, num_calls), obs
        return jax.lax.scan(add, jnp.zeros(()), inputs)[0]

    key = jax.random.key(2)
    one = (sample, params, key, jax.tree.map(lambda x: x[0], obs))
    return Part("denoising", jitted(run, params, obs, key), one)


def measure_batch(
    config: ConfigDict,
    batch: int,
    num_calls: int | None = None,
    *,
    max_seconds: float = 30.0,
) -> dict[str, Any]:
    """One row: chunks for `batch` environments, by default `CHAINS` in all."""
    num_calls = num_calls or max(1, CHAINS // batch)
    setup = make_setup(config)
    part = denoising_part(setup, batch, num_calls)
    about = {"batch": batch, "calls": num_calls}
    row = measure_alone(part, about, max_seconds=max_seconds)
    return row | {"chunks/s": batch * num_calls / row["median s"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, if asked, keep the table."""
    parser = command_line.make_parser("denoising", HOPPER)
    parser.add_argument("--batch", nargs="+", type=int, default=[40, 1000])
    parser.add_argument("--calls", type=int, help="in one timed program")
    options = parser.parse_args(arguments)
    config, report = command_line.start(options)
    rows = [measure_batch(config, batch, options.calls) for batch in options.batch]
    timing.finish(f"denoising-{config.env.task}", rows, report, options.json)


if __name__ == "__main__":
    main()
