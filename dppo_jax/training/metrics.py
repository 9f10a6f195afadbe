"""Write and read the metrics of a run: `metrics.csv` and TensorBoard events."""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

CSV_FILE = "metrics.csv"


class MetricsWriter:
    """Appends rows of metrics; a context manager.

    A resumed run continues the same files. Rows from iteration `resume_at` on, which it
    wrote after its newest checkpoint, are dropped first, so that no iteration occurs
    twice. A new name adds a column.

    Args:
        resume_at: the next iteration; 1 starts new files.
        writes: False keeps rows in memory only, while another process writes the files.
    """

    def __init__(
        self, run_dir: str | os.PathLike, *, resume_at: int = 1, writes: bool = True
    ) -> None:
        self._path = Path(run_dir) / CSV_FILE
        self._rows = [
            row
            for row in read_metrics(run_dir)
            if resume_at > 1 and row["iteration"] < resume_at
        ]
        self._names = list(dict.fromkeys(name for row in self._rows for name in row))
        self._events = None
        if writes:
            self._rewrite()
            self._events = SummaryWriter(
                str(run_dir), purge_step=resume_at if resume_at > 1 else 0
            )

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close the files."""
        if self._events is not None:
            self._events.close()

    @property
    def rows(self) -> list[dict[str, float]]:
        """All rows of the run so far, including those before a resumption."""
        return list(self._rows)

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Add one row, and one TensorBoard event per metric."""
        row = {"iteration": iteration} | {k: float(v) for k, v in metrics.items()}
        self._rows.append(row)
        if self._events is None:
            return
        new = [name for name in row if name not in self._names]
        if new:
            self._names += new
            self._rewrite()
        else:
            with self._path.open("a", newline="") as file:
                csv.DictWriter(file, self._names).writerow(_printable(row))
        for name, value in row.items():
            if name != "iteration" and math.isfinite(value):
                self._events.add_scalar(name, value, iteration)

    def _rewrite(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._names)
            if self._names:
                writer.writeheader()
            writer.writerows(_printable(row) for row in self._rows)
        temporary.replace(self._path)


def read_metrics(run_dir: str | os.PathLike) -> list[dict[str, float]]:
    """Read all rows of a run's `metrics.csv`, without empty cells."""
    path = Path(run_dir) / CSV_FILE
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
            if row.get("iteration")
        ]


def recent_mean(
    rows: Sequence[Mapping[str, float]], name: str, *, weight: str, num_rows: int
) -> float:
    """Weighted mean of a metric over the last rows; NaN if the weights sum to zero.

    It uses values rounded as in `metrics.csv`, so that a resumed run, which reads its
    rows from there, gets exactly the same mean.

    Args:
        weight: name of the metric to weight by, such as a count of episodes; rows in
            which either metric is missing or NaN are ignored.
    """
    pairs = [
        [float(_digits(row.get(key, math.nan))) for key in (name, weight)]
        for row in rows[-num_rows:]
    ]
    pairs = [pair for pair in pairs if not any(map(math.isnan, pair))]
    total = math.fsum(count for _, count in pairs)
    if total <= 0:
        return math.nan
    return math.fsum(value * count for value, count in pairs) / total


def has_reached(rows: Sequence[Mapping[str, float]], name: str, target: float) -> bool:
    """Whether the last logged value of a metric is at least `target`.

    As `recent_mean`, it uses values rounded as in `metrics.csv`.
    """
    values = [row[name] for row in rows if name in row]
    return bool(values) and float(_digits(values[-1])) >= target


def _printable(row: Mapping[str, float]) -> dict[str, str]:
    """Format a row without its NaNs; the iteration as an integer."""
    text = {k: _digits(v) for k, v in row.items() if not math.isnan(v)}
    return text | {"iteration": str(int(row["iteration"]))}


def _digits(value: float) -> str:
    """Six digits are enough for a curve."""
    return f"{value:.6g}"
