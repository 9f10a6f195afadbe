"""Measures how the time of an iteration grows with the number of environments.

    python -m benchmarks.scaling [--config experiments/configs/hopper.py:v0_8]
        [--envs 64 256 1024 4096] [--chunks 4] [--pairs 2500] [--plot [PATH]]
        [--set KEY=VALUE ...] [--json [PATH]]

Every environment runs `chunks` action chunks, and every update has the same number of
pairs, so twice the environments make twice the updates of the same cost. The time of
physics and denoising should be proportional to the number of environments, and the
milliseconds per update constant. `growth` is the exponent from one row to the next, 1
for proportional. The parts are timed as in `benchmarks.train_step`.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from ml_collections import ConfigDict

from benchmarks import command_line, timing
from benchmarks.denoising import denoising_part
from benchmarks.setups import HOPPER, Part, Setup, make_setup
from benchmarks.train_step import (
    critic_update_part,
    num_updates,
    physics_part,
    policy_update_part,
    step_part,
)
from dppo_jax.errors import SettingsError
from experiments.plots import save_figure

MAX_SECONDS = 20.0


def measure_envs(
    config: ConfigDict, envs: int, chunks: int, pairs: int, max_seconds: float
) -> dict[str, Any]:
    """One row: an iteration with `envs` environments and its parts.

    Raises:
        SettingsError: fewer pairs in an iteration than in an update.
    """
    print(f"measuring {envs:,} environments", file=sys.stderr, flush=True)
    available = envs * chunks * config.model.sampling.num_tuned_steps
    if available < pairs:
        raise SettingsError(
            f"--pairs={pairs} exceeds the {available} pairs of {envs} environments x "
            f"{chunks} chunks; lower it, or raise --envs or --chunks."
        )
    config.rollout.update(num_envs=envs, num_chunks=chunks)
    config.algorithm.ppo.update(batch_size=pairs, epochs=1)
    setup = make_setup(config)
    makers: dict[str, Callable[[Setup], Part]] = dict(
        physics=physics_part,
        denoising=denoising_part,
        policy=policy_update_part,
        critic=critic_update_part,
        step=step_part,
    )
    calls = {name: make(setup).call for name, make in makers.items()}
    timings = timing.measure_together(list(calls.values()), max_seconds=max_seconds)
    seconds = {name: t.median for name, t in zip(calls, timings)}
    updates = num_updates(config)
    update = seconds["policy"] + seconds["critic"]
    return {
        "environments": envs,
        "updates": updates,
        "physics s": seconds["physics"],
        "denoising s": seconds["denoising"],
        "updates s": update,
        "step s": seconds["step"],
        "ms/update": 1e3 * update / updates,
        "control steps/s": envs * chunks * setup.env.action_shape[0] / seconds["step"],
    }


def add_growth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each row the growth exponents of physics and of the time per update."""
    for name, column in (("physics", "physics s"), ("update", "ms/update")):
        before: dict[str, Any] | None = None
        for row in rows:
            row[f"{name} growth"] = None
            if before is not None:
                more = math.log(row["environments"] / before["environments"])
                grown = math.log(row[column] / before[column])
                row[f"{name} growth"] = grown / more
            before = row
    return rows


def plot(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw seconds of an iteration and its parts, and milliseconds per update."""
    envs = [row["environments"] for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5))
    for name in ("step s", "physics s", "denoising s", "updates s"):
        seconds = [row[name] for row in rows]
        left.loglog(envs, seconds, "o-", label=name.removesuffix(" s"))
    start = rows[0]["physics s"] / envs[0]
    left.loglog(envs, [start * x for x in envs], "k:", label="proportional")
    left.set(xlabel="environments", ylabel="seconds", title="iteration")
    left.legend(fontsize="small")
    right.semilogx(envs, [row["ms/update"] for row in rows], "o-")
    right.set(xlabel="environments", ylabel="milliseconds", title="one update")
    right.set_ylim(bottom=0)
    figure.suptitle(title, fontsize="small")
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, if asked, keep the table and draw it."""
    parser = command_line.make_parser("scaling", HOPPER)
    add = parser.add_argument
    add("--envs", nargs="+", type=int, default=[64, 256, 1024, 4096])
    add("--chunks", type=int, default=4, help="per environment")
    add("--pairs", type=int, default=2500, help="per update")
    add("--max-seconds", type=float, default=MAX_SECONDS, help="to repeat a row")
    add("--plot", nargs="?", const="", help="plot it, in docs/results/")
    options = parser.parse_args(arguments)
    config, report = command_line.start(options)
    shape = options.chunks, options.pairs, options.max_seconds
    rows = [measure_envs(config, envs, *shape) for envs in sorted(options.envs)]
    rows = add_growth(rows)
    name = f"scaling-{config.env.task}"
    timing.finish(name, rows, report, options.json)
    if options.plot is not None:
        default = timing.RESULTS.parents[1] / "docs" / "results" / f"{name}.png"
        title = f"{config.env.task}, {options.pairs:,} pairs per update"
        title = f"{title}; {report['processor']}, {report['cores']} cores"
        if report["platform"] != "cpu":
            title = f"{config.env.task}; {report['device']}"
        plot(rows, Path(options.plot or default), title)


if __name__ == "__main__":
    main()
