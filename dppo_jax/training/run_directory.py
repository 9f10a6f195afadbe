"""The directory of one run: who may write to it, and what is open in it."""

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer
from dppo_jax.training.best import Best
from dppo_jax.training.checkpoint import BEST, CHECKPOINTS, Checkpoints
from dppo_jax.training.config_file import CONFIG_FILE
from dppo_jax.training.metrics import CSV_FILE, MetricsWriter


class Run:
    """One run directory: its checkpoints, its rows, and whether `stop` ended it.

    Args:
        about: what its checkpoints record of it, values that JSON can hold.
    """

    def __init__(
        self,
        run_dir: str,
        keep: int | None,
        keep_best: str,
        about: Mapping[str, Any],
    ) -> None:
        self.run_dir = run_dir
        self._about = about
        self._score: dict[str, Any] | None = None
        self.checkpoints = Checkpoints(run_dir, keep=keep)
        self.best = Best(run_dir, keep_best) if keep_best else None
        self.writer: MetricsWriter | None = None
        self.final: Any = None  # The last state, once `stop` has ended the run.

    def note_score(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Record this evaluation as the score of the checkpoints that follow."""
        how = self._about.get("evaluate", {})
        # JSON has no NaN; a metric without a value is left out.
        known = {k: float(v) for k, v in metrics.items() if math.isfinite(v)}
        self._score = {"iteration": iteration, **how, "metrics": known}

    def about(self) -> dict[str, Any]:
        """What a checkpoint that is written now records of the run."""
        return {**self._about, "score": self._score}

    def continue_from(self, iteration: int) -> None:
        """Take the score of a checkpoint, until the next evaluation."""
        self._score = self.checkpoints.about(iteration).get("score")

    def check_bounds(self, iteration: int, normalizer: Normalizer) -> None:
        """Refuse a checkpoint whose policy was trained with other bounds.

        Raises:
            SettingsError: they differ; the message names the first that does.
        """
        saved = self.checkpoints.normalizer(iteration)
        for name, before, now in zip(saved._fields, saved, normalizer):
            before, now = (np.asarray(x, np.float32) for x in (before, now))
            if before.shape == now.shape and (before == now).all():
                continue
            where = "their sizes differ"
            if before.shape == now.shape:
                i = int(np.argmax(before != now))
                where = f"{name}[{i}] is {before.flat[i]:g} there, {now.flat[i]:g} now"
            raise SettingsError(
                f"the checkpoints of {self.run_dir} hold other bounds of observations "
                f"and actions ({where}), and their parameters work with those alone; "
                "resume with the policy or data that the run started from, or pass "
                "another --config.run_dir to start a new run."
            )

    def close(self) -> None:
        """Wait until everything is written; close all, even if one of them fails."""
        with contextlib.ExitStack() as closing:
            for part in (self.writer, self.best, self.checkpoints):
                if part is not None:
                    closing.callback(part.close)


def check_folder(folder: str | os.PathLike, *, flag: str = "--config.run_dir") -> None:
    """Raise SettingsError if nothing can be written to this folder, made or not.

    Args:
        flag: which argument names the folder.
    """
    path = Path(folder).absolute()
    found = next(x for x in (path, *path.parents) if x.exists())
    if not found.is_dir() or not os.access(found, os.W_OK):
        reason = "is write-protected" if found.is_dir() else "is a file"
        raise SettingsError(
            f"nothing can be written to {folder}, because {found} {reason}; pass "
            f"another {flag}."
        )


def make_folder(folder: str | os.PathLike, *, flag: str) -> None:
    """Make a folder for results before they are computed, so that none is lost.

    Args:
        flag: which argument names the folder.

    Raises:
        SettingsError: it cannot be made.
    """
    check_folder(folder, flag=flag)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:  # Some file systems refuse what permissions allow.
        raise SettingsError(
            f"{folder} cannot be made ({error.strerror}); pass another {flag}."
        ) from None


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
