"""The scores of a comparison: a file, a table and curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from ml_collections import ConfigDict

from dppo_jax.errors import SettingsError
from dppo_jax.training.config_file import write_atomically
from dppo_jax.training.metric_names import EVALUATION, SCORES
from dppo_jax.training.metrics import read_metrics
from experiments import plots, statistics, tables
from experiments.directories import run_path
from experiments.inputs import NO_POLICY

COLUMNS = (
    *("label", "seed", "iteration", "env_steps", "seconds"),
    *("metric", "score", "num_episodes"),
)
_DEFAULTS = tuple(EVALUATION + name for name in SCORES)


class Run(NamedTuple):
    """One seed of an entry. failure: why it failed, empty if it did not."""

    label: str
    config: ConfigDict
    failure: str = ""

    @property
    def run_dir(self) -> str:
        return run_path(self.config, "finetune")

    def rows(self) -> list[dict[str, float]]:
        """Its metrics, up to the configured number of iterations."""
        last = self.config.loop.finetune.num_iterations
        return [row for row in read_metrics(self.run_dir) if row["iteration"] <= last]


class Final(NamedTuple):
    """Where a run ended: its last score, and its environment steps and speed.

    highest: of all scores, that of the checkpoint `best` if the metric decides it.
    """

    score: float
    highest: float
    env_steps: float
    seconds: list[float]


def save(output: str, runs: Sequence[Run], metric: str = "") -> None:
    """Write scores.csv, table.md and curves.png, and print the table.

    Runs that failed are named below the table, and count nowhere else.

    Args:
        metric: column of `metrics.csv`; empty: the success if all runs have it, or else
            the return.

    Raises:
        SettingsError: a run without this metric.
    """
    done = [run for run in runs if not run.failure]
    metric = metric or default_metric(done)
    check_metric(done, metric)
    save_scores(Path(output) / "scores.csv", done, metric)
    text = make_table(runs, metric)
    write_atomically(Path(output) / "table.md", text)
    print(f"\n{text}", flush=True)
    print(f"wrote {Path(output) / 'table.md'} and scores.csv")
    if done:
        save_curves(Path(output) / "curves.png", done, metric)


def check_metric(runs: Sequence[Run], metric: str) -> None:
    """Raise SettingsError if a run has not logged this column of `metrics.csv`."""
    for run in runs:
        if metric not in _names(run):
            raise SettingsError(
                f"{run.run_dir}: metrics.csv has no {metric!r}; pass --metric=NAME, "
                f"one of {', '.join(sorted(_names(run)))}."
            )


def make_table(runs: Sequence[Run], metric: str) -> str:
    """The comparison in Markdown, and below it what its columns mean."""
    return f"{compare_runs(runs, metric)}\n{notes(runs)}"


def compare_runs(
    runs: Sequence[Run], metric: str, *, target: float | None = None
) -> str:
    """The comparison in Markdown, and the runs that failed.

    Args:
        target: a score; when evaluations first reach it is told too. None: no columns.
    """
    groups = _groups(runs)
    finals = {
        label: [_final(run, metric) for run in group if not run.failure]
        for label, group in groups.items()
    }
    base = next(iter(groups))
    sure = f"{100 * statistics.CONFIDENCE:.0f} %"
    header = ["entry", "seeds", f"final {metric}: IQM [{sure} interval]"]
    header += ["highest: IQM", "environment steps", "seconds per iteration"]
    header += [f"P(better than {base}) [{sure} interval]"]
    if target is not None:
        header += [f"environment steps to {target:g}", f"seconds to {target:g}"]
    rows = []
    for label, ended in finals.items():
        count, total = len(ended), len(groups[label])
        cells = [label, str(count) if count == total else f"{count} of {total}"]
        cells += _cells(ended, [] if label == base else finals[base])
        if target is not None:
            done = [run for run in groups[label] if not run.failure]
            cells += _until(done, metric, target)
        rows.append(cells)
    table = tables.markdown(header, rows)
    failed = [
        f"- failed: {run.label}, seed {run.config.seed}: {run.failure}"
        for run in runs
        if run.failure
    ]
    return "\n".join([table, "", *failed, *([""] if failed else [])])


def reached(run: Run, metric: str, target: float) -> tuple[float, float] | None:
    """Environment steps and seconds of training up to the first score of `target`.

    The seconds are those of the curves, without evaluations. None: never.
    """
    steps, seconds = (
        plots.curve(run.rows(), metric, axis) for axis in ("env_steps", "seconds")
    )
    for iteration, (place, score) in sorted(steps.items()):
        if score >= target:
            return place, seconds[iteration][0]
    return None


def _until(runs: Sequence[Run], metric: str, target: float) -> list[str]:
    places = [reached(run, metric, target) for run in runs]
    found = [place for place in places if place is not None]
    if not found:
        return ["-", "-"]
    steps, seconds = np.median(found, axis=0)
    few = "" if len(found) == len(runs) else f" ({len(found)} of {len(runs)})"
    return [f"{steps:.0f}{few}", f"{seconds:.3g}{few}"]


def notes(runs: Sequence[Run], *, target: float | None = None) -> str:
    """What the columns of `compare_runs` mean."""
    evaluation = runs[0].config.evaluate
    mode = "deterministic" if evaluation.deterministic else "exploring"
    start = ""
    if any(run.config.policy != NO_POLICY for run in runs):
        start = (
            " All seeds of an entry start from the same policy, so its interval leaves "
            "out how cloning varies."
        )
    return (
        f"Final: the last evaluation of a run, {evaluation.num_episodes} episodes of "
        f"the {mode} policy. Highest: the best evaluation of each run, which "
        "overstates a policy that varies. IQM: the mean over seeds without the lowest "
        "and the highest quarter, rounded down, so of three seeds it drops none. "
        "Intervals: percentiles of a bootstrap over the seeds of each entry; few "
        "seeds make them too narrow, and one seed has none. P(better): the "
        "probability that a run scores higher than one of the first entry, ties "
        "counted half (Agarwal et al. 2021, arXiv 2108.13264). Environment steps and "
        f"seconds are medians; the time of the curves includes compiling.{start}"
        f"{_NOTE_ON_TARGETS if target is not None else ''}\n"
    )


_NOTE_ON_TARGETS = (
    " Steps and seconds to a score: until the first evaluation that reaches it, "
    "without the time of evaluations; medians over the seeds that reach it, whose "
    "number is given if not all do."
)


def _cells(ended: Sequence[Final], base: Sequence[Final]) -> list[str]:
    if not ended:
        return ["-"] * 5
    values = [final.score for final in ended]
    score = float(statistics.interquartile_mean(np.array(values)))
    ends = statistics.interval(statistics.interquartile_mean, values)
    highest = statistics.interquartile_mean(np.array([x.highest for x in ended]))
    seconds = np.median([x for final in ended for x in final.seconds] or [np.nan])
    cells = [
        tables.with_interval(score, ends),
        f"{float(highest):.4g}",
        f"{np.median([final.env_steps for final in ended]):.0f}",
        f"{seconds:.3g}",
    ]
    if not base:
        return [*cells, "-"]
    others = [final.score for final in base]
    chance = float(statistics.improvement(np.array(values), np.array(others)))
    ends = statistics.interval(statistics.improvement, values, others)
    return [*cells, tables.with_interval(chance, ends)]


def _final(run: Run, metric: str) -> Final:
    rows = run.rows()
    scored = [row for row in rows if metric in row]
    steps = [row["env_steps"] for row in rows if "env_steps" in row]
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    return Final(
        scored[-1][metric],
        max(row[metric] for row in scored),
        steps[-1] if steps else np.nan,
        seconds,
    )


def _groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def _names(run: Run) -> set[str]:
    return {name for row in run.rows() for name in row}


def default_metric(runs: Sequence[Run]) -> str:
    """The success if all runs have evaluated it, or else the return."""
    logged = [_names(run) for run in runs]
    shared = set.intersection(*logged) if logged else set()
    return next(filter(shared.__contains__, _DEFAULTS), _DEFAULTS[-1])


def save_scores(path: Path, runs: Sequence[Run], metric: str) -> None:
    """Write one row for each evaluation."""
    found = []
    for run in runs:
        rows = run.rows()
        seconds = plots.curve(rows, metric, "seconds")
        for iteration, (steps, score) in plots.curve(rows, metric, "env_steps").items():
            place = [int(iteration), f"{steps:.0f}", seconds[iteration][0]]
            result = [metric, score, run.config.evaluate.num_episodes]
            found.append([run.label, run.config.seed, *place, *result])
    write_atomically(path, tables.comma_separated(COLUMNS, found))


def save_curves(path: Path, runs: Sequence[Run], metric: str) -> None:
    """Draw the scores over environment steps and over training time."""
    groups = {
        label: [run.run_dir for run in group] for label, group in _groups(runs).items()
    }
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
    for ax, over in zip(axes, ("env_steps", "seconds")):
        plots.plot_curves(ax, groups, metric, over)
    axes[0].get_legend().remove()  # It is that of the other plot.
    plots.save_figure(figure, path)
