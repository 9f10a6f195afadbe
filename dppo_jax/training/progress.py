"""Show the progress of a run: a bar with the remaining time, or lines of text."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tqdm import tqdm

from dppo_jax.training import parallel
from dppo_jax.training.metric_names import in_time, in_words

# Without a terminal, lines of text replace the bar; this is the time between them.
_SECONDS_BETWEEN_LINES = 10.0


class Shows(Protocol):
    """What shows the progress of a run.

    see: gets the metrics of a row, those before the first iteration too.
    reach: gets the number of iterations that are done.
    close: is called when the loop ends, however it ends.
    """

    def see(self, numbers: Mapping[str, float]) -> None: ...

    def reach(self, iteration: int) -> None: ...

    def close(self) -> None: ...


# (iterations done before, all iterations) -> what shows the progress
MakesProgress = Callable[[int, int], Shows]


class Progress:
    """A bar with the remaining time on a terminal, lines of text elsewhere.

    With several processes, only the first one shows it.

    Args:
        start, total: iterations that are done, and all.
        show: names of the metrics to show.
        may_stop: the run may end before `total`, so the time left is an upper bound.
    """

    def __init__(
        self,
        start: int,
        total: int,
        *,
        show: Sequence[str] = (),
        may_stop: bool = False,
    ) -> None:
        self._shown = parallel.is_first_process()
        disable = not (self._shown and sys.stderr.isatty())
        self._bar = tqdm(initial=start, total=total, disable=disable, leave=True)
        self._total, self._done, self._start = total, start, start
        self._show, self._bound = show, "at most " if may_stop else ""
        self._began = self._said = time.monotonic()
        self._text = ""

    def see(self, numbers: Mapping[str, float]) -> None:
        """Set the metrics to print with the next update; NaN means no episode ended."""
        known = {name: numbers[name] for name in self._show if name in numbers}
        shown = [f"{k} {in_words(k, v)}" for k, v in known.items() if not math.isnan(v)]
        if len(shown) < len(known):
            shown.append("(no episode ended)")
        self._text = "  ".join(shown)
        self._bar.set_postfix_str(self._text, refresh=False)

    def reach(self, iteration: int) -> None:
        """Report that this many iterations are done."""
        self._bar.update(iteration - self._done)
        self._done = iteration
        now = time.monotonic()
        if self._done == self._start + 1:
            self._began = now
        due = now - self._said >= _SECONDS_BETWEEN_LINES or self._done in (
            self._start + 1,
            self._total,
        )
        if self._bar.disable and self._shown and due:
            self._said = now
            pace = (now - self._began) / max(self._done - self._start - 1, 1)
            left = f"{self._bound}{in_time(pace * (self._total - self._done))} left"
            if self._done == self._total:
                left = "done"
            elif self._done == self._start + 1:
                left = "compiled"  # The first iteration includes compilation.
            print(
                f"{self._done}/{self._total}  {self._text}  {left}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        self._bar.close()


class Silent:
    """Shows no progress."""

    def __init__(self, start: int, total: int) -> None:
        del start, total

    def see(self, numbers: Mapping[str, float]) -> None:
        """Ignore the metrics."""

    def reach(self, iteration: int) -> None:
        """Ignore the number of iterations."""

    def close(self) -> None:
        """Do nothing."""
