"""Scores of runs under conditions that they were not trained in."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dppo_jax.errors import SettingsError
from experiments import tables
from experiments.command_line import split_values
from experiments.intervals import Interval, spread

AS_TRAINED = "as trained"
COLUMNS = (
    *("label", "run", "checkpoint", "setting", "value"),
    *("metric", "score", "low", "high", "num_episodes"),
)


class Condition(NamedTuple):
    """One value of a setting, as on the command line; an empty setting: no change."""

    setting: str = ""
    value: str = ""

    def __str__(self) -> str:
        return f"{self.setting} {self.value}" if self.setting else AS_TRAINED


class Scored(NamedTuple):
    """The score of one run under one condition, with its 95 % interval."""

    label: str
    run: str
    checkpoint: int
    condition: Condition
    metric: str
    score: float
    interval: Interval | None
    num_episodes: int


def read(word: str) -> list[Condition]:
    """The conditions that SETTING=VALUE,VALUE,... names; empty if one is missing."""
    setting, _, text = word.partition("=")
    values = split_values(text)
    return [Condition(setting, x) for x in values] if setting and all(values) else []


def check_one_task(tasks: Iterable[str]) -> None:
    """Raise SettingsError for runs of several tasks."""
    names = sorted(set(tasks))
    if len(names) > 1:
        raise SettingsError(
            f"the runs are of the tasks {', '.join(names)}, whose scores are not the "
            "same; compare runs of one task."
        )


def over_runs(cell: Sequence[Scored]) -> tuple[float, Interval | None]:
    """Of several runs: mean, least and most; of one: its score and its interval."""
    return spread([x.score for x in cell], cell[0].interval)


def in_words(scored: Sequence[Scored]) -> str:
    """What stands below a table."""
    return (
        f"{scored[0].num_episodes} episodes of each run. Of several runs: the mean, "
        "the least and the most; of one run: its 95 % interval."
    )


def rows(scored: Sequence[Scored]) -> str:
    """The content of scores.csv."""
    found: list[list[Any]] = []
    for x in scored:
        numbers = [x.metric, x.score, *(x.interval or ("", "")), x.num_episodes]
        found.append([x.label, x.run, x.checkpoint, *x.condition, *numbers])
    return tables.comma_separated(COLUMNS, found)
