"""Properties of the maps between task units and [-1, 1]."""

import numpy as np
import pytest

from dppo_jax import normalize
from dppo_jax.normalize import Normalizer, fit_normalizer

OBSERVATIONS = np.array([[0.0, 5.0], [10.0, 5.0], [4.0, 5.0]])
ACTIONS = np.array([[-2.0], [2.0], [1.0]])


@pytest.fixture
def normalizer():
    return fit_normalizer(OBSERVATIONS, ACTIONS)


def test_bounds_become_minus_one_and_one(normalizer):
    obs = normalize.normalize_obs(normalizer, OBSERVATIONS)
    np.testing.assert_allclose(obs[:, 0], [-1, 1, -0.2], atol=1e-6)
    action = normalize.normalize_action(normalizer, ACTIONS)
    np.testing.assert_allclose(action[:, 0], [-1, 1, 0.5], atol=1e-6)


def test_a_constant_entry_becomes_minus_one_and_is_restored(normalizer):
    obs = normalize.normalize_obs(normalizer, OBSERVATIONS)
    np.testing.assert_array_equal(obs[:, 1], -1)
    again = normalize.unnormalize_obs(normalizer, obs)
    np.testing.assert_allclose(again, OBSERVATIONS, atol=1e-5)


def test_observations_far_outside_of_the_data_are_clipped(normalizer):
    """Without clipping, 1 mm off in a constant column would be 1999."""
    seen = normalize.policy_obs(normalizer, OBSERVATIONS + [0.0, 1e-3])
    np.testing.assert_allclose(seen[:, 0], [-1, 1, -0.2], atol=1e-6)
    np.testing.assert_array_equal(seen[:, 1], 1.0)
    far = normalize.policy_obs(normalizer, np.array([[1e4, 0.0], [-1e4, 5.0]]))
    np.testing.assert_array_equal(far, [[10.0, -1.0], [-10.0, -1.0]])
    assert normalize.constant_columns(normalizer) == [1]


def test_actions_of_one_reach_the_exact_bounds(normalizer):
    action = normalize.unnormalize_action(normalizer, np.float32([[-1], [1], [0]]))
    np.testing.assert_array_equal(action[:, 0], [-2, 2, 0])


def test_a_saved_file_reads_back_the_same(normalizer, tmp_path):
    path = tmp_path / "folder" / "normalization.npz"
    normalize.save_normalizer(path, normalizer)
    for source in (path, path.parent):
        again = normalize.load_normalizer(source)
        for ours, theirs in zip(again, normalizer):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == np.float32
    assert [p.name for p in path.parent.iterdir()] == ["normalization.npz"]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(obs_min=None), "lacks obs_min"),
        (dict(obs_min=np.zeros(3)), r"obs_min \(3,\) and obs_max \(2,\)"),
        (dict(action_min=np.zeros((1, 1))), "two vectors"),
        (dict(action_max=np.array([-3.0])), "action_min=-2.0 and action_max=-3.0"),
        (dict(obs_max=np.array([1.0, np.nan])), "obs_max=nan at index 1"),
        (dict(obs_max=np.array([{}, {}])), "obs_max is an object array"),
        (dict(obs_max=np.array(["a", "b"])), "it must hold numbers"),
    ],
)
def test_files_that_hold_no_bounds_are_refused(normalizer, tmp_path, change, message):
    arrays = {k: v for k, v in (normalizer._asdict() | change).items() if v is not None}
    path = tmp_path / "normalization.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        normalize.load_normalizer(path)
    assert str(path) in str(error.value)


def test_missing_and_damaged_files_are_named(tmp_path):
    path = tmp_path / "normalization.npz"
    with pytest.raises(ValueError, match="normalization.npz does not exist"):
        normalize.load_normalizer(tmp_path)
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match="normalization.npz is not a readable"):
        normalize.load_normalizer(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="holds a single array"):
        normalize.load_normalizer(path)


def test_bounds_are_only_fitted_to_complete_finite_rows():
    with pytest.raises(ValueError, match=r"actions hold NaN .* in 1 rows.*\[1\]"):
        fit_normalizer(np.zeros((2, 1)), np.array([[0.0], [np.inf]]))
    with pytest.raises(ValueError, match="2 observations and 1 actions"):
        fit_normalizer(np.zeros((2, 1)), np.zeros((1, 1)))
    with pytest.raises(ValueError, match="non-empty table"):
        fit_normalizer(np.zeros((0, 1)), np.zeros((0, 1)))


def test_invalid_bounds_are_not_saved(tmp_path):
    swapped = Normalizer(np.ones(1), np.zeros(1), np.zeros(1), np.ones(1))
    with pytest.raises(ValueError, match="obs_min=1.0 and obs_max=0.0"):
        normalize.save_normalizer(tmp_path / "normalization.npz", swapped)
    assert not list(tmp_path.iterdir())
