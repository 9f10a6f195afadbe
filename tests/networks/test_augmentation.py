import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.networks.augmentation import random_shifts, shift_image

KEY = jax.random.key(0)
STATE = np.zeros((3, 2, 5), np.float32)
IMAGES = np.random.default_rng(1).integers(0, 256, (3, 2, 16, 20, 3), np.uint8)
OBS = {"state": STATE, "rgb": IMAGES}
MANY_KEYS = jax.random.split(KEY, 2000)
SHIFT_IMAGE = jax.jit(shift_image, static_argnames="max_shift")


@pytest.mark.parametrize("dy, dx", [(0, 0), (0, 4), (3, 1), (2, 2), (4, 4)])
def test_a_shifted_image_is_a_window_of_the_padded_one(dy, dx):
    image = IMAGES[0]
    padded = np.pad(image, [(0, 0), (2, 2), (2, 2), (0, 0)], mode="edge")
    found = SHIFT_IMAGE(image, np.array([dy, dx]), max_shift=2)
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, padded[:, dy : dy + 16, dx : dx + 20])
    if (dy, dx) == (2, 2):
        np.testing.assert_array_equal(found, image)


@jax.jit
def shifted_images(keys, rgb):
    """A state that comes with the images is not touched."""
    obs = {"state": STATE, "rgb": rgb}
    shifted = random_shifts(keys, obs, max_shift=2)
    assert shifted["state"] is obs["state"]
    return shifted["rgb"]


def offsets_of(keys):
    """The shifts of two frames of two cameras [B, T, cameras, 2], from the middles."""
    frames = cameras = 2
    rows, columns = np.mgrid[:16, :16].astype(np.uint8)
    ramp = np.stack([rows, columns, rows], axis=-1)
    rgb = np.tile(ramp, (len(keys), frames, 1, 1, cameras))
    shifted = np.asarray(shifted_images(keys, rgb))
    middle = shifted[:, :, 8, 8].astype(np.int32)
    middle = middle.reshape(len(keys), frames, cameras, 3)
    return middle[..., :2] - 8


def test_every_shift_is_as_likely_in_both_directions():
    offsets = offsets_of(MANY_KEYS)[:, :1, :1]
    for axis in (0, 1):
        values, counts = np.unique(offsets[..., axis], return_counts=True)
        np.testing.assert_array_equal(values, [-2, -1, 0, 1, 2])
        np.testing.assert_allclose(counts, 400, atol=80)
    assert abs(np.corrcoef(offsets.reshape(-1, 2).T)[0, 1]) < 0.1


def test_frames_shift_together_and_cameras_apart():
    offsets = offsets_of(MANY_KEYS)
    np.testing.assert_array_equal(offsets[:, 0], offsets[:, 1])
    same = (offsets[:, 0, 0] == offsets[:, 0, 1]).all(-1)
    assert same.mean() < 0.1  # 0.04 on average


def test_the_shift_of_a_row_depends_on_its_key_alone():
    """Not on the keys of other rows, and not on its place."""
    offsets = offsets_of(MANY_KEYS)
    np.testing.assert_array_equal(offsets_of(MANY_KEYS[::-1]), offsets[::-1])
    others = jax.random.split(jax.random.key(9), len(MANY_KEYS)).at[2].set(MANY_KEYS[2])
    found = offsets_of(others)
    np.testing.assert_array_equal(found[2], offsets[2])
    assert (found != offsets).any()


def test_without_a_shift_nothing_changes_and_states_never_do():
    obs, keys = OBS, jax.random.split(KEY, 3)
    assert random_shifts(keys, obs, max_shift=0) is obs
    assert (shifted_images(keys, obs["rgb"]) != obs["rgb"]).any()


def test_shifts_that_cannot_be_are_refused():
    keys = jax.random.split(KEY, 3)
    with pytest.raises(ValueError, match="random_shift=-1 must not be negative"):
        random_shifts(keys, OBS, max_shift=-1)
    with pytest.raises(ValueError, match=r"observations have only \['state'\]; use 0"):
        random_shifts(keys, {"state": STATE}, max_shift=4)
