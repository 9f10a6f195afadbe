"""Settings of a process, tested in separate processes."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

ON_ONE_CORE = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import dppo_jax
print(os.environ["PJRT_NPROC"])
os.environ["PJRT_NPROC"] = "5"
dppo_jax.runtime.spare_a_thread()
print(os.environ["PJRT_NPROC"])
"""


def run(source):
    """Run a program with this package, whatever the current directory is."""
    inherited = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"}
    path = os.pathsep.join([str(REPOSITORY), inherited.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", source],
        env=inherited | {"PYTHONPATH": path},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="no way to choose cores here"
)
def test_a_program_on_one_core_has_a_thread_for_callbacks():
    """It is set when the package is imported; the number that a user gave stays."""
    done = run(ON_ONE_CORE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "5"]


def test_an_interrupt_ends_a_program_in_one_line():
    done = run(
        "from experiments import processes\n"
        "with processes.errors_in_one_line():\n    raise KeyboardInterrupt"
    )
    assert done.returncode == 130, done.stderr
    assert done.stdout.count("\n") == 1 and "interrupted" in done.stdout
