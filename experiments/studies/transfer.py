"""Take policies to simulations that they were not trained in:

python -m experiments.studies.transfer --output=FOLDER [--over=NAME=VALUE,...] RUN ...

Exports every policy as experiments.deploy does, and scores what was exported in
processes of their own, as trained and with each value of mass, friction, damping, gain,
delay, action_noise, obs_noise or initial_state (as in env.randomization). An example:

  python -m experiments.studies.transfer --output=runs/transfer/hopper \\
      --gymnasium=Hopper-v4 --over=mass=0.8,1.2 --over=delay=1 \\
      plain=runs/h/plain/seed_0,runs/h/plain/seed_1 randomized=runs/h/random/seed_0

With --gymnasium=NAME that is Gymnasium's own environment, which knows nothing of this
package (examples/run_in_gymnasium.py); without, the task of the runs on a CPU, one
simulation and one control step at a time, and --config.env.KEY=VALUE changes a setting
of that task, such as --config.env.engine=mujoco for runs that were trained with another
one. --episodes=N of each run and condition (default: 20). Results that are there
already are kept, so the same command goes on after an interruption.

It writes FOLDER/table.md, scores.csv, and the exported policies in FOLDER/policies.
"""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dppo_jax import runtime
from dppo_jax.envs import randomize
from dppo_jax.errors import SettingsError
from dppo_jax.exported import ABOUT
from dppo_jax.training.checkpoint import newest_checkpoint
from dppo_jax.training.config_file import write_atomically
from dppo_jax.training.run_directory import check_folder, make_folder
from experiments import conditions as under
from experiments import deploy, intervals, processes, tables
from experiments.command_line import Parser, split_changes
from experiments.conditions import Condition, Scored
from experiments.directories import config_of_run, read_groups
from experiments.settings import as_flag, override

_EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "run_in_gymnasium.py"
_SECTION = "env.randomization"
# What `_EXAMPLE` cannot change.
_NOT_IN_GYMNASIUM = ("initial_state",)
# An exported policy suits one task; it keeps the history and executes chunks itself.
_NOT_CHANGED = ("env.task", "env.history", "env.executed")


def main(
    groups: Mapping[str, Sequence[str]],
    conditions: Sequence[Condition],
    output: str,
    *,
    gymnasium: str = "",
    num_episodes: int = 20,
    changes: Sequence[str] = (),
) -> list[Scored]:
    """Run the program.

    Args:
        groups: label -> run directories.
        conditions: beside that of no change.
        gymnasium: name of an environment; empty: the task of the runs.
        changes: KEY=VALUE of the task of the runs.

    Raises:
        SettingsError: a wrong argument, or a process that failed.
    """
    if not output:
        raise SettingsError("no folder to write to; pass --output=runs/transfer/NAME.")
    if num_episodes < 1:
        raise SettingsError(f"--episodes={num_episodes} must be at least 1.")
    check_folder(output, flag="--output")
    if gymnasium and not _EXAMPLE.is_file():
        raise SettingsError(
            f"--gymnasium={gymnasium} needs {_EXAMPLE}, which an installed package has "
            "not; start the command in a clone of the repository."
        )
    for condition in conditions:
        _check(condition, gymnasium)
    configs = [config_of_run(run) for runs in groups.values() for run in runs]
    under.check_one_task(config.env.task for config in configs)
    for config in configs:
        _check_changes(config, changes, gymnasium)
    make_folder(output, flag="--output")
    scored: list[Scored] = []
    for label, runs in groups.items():
        for number, run in enumerate(runs):
            folder = str(Path(output) / "policies" / f"{label}-{number}")
            _export(run, folder, Path(output) / "results")
            for condition in (Condition(), *conditions):
                words = _command(
                    folder, run, condition, gymnasium, num_episodes, changes
                )
                result = _run_once(Path(output) / "results", words)
                scored.append(_scored(label, run, condition, result, num_episodes))
                print(f"{label} {run}, {condition}: {scored[-1].score:.4g}", flush=True)
    text = make_table(scored)
    write_atomically(Path(output) / "scores.csv", under.rows(scored))
    write_atomically(Path(output) / "table.md", text)
    print(f"\n{text}\nwrote {Path(output) / 'table.md'} and scores.csv")
    return scored


def _export(run: str, folder: str, results: Path) -> None:
    """Export the newest policy of a run, unless its folder holds it already.

    Raises:
        SettingsError: it holds another one.
    """
    if not Path(folder).exists():
        _forget(results, folder)
        deploy.main(run, folder)
        return
    try:
        about = json.loads((Path(folder) / ABOUT).read_text())
        found = (about["run"], about["checkpoint"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SettingsError(
            f"{folder}/{ABOUT} is missing or damaged ({error}); remove {folder} to "
            "export the policy again."
        ) from None
    if found != (str(Path(run).absolute()), newest_checkpoint(run)):
        raise SettingsError(
            f"{folder} holds checkpoint {found[1]} of {found[0]}, not the newest one of"
            f" {run}; pass another --output."
        )


def _forget(results: Path, folder: str) -> None:
    """Remove the scores of what a folder held before somebody removed it."""
    for path in results.glob("*.json"):
        if folder in json.loads(path.read_text())["command"]:
            path.unlink()


def read_conditions(words: Sequence[str]) -> list[Condition]:
    """The conditions that NAME=VALUE,VALUE,... name.

    Raises:
        SettingsError: no such name, or no value.
    """
    known = [x for x in randomize.default_config() if x != "shared"]
    found = []
    for word in words:
        conditions = under.read(word)
        if not conditions or conditions[0].setting not in known:
            raise SettingsError(
                f"--over={word}: write NAME=VALUE,... with one of {', '.join(known)}."
            )
        found += conditions
    return list(dict.fromkeys(found))


def make_table(scored: Sequence[Scored]) -> str:
    """A row for each condition and a column for each label, in Markdown."""
    labels = list(dict.fromkeys(x.label for x in scored))
    rows = []
    for condition in dict.fromkeys(x.condition for x in scored):
        cells = [str(condition)]
        for label in labels:
            own = [x for x in scored if (x.label, x.condition) == (label, condition)]
            cells.append(tables.with_interval(*under.over_runs(own)))
        rows.append(cells)
    table = tables.markdown([scored[0].metric.replace("_", " "), *labels], rows)
    return f"{table}\n\nScores of the exported policies. {under.in_words(scored)}\n"


def _check(condition: Condition, gymnasium: str) -> None:
    if gymnasium and condition.setting in _NOT_IN_GYMNASIUM:
        raise SettingsError(
            f"--over={condition.setting}: examples/run_in_gymnasium.py cannot change "
            "it; leave out --gymnasium."
        )
    is_count = condition.setting == "delay"
    what = "a whole number of control steps" if is_count else "a number"
    try:
        (int if is_count else float)(condition.value)
    except ValueError:
        raise SettingsError(
            f"--over={condition.setting}={condition.value} must be {what}."
        ) from None
    config = randomize.default_config()
    config.update(_changes(condition))
    randomize.check_config(config)


def _check_changes(config: ConfigDict, changes: Sequence[str], gymnasium: str) -> None:
    """Refuse changes that the processes would refuse, or that would do nothing."""
    for change in changes:
        name = change.partition("=")[0]
        if gymnasium:
            raise SettingsError(
                f"--config.{name} changes the task of the runs, not {gymnasium}; leave "
                "out one of them."
            )
        if not name.startswith("env.") or name in _NOT_CHANGED:
            raise SettingsError(
                f"--config.{name} does not change the task of an exported policy, or "
                "would not suit it; change other settings of env."
            )
    override(config.copy_and_resolve_references().lock(), changes, "--config.")


def _changes(condition: Condition) -> dict[str, Any]:
    """The settings of `env.randomization` under a condition."""
    changes: dict[str, Any] = dict(randomize.default_config())
    if condition.setting:
        number = float(condition.value)
        if condition.setting == "delay":
            changes[condition.setting] = (int(number),) * 2
        elif isinstance(changes[condition.setting], tuple):
            changes[condition.setting] = (number, number)
        else:
            changes[condition.setting] = number
    return changes


def _command(
    folder: str,
    run: str,
    condition: Condition,
    gymnasium: str,
    num_episodes: int,
    changes: Sequence[str] = (),
) -> list[str]:
    """The words of the process that scores an exported policy."""
    if gymnasium:
        words = [str(_EXAMPLE), folder, gymnasium, f"--episodes={num_episodes}"]
        flag = condition.setting.replace("_", "-")
        change = [f"--{flag}={condition.value}"] if condition.setting else []
        return [*words, "--json", *change]
    module = "experiments.studies.play_exported"
    words = ["-m", module, folder, run, str(num_episodes)]
    # What the run varied in training would hide the one condition.
    own = _changes(condition).items()
    flags = " ".join(as_flag(f"{_SECTION}.{name}", x) for name, x in own)
    return [*words, *(f"--config.{x}" for x in changes), *shlex.split(flags)]


def _run_once(folder: Path, words: Sequence[str]) -> dict[str, float]:
    """What a process printed, now or when the same command ran before."""
    name = hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
    path = folder / f"{name}.json"
    if path.is_file():
        found: dict[str, float] = json.loads(path.read_text())["result"]
        return found
    # One simulation at a time is no work for an accelerator.
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SettingsError(
            f"python {' '.join(words)} failed: {said.removeprefix('error: ')}"
        )
    found = json.loads(lines[-1])
    write_atomically(path, json.dumps({"command": list(words), "result": found}) + "\n")
    return found


def _scored(
    label: str,
    run: str,
    condition: Condition,
    result: Mapping[str, float],
    num_episodes: int,
) -> Scored:
    found = intervals.headline(result, num_episodes)
    checkpoint = newest_checkpoint(run) or 0
    return Scored(label, run, checkpoint, condition, *found, num_episodes)


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    """The arguments of `main` on the command line."""
    changes, words = split_changes(arguments)
    parser = Parser("experiments.studies.transfer", __doc__)
    add = parser.add_argument
    add("runs", metavar="LABEL=RUN,RUN", nargs="*", help="policies to export")
    add("--output", default="", metavar="FOLDER", help="where to write (required)")
    over = "what to change, and to which values; may be repeated"
    add("--over", action="append", default=[], metavar="NAME=VALUE,...", help=over)
    add("--gymnasium", default="", metavar="NAME", help="environment, as Hopper-v4")
    add("--episodes", type=int, default=20, metavar="N", help="(default: 20)")
    options = parser.parse_intermixed_args(words)
    return dict(
        groups=read_groups(options.runs),
        conditions=read_conditions(options.over),
        output=options.output,
        gymnasium=options.gymnasium,
        num_episodes=options.episodes,
        changes=changes,
    )


if __name__ == "__main__":
    with processes.errors_in_one_line():
        given = _parse(sys.argv[1:])
        runtime.configure()
        main(**given)
