"""The physics benchmark measures every registered task against C MuJoCo."""

import jax
import numpy as np
import pytest
from mujoco import batch as mujoco_batch

from benchmarks import physics, timing
from dppo_jax.envs import TASKS


@pytest.mark.parametrize("name", sorted(TASKS))
def test_c_mujoco_repeats_the_steps_of_the_environments(name):
    recorded = physics.record_simulations(name, batch=2, num_steps=3)
    model = recorded.model
    assert recorded.raw.shape[:2] == (3, 2)
    assert recorded.ctrl.shape == (3, 2, model.nu)
    # The first entry of a state is the time, which grows by one control step.
    period = recorded.num_substeps * model.opt.timestep
    np.testing.assert_allclose(recorded.raw[:, 0, 0], period * np.arange(3), rtol=1e-9)
    assert np.any(recorded.ctrl)

    # A step from a recorded state with its control gives the next recorded state.
    batch = mujoco_batch.Batch(model, 2)
    ctrl = batch.bind("ctrl")
    batch.state[...] = recorded.raw[1]
    ctrl[...] = recorded.ctrl[1]
    batch.step(nstep=recorded.num_substeps, stage=recorded.stage)
    np.testing.assert_array_equal(batch.state, recorded.raw[2])


def test_engine_of_returns_the_physics_of_the_task():
    hopper = physics.engine_of("hopper", "mjx")
    assert hopper.engine == "mjx" and hopper.num_substeps == 4
    # The task gives MJX fewer iterations than C MuJoCo, and sets the margins.
    assert hopper.model.opt.iterations == 4
    assert physics.engine_of("hopper", "mujoco").model.opt.iterations > 4
    wider = physics.engine_of("hopper", "mujoco", margins="max").model
    assert np.any(wider.geom_margin != hopper.model.geom_margin)


@pytest.fixture
def calls_take_a_quarter_second(monkeypatch):
    """Replaces `timing.measure_together`; returns the calls that took turns."""
    timed = []

    def measure(calls, *, max_seconds):
        for function, arguments, _ in calls:
            jax.block_until_ready(function(*arguments))
        timed.append(calls)
        quarter = timing.Timing(0.25, fastest=0.125, slowest=0.5, compile=3, repeats=7)
        return [quarter for _ in calls]

    monkeypatch.setattr(physics.timing, "measure_together", measure)
    return timed


@pytest.mark.parametrize(
    "engine", [pytest.param("mjx", marks=pytest.mark.slow), "mujoco"]
)
def test_the_rate_of_an_engine_is_steps_per_timed_second(
    engine, calls_take_a_quarter_second
):
    """3 environments make 2 control steps each in a quarter of a second."""
    assert physics.engine_rate("avoid", engine, 3, 2) == 24
    assert [len(calls) for calls in calls_take_a_quarter_second] == [1]


def test_a_row_relates_the_environments_to_c_mujoco(
    capsys, calls_take_a_quarter_second
):
    (row,) = physics.measure_task("avoid", ["mujoco"], batch=3, num_steps=2)
    expected = {"steps/s": 24, "slowest": 12, "fastest": 48, "C steps/s": 24}
    assert {name: row[name] for name in expected} == expected
    assert row["ratio"] == 1 and row["compile s"] == 3
    assert [len(calls) for calls in calls_take_a_quarter_second] == [2]  # in turns
    assert "measuring avoid x 3: C MuJoCo, mujoco" in capsys.readouterr().err


def test_engines_that_cannot_run_here_are_left_out():
    engines = physics.usable_engines()
    assert "mjx" in engines and "mujoco" in engines


def test_every_option_has_a_default():
    options = physics.parse_arguments([])
    assert options.tasks == sorted(TASKS)
    assert options.json is None
    assert physics.parse_arguments(["--json"]).json == ""
