"""Write and read the metrics of a run: `metrics.csv` and TensorBoard events.

They also go to Weights & Biases if that is asked for (`wandb_run`).
"""

import contextlib
import csv
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from dppo_jax.errors import SettingsError
from dppo_jax.training.config_file import CONFIG_FILE
from dppo_jax.training.metric_names import tag
from dppo_jax.training.wandb_run import WandbRun

CSV_FILE = "metrics.csv"


class MetricsWriter:
    """Appends rows of metrics; a context manager.

    A resumed run continues the same files. Rows from iteration `resume_at` on, which it
    wrote after its newest checkpoint, are dropped first, so that no iteration occurs
    twice. A new name adds a column.

    Args:
        resume_at: the next iteration; 1 starts new files.
        writes: False keeps rows in memory only, while another process writes the files.
        wandb: arguments of `wandb.init`, see `WandbRun`; None: W&B is not used.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike,
        *,
        resume_at: int = 1,
        writes: bool = True,
        wandb: Mapping[str, Any] | None = None,
    ) -> None:
        self._path = Path(run_dir) / CSV_FILE
        rows, cut = _read(self._path)
        if cut is not None and resume_at > 1 and writes:
            print(f"note: line {cut} of {self._path} was cut off and is left out")
        self._rows = [
            row for row in rows if resume_at > 1 and row["iteration"] < resume_at
        ]
        self._names = list(dict.fromkeys(name for row in self._rows for name in row))
        self._events: _Events | None = None
        self._wandb: WandbRun | None = None
        if writes:
            self._rewrite()
            self._events = _Events(run_dir, suffix=str(resume_at))
            self._events.start(run_dir, resume_at=resume_at)
            self._wandb = None if wandb is None else WandbRun(run_dir, wandb)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close the files."""
        try:
            if self._events is not None:
                with _naming(self._path.parent):
                    self._events.close()
        finally:
            if self._wandb is not None:
                self._wandb.close()

    @property
    def rows(self) -> list[dict[str, float]]:
        """All rows of the run so far, including those before a resumption."""
        return list(self._rows)

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Add one row to `metrics.csv` and to TensorBoard's file.

        Raises:
            OSError: a file cannot be written, for example because the disk is full.
        """
        with _naming(self._path.parent):
            self._write(iteration, metrics)

    def _write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        # First, and last so that a task's metric of this name does not replace it.
        first = {"iteration": float(iteration)}
        row = first | {k: float(v) for k, v in metrics.items()} | first
        self._rows.append(row)
        if self._events is None:
            return
        new = [name for name in row if name not in self._names]
        if new:
            self._names += new
            self._rewrite()
        else:
            # Not "a", which would begin a file without names if this one is gone.
            with self._path.open("r+", newline="") as file:
                file.seek(0, os.SEEK_END)
                csv.DictWriter(file, self._names).writerow(_printable(row))
        self._events.write(iteration, row)
        if self._wandb is not None:
            self._wandb.write(iteration, row)

    def _rewrite(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._names)
            if self._names:
                writer.writeheader()
            writer.writerows(_printable(row) for row in self._rows)
        temporary.replace(self._path)


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Adds to an error of writing where that was; a full disk does not say it."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error


class _Events:
    """One TensorBoard file, written in the calling thread.

    A `SummaryWriter` writes in a thread of its own. If that fails, because the disk is
    full, the thread ends, and the program waits for it forever.
    """

    def __init__(self, run_dir: str | os.PathLike, *, suffix: str) -> None:
        # The name has the time in seconds, which two runs of a test may share.
        self._file = EventsWriter(str(Path(run_dir) / "events"), f".{suffix}")

    def start(self, run_dir: str | os.PathLike, *, resume_at: int) -> None:
        """Tell where a run starts or goes on, and with which settings."""
        # TensorBoard hides what earlier files hold of this iteration and later ones.
        log = SessionLog(status=SessionLog.START)
        step = resume_at if resume_at > 1 else 0
        self._add(Event(step=step, session_log=log))
        settings = Path(run_dir) / CONFIG_FILE
        if settings.is_file():
            lines = settings.read_text(errors="replace").splitlines()
            # Markdown shows indented lines as they are.
            text = "\n".join(f"    {line}" for line in lines)
            self._add(Event(step=step, summary=summary.text("settings", text)))

    def write(self, iteration: int, row: Mapping[str, float]) -> None:
        """Add the finite numbers of a row."""
        values = [
            Summary.Value(tag=tag(name), simple_value=value)
            for name, value in row.items()
            if name != "iteration" and math.isfinite(value)
        ]
        self._add(Event(step=iteration, summary=Summary(value=values)))

    def picture(self, iteration: int, name: str, path: Path) -> None:
        """Add a picture file."""
        with Image.open(path) as image:
            width, height = image.size
        value = Summary.Image(
            height=height,
            width=width,
            colorspace=3,  # RGB, which the picture may have in any coding
            encoded_image_string=path.read_bytes(),
        )
        values = [Summary.Value(tag=name, image=value)]
        self._add(Event(step=iteration, summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)
        self._file.flush()


def write_pictures(
    run_dir: str | os.PathLike, iteration: int, paths: Sequence[Path]
) -> None:
    """Show PNG or GIF files of a run in TensorBoard, by their names."""
    events = _Events(run_dir, suffix="pictures")
    for path in paths:
        events.picture(iteration, f"pictures/{path.stem}", path)
    events.close()


def read_metrics(run_dir: str | os.PathLike) -> list[dict[str, float]]:
    """Read all rows of a run's `metrics.csv`, without empty cells.

    A last line that was cut off while it was written is left out.

    Raises:
        SettingsError: another line that is no row of numbers.
    """
    return _read(Path(run_dir) / CSV_FILE)[0]


def _read(path: Path) -> tuple[list[dict[str, float]], int | None]:
    """All rows of a file, and the number of a last line that was cut off, or None."""
    if not path.is_file():
        return [], None
    text = path.read_bytes().decode(errors="replace")
    lines = text.splitlines()
    # A number that was cut off is a number too, so a line counts once it has ended.
    is_whole = text.endswith(("\n", "\r"))
    reader = csv.DictReader(lines)
    rows: list[dict[str, float]] = []
    for cells in _cells(reader, path):
        is_last = reader.line_num >= len(lines)
        if is_last and not is_whole:
            return rows, reader.line_num
        if not cells.get("iteration"):
            continue
        try:
            row = {name: float(value) for name, value in cells.items() if value}
        except (TypeError, ValueError):
            if is_last:
                return rows, reader.line_num
            raise SettingsError(
                f"{path}, line {reader.line_num}, is no row of numbers; remove it."
            ) from None
        if not math.isfinite(row["iteration"]):
            raise SettingsError(
                f"{path}, line {reader.line_num}, has iteration {row['iteration']}; "
                "remove it."
            )
        if not rows or row["iteration"] > rows[-1]["iteration"]:
            rows.append(row)
    return rows, None


def _cells(reader: csv.DictReader, path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file; what is no text of a table is refused."""
    try:
        yield from reader
    except csv.Error as error:
        raise SettingsError(
            f"{path}, line {reader.line_num}, is damaged ({error}); remove it."
        ) from None


def recent_mean(
    rows: Sequence[Mapping[str, float]], name: str, *, weight: str, num_rows: int
) -> float:
    """Weighted mean of a metric over the last rows; NaN if the weights sum to zero.

    It uses values rounded as in `metrics.csv`, so that a resumed run, which reads its
    rows from there, gets exactly the same mean.

    Args:
        num_rows: how many of the last rows.
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
