"""Numbers of exploration, on trajectories that are made by hand."""

import numpy as np
import pytest

from dppo_jax.envs.tasks import avoid
from dppo_jax.errors import SettingsError
from experiments.studies import exploration, planes

# Twelve steps to the right.
LINE = np.stack([np.arange(12.0), np.zeros(12)], axis=1)
UP = np.array([0.0, 1.0])


def test_the_distance_is_that_to_the_nearest_position_of_any_demonstration():
    demonstrations = [LINE, LINE + 10 * UP]
    found = exploration.nearest([LINE + UP, LINE + 7 * UP], demonstrations)
    np.testing.assert_allclose(found, [1.0] * 12 + [3.0] * 12)
    numbers = exploration.measure([LINE + UP, LINE + 7 * UP], demonstrations, cell=2)
    assert numbers.distance == pytest.approx(2.0) and numbers.near == 0.5


def test_demonstrations_are_compared_with_the_others():
    found = exploration.measure_demonstrations([LINE, LINE + UP, LINE + 4 * UP], cell=2)
    assert found.distance == pytest.approx((1 + 1 + 3) / 3)
    alone = exploration.measure_demonstrations([LINE], cell=1)
    assert np.isnan(alone.distance) and np.isnan(alone.near) and alone.cells == 12


def test_cells_are_counted_once():
    cells = exploration.visited_cells(np.array([[0.1, 0.1], [0.4, 0.3], [-0.1, 0]]), 1)
    assert cells == {(0, 0), (-1, 0)}
    numbers = exploration.measure([LINE, LINE + 0.5 * UP], [LINE], cell=1)
    assert numbers.cells == 12 and numbers.cells_per_episode == 12
    numbers = exploration.measure([LINE, LINE + UP], [LINE], cell=1)
    assert numbers.cells == 24 and numbers.cells_per_episode == 12


def test_offsets_spread_between_trajectories_and_jitter_within():
    """Two straight lines at a distance of 2, and one line that jumps by 1."""
    shifted = [LINE, LINE + 2 * UP]
    assert exploration.within(shifted) == pytest.approx(0, abs=1e-12)
    assert exploration.between(shifted) == pytest.approx(1.0)
    signs = np.where(np.arange(12) % 2, 1.0, -1.0)[:, None] * UP
    # The mean of five of nine jumps up and four down is 1/9, so 8/9 are left.
    assert exploration.within([LINE + signs]) == pytest.approx(8 / 9)
    assert np.isnan(exploration.between([LINE + signs]))


def test_short_trajectories_count_as_far_as_they_go():
    assert np.isnan(exploration.within([LINE[:8]]))
    assert exploration.between([LINE, LINE[:3] + 2 * UP]) == pytest.approx(1.0)


def test_shares_and_entropy():
    found = exploration.shares(["none", "8", "5", "8"])
    assert list(found.items()) == [("5", 0.25), ("8", 0.5), ("none", 0.25)]
    assert exploration.entropy(list(found.values())) == pytest.approx(1.5)
    assert exploration.entropy([1.0, 0.0]) == 0.0 == exploration.entropy([])


def test_routes_of_the_rod_have_its_gaps_and_collisions():
    """One way through the gaps 1, 3 and 5, and one into the first cylinder."""
    way = np.array([[0.55, -0.1], [0.5, 0.0], [0.5, 0.08], [0.3, 0.2], [0.3, 0.3]])
    into = np.array([[0.5, -0.2], [0.5, -0.11]])
    found = planes.avoid_routes([way, into])
    assert found.collision.tolist() == [False, True]
    assert found.mode == ["5", "none"] and found.route == ["1-3-5", "none"]


def test_what_follows_the_reward_line_does_not_count():
    path = np.array([[0.3, 0.3], [0.3, avoid.REWARD_Y + 0.01], [0.9, 0.5]])
    assert len(planes.up_to_the_reward(path)) == 2
    assert len(planes.up_to_the_reward(path[:1])) == 1


def test_other_planes_have_the_range_of_the_demonstrations_as_their_unit():
    plane = planes.find_plane("hopper", "1,0", 11)
    states = np.array([[0.0, -1.0, 5.0], [4.0, 1.0, 5.0]])
    (path,) = planes.project(plane, [states])
    np.testing.assert_allclose(path, [[-1, 0], [1, 4]])
    np.testing.assert_allclose(
        planes.in_units(plane, [path], [path])[0], [[-1, 0], [1, 2]]
    )
    # An entry that never changes keeps its unit.
    still = planes.find_plane("hopper", "1,2", 3)
    (path,) = planes.project(still, [states])
    np.testing.assert_allclose(planes.in_units(still, [path], [path])[0], path)


@pytest.mark.parametrize(
    "task, dims, message",
    [
        ("hopper", "", "which two of the 11 entries"),
        ("avoid", "0", "must be two numbers"),
        ("avoid", "0,x", "must be two numbers"),
        ("avoid", "3,3", "two different entries"),
        ("hopper", "0,11", "numbers 0 to 10"),
    ],
)
def test_wrong_dims_are_refused(task, dims, message):
    with pytest.raises(SettingsError, match=message):
        planes.find_plane(task, dims, 11)
