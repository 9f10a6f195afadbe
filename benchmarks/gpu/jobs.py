"""Runs measurements within a time limit; if one fails, the others still run."""

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
    """A measurement.

    table: the table of its rows.
    about: columns that identify its rows.
    run: yields the rows; those yielded before an error are kept.
    """

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
    """The rows of all jobs; a job that fails or has no time left gives a row saying so.

    Args:
        max_minutes: a job that is not done by then is cut off, but its thread keeps
            running: end the process after this returns.
        keep: called with all rows so far after every new row.
        clock: returns seconds.
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
        except SettingsError as error:  # This machine cannot measure it.
            add(about | {"skipped": one_line(error)})
        except Exception as error:  # After any error measure the others.
            add(about | {"error": f"{type(error).__name__}: {one_line(error)}"})
        # Compiled programs hold memory of the device.
        jax.clear_caches()
    return rows


class _CutOff(Exception):
    """A job was not done in time."""


def rows_within(run: Callable[[], Iterable[Row]], seconds: float) -> Iterator[Row]:
    """The rows of `run`, one by one, until the time is up.

    A compiler cannot be interrupted, so `run` has its own thread. Errors of `run` are
    raised here.

    Raises:
        _CutOff: the time is up.
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
    """The beginning of an error message, in one line."""
    return " ".join(str(error).split())[:300]
