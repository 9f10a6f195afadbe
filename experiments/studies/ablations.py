"""Vary one setting at a time: python -m experiments.studies.ablations ...

Fine-tunes variants of one configuration with the same seeds, one run after another, and
writes a table and curves for each axis. Two examples:

  python -m experiments.studies.ablations --output=runs/ablations/avoid \\
      --preset=avoid:tuned_steps --config.data=DEMOS/avoid_m2
  python -m experiments.studies.ablations --output=runs/ablations/mine \\
      --config=experiments/configs/avoid.py:m2 --axis=tuned_steps=5,10 \\
      --axis=algorithm.ppo.epochs=5,10 --seeds=2

--axis=NAME=VALUE,VALUE,... may be repeated. A NAME is one of the axes in
docs/studies.md, with which other settings change too (the minibatch follows K'), or any
setting. --preset=TASK has the axes and values of the paper for avoid, hopper or can,
--preset=TASK:AXIS one of them; --config=FILE.py:VARIANT replaces its configuration.
--config.KEY=VALUE changes a setting of all runs. --target=SCORE also tells when that is
reached. --dry-run lists the runs, with their sizes and how long they take if that is
known, and writes nothing.

Every variant is a folder, with a run directory for each seed. Demonstrations and
cloned policies that are missing are made first; variants whose settings of cloning
agree share them. The same command goes on after an interruption, finished runs are not
repeated, and seeds, axes or values may be added.

It writes OUTPUT/table.md, scores.csv and AXIS.png.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dppo_jax.errors import SettingsError
from dppo_jax.training.config_file import write_atomically
from experiments import compare, processes, scores
from experiments.command_line import Parser, split_changes, split_values
from experiments.entries import ALL, prepare, read_entries
from experiments.inputs import NO_POLICY
from experiments.settings import load_config, override
from experiments.studies import plan
from experiments.studies.axes import find_axis, settings_for
from experiments.studies.presets import TASKS, Preset, Task
from experiments.studies.variants import Base, Table, Variant, make_variants


class Ablations(NamedTuple):
    """What the command line says."""

    comparison: compare.Comparison
    variants: list[Variant]
    tables: list[Table]
    target: float | None
    is_dry_run: bool


def main(arguments: Sequence[str]) -> int:
    """Run what is left to run, and write the results; returns the exit status.

    Raises:
        SettingsError: a wrong argument or setting; nothing has run then.
    """
    given = parse(arguments)
    comparison = given.comparison
    if given.is_dry_run:
        entries = prepare(comparison.output, comparison.entries, write=False)
        changed = {x.label: _in_words(x.settings) for x in given.variants}
        print(plan.describe(entries, changed), end="")
        return 0
    runs = compare.run(comparison)
    save(comparison.output, runs, given.tables, comparison.metric, given.target)
    compare.say_what_is_left_out(comparison.output, runs)
    return int(any(run.failure for run in runs))


def _in_words(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def save(
    output: str,
    runs: Sequence[scores.Run],
    tables: Sequence[Table],
    metric: str,
    target: float | None,
) -> None:
    """Write scores.csv, table.md, and curves for each axis, and print the tables."""
    done = [run for run in runs if not run.failure]
    metric = metric or scores.default_metric(done)
    scores.check_metric(done, metric)
    folder = Path(output)
    scores.save_scores(folder / "scores.csv", done, metric)
    parts = []
    for table in tables:
        own = [
            run._replace(label=name)
            for name, label in table.rows.items()
            for run in runs
            if run.label == label
        ]
        parts.append(f"`{table.axis}`: {find_axis(table.axis).meaning}\n")
        parts.append(scores.compare_runs(own, metric, target=target))
        finished = [run for run in own if not run.failure]
        if finished:
            scores.save_curves(folder / f"{table.axis}.png", finished, metric)
    text = "\n".join([*parts, scores.notes(runs, target=target)])
    write_atomically(folder / "table.md", text)
    print(f"\n{text}", flush=True)
    print(f"wrote {folder / 'table.md'} and scores.csv")


def parse(arguments: Sequence[str]) -> Ablations:
    """Read the command line; writes nothing.

    Raises:
        SettingsError: a wrong argument, configuration or setting.
    """
    changes, words = split_changes(arguments)
    parser = Parser("experiments.studies.ablations", __doc__)
    add = parser.add_argument
    add("--output", default="", metavar="FOLDER", help="where to write (required)")
    add("--preset", default="", metavar="TASK:AXIS", help="ablations of the paper")
    add("--config", default="", metavar="FILE.py:VARIANT", help="what to vary")
    add("--axis", action="append", default=[], metavar="NAME=VALUE,VALUE,...")
    add("--seeds", type=int, default=3, metavar="N", help="runs of each (default: 3)")
    add("--target", type=float, metavar="SCORE", help="default: that of the preset")
    metric = "column of metrics.csv that is the score (default: as experiments.compare)"
    add("--metric", default="", metavar="NAME", help=metric)
    add("--dry-run", action="store_true", help="list the runs only")
    options = parser.parse_args(words)
    if options.seeds < 1:
        raise SettingsError(f"--seeds={options.seeds} must be at least 1.")
    axes = _read_axes(options.axis)
    spec, target, preset = options.config, options.target, None
    if options.preset:
        task, presets = _find_presets(options.preset)
        spec = spec or task.config
        target = task.target if target is None else target
        preset = next(iter(presets.values()))
        axes = {name: list(x.values) for name, x in presets.items()} | axes
    if not spec or not axes:
        raise SettingsError(
            "nothing to vary; pass --preset=TASK, or --config=FILE.py:VARIANT and "
            "--axis=NAME=VALUE,VALUE,..."
        )
    bases = [Base("base", spec), *(_others(spec, preset, changes) if preset else [])]
    variants, tables = make_variants(bases, axes, changes)
    settings = [(ALL, change) for change in changes]
    settings += [
        (variant.label, f"{key}={value}")
        for variant in variants
        for key, value in variant.settings.items()
    ]
    entries = read_entries(
        [f"{x.label}={x.spec}" for x in variants],
        settings,
        output=options.output,
        num_seeds=options.seeds,
    )
    if not options.output:
        raise SettingsError("no folder to write to; pass --output=runs/ablations/NAME.")
    comparison = compare.Comparison(entries, options.output, options.metric)
    return Ablations(comparison, variants, tables, target, options.dry_run)


def _read_axes(words: Sequence[str]) -> dict[str, list[str]]:
    axes: dict[str, list[str]] = {}
    for word in words:
        name, _, text = word.partition("=")
        values = split_values(text)
        if not name or not all(values):
            raise SettingsError(
                f"--axis={word} names no values; write --axis=NAME=VALUE,VALUE,..."
            )
        find_axis(name)
        axes[name] = list(dict.fromkeys([*axes.get(name, []), *values]))
    return axes


def _find_presets(name: str) -> tuple[Task, dict[str, Preset]]:
    """The task of a preset, and its ablations that are asked for."""
    task, _, axis = name.partition(":")
    if task not in TASKS:
        raise SettingsError(
            f"--preset={name} is unknown; use one of {', '.join(TASKS)}, or one axis "
            f"as {next(iter(TASKS))}:tuned_steps."
        )
    presets = TASKS[task].presets
    if axis and axis not in presets:
        raise SettingsError(
            f"--preset={name}: {task} has the axes {', '.join(presets)}."
        )
    if axis:
        return TASKS[task], {axis: presets[axis]}
    # Those of several configurations are studies of their own.
    return TASKS[task], {name: x for name, x in presets.items() if x.is_alone}


def _others(spec: str, preset: Preset, changes: Sequence[str]) -> list[Base]:
    """The configurations that a preset varies beside its first one."""
    config = load_config(spec)
    override(config, changes, "--config.")
    axis = "tuned_steps"
    chains = [
        Base(f"{axis}-{value}", spec, settings_for(config, axis, value))
        for value in preset.tuned_steps
    ]
    # A policy that was given is of the first configuration.
    own = {} if config.policy in ("", NO_POLICY) else {"policy": ""}
    return [*chains, *(Base(x.strip("_"), spec + x, own) for x in preset.others)]


if __name__ == "__main__":
    with processes.errors_in_one_line(resumes=True):
        sys.exit(main(sys.argv[1:]))
