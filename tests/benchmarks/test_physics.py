"""The physics benchmark measures every registered task against C MuJoCo."""

import numpy as np
import pytest

from benchmarks import physics
from dppo_jax.envs import TASKS


@pytest.mark.parametrize("name", sorted(TASKS))
def test_c_mujoco_goes_on_from_where_the_environments_were(name):
    start = physics.start_simulations(name, batch=2, num_steps=3)
    assert start.raw.shape[0] == start.ctrl.shape[0] == 2
    assert start.ctrl.shape[1] == start.model.nu
    # The state begins with the time; three control steps have passed.
    period = start.num_substeps * start.model.opt.timestep
    np.testing.assert_allclose(start.raw[:, 0], 3 * period, rtol=1e-9)
    assert np.any(start.ctrl)
    assert physics.c_rate(start, num_steps=2) > 0


def test_a_row_relates_the_environments_to_c_mujoco(capsys):
    (row,) = physics.measure_task("avoid", ["mujoco"], batch=2, num_steps=2)
    assert row["ratio"] == pytest.approx(row["steps/s"] / row["C steps/s"])
    assert row["slowest"] <= row["steps/s"] <= row["fastest"]
    assert row["compile s"] > 0
    assert "measuring avoid x 2: mujoco" in capsys.readouterr().err


def test_engines_that_cannot_run_here_are_left_out():
    engines = physics.usable_engines()
    assert "mjx" in engines and "mujoco" in engines


def test_options_have_defaults_for_everything():
    options = physics.parse_arguments([])
    assert options.tasks == sorted(TASKS)
    assert options.json is None
    assert physics.parse_arguments(["--json"]).json == ""
