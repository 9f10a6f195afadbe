"""The directory of one run: who may write to it, and what is open in it."""

import os
from pathlib import Path
from typing import Any

from dppo_jax.errors import SettingsError
from dppo_jax.training.best import Best
from dppo_jax.training.checkpoint import BEST, CHECKPOINTS, Checkpoints
from dppo_jax.training.config_file import CONFIG_FILE
from dppo_jax.training.metrics import CSV_FILE, MetricsWriter


class Run:
    """One run directory: its checkpoints, its rows, and whether `stop` ended it."""

    def __init__(self, run_dir: str, keep: int | None, keep_best: str) -> None:
        self.run_dir = run_dir
        self.checkpoints = Checkpoints(run_dir, keep=keep)
        self.best = Best(run_dir, keep_best) if keep_best else None
        self.writer: MetricsWriter | None = None
        self.final: Any = None  # The last state, once `stop` has ended the run.

    def close(self) -> None:
        """Wait until everything is written."""
        self.checkpoints.close()
        if self.best is not None:
            self.best.close()
        if self.writer is not None:
            self.writer.close()


def check_folder(folder: str | os.PathLike) -> None:
    """Raise SettingsError if nothing can be written to this folder, made or not."""
    path = Path(folder).absolute()
    found = next(x for x in (path, *path.parents) if x.exists())
    if not found.is_dir() or not os.access(found, os.W_OK):
        reason = "is write-protected" if found.is_dir() else "is a file"
        raise SettingsError(
            f"nothing can be written to {folder}, because {found} {reason}; pass "
            "another --config.run_dir."
        )


def check_run_dir(run_dir: str | os.PathLike) -> None:
    """Refuse to train where something else than a run has left results.

    A run writes its `config.json` first, so results without it are not of a run.

    Raises:
        SettingsError: the results of something else, or a file in place of a folder.
    """
    check_folder(run_dir)
    results = [Path(run_dir) / name for name in (CSV_FILE, CHECKPOINTS, BEST)]
    found = [
        x.name for x in results if x.is_file() or (x.is_dir() and any(x.iterdir()))
    ]
    if found and not (Path(run_dir) / CONFIG_FILE).is_file():
        raise SettingsError(
            f"{run_dir} holds {' and '.join(found)} but no {CONFIG_FILE}, so they are "
            "not of a run that could resume, and would be overwritten; pass another "
            "--config.run_dir."
        )
