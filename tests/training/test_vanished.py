"""A directory that vanishes or a disk that fills up ends a run, but not its past."""

import contextlib
import gc
import os
import resource
import shutil
import time
import warnings

import pytest

from dppo_jax.training.checkpoint import read_policy
from tests.counting import count, iterations

SOMETIMES = dict(checkpoint_every=10)
EVERY = dict(evaluate_every=1, checkpoint_every=1, keep_best="score")


def moving(source, target, *, at):
    """An evaluation that moves a folder away while the loop runs, as an admin may."""

    def evaluate(params, run_dir, iteration):
        if iteration == at:
            # Threads that still write an earlier one would make its folder again.
            time.sleep(1)
            os.rename(source, target)
        return {"score": float(iteration)}

    return evaluate


def put_back(source, target):
    """Replace what was being written; threads of Orbax may still end their work."""
    for _ in range(100):
        shutil.rmtree(target, ignore_errors=True)
        with contextlib.suppress(OSError):
            return os.rename(source, target)
        time.sleep(0.1)
    raise AssertionError(f"{target} is still written to")


@pytest.mark.parametrize("name", ["", "checkpoints", "metrics.csv"])
def test_a_run_whose_directory_vanishes_ends_and_resumes_when_it_is_back(
    tmp_path, name
):
    run_dir, away = tmp_path / "run", tmp_path / "away"
    evaluate = moving(run_dir / name, away, at=3)
    with pytest.raises(OSError) as raised:
        count(run_dir, 4, evaluate=evaluate, **EVERY)
    assert str(run_dir) in str(raised.value)
    put_back(away, run_dir / name)
    assert read_policy(run_dir).iteration in (1, 2, 3)
    state = count(run_dir, 4, evaluate=moving(None, None, at=None), **EVERY)
    assert state["x"] == 2.0**4 and iterations(run_dir) == list(range(5))
    assert read_policy(run_dir, "best").iteration == 4


def test_a_directory_that_cannot_be_written_any_more_ends_a_run(tmp_path, monkeypatch):
    """As on a file system that was mounted again, for reading alone."""

    def evaluate(params, run_dir, iteration):
        if iteration == 3:
            monkeypatch.setattr("pathlib.Path.open", refuse)
        return {"score": float(iteration)}

    def refuse(path, *args, **settings):
        raise OSError(30, os.strerror(30), str(path))

    with pytest.raises(OSError, match="Read-only file system: .*metrics.csv"):
        count(tmp_path, 4, evaluate=evaluate, **EVERY)
    monkeypatch.undo()
    assert read_policy(tmp_path).iteration == 2
    assert count(tmp_path, 3)["x"] == 2.0**3


def test_a_run_whose_disk_is_full_ends_and_resumes_when_there_is_space(tmp_path):
    """The limit of a file's size stands for it; rows and events grow until it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def evaluate(params, run_dir, iteration):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        return {"score": float(iteration)}

    try:
        with pytest.raises(OSError) as raised:
            count(tmp_path, 400, evaluate=evaluate, evaluate_every=10, **SOMETIMES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) in str(raised.value)
    with warnings.catch_warnings():
        # TensorBoard's file, which could not be closed.
        warnings.simplefilter("ignore", ResourceWarning)
        del raised
        gc.collect()
    before = iterations(tmp_path)
    assert 10 <= read_policy(tmp_path).iteration <= before[-1] < 100
    last = int(before[-1]) + 5
    assert count(tmp_path, last, **SOMETIMES)["x"] == 2.0**last
    assert iterations(tmp_path) == list(range(last + 1))
