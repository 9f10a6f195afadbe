"""What a reader of files is, and what its damaged files are made of."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from dppo_jax.errors import SettingsError
from tests import damage
from tests.damage import Folder


class Reader(NamedTuple):
    """One kind of file.

    cases: () -> strategy of damaged folders.
    read: folder -> anything; it must end in data or in one of `errors`.
    sound: () -> a folder that is read without error.
    package: that must be installed; empty: none.
    """

    cases: Callable[[], st.SearchStrategy[Folder]]
    read: Callable[[Path], Any]
    sound: Callable[[], Folder]
    package: str = ""
    errors: tuple[type[Exception], ...] = (SettingsError,)


def made(make: Callable[[Path], Any]) -> Folder:
    """The files that a function writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return damage.read_folder(Path(folder))


def damaged(
    *sound: Callable[[], Folder], pipes: bool = True
) -> st.SearchStrategy[Folder]:
    return damage.damaged_folder([make() for make in sound], pipes=pipes)


def either(*strategies: Callable[[], st.SearchStrategy]) -> Callable[[], Any]:
    return lambda: st.one_of([make() for make in strategies])
