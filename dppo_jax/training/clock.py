"""Measures the iterations of a run, and what else takes time, for its rows."""

import collections
import contextlib
import time
from collections.abc import Iterator

from dppo_jax.training.metric_names import ITERATION_SECONDS, ROLLOUT_SECONDS


class Clock:
    """Seconds since the last row, by the name of their column.

    Attributes:
        logged: the iteration of the last row.
    """

    def __init__(self) -> None:
        self.logged = 0
        self._began = time.perf_counter()
        self._spent: dict[str, float] = collections.defaultdict(float)

    def restart(self, logged: int | None = None) -> None:
        """Exclude the time until now from the next row; `logged` is its predecessor."""
        self._began = time.perf_counter()
        self.logged = self.logged if logged is None else logged

    def spent(self, name: str, seconds: float) -> None:
        """Add to a column of the next row."""
        self._spent[name] += seconds

    @contextlib.contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the time of a block to a column of the next row."""
        began = time.perf_counter()
        yield
        self.spent(name, time.perf_counter() - began)

    def read(self, iteration: int) -> dict[str, float]:
        """The times of the row of an iteration.

        Those of an iteration and its roll-out are means over the iterations since the
        last row, the others are sums.
        """
        self._spent[ITERATION_SECONDS] = time.perf_counter() - self._began
        count = max(iteration - self.logged, 1)
        means = (ITERATION_SECONDS, ROLLOUT_SECONDS)
        times = {k: x / (count if k in means else 1) for k, x in self._spent.items()}
        self._spent.clear()
        return times
