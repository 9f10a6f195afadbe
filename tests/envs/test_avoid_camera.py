"""Pictures of the avoidance task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.envs import make_task, stack_observations
from dppo_jax.envs.tasks import avoid
from dppo_jax.envs.tasks.avoid_camera import (
    CORNER,
    SIDE,
    picture,
    pictures,
    with_camera,
)
from dppo_jax.errors import SettingsError

SIZE = 96


def pixel(position):
    """Row and column of a position; rows count from the top."""
    x, y = (np.array(position) - CORNER) / SIDE * SIZE
    return SIZE - 1 - int(y), int(x)


def color(image, position):
    red, green, blue = image[pixel(position)].astype(int)
    spread = max(red, green, blue) - min(red, green, blue)
    if spread < 30:
        return "gray"
    return ("red", "green", "blue")[np.argmax([red, green, blue])]


def test_a_picture_shows_rod_cylinders_and_lines_at_their_places():
    image = np.asarray(picture(jnp.array(avoid.START), SIZE))
    assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
    assert color(image, avoid.START) == "blue"
    for x, y, _ in avoid.CYLINDERS:
        assert color(image, (x, y)) == "red"
    for y in (avoid.FINISH_Y, avoid.REWARD_Y):
        assert color(image, (0.3, y)) == "green"
    for empty in ((0.42, -0.1), (0.5, 0.08), (0.3, 0.45)):
        assert color(image, empty) == "gray"


def test_only_the_rod_moves():
    """Two pictures differ where the rod is in one of them, and nowhere else."""
    here, there = (0.3, -0.2), (0.7, 0.0)
    one, other = (np.asarray(picture(jnp.array(p), SIZE)) for p in (here, there))
    rows, columns = np.nonzero((one != other).any(-1))
    centres = np.array([pixel(here), pixel(there)])
    apart = np.abs(np.stack([rows, columns], 1)[:, None] - centres).max(-1).min(-1)
    assert len(rows) > 10 and apart.max() <= 3


def test_a_rod_out_of_sight_is_not_drawn():
    lost, hidden = (picture(jnp.array(p), SIZE) for p in ((3.0, 0.0), (0.0, -3.0)))
    np.testing.assert_array_equal(lost, hidden)


def test_observations_have_the_picture_of_their_position():
    """After a reset and after a step, also in a stack of observations."""
    env = stack_observations(with_camera(make_task("avoid"), 32), 2)
    assert env.obs_shape == {"state": (2, 4), "rgb": (2, 32, 32, 3)}
    state = env.reset(jax.random.key(0))
    before = state.obs
    for _ in range(5):
        state, outcome = jax.jit(env.step)(state, jnp.array([0.01, 0.01]))
    for obs in (before, state.obs, outcome.obs):
        for row in range(2):
            wanted = picture(obs["state"][row, 2:], 32)
            np.testing.assert_array_equal(obs["rgb"][row], wanted)
    assert (before["rgb"] != outcome.obs["rgb"]).any()
    recorded = pictures(np.asarray(outcome.obs["state"]), 32)
    np.testing.assert_array_equal(recorded, outcome.obs["rgb"])


def test_other_tasks_and_tiny_pictures_are_refused():
    with pytest.raises(SettingsError, match="draws the task avoid.*state \\[4\\]"):
        with_camera(make_task("hopper"))
    with pytest.raises(SettingsError, match="size=8 pixels"):
        with_camera(make_task("avoid"), 8)
