"""Compare algorithms: python -m experiments.compare LABEL=FILE.py:VARIANT ...

Fine-tunes every entry, a configuration with a label, with the same seeds, one run after
another, and compares their scores. An example, in which -- may be left out:

  python -m experiments.compare --output=runs/compare/avoid_m2 --seeds=3 \\
      dppo=experiments/configs/avoid.py:m2 fpo=experiments/configs/avoid.py:m2_fpo \\
      -- --config.loop.finetune.num_iterations=20 --fpo.algorithm.fpo.clip=0.02

--config.KEY=VALUE sets a setting of all entries, --LABEL.KEY=VALUE that of one.

Entries that need a policy and name none (--config.policy) get one cloned, and
demonstrations are collected if there are none in data/<name> (--config.data). Entries
whose settings agree share both. Seeds are seeds of fine-tuning: all start from the same
cloned policy.

It writes OUTPUT/LABEL/seed_S (the runs, as experiments.finetune does), OUTPUT/table.md,
OUTPUT/curves.png and OUTPUT/scores.csv, from which the table can be computed again. The
same command resumes; finished runs stay as they are, and more entries, seeds or
iterations may be added. If a run fails, the others go on and the exit status is 1.
"""

import contextlib
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from dppo_jax.demonstrations.formats.dppo_npz import NORMALIZER_FILE
from dppo_jax.errors import SettingsError
from dppo_jax.training.checkpoint import newest_checkpoint
from dppo_jax.training.metrics import read_metrics
from experiments import processes, scores
from experiments.command_line import Parser
from experiments.directories import run_path
from experiments.entries import (
    Entry,
    about_output,
    prepare,
    read_entries,
    seed_configs,
)
from experiments.seeds import loop_settings

# --LABEL.KEY=VALUE
_SETTING = re.compile(r"--?([\w+-]+)\.(.*)", re.DOTALL)
# Exit statuses of a program that the user interrupted.
_INTERRUPTED = (130, 143, -2, -15)
# Characters kept of what a failed program wrote, and of them shown.
_KEPT, _SHOWN = 4000, 300


class Comparison(NamedTuple):
    """What the command line says."""

    entries: list[Entry]
    output: str
    metric: str


def main(arguments: Sequence[str]) -> int:
    """Run what is left to run and compare; returns the exit status.

    Raises:
        SettingsError: a wrong argument or setting; nothing has run then.
    """
    comparison = parse(arguments)
    runs = run(comparison)
    scores.save(comparison.output, runs, comparison.metric)
    say_what_is_left_out(comparison.output, runs)
    return int(any(run.failure for run in runs))


def run(comparison: Comparison) -> list[scores.Run]:
    """Run what is left to run, each in a process of its own; all runs with their end.

    Raises:
        SettingsError: a wrong setting, or an output folder of something else; nothing
            has run then.
    """
    seeds = {x.label: seed_configs(x) for x in comparison.entries}
    for configs in seeds.values():
        loop_settings(configs[0], "finetune")  # Refuses settings that cannot work.
    entries = prepare(comparison.output, comparison.entries)
    makers = _Makers(entries)
    runs = []
    for entry in entries:
        for config in seeds[entry.label]:
            failure = _fine_tune(entry, config, makers)
            runs.append(scores.Run(entry.label, config, failure))
            if comparison.metric and not failure:
                # A wrong name should not be found only after hours of runs.
                scores.check_metric(runs[-1:], comparison.metric)
    return runs


def say_what_is_left_out(output: str, runs: Sequence[scores.Run]) -> None:
    """Name the runs in the folder that are not in the table."""
    shown = {Path(run.run_dir) for run in runs}
    kept = {path.parent.parent for path in Path(output).glob("*/*/checkpoints/*")}
    others = sorted(
        str(path.relative_to(output))
        for path in kept - shown
        if path.name.startswith("seed_")
    )
    if others:
        print(
            f"not in the table: {', '.join(others)}; name their labels, or raise "
            "--seeds, to include them."
        )


def parse(arguments: Sequence[str]) -> Comparison:
    """Read the command line; writes nothing.

    Raises:
        SettingsError: a wrong argument, or as `read_entries`.
    """
    settings, words = [], []
    for word in arguments:
        match = _SETTING.fullmatch(word)
        if match:
            settings.append((match[1], match[2]))
        elif word.startswith(("--config=", "-config=")):
            raise SettingsError(
                f"{word}: an entry needs a label; write LABEL={word.partition('=')[2]}."
            )
        elif word != "--":
            words.append(word)
    parser = Parser("experiments.compare", __doc__)
    add = parser.add_argument
    add("entries", metavar="LABEL=FILE.py:VARIANT", nargs="*", help="what to compare")
    add("--output", metavar="FOLDER", help="where to write (required)")
    seeds = "number of runs of each entry, with the seeds config.seed, seed + 1, ..."
    add("--seeds", type=int, default=3, metavar="N", help=f"{seeds} (default: 3)")
    metric = (
        "column of metrics.csv that is the score (default: eval/success if all runs "
        "have it, or else eval/episode_return)"
    )
    add("--metric", default="", metavar="NAME", help=metric)
    options = parser.parse_intermixed_args(words)
    if options.seeds < 1:
        raise SettingsError(f"--seeds={options.seeds} must be at least 1.")
    entries = read_entries(
        options.entries,
        settings,
        output=options.output or "",
        num_seeds=options.seeds,
    )
    if not options.output:
        raise SettingsError("no folder to write to; pass --output=runs/compare/NAME.")
    return Comparison(entries, options.output, options.metric)


class _Makers:
    """Makes the demonstrations and the cloned policies of entries, each once.

    The entry in whose folder they lie makes them, or else the first that needs them.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = {entry.label: entry for entry in entries}
        self._failures: dict[str, str] = {}

    def clone(self, entry: Entry) -> str:
        """Clone the policy of an entry; returns why that failed, or an empty string."""
        if not entry.policy or entry.policy in self._failures:
            return self._failures.get(entry.policy, "")
        maker = self._entries.get(Path(entry.policy).parent.name, entry)
        config = maker.config.copy_and_resolve_references()
        config.update(num_seeds=1, run_dir=entry.policy)
        title, failure = f"cloned policy {entry.policy}", ""
        try:
            is_finished = _is_finished(config, "pretrain")
        except SettingsError as error:
            self._failures[entry.policy] = f"{title}: {error}"
            return self._failures[entry.policy]
        if is_finished:
            print(f"== {title}: finished", flush=True)
        else:
            failure = self.collect(maker) or _start(
                "pretrain", maker, title, run_dir=entry.policy, data=entry.data
            )
        self._failures[entry.policy] = failure and f"{title}: {failure}"
        return self._failures[entry.policy]

    def collect(self, entry: Entry) -> str:
        """Collect the demonstrations of an entry, likewise, unless they exist."""
        folder = Path(entry.data)
        owner = self._entries.get(folder.parent.name, entry)
        ours = folder == Path(entry.config.run_dir).parent / folder.parent.name / "data"
        if not entry.data or not ours or (folder / NORMALIZER_FILE).exists():
            return ""
        if entry.data not in self._failures:
            title, training = f"demonstrations {folder}", str(folder.parent / "collect")
            failure = _start("collect", owner, title, run_dir=training, data=entry.data)
            self._failures[entry.data] = failure and f"{title}: {failure}"
        return self._failures[entry.data]


def _fine_tune(entry: Entry, config: ConfigDict, makers: _Makers) -> str:
    """Run one seed, unless it is finished; returns why it failed, or empty."""
    title = f"{entry.label}, seed {config.seed}"
    try:
        is_finished = _is_finished(config, "finetune")
    except SettingsError as error:
        print(f"== {title} failed: {error}", flush=True)
        return str(error)
    if is_finished:
        print(f"== {title}: finished, not run again", flush=True)
        return ""
    settings = {"seed": config.seed, "run_dir": run_path(config, "finetune")}
    failure = makers.clone(entry)
    if entry.policy:
        settings["policy"] = entry.policy
    else:
        failure = failure or makers.collect(entry)
    if entry.data:
        settings["data"] = entry.data
    return failure or _start("finetune", entry, title, **settings)


def _is_finished(config: ConfigDict, stage: str) -> bool:
    """Whether a run has nothing left to do.

    Raises:
        SettingsError: its metrics are damaged, or older than its checkpoint.
    """
    run_dir = run_path(config, stage)
    newest = newest_checkpoint(run_dir)
    if newest is None:
        return False
    loop = loop_settings(config, stage)
    rows = [row for row in read_metrics(run_dir) if row["iteration"] <= newest]
    if newest < loop["num_iterations"]:
        return "stop" in loop and loop["stop"](rows)
    last = int(rows[-1]["iteration"]) if rows else None
    if last != newest:  # Every checkpoint has a row.
        ends = "is missing or empty" if last is None else f"ends at iteration {last}"
        raise SettingsError(
            f"{run_dir}/metrics.csv {ends}, but the newest checkpoint is {newest}; "
            f"restore the file, or remove {run_dir} to run it again."
        )
    return True


def _start(stage: str, entry: Entry, title: str, **settings: object) -> str:
    """Run a stage in its own process; returns why it failed, or an empty string.

    A process of its own frees the memory of the accelerator when it ends, and if it is
    killed the others can go on.
    """
    words = [f"experiments.{stage}", *entry.words]
    words += [f"--config.{name}={value}" for name, value in settings.items()]
    print(f"== {title}: python -m {shlex.join(words)}", flush=True)
    status, said = run_program(words)
    if status in _INTERRUPTED:
        raise KeyboardInterrupt
    if not status:
        return ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    reason = (errors or lines or ["it said nothing"])[-1].removeprefix("error: ")
    if len(reason) > _SHOWN:
        reason = f"{reason[:_SHOWN]} ..."
    reason = about_output(f"exit status {status}: {reason}")
    print(f"== {title} failed: {reason}", flush=True)
    return reason


def run_program(words: Sequence[str]) -> tuple[int, str]:
    """Run `python -m ...`; returns its exit status and the end of its error output."""
    said = b""
    command = [sys.executable, "-m", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as program:
        assert program.stderr is not None
        try:
            while written := program.stderr.read1(_KEPT):  # type: ignore[attr-defined]
                sys.stderr.write(written.decode(errors="replace"))
                sys.stderr.flush()
                said = (said + written)[-_KEPT:]
        except BaseException:
            # A terminal interrupts the program too, which then ends by itself.
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(timeout=10)
            program.terminate()
            raise
    return program.returncode, said.decode(errors="replace")


if __name__ == "__main__":
    with processes.errors_in_one_line(resumes=True):
        sys.exit(main(sys.argv[1:]))
