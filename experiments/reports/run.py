"""What a run directory says of its run; nothing in it needs to be whole."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dppo_jax.errors import SettingsError
from dppo_jax.training.checkpoint import BEST, CHECKPOINTS
from dppo_jax.training.coach import advise
from dppo_jax.training.config_file import CONFIG_FILE, load_config, runs_inside
from dppo_jax.training.metric_names import EVALUATION
from dppo_jax.training.metrics import CSV_FILE, has_reached, read_metrics
from dppo_jax.training.run_lock import is_locked
from experiments.settings import settings_of

# Orbax writes it into a checkpoint; `about` is an entry of it.
_METADATA, _ABOUT = "_CHECKPOINT_METADATA", "custom_metadata"
# Rows that the coach looks at, and how often it looks in a long run.
_ADVICE_ROWS, _ADVICE_LOOKS = 40, 200

Row = Mapping[str, float]


class Facts(NamedTuple):
    """What is known of a run.

    run_dir: its directory.
    stage: "pretrain", "finetune", ...; empty if it is not known.
    settings: its `config.json`, plain dictionaries.
    config: the same as a configuration; None if it is not one of the stages.
    rows: of its metrics.
    about: what its newest checkpoint says of itself.
    checkpoint, best: iterations of the newest checkpoint and of the best one.
    started, ended: when; None where it is not known.
    total: iterations it is to make; None where it is not known.
    problems: what could not be read, in words.
    """

    run_dir: Path
    stage: str
    settings: Mapping[str, Any]
    config: ConfigDict | None
    rows: Sequence[Row]
    about: Mapping[str, Any]
    checkpoint: int | None
    best: int | None
    started: datetime.datetime | None
    ended: datetime.datetime | None
    total: int | None
    problems: Sequence[str]

    @property
    def iteration(self) -> int:
        """The newest iteration that is known."""
        last = int(self.rows[-1]["iteration"]) if self.rows else 0
        return max(last, self.checkpoint or 0)

    @property
    def is_cloning(self) -> bool:
        """Whether it learns from demonstrations alone, in epochs."""
        return self.stage == "pretrain"

    @property
    def iterations(self) -> str:
        """What its iterations are called."""
        return "epochs" if self.is_cloning else "iterations"

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """`num_episodes`, `deterministic` and `seed` of its evaluations."""
        settings = self.settings.get("evaluate")
        return settings if isinstance(settings, Mapping) else {}


def scores(row: Row, prefix: str) -> dict[str, float]:
    """The metrics of a row that have a prefix, without it; "": all but evaluations."""
    if not prefix:
        return {k: x for k, x in row.items() if not k.startswith(EVALUATION)}
    return {k.removeprefix(prefix): x for k, x in row.items() if k.startswith(prefix)}


class Status(NamedTuple):
    """text: in words. kind: "good", "bad" or "wait"."""

    text: str
    kind: str


def read(run_dir: str | Path) -> Facts:
    """Read a run directory.

    Raises:
        SettingsError: it holds no run, neither a `config.json` nor metrics.
    """
    folder = Path(run_dir)
    if not any((folder / name).is_file() for name in (CONFIG_FILE, CSV_FILE)):
        inside = ", ".join(runs_inside(folder))
        reason = "holds no run" if folder.is_dir() else "does not exist"
        raise SettingsError(
            f"{run_dir} {reason}; name the directory of a run, which holds "
            f"{CONFIG_FILE} and {CSV_FILE}{inside and f': one of {inside}'}."
        )
    problems: list[str] = []
    settings = _settings(folder, problems)
    config = _config(settings, folder, problems)
    rows = _rows(folder, problems)
    checkpoint = _newest(folder / CHECKPOINTS)
    metadata = _metadata(folder / CHECKPOINTS / str(checkpoint))
    about, written = metadata.get(_ABOUT), metadata.get("commit_timestamp_nsecs")
    stage = str(settings.get("stage") or "")
    return Facts(
        run_dir=folder,
        stage=stage,
        settings=settings,
        config=config,
        rows=rows,
        about=about if isinstance(about, dict) else {},
        checkpoint=checkpoint,
        best=_newest(folder / BEST),
        started=_started(folder),
        ended=_time(written / 1e9 if isinstance(written, (int, float)) else 0),
        total=_total(config, stage),
        problems=problems,
    )


def status(facts: Facts) -> Status:
    """Whether a run is finished, running or interrupted."""
    if facts.settings.get("imported_from"):
        return Status(f"imported from {facts.settings['imported_from']}", "good")
    of = "" if facts.total is None else f" of {facts.total}"
    at = f"{facts.iterations[:-1]} {facts.iteration}{of}"
    if is_locked(facts.run_dir):
        return Status(f"running, {at}", "wait")
    if facts.checkpoint is None:
        if not facts.rows:
            return Status("no iteration can be read", "wait")
        return Status(f"interrupted at {at}, before the first checkpoint", "bad")
    goal = _goal(facts)
    if goal is not None and has_reached(facts.rows, "eval/episode_return", goal):
        return Status(f"finished at {at}: a return of {goal:g} was reached", "good")
    if facts.total is None:
        return Status(f"last checkpoint at {at}", "good")
    if facts.checkpoint >= facts.total:
        return Status(f"finished after {facts.checkpoint} {facts.iterations}", "good")
    if facts.stage == "collect":
        return Status(f"ended at {at}", "good")
    return Status(
        f"interrupted at {at}; the same command resumes it from checkpoint "
        f"{facts.checkpoint}",
        "bad",
    )


def warnings(facts: Facts) -> list[str]:
    """What the coach says of a run, each warning once, and in which iterations."""
    if not facts.rows:
        return []
    step = max(len(facts.rows) // _ADVICE_LOOKS, 1)
    looks = list(range(len(facts.rows), 0, -step))[::-1]
    first: dict[str, int] = {}
    last: dict[str, tuple[int, str]] = {}
    for count in looks:
        part = facts.rows[max(count - _ADVICE_ROWS, 0) : count]
        iteration = int(part[-1]["iteration"])
        for advice in advise(part, facts.settings):
            first.setdefault(advice.code, iteration)
            last[advice.code] = (iteration, advice.text)
    end = int(facts.rows[-1]["iteration"])
    unit = facts.iterations[:-1]
    found = []
    for code, (until, text) in last.items():
        when = f"since {unit} {first[code]}"
        if until < end:
            when = f"{unit}s {first[code]} to {until}, not at the end"
        found.append(f"{code} ({when}): {text}.")
    return found


def _settings(folder: Path, problems: list[str]) -> Mapping[str, Any]:
    try:
        return load_config(folder) or {}
    except (SettingsError, OSError) as error:
        problems.append(str(error))
        return {}


def _config(
    settings: Mapping[str, Any], folder: Path, problems: list[str]
) -> ConfigDict | None:
    if "model" not in settings:
        return None  # Not of `experiments`.
    try:
        return settings_of(dict(settings), str(folder))
    except Exception as error:  # Whatever is wrong in it, the rest can be shown.
        problems.append(f"the settings of {folder} cannot be read: {error}")
        return None


def _rows(folder: Path, problems: list[str]) -> list[dict[str, float]]:
    if not (folder / CSV_FILE).is_file():
        problems.append(f"there is no {CSV_FILE}, so there are no curves.")
        return []
    try:
        rows = read_metrics(folder)
    except (SettingsError, OSError, ValueError) as error:
        problems.append(f"{CSV_FILE} is damaged, so there are no curves: {error}")
        return []
    if not rows:
        problems.append(f"{CSV_FILE} holds no rows yet, so there are no curves.")
    return rows


def _newest(folder: Path) -> int | None:
    names = [path.name for path in folder.glob("*") if path.name.isdigit()]
    return max(map(int, names), default=None)


def _metadata(checkpoint: Path) -> dict[str, Any]:
    try:
        found = json.loads((checkpoint / _METADATA).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _started(folder: Path) -> datetime.datetime | None:
    """The time in the name of the first file of TensorBoard events."""
    names = (path.name for path in folder.glob("events.out.tfevents.*"))
    found = [re.match(r"events\.out\.tfevents\.(\d+)\.", name) for name in names]
    return _time(min((int(x[1]) for x in found if x), default=0))


def _time(seconds: float) -> datetime.datetime | None:
    return datetime.datetime.fromtimestamp(seconds) if seconds > 0 else None


def _total(config: ConfigDict | None, stage: str) -> int | None:
    loop = {} if config is None else config.loop.get(stage, {})
    return loop.get("num_epochs", loop.get("num_iterations"))


def _goal(facts: Facts) -> float | None:
    if facts.config is None or facts.stage not in facts.config.loop:
        return None
    return facts.config.loop[facts.stage].get("stop_at_return")
