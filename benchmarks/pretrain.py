"""Measures behaviour cloning: samples per second, and the floor of an epoch.

    python -m benchmarks.pretrain [--config experiments/configs/hopper.py:v0_8]
        [--batch 128] [--updates 200] [--set KEY=VALUE ...] [--json [PATH]]

It times one epoch of cloning with `updates` minibatches of random windows: drawing
them, the loss and its gradient, AdamW, and the moving average of the weights. The floor
is the time of the matrix products at the rate that the device has for them, plus the
time to move the bytes that AdamW and the average read and write (`GB`) at the rate
(`GB/s`) of a program that only moves arrays of these sizes. Both rates are measured in
turns with the epoch.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import command_line, timing
from benchmarks.setups import (
    HOPPER,
    Part,
    Setup,
    jitted,
    make_setup,
    measure_alone,
)
from dppo_jax.algorithms import clone as pretrain
from dppo_jax.demonstrations.dataset import Episodes, Windows, gather, windows
from dppo_jax.types import Array, PyTree

MAX_SECONDS = 30.0


def random_windows(setup: Setup, num: int) -> Windows:
    """`num` windows of one random episode; its values do not affect the time."""
    history, obs_size = setup.env.obs_shape["state"]
    chunk = setup.config.model.chunk
    generator = np.random.default_rng(0)
    length = num + chunk - 1
    episodes = Episodes(
        observations={"state": _uniform(generator, length, obs_size)},
        actions=_uniform(generator, length, setup.env.action_shape[-1]),
        episode_lengths=np.array([length]),
    )
    return windows(episodes, chunk=chunk, history=history)


def _uniform(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.uniform(-1, 1, shape).astype(np.float32)


def pretrain_part(setup: Setup, num_updates: int) -> Part:
    """One epoch of `num_updates` minibatches."""
    config = setup.config.pretrain
    dataset = random_windows(setup, num_updates * config.batch_size)
    algorithm = pretrain.make_pretrain(setup.policy, dataset, config)
    state = algorithm.init(jax.random.key(0))
    obs, action = gather(dataset, jnp.arange(config.batch_size))
    keys = jax.random.split(jax.random.key(1), config.batch_size)

    def loss(params: PyTree) -> Array:
        return setup.policy.clone_loss(params, keys, obs, action).mean()

    unit = (jax.grad(loss), state.params)
    size = sum(x.nbytes for x in jax.tree.leaves(state.params))
    return Part(
        "pre-training",
        jitted(algorithm.step, state, carry=True),
        unit,
        num_bytes=num_updates * update_bytes(size, config.ema_every),
        stream=state.params,
    )


def update_bytes(size: int, ema_every: int) -> float:
    """Bytes that AdamW and the moving average read and write per update.

    AdamW reads parameters, gradient and two moments and writes all but the gradient.
    Every `ema_every` updates the average is read with the parameters and written.

    Args:
        size: bytes of the parameters.
    """
    return 7 * size + 3 * size / ema_every


def measure_batch(
    config: ConfigDict,
    batch: int,
    num_updates: int,
    *,
    max_seconds: float = MAX_SECONDS,
) -> dict[str, Any]:
    """One row: an epoch of minibatches of `batch` windows."""
    config.pretrain.batch_size = batch
    part = pretrain_part(make_setup(config), num_updates)
    about = {"batch": batch, "updates": num_updates}
    row = measure_alone(part, about, max_seconds=max_seconds)
    return row | {"samples/s": batch * num_updates / row["median s"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, if asked, keep the table."""
    parser = command_line.make_parser("pretrain", HOPPER)
    parser.add_argument("--batch", nargs="+", type=int, help="windows per update")
    parser.add_argument("--updates", type=int, default=200, help="per epoch")
    options = parser.parse_args(arguments)
    config, report = command_line.start(options)
    rows = [
        measure_batch(config, batch, options.updates)
        for batch in options.batch or [config.pretrain.batch_size]
    ]
    timing.finish(f"pretrain-{config.env.task}", rows, report, options.json)


if __name__ == "__main__":
    main()
