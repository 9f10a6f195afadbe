"""A table on the terminal that shows how a run goes, instead of a bar."""

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dppo_jax.training import parallel
from dppo_jax.training.metric_names import (
    EVALUATION,
    SCORES,
    about,
    in_time,
    in_words,
)
from experiments import intervals

# Values that a trend compares: the mean of the newer half with that of the older one.
_TREND = 10
# A change by this share is none.
_LEAST_CHANGE = 0.02
_SECONDS_BETWEEN_DRAWINGS = 0.2
# Metrics in the order in which they are shown, those that a run has.
_SHOWN = (
    *("eval/success", "success", "eval/episode_return", "episode_return"),
    *("loss", "approx_kl", "clip_fraction", "explained_variance"),
)


def is_possible() -> bool:
    """Whether the table can be drawn: on a terminal that moves its cursor."""
    dumb = os.environ.get("TERM", "") in ("", "dumb")
    return sys.stderr.isatty() and not dumb and parallel.is_first_process()


class LiveTable:
    """Shows the progress of a run; see `training.progress.Shows`.

    The table is drawn again with every row. It has no thread of its own, because the
    program that is measured needs all cores.

    Args:
        start, total: iterations that are done, and all.
        unit: what an iteration is called.
        num_episodes: episodes of an evaluation, for its intervals; None: not known.
        may_stop: the run may end before `total`; the time left is an upper bound.
        console: where to draw; None: standard error.
    """

    def __init__(
        self,
        start: int,
        total: int,
        *,
        unit: str = "iteration",
        num_episodes: int | None = None,
        may_stop: bool = False,
        console: Console | None = None,
    ) -> None:
        self._start, self._total, self._done = start, total, start
        self._unit, self._num_episodes = unit, num_episodes
        self._bound = "at most " if may_stop else ""
        self._values: dict[str, list[float]] = {}
        self._latest: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._compiled: float | None = None
        self._began = self._drawn = time.monotonic()
        self._live = Live(
            console=console or Console(stderr=True),
            auto_refresh=False,
            # Lines of the program appear above the table, if they go to a terminal.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._live.start()

    def see(self, numbers: Mapping[str, float]) -> None:
        """Take the metrics of a row."""
        known = {k: float(x) for k, x in numbers.items() if not math.isnan(x)}
        for name, value in known.items():
            self._values[name] = [*self._values.get(name, [])[-_TREND + 1 :], value]
        self._latest |= known
        self._first = known | self._first

    def reach(self, iteration: int) -> None:
        """Report that this many iterations are done, and draw."""
        self._done = iteration
        now = time.monotonic()
        if self._compiled is None:
            self._compiled = now
        if now - self._drawn >= _SECONDS_BETWEEN_DRAWINGS:
            self._drawn = now
            self._live.update(self.table(), refresh=True)

    def close(self) -> None:
        """Leave the table on the screen."""
        self._live.update(self.table(), refresh=True)
        self._live.stop()

    def table(self) -> Group:
        """What is drawn."""
        table = Table(box=box.SIMPLE, expand=False, pad_edge=False)
        for name in ("", "now", "95 % interval", "trend", "at first"):
            table.add_column(name, justify="left" if not name else "right")
        for name in _SHOWN:
            if name in self._latest:
                table.add_row(*self._cells(name))
        share = self._done / max(self._total, 1)
        bar = ProgressBar(completed=100 * share, width=24, complete_style="cyan")
        place = Text(f"{self._unit} {self._done} of {self._total}")
        line = Table.grid(padding=(0, 2))
        line.add_row(bar, place, *self._times())
        return Group(table, line)

    def _times(self) -> Sequence[Text]:
        found = []
        steps, seconds = (self._latest.get(x, 0.0) for x in ("env_steps", "seconds"))
        if steps and seconds and self._done:
            found.append(Text(f"{steps / self._done / seconds:,.0f} steps/s"))
        found.append(Text(self.time_left()))
        return found

    def time_left(self) -> str:
        """In words; the first iteration says nothing, because it compiles."""
        now, done = time.monotonic(), self._done - self._start - 1
        if self._done >= self._total:
            return f"done in {in_time(now - self._began)}"
        if self._compiled is None or done < 1:
            return "compiling"
        pace = (now - self._compiled) / done
        return f"{self._bound}{in_time(pace * (self._total - self._done))} left"

    def _cells(self, name: str) -> Sequence[Text | str]:
        plain = name.removeprefix(EVALUATION)
        mode = ""
        if plain in SCORES:
            mode = ", evaluation" if name != plain else ", exploring"
        return (
            about(name).label + mode,
            Text(_in_unit(name, self._latest[name]), style="bold"),
            self._interval(name),
            self._trend(name),
            _in_unit(name, self._first[name]),
        )

    def _interval(self, name: str) -> str:
        """Of a score over its episodes; empty where it is not known."""
        is_evaluation = name.startswith(EVALUATION)
        count = (
            self._num_episodes if is_evaluation else self._latest.get("num_episodes")
        )
        if not count:
            return ""
        prefix = EVALUATION if is_evaluation else ""
        metrics = {
            x: self._latest[prefix + x]
            for x in ("success", "episode_return", "episode_return_stderr")
            if prefix + x in self._latest
        }
        ends = intervals.of_score(metrics, int(count)).get(name.removeprefix(prefix))
        if ends is None:
            return ""
        low, high = (_in_unit(name, x).removesuffix(" %") for x in ends)
        return f"[{low}, {high}]"

    def _trend(self, name: str) -> Text:
        """An arrow: the newer half of the last values against the older half."""
        values = self._values[name]
        half = len(values) // 2
        if not half:
            return Text("")
        older, newer = sum(values[:half]) / half, sum(values[-half:]) / half
        change = newer - older
        if abs(change) <= _LEAST_CHANGE * max(abs(older), abs(newer)):
            return Text("→")
        style = ""
        if name.removeprefix(EVALUATION) in SCORES:
            style = "green" if change > 0 else "red"
        return Text("↑" if change > 0 else "↓", style=style)


def _in_unit(name: str, value: float) -> str:
    if about(name).unit == "%":
        return f"{100 * value:.1f} %"
    return in_words(name, value)
