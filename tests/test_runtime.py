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


def test_programs_compute_in_float32_also_where_float64_is_switched_on():
    done = run(
        "import os\n"
        "os.environ['JAX_ENABLE_X64'] = '1'\n"
        "import jax.numpy as jnp, numpy as np\n"
        "from dppo_jax import runtime\n"
        "runtime.configure()\n"
        "print((jnp.ones(2) * np.ones(2)).dtype)"
    )
    assert done.returncode == 0, done.stderr
    note, result = done.stdout.splitlines()
    assert "JAX_ENABLE_X64 is ignored" in note and result == "float32"


def test_an_interrupt_ends_a_program_in_one_line():
    done = run(
        "from experiments import processes\n"
        "with processes.errors_in_one_line():\n    raise KeyboardInterrupt"
    )
    assert done.returncode == 130, done.stderr
    assert done.stdout == "interrupted; the same command starts again\n"


def test_a_terminated_program_says_from_where_it_resumes():
    done = run(
        "from dppo_jax.training.signals import Interrupted\n"
        "from experiments import processes\n"
        "with processes.errors_in_one_line():\n    raise Interrupted(7, 15)"
    )
    assert done.returncode == 128 + 15, done.stderr
    assert done.stdout == "interrupted; the same command resumes from iteration 7\n"
