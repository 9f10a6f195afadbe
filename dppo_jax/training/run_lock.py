"""The lock of a directory, so that only one process at a time trains in it."""

import contextlib
import errno
import fcntl
import functools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from dppo_jax.errors import SettingsError

LOCK_FILE = ".lock"
# `is_locked` may hold a lock for a moment.
_SECONDS_OF_A_LOOK = 0.05
# What `flock` answers on file systems that have no locks.
_UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Lock a directory, which is made if it does not exist.

    The operating system holds the lock of the file `.lock` in it and gives it up when
    the process ends, however that happens. The file stays. It names the process that
    held it last, for messages alone.

    Raises:
        SettingsError: another process holds the lock; the message names it.
        OSError: the file cannot be made.
    """
    path = Path(folder) / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    # Network file systems lock only files that are open for writing.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, path)
        os.ftruncate(descriptor, 0)
        text = f"process {os.getpid()} on {socket.gethostname()}\n"
        os.pwrite(descriptor, text.encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: str | os.PathLike) -> bool:
    """Whether a process on this machine trains in a directory; writes nothing."""
    try:
        descriptor = os.open(Path(folder) / LOCK_FILE, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int, path: Path) -> None:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_SECONDS_OF_A_LOOK)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = path.read_text(errors="replace").strip() or "another process"
        raise SettingsError(
            f"{holder} is training in {path.parent}; wait for it, stop it, or pass "
            "another --config.run_dir."
        ) from None
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        _say_that_nothing_is_locked(str(path.parent))


@functools.cache
def _say_that_nothing_is_locked(folder: str) -> None:
    """Print it once for each directory."""
    print(
        f"note: the file system of {folder} has no locks; start no second process in "
        "this directory",
        flush=True,
    )
