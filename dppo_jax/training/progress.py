"""Show the progress of a run: a bar with the remaining time, or lines of text."""

import math
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from dppo_jax.training import parallel

# Without a terminal, lines of text replace the bar; this is the time between them.
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A bar with the remaining time on a terminal, lines of text elsewhere.

    With several processes, only the first one shows it.
    """

    def __init__(self, start: int, total: int) -> None:
        self._shown = parallel.is_first_process()
        disable = not (self._shown and sys.stderr.isatty())
        self._bar = tqdm(initial=start, total=total, disable=disable, leave=True)
        self._total, self._done, self._start = total, start, start
        self._began = self._said = time.monotonic()
        self._text = ""

    def show(self, numbers: Mapping[str, float]) -> None:
        """Set the metrics to print with the next update; NaN means no episode ended."""
        shown = [f"{k} {v:.4g}" for k, v in numbers.items() if not math.isnan(v)]
        if len(shown) < len(numbers):
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
            left = f"{pace * (self._total - self._done):.0f} s left"
            if self._done == self._start + 1 < self._total:
                left = "compiled"  # The first iteration includes compilation.
            print(
                f"{self._done}/{self._total}  {self._text}  {left}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        self._bar.close()
