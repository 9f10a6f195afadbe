"""Recordings of robosuite, played in the manipulation tasks."""

import jax
import numpy as np
import pytest

from dppo_jax.demonstrations import load_robomimic, robosuite_replay
from dppo_jax.demonstrations.robosuite_replay import (
    Recording,
    measured_response,
    read_recording,
    replay,
    solved_steps,
    start_like,
)
from dppo_jax.envs.tasks.tabletop import Body, Hand, Scene
from experiments import replay as program
from tests.demonstrations.robosuite_files import states, write_states

DOWN = np.array([0.0, 1.0, 0.0, 0.0])


def scene(position, body):
    """A hand that points down, with fingers half open, and a can."""
    number = len(position)
    upright = np.tile([1.0, 0.0, 0.0, 0.0], (number, 1))
    fingers = np.full((number, 2), 0.02)
    hand = Hand(np.asarray(position), np.tile(DOWN, (number, 1)), fingers)
    return Scene((hand,), {"can": Body(np.asarray(body), upright)})


def recording(steps=4, shift=0.0075):
    """A hand that covers a quarter of 3 cm in every control step, along x."""
    x = np.arange(steps) * shift
    line = np.stack([x, 0 * x - 0.2, 0 * x + 1.0], axis=1)
    actions = np.zeros((steps, 7))
    actions[:, 0] = 0.6
    actions[:, 6] = -1
    return Recording(scene(line, np.tile([0.1, -0.3, 0.85], (steps, 1))), actions)


def test_a_task_starts_as_a_scene_shows_it():
    """Although the arm of the task stands elsewhere than robosuite's."""
    wanted = jax.tree.map(lambda leaf: leaf[0], recording().scene)
    state = start_like(wanted, "can", "mujoco")
    seen = np.asarray(state.obs["state"])
    np.testing.assert_allclose(seen[:3], [0.0, -0.2, 1.0], atol=2e-4)
    np.testing.assert_allclose(np.abs(seen[3:7]), [1, 0, 0, 0], atol=2e-3)
    np.testing.assert_allclose(seen[7:9], [0.02, -0.02], atol=1e-6)
    np.testing.assert_allclose(seen[9:16], [0.1, -0.3, 0.85, 0, 0, 0, 1], atol=1e-6)
    assert not state.physics.qvel.any()


def test_the_response_is_the_share_of_the_commanded_way():
    assert measured_response(recording()) == pytest.approx(0.25)
    assert measured_response(recording(shift=0.0)) == 0


def test_recorded_scenes_are_judged_by_the_rule_of_the_task():
    places = [[0.2, 0.4, 0.85], [0.2, 0.1, 0.85]]
    above = [[0.2, 0.4, 1.0]] * 2
    found = Recording(scene(above, places), np.zeros((2, 7)))
    assert solved_steps(found, "can").tolist() == [True, False]


def test_an_unknown_way_is_named():
    with pytest.raises(ValueError, match="way='joints' must be one of actions, poses"):
        replay(recording(), "can", way="joints")


@pytest.mark.slow
@pytest.mark.parametrize("way", robosuite_replay.WAYS)
def test_a_straight_line_is_followed(way):
    """With the response of the tasks, hands move as robosuite's, except at first."""
    found = replay(recording(steps=21), "can", way=way, engine="mujoco")
    assert found.hand.shape == (20,)
    assert found.hand.max() < 0.006 and found.turn.max() < 0.02
    assert found.body.max() < 0.002 and not found.solved.any()


# Per file: the task, and the control steps in which people handle its object.
HUMAN = {
    "lift": ("lift", 0, 412),
    "pick-place": ("can", 1096, 1482),
    "nut-assembly": ("square", 443, 1036),
}


def read(demos_dir, name):
    task, first, last = HUMAN[name]
    path = demos_dir / "robosuite_human" / f"{name}.hdf5"
    part = slice(first, last)
    table = load_robomimic(path, obs_keys=("states",)).observations["state"][part]
    actions = load_robomimic(path, task=task).actions[part]
    return read_recording(table, actions, task, str(path)), task


@pytest.mark.parametrize("name", HUMAN)
def test_human_recordings_have_the_response_that_the_tasks_assume(demos_dir, name):
    found, task = read(demos_dir, name)
    assert 0.23 < measured_response(found) < 0.27
    assert solved_steps(found, task).any()
    # The same holds of rotations about the vertical, whose sign is converted.
    hand = found.scene.hands[0].quaternion
    yaw = np.unwrap(2 * np.arctan2(hand[:, 2], hand[:, 1]))
    wanted = 0.5 * found.actions[:-1, 5]
    assert 0.2 < (np.diff(yaw) * wanted).sum() / (wanted**2).sum() < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", HUMAN)
def test_the_hand_follows_people(demos_dir, name):
    found, task = read(demos_dir, name)
    played = replay(found, task, way="poses", engine="mujoco")
    assert np.median(played.hand) < 0.005 and played.hand.max() < 0.03


def test_the_program_prints_both_ways(tmp_path, capsys, monkeypatch):
    path = write_states(tmp_path / "lift.hdf5", states(rows=4))
    flat = np.zeros(3)
    monkeypatch.setattr(
        program,
        "replay",
        lambda *_, way, **__: robosuite_replay.Replay(
            flat + 0.002, flat, flat + 0.001, np.array([0, way == "poses", 0])
        ),
    )
    program.main([str(path), "--task=lift"])
    said = capsys.readouterr().out
    assert "control steps 0 to 3 of 4" in said
    assert "actions : not solved; hand mm from the recorded one: " in said
    assert "poses   : solved from step 2; " in said and "2 at the end" in said
    with pytest.raises(ValueError, match="first=3 and last=4 must"):
        program.main([str(path), "--task=lift", "--first=3"])
