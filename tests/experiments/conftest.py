"""A folder with runs of all stages, for the tests of several files."""

import fcntl
import os
import shutil

import pytest

from experiments import collect, finetune, pretrain
from tests.stages import make_config


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder in which all stages have run. Tests must not write to it.

    The stages compile for most of their time, so the first test process that needs the
    folder makes it for all, and the others wait.
    """
    parent = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        parent = parent.parent  # Each process has its own folder below it.
    folder, complete = parent / "world", parent / "world_is_complete"
    with open(parent / "world.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # Another process failed there.
            for stage in (collect, pretrain, finetune):
                stage.main(make_config(folder, stage.__name__.split(".")[1]))
            complete.touch()
    return folder
