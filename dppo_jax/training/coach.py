"""Warn of runs that are unlikely to learn, with settings to try.

`advise` is a pure function of rows of metrics and settings. A `Coach` calls it after
every row of a run and prints each warning once. docs/troubleshooting.md explains them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dppo_jax.errors import SettingsError
from dppo_jax.training import parallel
from dppo_jax.training.config_file import load_config
from dppo_jax.training.signs import PATIENCE, SIGNS, Rows, Settings

# Rows that are looked at, so that a long run does not get slower.
_MEMORY = 8 * PATIENCE

CODES = tuple(SIGNS)


class Advice(NamedTuple):
    """A warning. code: its name, which never changes. text: the sign, what to try."""

    code: str
    text: str


def advise(rows: Rows, settings: Mapping[str, Any] | None = None) -> list[Advice]:
    """Return the warnings for a run, from its rows of metrics.

    Args:
        rows: as in `metrics.csv`, the newest last; a metric may be missing or NaN.
        settings: the configuration of the run in plain dictionaries, for values in the
            advice; without it the advice has none.
    """
    known = Settings(settings or {})
    return [
        Advice(code, text)
        for code, sign in SIGNS.items()
        if (text := sign(rows, known)) is not None
    ]


def check_updates(rows: Rows, max_skipped: int, where: str = "") -> None:
    """Raise FloatingPointError if the last `max_skipped` rows made no update; 0: never.

    Updates whose gradients are not finite are skipped, so parameters stay sound.

    Args:
        where: names the run, in front of the message.
    """
    last = [row for row in rows if "skipped_updates" in row][-max_skipped:]
    if not max_skipped or len(last) < max_skipped:
        return
    if any(row["skipped_updates"] < max(row.get("num_updates", 1), 1) for row in last):
        return
    raise FloatingPointError(
        f"{where}in every update of the last {max_skipped} rows at least one network "
        "was not updated, because its gradients were NaN or infinite. No parameter "
        "became so, and the newest checkpoint is sound. Lower the learning rate, set "
        "max_grad_norm, and look for huge numbers among rewards or data."
    )


class Coach:
    """Watches one run, and prints each warning once.

    Args:
        run_dir: holds the `config.json` of the run.
        names_run: whether warnings name the directory, because there are several runs.
        max_skipped: see `check_updates`.

    Raises:
        SettingsError: `max_skipped` is negative.
    """

    def __init__(
        self, run_dir: str, *, names_run: bool = False, max_skipped: int = 0
    ) -> None:
        if max_skipped < 0:
            raise SettingsError(
                f"max_skipped={max_skipped} must not be negative; with 0, skipped "
                "updates end no run."
            )
        self._run_dir, self._max_skipped = run_dir, max_skipped
        self._where = f"{run_dir}: " if names_run else ""
        self._settings: dict[str, Any] | None = None
        self._said: set[str] = set()

    def see(self, rows: Rows) -> None:
        """Judge a run by all rows so far.

        Raises:
            FloatingPointError: see `check_updates`.
        """
        rows = rows[-max(_MEMORY, self._max_skipped) :]
        if self._settings is None:
            self._settings = load_config(self._run_dir) or {}
        for code, text in advise(rows, self._settings):
            if code not in self._said and parallel.is_first_process():
                print(f"warning ({code}): {self._where}{text}.", flush=True)
            self._said.add(code)
        check_updates(rows, self._max_skipped, self._where)
