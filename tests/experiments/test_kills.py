"""A run that is killed at any moment resumes, and ends as if nothing had happened.

Signals come at random moments. Because a checkpoint follows every iteration of some
milliseconds, most of them come while one is written.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from dppo_jax.training.checkpoint import read_policy, read_state
from dppo_jax.training.metric_names import TIMES
from dppo_jax.training.metrics import read_metrics
from tests import tiny
from tests.conftest import REPOSITORY

# How many signals each algorithm gets.
TRIALS = int(os.environ.get("KILLS", "50"))
# A signal that comes before the handler of SIGTERM is set, or after the end.
DIED, SAVED, DONE = (-signal.SIGKILL, -signal.SIGTERM), 128 + signal.SIGTERM, 0


def start(variant: str, run_dir: Path) -> subprocess.Popen:
    """Start or resume a run; returns when it has locked its directory."""
    command = [sys.executable, "-u", "-m", "experiments.finetune"]
    command += [f"--config={REPOSITORY}/tests/point_task.py:{variant}"]
    command += [f"--config.run_dir={run_dir}"]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.values["jax_compilation_cache_dir"]
    }
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | cache,
    )
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("writing to"):
            return process
    raise AssertionError(f"the run did not start: {said}")


def rows(run_dir: Path) -> list[dict[str, float]]:
    """The history without the time that iterations took."""
    return [
        {name: x for name, x in row.items() if name not in TIMES}
        for row in read_metrics(run_dir)
    ]


def check_same(run_dir: Path, whole: Path, moments: list[str]) -> None:
    """Compare a finished run with the uninterrupted one, bit for bit."""
    said = f"after {', '.join(moments)}"
    assert rows(run_dir) == rows(whole), said
    for checkpoint in ("latest", "best"):
        one, other = (read_policy(x, checkpoint) for x in (run_dir, whole))
        assert one.iteration == other.iteration, said
        assert tiny.same(one.params, other.params), said
    assert tiny.same(read_state(run_dir), read_state(whole)), said


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["ppo", "sac"])
def test_a_killed_run_ends_like_an_uninterrupted_one(variant, tmp_path):
    draw = random.Random(f"{variant} {time.time_ns()}")
    whole = tmp_path / "whole"
    with start(variant, whole) as process:
        began = time.monotonic()
        process.communicate()
    assert process.returncode == DONE
    length = time.monotonic() - began
    trials, finished, name, moments = 0, 0, 0, []
    while trials < TRIALS or moments:
        run_dir = tmp_path / str(name)
        with start(variant, run_dir) as process:
            # The last run may go on to its end.
            number = draw.choice([signal.SIGKILL, signal.SIGTERM])
            if trials < TRIALS:
                wait = draw.uniform(0, length)
                try:
                    process.wait(wait)
                except subprocess.TimeoutExpired:
                    process.send_signal(number)
                    trials += 1
                    moments.append(f"{number.name} after {wait:.2f} s")
            said, _ = process.communicate()
        assert process.returncode in (*DIED, SAVED, DONE), (moments, said)
        if process.returncode == DONE:
            check_same(run_dir, whole, moments)
            finished, name, moments = finished + 1, name + 1, []
    print(f"{variant}: {trials} signals, {finished} runs like the uninterrupted one")
