"""What a program shows: a table, lines, or nothing; and its summary for other programs.

`command_line` sets it from the flags. Functions that are called by themselves, as in
tests, show lines and no summary.
"""

import functools
from typing import Any, NamedTuple

from dppo_jax.training.progress import MakesProgress, Silent
from experiments import live


class Shown(NamedTuple):
    """quiet: no progress. dry_run: say what would be done, and do nothing."""

    quiet: bool = False
    dry_run: bool = False


_shown = Shown()


def use(shown: Shown) -> None:
    """Set it for this process."""
    global _shown
    _shown = shown


def is_dry_run() -> bool:
    """Whether nothing must be written."""
    return _shown.dry_run


def progress(**about: Any) -> MakesProgress | None:
    """What shows the progress of a run; None: the lines of `train`.

    Args:
        **about: arguments of `LiveTable`.
    """
    if _shown.quiet:
        return Silent
    if live.is_possible():
        return functools.partial(live.LiveTable, **about)
    return None
