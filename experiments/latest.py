"""`runs/latest`: a link to the run that was started last."""

import contextlib
import os
from pathlib import Path

NAME = "latest"
_FOLDER = "runs"


def followed(path: str) -> str:
    """The path of a run that `latest` leads to now; other paths stay.

    Tomorrow it may lead to another run, so nothing should be recorded under its name.
    """
    link = Path(path)
    if link.name != NAME or not link.is_symlink():
        return path
    return str(link.parent / os.readlink(link))


def point_to(run_dir: str | os.PathLike) -> None:
    """Let `latest` in the folder `runs` above a run lead to it.

    A run in no folder of this name changes nothing, and neither does a file system
    without links. Something else of this name stays.
    """
    with contextlib.suppress(OSError):
        target = Path(os.path.realpath(run_dir))
        folders = [path for path in target.parents if path.name == _FOLDER]
        if not folders:
            return
        link = folders[0] / NAME
        if link.exists() and not link.is_symlink():
            return
        # Replaced in one step, so that there is always one.
        temporary = folders[0] / f".{NAME}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.relative_to(folders[0]), target_is_directory=True)
        temporary.replace(link)
