import os
import subprocess
import sys

import pytest

ON_ONE_CORE = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import dppo_jax
print(os.environ.get("PJRT_NPROC"))
"""


def run(source, **environment):
    environment = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"} | (
        environment
    )
    return subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True
    )


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="no way to choose cores here"
)
@pytest.mark.parametrize("given, expected", [({}, "2"), ({"PJRT_NPROC": "5"}, "5")])
def test_a_program_on_one_core_has_a_thread_for_callbacks(given, expected):
    assert run(ON_ONE_CORE, **given).stdout.strip() == expected


def test_an_interrupt_ends_a_program_in_one_line():
    done = run(
        "from experiments import common\n"
        "with common.errors_in_one_line():\n    raise KeyboardInterrupt"
    )
    assert done.returncode == 130
    assert done.stdout.count("\n") == 1 and "interrupted" in done.stdout
