"""Measures what saving checkpoints costs a run, in time and on disk.

    python -m benchmarks.checkpoints [--configs FILE.py:VARIANT ...]
        [--set KEY=VALUE ...] [--folder .] [--repeats 5] [--json [PATH]]

Each row is a configuration with new networks. Iterations run in turns with and without
a checkpoint before them. `save s` is what the loop waits for: copying the training
state and handing it over. Orbax then writes in threads beside the next iteration.
`cost s` is the time by which an iteration with a checkpoint takes longer, until all is
written. `share` is that time in the time of `every` iterations, the interval of the
configuration. An off-policy run has a full buffer of random numbers, as they compress
least; the last row leaves it out (`replay.in_checkpoints`).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks import timing
from benchmarks.setups import HOPPER, HOPPER_SAC, env_and_policy, unit_normalizer
from dppo_jax.algorithms import make_algorithm
from dppo_jax.replay import Replay
from dppo_jax.training import left_out, seeds
from dppo_jax.training.checkpoint import CHECKPOINTS, Checkpoints
from dppo_jax.training.loop import compiled_step
from dppo_jax.training.trees import storable
from dppo_jax.types import Algorithm
from experiments.settings import load_config, override

CONFIGS = ("experiments/configs/hopper.py:fast", HOPPER, HOPPER_SAC)
REPEATS = 5


def with_full_buffer(state: Any) -> Any:
    """The state with random numbers in its replay buffer, if it has one."""
    replay: Replay | None = getattr(state, "replay", None)
    if replay is None:
        return state

    def random(x: jax.Array) -> jax.Array:
        draw = jax.random.normal(jax.random.key(0), x.shape)
        return draw.astype(x.dtype)

    length = replay.items.reward.shape[1]
    full = jax.jit(lambda items: jax.tree.map(random, items))(replay.items)
    size = jnp.full_like(replay.size, length)
    return state._replace(replay=replay._replace(items=full, size=size))


def measure_saving(
    name: str,
    config: ConfigDict,
    folder: str,
    *,
    repeats: int = REPEATS,
) -> dict[str, Any]:
    """One row of the table.

    Args:
        name: of the row.
        folder: where checkpoints are written, and removed again.
    """
    env, policy = env_and_policy(config)
    algorithm = make_algorithm(env, policy, config)
    step = compiled_step(algorithm)
    state = seeds.copy(with_full_buffer(algorithm.init(jax.random.key(0))))
    state, _ = jax.block_until_ready(step(state))  # It compiles.
    alone, saving, together, sizes = [], [], [], []
    for number in range(repeats + 1):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state))
        if number:
            alone.append(time.perf_counter() - began)
        with tempfile.TemporaryDirectory(dir=folder) as run_dir:
            began = time.perf_counter()
            # Leaving the context waits until everything is written.
            with Checkpoints(run_dir) as checkpoints:
                opened = time.perf_counter() - began
                save(algorithm, checkpoints, config, state)
                saved = time.perf_counter() - began - opened
                state, _ = jax.block_until_ready(step(state))
            # The first one also imports and warms up.
            if number:
                saving.append(saved)
                together.append(time.perf_counter() - began - opened)
            sizes.append(_bytes(Path(run_dir, CHECKPOINTS)))
    iteration = statistics.median(alone)
    cost = statistics.median(together) - iteration
    every = config.loop.finetune.checkpoint_every
    return {
        "run": name,
        "iteration s": iteration,
        "every": every,
        "save s": statistics.median(saving),
        "cost s": cost,
        "share": cost / (every * iteration + cost),
        "MB on disk": max(sizes) / 1e6,
        "state MB": left_out.num_bytes(storable(state)) / 1e6,
    }


def save(
    algorithm: Algorithm, checkpoints: Checkpoints, config: ConfigDict, state: Any
) -> None:
    """Save a state as the host loop does."""
    params = algorithm.params(state)
    kept, params = seeds.copy((state, params))
    if not algorithm.saves_dispensable:
        kept, _ = left_out.leave_out(kept, algorithm.dispensable)
    checkpoints.save(1, kept, params, unit_normalizer(config))


def _bytes(folder: Path) -> int:
    return sum(x.stat().st_size for x in folder.rglob("*") if x.is_file())


def rows_of(spec: str, settings: Sequence[str]) -> list[tuple[str, ConfigDict]]:
    """The configurations of the rows of a file, by their names."""
    config = load_config(spec)
    override(config, settings, "--set ")
    found = [(config.name, config)]
    replay = config.algorithm[config.algorithm.name].get("replay")
    if replay is not None and "in_checkpoints" in replay:
        without = config.copy_and_resolve_references()
        without.algorithm[config.algorithm.name].replay.in_checkpoints = False
        found.append((f"{config.name}, without buffer", without))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, if asked, keep the table."""
    parser = argparse.ArgumentParser("benchmarks.checkpoints")
    add = parser.add_argument
    add("--configs", nargs="+", default=CONFIGS, metavar="FILE.py:VARIANT")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change settings")
    add("--folder", default=".", help="on the disk to measure")
    add("--repeats", type=int, default=REPEATS, help="checkpoints of a row")
    timing.add_json(parser)
    options = parser.parse_args(arguments)
    report = timing.start() | {"config": " ".join([*options.configs, *options.set])}
    rows = [
        measure_saving(name, config, options.folder, repeats=options.repeats)
        for spec in options.configs
        for name, config in rows_of(spec, options.set)
    ]
    timing.finish("checkpoints", rows, report, options.json)


if __name__ == "__main__":
    main()
