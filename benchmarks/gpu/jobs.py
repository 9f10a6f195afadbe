"""Measurements one after another within a time limit; what fails loses no other."""

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from benchmarks import timing
from dppo_jax.errors import SettingsError

CUT_OFF = "cut off when"
Row = dict[str, Any]


class Job(NamedTuple):
    """Something to measure: the table it belongs to, what tells its rows apart from
    others, and what measures them; rows it has yielded stay, whatever comes after."""

    table: str
    about: Row
    run: Callable[[], Iterable[Row]]


def run_jobs(
    jobs: Sequence[Job],
    *,
    max_minutes: float,
    keep: Callable[[list[Row]], Any],
    clock: Callable[[], float] = time.monotonic,
) -> list[Row]:
    """Rows of all jobs; what fails or has no time left says so in a row of its own.

    Args:
        max_minutes: a job that is not done by then is cut off, and its thread left at
            work: end the process when this returns.
        keep: called with all rows so far whenever there is one more.
        clock: seconds.
    """
    rows: list[Row] = []
    begin = clock()

    def add(row: Row) -> None:
        rows.append(row)
        keep(rows)
        text = " ".join(map(timing.format_cell, row.values()))
        print(f"[{clock() - begin:.0f} s] {text}", file=sys.stderr, flush=True)

    for job in jobs:
        about = {"table": job.table} | job.about
        left = 60 * max_minutes - (clock() - begin)
        if left <= 0:
            add(about | {"skipped": f"no time left of {max_minutes:g} minutes"})
            continue
        try:
            for row in rows_within(job.run, left):
                add(about | row)
        except _CutOff:
            add(about | {"skipped": f"{CUT_OFF} {max_minutes:g} minutes were over"})
        except SettingsError as error:  # A setting that cannot be had here.
            add(about | {"skipped": one_line(error)})
        except Exception as error:  # Whatever it is, the other rows matter.
            add(about | {"error": f"{type(error).__name__}: {one_line(error)}"})
        # Compiled programs hold memory of the device.
        jax.clear_caches()
    return rows


class _CutOff(Exception):
    """A job was not done in time."""


def rows_within(run: Callable[[], Iterable[Row]], seconds: float) -> Iterator[Row]:
    """The rows of `run`, one by one, as long as there is time.

    A compiler cannot be interrupted, so `run` has a thread of its own.

    Raises:
        _CutOff: time is up; or whatever `run` raises.
    """
    found: queue.Queue[Row | BaseException | None] = queue.Queue()

    def work() -> None:
        try:
            for row in run():
                found.put(row)
            found.put(None)
        except BaseException as error:
            found.put(error)

    end = time.monotonic() + seconds
    threading.Thread(target=work, daemon=True).start()
    while True:
        try:
            row = found.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise _CutOff from None
        if row is None:
            return
        if isinstance(row, BaseException):
            raise row
        yield row


def one_line(error: Exception) -> str:
    """The beginning of what an error says."""
    return " ".join(str(error).split())[:300]
