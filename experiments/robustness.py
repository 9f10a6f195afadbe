"""Score policies under other conditions: python -m experiments.robustness \\
       --output=FOLDER --over=SETTING=VALUE,VALUE,... LABEL=RUN,RUN ...

Evaluates every run with each value of a setting, such as those of env.randomization,
which are off otherwise, also for runs that were trained with them. A single number for
a setting that is a range means exactly this number. An example:

  python -m experiments.robustness --output=runs/robustness/hopper \\
      --over=env.randomization.mass=0.8,1,1.2,1.5 \\
      --over=env.randomization.action_noise=0,0.1,0.2 \\
      dppo=runs/hopper/seed0,runs/hopper/seed1 gaussian=runs/gaussian

Runs with the same label are seeds of one method. --over may be repeated, ; separates
values that contain commas, --checkpoint=best takes another checkpoint, and
--config.KEY=VALUE changes a setting of all evaluations. Settings of env and evaluate
can be changed. It writes FOLDER/table.md, scores.csv and scores.png.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from ml_collections import ConfigDict

from dppo_jax import runtime
from dppo_jax.deploy import LoadedPolicy
from dppo_jax.envs import randomize
from dppo_jax.errors import SettingsError
from dppo_jax.evaluate import summarize
from dppo_jax.training.config_file import write_atomically
from dppo_jax.training.run_directory import check_folder, make_folder
from experiments import conditions as under
from experiments import inputs, intervals, plots, processes, tables
from experiments.command_line import Parser, split_changes
from experiments.conditions import Condition, Scored
from experiments.directories import config_of_run, read_groups
from experiments.evaluate import make_score
from experiments.settings import override

# The sections that a score depends on.
_READ = ("env.", "evaluate.")
# They decide what the networks read, or how many episodes there are.
_NOT = ("env.task", "env.history", "evaluate.until_width")


def main(
    groups: Mapping[str, Sequence[str]],
    conditions: Sequence[Condition],
    output: str,
    *,
    changes: Sequence[str] = (),
    checkpoint: int | str = "latest",
) -> list[Scored]:
    """Run the program.

    Args:
        groups: label -> run directories.
        changes: KEY=VALUE of all evaluations.

    Raises:
        SettingsError: a wrong argument or setting; all are checked before any policy is
            scored.
    """
    if not output:
        raise SettingsError(
            "no folder to write to; pass --output=runs/robustness/NAME."
        )
    check_folder(output, flag="--output")
    planned = [
        (label, run, _configs(run, conditions, changes))
        for label, runs in groups.items()
        for run in runs
    ]
    under.check_one_task(next(iter(x.values())).env.task for _, _, x in planned)
    make_folder(output, flag="--output")
    scored: list[Scored] = []
    for label, run, configs in planned:
        policy = inputs.find_policy(config_of_run(run), "finetune", checkpoint)
        for condition, config in configs.items():
            scored.append(_score(label, run, policy, condition, config))
            # What is done stays, however the program ends.
            write_atomically(Path(output) / "scores.csv", under.rows(scored))
    text = make_tables(scored)
    write_atomically(Path(output) / "table.md", text)
    print(f"\n{text}", flush=True)
    _draw(Path(output) / "scores.png", scored)
    print(f"wrote {Path(output) / 'table.md'} and scores.csv")
    return scored


def read_conditions(words: Sequence[str]) -> list[Condition]:
    """The conditions that SETTING=VALUE,VALUE,... name.

    Raises:
        SettingsError: no setting or no value.
    """
    conditions = []
    for word in words:
        found = under.read(word)
        if not found:
            raise SettingsError(
                f"--over={word} names no values; write --over=SETTING=VALUE,VALUE,..."
            )
        conditions += found
    if not conditions:
        raise SettingsError(
            "nothing to vary; pass --over=SETTING=VALUE,VALUE,..., such as "
            "--over=env.randomization.mass=0.8,1,1.2."
        )
    return list(dict.fromkeys(conditions))


def make_tables(scored: Sequence[Scored]) -> str:
    """One table for each setting, in Markdown."""
    metric, labels = scored[0].metric, list(dict.fromkeys(x.label for x in scored))
    parts = []
    for setting in dict.fromkeys(x.condition.setting for x in scored):
        own = [x for x in scored if x.condition.setting == setting]
        values = list(dict.fromkeys(x.condition.value for x in own))
        rows = []
        for label in labels:
            cells = list(_cells(own, label).values())
            found = [tables.with_interval(*under.over_runs(cell)) for cell in cells]
            rows.append([label, str(len(cells[0])), *found])
        table = tables.markdown([metric, "runs", *values], rows)
        parts += [f"`{setting}`\n", table, ""]
    return "\n".join([*parts, f"{under.in_words(scored)}\n"])


def _configs(
    run: str, conditions: Sequence[Condition], changes: Sequence[str]
) -> dict[Condition, ConfigDict]:
    for setting in (*(x.setting for x in conditions), *changes):
        name = setting.partition("=")[0]
        if not name.startswith(_READ) or name in (*_NOT, *inputs.NOT_SCORED):
            raise SettingsError(
                f"{name} does not change the score of a policy that is trained, or "
                "would not suit it; change other settings of env and evaluate."
            )
    config = config_of_run(run)
    inputs.check_task(config, "robustness")
    # What a run varied in training would hide the one condition.
    config.env.randomization.update(randomize.default_config())
    override(config, changes, "--config.")
    found = {}
    for condition in conditions:
        own = config.copy_and_resolve_references().lock()
        own.env.options.unlock()
        setting, value = condition
        *sections, key = setting.split(".")
        node = own
        for section in sections:
            node = node.get(section) if isinstance(node, ConfigDict) else None
        before = node.get(key) if isinstance(node, ConfigDict) else None
        if isinstance(before, tuple) and len(before) == 2 and "," not in value:
            value = f"({value},{value})"
        override(own, [f"{setting}={value}"], "--over=")
        randomize.check_config(own.env.randomization)
        found[condition] = own
    return found


def _score(
    label: str,
    run: str,
    policy: LoadedPolicy,
    condition: Condition,
    config: ConfigDict,
) -> Scored:
    assert policy.act is not None  # Its run has a configuration.
    result = summarize(make_score(config, policy.act, policy.normalizer)(policy.params))
    count = config.evaluate.num_episodes
    metric, score, ends = intervals.headline(result, count)
    print(
        f"{label} {run}  {condition.setting}={condition.value}: {metric} "
        f"{score:.4g}  {intervals.in_words(ends)}".rstrip(),
        flush=True,
    )
    return Scored(label, run, policy.iteration, condition, metric, score, ends, count)


def _cells(scored: Sequence[Scored], label: str) -> dict[str, list[Scored]]:
    """Value -> the runs of a label that were scored with it."""
    cells: dict[str, list[Scored]] = {}
    for x in scored:
        if x.label == label:
            cells.setdefault(x.condition.value, []).append(x)
    return cells


def _draw(path: Path, scored: Sequence[Scored]) -> None:
    """One panel for each setting: mean and range over runs, or the interval of one."""
    settings = list(dict.fromkeys(x.condition.setting for x in scored))
    figure, axes = plt.subplots(
        1, len(settings), figsize=(5 * len(settings), 3.8), squeeze=False
    )
    for ax, setting in zip(axes[0], settings):
        own = [x for x in scored if x.condition.setting == setting]
        values = list(dict.fromkeys(x.condition.value for x in own))
        numbers = [_number(value) for value in values]
        places = [i if None in numbers else numbers[i] for i in range(len(values))]
        for label in dict.fromkeys(x.label for x in own):
            means, ends = zip(*map(under.over_runs, _cells(own, label).values()))
            (line,) = ax.plot(places, means, "o-", markersize=3, label=label)
            bands = [x or (mean, mean) for mean, x in zip(means, ends)]
            ax.fill_between(
                places, *np.transpose(bands), color=line.get_color(), alpha=0.2
            )
        if None in numbers:
            ax.set_xticks(places, values)
        ax.set(xlabel=setting, ylabel=own[0].metric.replace("_", " "))
        if own[0].metric == "success":
            ax.set_ylim(-0.03, 1.03)
        ax.grid(alpha=0.3)
    axes[0][-1].legend()
    plots.save_figure(figure, path)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    """The arguments of `main` on the command line."""
    changes, words = split_changes(arguments)
    parser = Parser("experiments.robustness", __doc__)
    add = parser.add_argument
    add("runs", metavar="LABEL=RUN,RUN", nargs="*", help="what to score")
    add("--output", default="", metavar="FOLDER", help="where to write (required)")
    over = "a setting and the values to score with; may be repeated (required)"
    add(
        "--over",
        action="append",
        default=[],
        metavar="SETTING=VALUE,VALUE,...",
        help=over,
    )
    which = "an iteration, latest or best (default: latest)"
    add("--checkpoint", default="latest", metavar="NAME", help=which)
    options = parser.parse_intermixed_args(words)
    return dict(
        groups=read_groups(options.runs),
        conditions=read_conditions(options.over),
        output=options.output,
        changes=changes,
        checkpoint=options.checkpoint,
    )


if __name__ == "__main__":
    with processes.leaving_at_once(), processes.errors_in_one_line():
        given = _parse(sys.argv[1:])
        runtime.configure()
        main(**given)
