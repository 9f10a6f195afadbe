"""Measures how long a robot waits for its policy: a call of `Controller`.

    python -m benchmarks.latency [--task hopper] [--set KEY=VALUE ...] [--calls 500]
        [--json [PATH]]

Each row is a policy with new networks: 20 steps of DDPM, 5 steps of DDIM, flows of 4
and 1 steps, and a Gaussian. Every call samples a chunk, from the observation in task
units to the actions in task units, one after the other as in a control loop. To measure
one core, start it with `taskset -c 0`.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import timing
from benchmarks.setups import unit_normalizer
from dppo_jax.controller import Controller
from dppo_jax.deploy import LoadedPolicy
from dppo_jax.envs.build import make_single
from dppo_jax.policies import make_policy
from dppo_jax.policies.build import obs_like
from experiments.settings import load_config, override

# Variants of the configurations of a task, by what a row is called.
VARIANTS = {
    "hopper": {
        "DDPM, 20 steps": "fast",
        "DDIM, 5 steps": "fast_ddim",
        "flow, 4 steps": "flow",
        "flow, 1 step": "flow1",
        "Gaussian": "fast_gaussian",
    },
    "avoid": {
        "DDPM, 20 steps": "m1",
        "DDIM, 5 steps": "m1_ddim",
        "flow, 4 steps": "m1_flow",
        "flow, 1 step": "m1_flow1",
        "Gaussian": "m1_gaussian",
    },
}
_WARM_CALLS = 20


def new_policy(config: ConfigDict) -> LoadedPolicy:
    """The policy of a configuration, with new networks and bounds of +-1."""
    normalizer = unit_normalizer(config)
    policy = make_policy(config.model, action_dim=len(normalizer.action_min))
    obs = obs_like(
        config.model,
        history=config.env.history,
        obs_dim=len(normalizer.obs_min),
    )
    zeros = {name: np.zeros(x.shape, x.dtype) for name, x in obs.items()}
    params = policy.init(jax.random.key(0), zeros)
    reads = {k: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for k, x in obs.items()}
    settings = {"env": {}, "model": config.model.to_dict()}
    return LoadedPolicy(params, policy.act, normalizer, settings, 0, reads=reads)


def measure_policy(name: str, config: ConfigDict, num_calls: int) -> dict[str, Any]:
    """One row of the table; times in milliseconds."""
    policy = new_policy(config)
    began = time.perf_counter()
    controller = Controller(policy, executed=1)
    compiled = time.perf_counter() - began
    obs = {k: np.zeros(x.shape[1:], x.dtype) for k, x in policy.reads.items()}
    seconds = []
    for _ in range(_WARM_CALLS + num_calls):
        began = time.perf_counter()
        controller(obs)
        seconds.append(time.perf_counter() - began)
    taken = 1000 * np.array(seconds[_WARM_CALLS:])
    view = make_single(config.env).view
    return {
        "policy": name,
        "p50 ms": float(np.percentile(taken, 50)),
        "p99 ms": float(np.percentile(taken, 99)),
        "slowest ms": float(taken.max()),
        "control period ms": None if view is None else 1000 * view.period,
        "chunk": config.model.chunk,
        "compile s": compiled,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, if asked, keep the table."""
    parser = argparse.ArgumentParser("benchmarks.latency")
    add = parser.add_argument
    add("--task", default="hopper", choices=VARIANTS, help="whose configurations")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change settings")
    add("--calls", type=int, default=500, help="control steps that are timed")
    timing.add_json(parser)
    options = parser.parse_args(arguments)
    report = timing.start() | {"config": " ".join([options.task, *options.set])}
    rows = []
    for name, variant in VARIANTS[options.task].items():
        config = load_config(f"experiments/configs/{options.task}.py:{variant}")
        override(config, options.set, "--set ")
        rows.append(measure_policy(name, config, options.calls))
    timing.finish(f"latency-{options.task}", rows, report, options.json)


if __name__ == "__main__":
    main()
