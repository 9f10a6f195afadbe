"""Orbax's checkpoint manager: its errors, and the records of checkpoints."""

import contextlib
import errno
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dppo_jax.errors import SettingsError
from dppo_jax.expansion import check_expansion
from dppo_jax.training.provenance import check_format

# What Orbax says when someone has removed the folder, or part of what it writes.
_GONE = "NOT_FOUND|Error writing|Save failed|not exist|No ArrayMetadata"


@contextlib.contextmanager
def writing(manager: ocp.CheckpointManager, *, begins: bool = False) -> Iterator[None]:
    """Turn an error of Orbax that came from the file system into an OSError.

    Orbax writes in threads, and reports their errors in a later call, as ValueError.

    Args:
        begins: whether something new is written. Orbax would then make a folder again
            that has vanished with the checkpoints in it; this is an error here.
    """
    try:
        if begins and not Path(manager.directory).is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        yield
    except (OSError, ValueError) as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(code[1]) if code else getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error).splitlines()[0]
        gone = re.search(_GONE, str(error))
        if number is None and not gone:
            raise
        raise OSError(
            number or errno.ENOENT,
            f"a checkpoint could not be written ({reason}); earlier ones are complete. "
            "Make room or restore the directory, and start the same command again",
            str(manager.directory),
        ) from error


@contextlib.contextmanager
def naming(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    """Raise errors of Orbax, which name only a file or key, with the checkpoint."""
    try:
        yield
    except (SettingsError, jax.errors.JaxRuntimeError):
        raise  # Too little memory on a device is no damage.
    except (
        *(KeyError, ValueError, OSError, TypeError, AttributeError),
        *(RuntimeError, AssertionError),
    ) as error:
        raise SettingsError(
            f"{manager.directory / str(step)} is damaged; remove it to use the "
            f"checkpoint before it, if there is one: {error}"
        ) from error


def open_manager(
    folder: str | os.PathLike, items: Sequence[str], **options: Any
) -> ocp.CheckpointManager:
    """The manager of a folder of checkpoints.

    Args:
        items: names of what a checkpoint may hold, in advance, so that a new process
            knows how to read it.
        **options: of `CheckpointManagerOptions`.

    Raises:
        SettingsError: one of the checkpoints is damaged.
    """
    try:
        return ocp.CheckpointManager(
            Path(folder).absolute(),
            options=ocp.CheckpointManagerOptions(**options),
            item_handlers={name: ocp.StandardCheckpointHandler() for name in items},
        )
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SettingsError(
            f"a checkpoint in {folder} is damaged; remove it to use the others: {error}"
        ) from error


def restore_plain(manager: ocp.CheckpointManager, step: int, name: str) -> Any:
    """Read an item as nested dictionaries, whatever shapes it has.

    Raises:
        SettingsError: it is damaged, or has shapes that would fill the memory.
    """
    with naming(manager, step):
        folder = manager.directory / str(step) / name
        shapes = jax.tree.leaves(manager.item_metadata(step)[name])
        size = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in shapes)
        stored = sum(x.stat().st_size for x in Path(folder).rglob("*") if x.is_file())
        check_expansion(size, stored, str(folder))
        restore = ocp.args.Composite(**{name: ocp.args.StandardRestore()})
        return manager.restore(step, args=restore)[name]


def read_about(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The record of a checkpoint, see `provenance`; empty if it is older.

    Raises:
        SettingsError: a later format, see `provenance.check_format`.
    """
    with naming(manager, step):
        about = dict(manager.metadata(step).custom_metadata or {})
    check_format(about, str(manager.directory / str(step)))
    return about
