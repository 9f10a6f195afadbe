"""Measures one iteration of every algorithm of a task, and its floor.

    python -m benchmarks.algorithms [--task hopper] [--only NAME ...] [--json [PATH]]

Each algorithm has the settings of its variant in `experiments/configs/TASK.py`, but it
learns from the first iteration on: warm-up, random actions and updates from
demonstrations alone are left out. Networks are new, and demonstrations are random.

The floor adds up the physics of a roll-out under random actions and the matrix products
of the iteration, each alone at its fastest (`floors.alone_seconds`). It leaves out
optimizers, replay, noise and the engine's share of a roll-out's end.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import floors, timing
from benchmarks.setups import (
    EnvSetup,
    Part,
    env_and_policy,
    measure_part,
    random_obs,
    unit_normalizer,
)
from benchmarks.train_step import physics_part
from dppo_jax.algorithms import find_algorithm, make_algorithm
from dppo_jax.demonstrations.dataset import Episodes
from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer
from dppo_jax.training import seeds
from dppo_jax.training.loop import compiled_step
from dppo_jax.types import Metrics, VecEnv
from experiments.settings import load_config, override

_BOTH = "drwr dawr idql dql qsm dipo ogpo dsrl rlpd calql ibrl".split()
# Label -> variant of the configuration, of each task.
VARIANTS = {
    "avoid": {"dppo": "m1"} | {name: f"m1_{name}" for name in _BOTH},
    "hopper": {"dppo": "fast"} | {name: name for name in (*_BOTH, "sac")},
}
# Settings that delay learning, and values with which it starts at once.
_AT_ONCE: dict[str, Any] = {
    "critic_warmup": 0,
    "offline_iterations": 0,
    "replay.min_fill": 0,
    "replay.random_steps": 0,
}
_DEMONSTRATED_STEPS = 2000


def learning_config(config: ConfigDict) -> ConfigDict:
    """The configuration of an algorithm that learns in its first iteration."""
    settings = config.algorithm[config.algorithm.name]
    for name, value in _AT_ONCE.items():
        section, _, key = name.rpartition(".")
        owner = settings.get(section, {}) if section else settings
        if key in owner:
            owner[key] = value
    return config


def random_demonstrations(env: VecEnv, normalizer: Normalizer) -> Episodes:
    """Random episodes with rewards; their values do not affect the time."""
    draw = np.random.default_rng(0).uniform
    steps, length = _DEMONSTRATED_STEPS, 100
    shapes = (env.obs_shape["state"][-1], env.action_shape[-1])
    obs, actions = (draw(-1, 1, (steps, size)).astype(np.float32) for size in shapes)
    return Episodes(
        observations={"state": obs},
        actions=actions,
        episode_lengths=np.full(steps // length, length),
        rewards=np.ones(steps, np.float32),
        terminals=np.zeros(steps, bool),
        normalizer=normalizer,
    )


def updates_of_unknown_number(metrics: Metrics, config: ConfigDict) -> int:
    """How often the loops run in which an algorithm may stop early.

    Such loops run over the minibatches of all epochs, in DRWR over those of one.
    """
    if config.algorithm.name == "drwr":
        return int(metrics["num_updates"]) // config.algorithm.drwr.epochs
    return int(metrics.get("num_updates", 0))


def measure_algorithm(
    label: str, config: ConfigDict, *, max_seconds: float
) -> dict[str, Any]:
    """One row of the table."""
    config = learning_config(config)
    env, policy = env_and_policy(config)
    data = None
    if find_algorithm(config.algorithm.name).uses_data:
        data = random_demonstrations(env, unit_normalizer(config))
    algorithm = make_algorithm(env, policy, config, data)
    setup = EnvSetup(config, env)
    params = policy.init(jax.random.key(1), random_obs(setup, 1))
    start = algorithm.init(jax.random.key(0), params)
    step_of = compiled_step(algorithm)
    # A step overwrites its state.
    state, metrics = step_of(seeds.copy(start))
    call = timing.Call(step_of, (state,), carry=True)
    unknown = updates_of_unknown_number(metrics, config)
    found = floors.products(algorithm.step, start, unknown=unknown)
    physics = measure_part(physics_part(setup), max_seconds=max_seconds)
    step = measure_part(Part("step", call), max_seconds=max_seconds)
    products = floors.alone_seconds(found)
    floor = products + physics["median s"]
    rollout = config.rollout
    return {
        "algorithm": label,
        "control steps": rollout.num_envs * rollout.num_chunks * env.action_shape[0],
        "iteration s": step["median s"],
        "fastest": step["fastest"],
        "slowest": step["slowest"],
        "GFLOP": sum(product.flops * count for product, count in found) / 1e9,
        "products s": products,
        "physics s": physics["median s"],
        "floor s": floor,
        "utilisation": floor / step["median s"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, if asked, keep the table."""
    parser = argparse.ArgumentParser("benchmarks.algorithms")
    add = parser.add_argument
    add("--task", default="avoid", choices=VARIANTS, help="whose configurations")
    add("--only", nargs="*", metavar="NAME", help="algorithms; default: all")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change settings")
    add("--seconds", type=float, default=20.0, help="of repeats, for each algorithm")
    timing.add_json(parser)
    options = parser.parse_args(arguments)
    variants = VARIANTS[options.task]
    for name in options.only or ():
        if name not in variants:
            raise SettingsError(f"--only {name}: use some of {', '.join(variants)}.")
    report = timing.start() | {"config": " ".join([options.task, *options.set])}
    rows = []
    try:
        for label in options.only or variants:
            spec = f"experiments/configs/{options.task}.py:{variants[label]}"
            config = load_config(spec)
            override(config, options.set, "--set ")
            rows.append(measure_algorithm(label, config, max_seconds=options.seconds))
            print(f"{label}: {rows[-1]['iteration s']:.3g} s", flush=True)
    finally:  # A failure keeps the rows before it.
        if rows:
            timing.finish(f"algorithms-{options.task}", rows, report, options.json)


if __name__ == "__main__":
    main()
