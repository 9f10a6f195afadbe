"""robomimic's and robosuite's files as observations of the manipulation tasks."""

import h5py
import numpy as np
import pytest

from dppo_jax.demonstrations import load_demonstrations, load_robomimic
from dppo_jax.demonstrations.dataset import unnormalize_episodes
from dppo_jax.demonstrations.formats import robosuite_scenes
from dppo_jax.envs.tasks import can, transport
from experiments import convert
from tests.demonstrations.robosuite_files import (
    DOWN,
    OSC,
    arm,
    states,
    write,
    write_states,
)

S = np.sqrt(0.5)


def read(path, task):
    """The converted observation of the first step, and of all others."""
    state = load_robomimic(path, task=task).observations["state"]
    np.testing.assert_array_equal(state, np.tile(state[:1], (len(state), 1)))
    return state[0]


def test_lift_has_the_same_poses_and_derives_the_rest(tmp_path):
    turn = (0.0, 0.0, np.sin(0.3), np.cos(0.3))
    # What robosuite derives from other entries is not read.
    cube = [0.2, 0.3, 0.83, *turn, 9.0, 9.0, 9.0]
    path = write(tmp_path / "lift.hdf5", [arm((0.1, 0.0, 1.0))], cube)
    hand = [0.1, 0.0, 1.0, *DOWN, 0.02, -0.03]
    to_grip = [-0.1, -0.3, 0.17]
    np.testing.assert_allclose(
        read(path, "lift"), [*hand, 0.2, 0.3, 0.83, *turn, *to_grip], atol=1e-6
    )


def test_a_can_is_lowered_with_the_hand_because_it_rests_lower(tmp_path):
    """By the height of its middle, which is 4 cm above a floor at 0.82 there."""
    pose = [0.2, -0.3, 0.86, 0.0, 0.0, 0.0, 1.0]
    tables = ([arm((0.1, 0.0, 1.0))], [*pose, *np.full(7, 9.0)])
    seen = read(write(tmp_path / "can.hdf5", *tables, env="PickPlaceCan"), "can")
    height = can.TABLE + can.HALF_HEIGHT
    np.testing.assert_allclose(seen[9:16], [0.2, -0.3, height, *pose[3:]], atol=1e-6)
    np.testing.assert_allclose(seen[2], 0.99, atol=1e-6)
    # In the frame of a hand that points down, y and z are turned round.
    np.testing.assert_allclose(seen[16:19], [0.1, 0.3, 0.14], atol=1e-6)


@pytest.mark.parametrize("side", [1, -1])
def test_hammer_and_lid_of_transport_get_the_axes_that_they_have_here(tmp_path, side):
    """Robosuite's hammer is along its z axis, with its y axis up or, rolled, down."""
    # Its z axis along y or -y in the world, its y axis up or down.
    hammer = [0.2, -0.45, 0.83, 0.0, S * side, S, 0.0]
    trash = [-0.2, 0.45, 0.82, 0.0, 0.0, 0.0, 1.0]
    handle = [0.2, -0.45, 0.93, 0.0, 0.0, 0.0, 1.0]
    rest = np.full(20, 9.0)
    arms = [arm((0.2, -0.4, 1.0)), arm((-0.2, 0.4, 1.0), fingers=(0.04, -0.04))]
    path = write(
        tmp_path / "transport.hdf5",
        arms,
        [*hammer, *trash, *handle, *rest],
        env="TwoArmTransport",
    )
    seen = read(path, "transport")
    assert seen.shape == (59,)
    np.testing.assert_allclose(seen[9:18], [*arms[1][:2], 1, *arms[1][3:]])
    np.testing.assert_allclose(seen[18:21], hammer[:3], atol=1e-6)
    # Along the y axis, or against it, and upright.
    turn = seen[21:25] * np.sign(seen[24])
    np.testing.assert_allclose(turn, [0, 0, S * side, S], atol=1e-6)
    np.testing.assert_allclose(seen[25:32], trash, atol=1e-6)
    np.testing.assert_allclose(seen[32:39], [*handle[:3], 0, 0, S, S], atol=1e-6)
    # Places of the bins are those of the task, trash is in the target bin.
    places = [*transport.TARGET, transport.TABLE, *transport.TRASH, transport.TABLE]
    np.testing.assert_allclose(seen[39:45], places, atol=1e-6)
    assert seen[45:47].tolist() == [0, 0]
    np.testing.assert_allclose(seen[47:50], [0, -0.05, -0.17], atol=1e-6)


def test_simulator_states_give_the_same_observation(tmp_path):
    """At home the grip is 0.45 m before the base, 1 m high and points nearly down."""
    seen = read(write_states(tmp_path / "lift.hdf5", states()), "lift")
    np.testing.assert_allclose(seen[:3], [-0.1, 0.0, 1.0], atol=0.02)
    np.testing.assert_allclose(np.abs(seen[3:7]), [1, 0, 0, 0], atol=0.07)
    np.testing.assert_allclose(seen[7:9], [0.03, -0.02], atol=1e-6)
    cube = [0.02, -0.01, 0.821, 0, 0, 0, 1]
    np.testing.assert_allclose(seen[9:16], cube, atol=1e-6)
    np.testing.assert_allclose(seen[16:], seen[:3] - seen[9:12], atol=1e-6)


@pytest.mark.parametrize(
    "version, sign", [("1.0.0", -1), ("1.1.2", -1), ("1.2.0", 1), (None, 1)]
)
def test_hands_turned_the_other_way_in_early_versions(tmp_path, version, sign):
    path = write_states(tmp_path / "lift.hdf5", states())
    with h5py.File(path, "a") as file:
        file["data/demo_1/actions"][...] = np.arange(1, 8) / 10
        if version is not None:
            file["data"].attrs["repository_version"] = version
    wanted = np.arange(1, 8) / 10 * [1, 1, 1, sign, sign, sign, 1]
    found = load_robomimic(path, task="lift")
    np.testing.assert_allclose(found.actions, [wanted] * 2, atol=1e-6)
    # The rest of the file stays as it is.
    raw = load_robomimic(path).actions
    np.testing.assert_allclose(raw, [np.arange(1, 8) / 10] * 2, atol=1e-6)


def test_the_command_writes_the_observations_of_a_task(tmp_path, capsys):
    cube = [0.2, 0.3, 0.83, 0.0, 0.0, 0.0, 1.0, 9.0, 9.0, 9.0]
    path = write(tmp_path / "lift.hdf5", [arm((0.1, 0.0, 1.0))], cube)
    target = str(tmp_path / "target")
    convert.main([str(path), target, "--task=lift"])
    assert "state [19]" in capsys.readouterr().out
    episodes = unnormalize_episodes(load_demonstrations(target))
    np.testing.assert_allclose(
        episodes.observations["state"][0], read(path, "lift"), atol=1e-6
    )


LIFT = ([arm((0.1, 0.0, 1.0))], [0.0] * 3 + [0.0, 0.0, 0.0, 1.0] + [0.0] * 3)


@pytest.mark.parametrize(
    "task, changes, message",
    [
        ("lift", dict(env="PickPlaceCan"), "recorded in PickPlaceCan, .* reads Lift"),
        ("avoid", {}, "task='avoid' .* use one of lift, can, square, transport"),
        ("can", dict(env="PickPlace"), "has 19 entries, but task=can needs 23"),
        (
            "lift",
            dict(controller=OSC | dict(control_delta=False)),
            "controller of control_delta=False; task=lift needs OSC_POSE",
        ),
        (
            "lift",
            dict(controller=dict(type="JOINT_POSITION")),
            "controller of the type JOINT_POSITION; .*needs OSC_POSE",
        ),
        (
            "lift",
            dict(controller=OSC | dict(output_max=0.1)),
            r"output_max=.0.1, .*at most .0.05",
        ),
        (
            "transport",
            dict(
                env="TwoArmTransport",
                controller=dict(
                    type="BASIC",
                    body_parts=dict(right=OSC | dict(input_ref_frame="base")),
                ),
            ),
            "input_ref_frame=base; task=transport",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, task, changes, message):
    path = write(tmp_path / "a.hdf5", *LIFT, **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_robomimic(path, task=task)
    assert str(path) in str(error.value) or "avoid" in message
    assert "\n" not in str(error.value)


def test_missing_or_other_quantities_are_named(tmp_path):
    path = write(tmp_path / "a.hdf5", LIFT[0], None)
    with pytest.raises(ValueError, match="obs lacks object"):
        load_robomimic(path, task="lift")
    path = write(tmp_path / "b.hdf5", LIFT[0], np.zeros(10))
    with pytest.raises(ValueError, match="quaternion of the cube in object has len"):
        load_robomimic(path, task="lift")
    with pytest.raises(ValueError, match="leave out obs_keys"):
        load_robomimic(path, task="lift", obs_keys=("object",))
    path = write_states(tmp_path / "c.hdf5", states(free_bodies=2))
    with pytest.raises(ValueError, match="states have 45 entries, .* have 32"):
        load_robomimic(path, task="lift")
    path = write_states(tmp_path / "d.hdf5", states(), env="TwoArmTransport")
    with pytest.raises(ValueError, match="only simulator states, .*dataset_states_to"):
        load_robomimic(path, task="transport")


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 50_000])
def test_a_damaged_description_is_named(tmp_path, text):
    path = write(tmp_path / "a.hdf5", *LIFT)
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = text
    with pytest.raises(ValueError, match="description of the environment is no JSON"):
        load_robomimic(path, task="lift")


def test_only_files_of_robosuite_take_a_task(tmp_path):
    with h5py.File(tmp_path / "d4rl.hdf5", "w") as file:
        file["observations"] = np.zeros((2, 1))
    with pytest.raises(ValueError, match="task='lift' has no meaning"):
        load_demonstrations(tmp_path / "d4rl.hdf5", task="lift")


def test_leaves_of_any_length_go_through_one_shape(monkeypatch):
    monkeypatch.setattr(robosuite_scenes, "_BATCH", 4)
    shapes = []

    def double(x):
        shapes.append(x.shape)
        return 2 * x

    for number in (3, 4, 9):
        x = np.arange(number * 2).reshape(number, 2)
        np.testing.assert_array_equal(robosuite_scenes.in_batches(double, x), 2 * x)
    assert set(shapes) == {(4, 2)} and len(shapes) == 1 + 1 + 3


@pytest.mark.parametrize(
    "name, task, environment, carried, distance",
    [
        ("lift", "lift", "Lift", slice(395, 412), 0.0011),
        # The can is held above its middle, the nut by its handle.
        ("pick-place", "can", "PickPlace", slice(1320, 1450), 0.0136),
        ("nut-assembly", "square", "NutAssembly", slice(800, 1000), 0.06),
    ],
)
def test_people_hold_the_object_between_the_fingers(
    demos_dir, name, task, environment, carried, distance
):
    """Arms and objects fit together only if all conventions are right."""
    path = demos_dir / "robosuite_human" / f"{name}.hdf5"
    episodes = load_robomimic(path, task=task)
    state = episodes.observations["state"]
    assert state.shape == (len(episodes.actions), 19 if task == "lift" else 23)
    hand, body = state[carried, :3], state[carried, 9:12]
    away = np.linalg.norm(hand - body, axis=1)
    np.testing.assert_allclose(away, distance, atol=0.0005)
    # Closed fingers hold something.
    gap = state[carried, 7] - state[carried, 8]
    assert 0.01 < gap.min() and gap.max() < 0.07
    with pytest.raises(ValueError, match=f"recorded in {environment}"):
        load_robomimic(path, task="transport")
