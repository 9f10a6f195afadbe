"""Intervals of scores: published values, limit cases, and how often they hold."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.intervals import in_words, mean_interval, of_score, success_interval


@pytest.mark.parametrize(
    "successes, num_episodes", [(0, 10), (3, 6), (81, 263), (9, 9)]
)
def test_the_interval_of_a_success_rate_is_that_of_wilson(successes, num_episodes):
    expected = stats.binomtest(successes, num_episodes).proportion_ci(method="wilson")
    found = success_interval(successes / num_episodes, num_episodes)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_published_example_of_an_interval():
    """81 of 263 (Newcombe 1998, Statistics in Medicine 17:857, table I)."""
    assert success_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_all_successes_do_not_make_success_certain():
    low, high = success_interval(1.0, 50)
    assert 0.9 < low < 0.95 and high == 1.0
    assert success_interval(0.0, 50) == pytest.approx((0.0, 1 - low))


def test_the_interval_of_a_mean_holds_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(4000, 5))
    errors = draws.std(axis=1, ddof=1) / math.sqrt(5)
    ends = [mean_interval(m, e, 5) for m, e in zip(draws.mean(axis=1), errors)]
    held = np.mean([low <= 3.0 <= high for low, high in ends])
    assert held == pytest.approx(0.95, abs=0.012)
    assert mean_interval(1.0, 0.0, 1) is None


def test_a_score_has_the_intervals_that_are_known():
    metrics = {"success": 0.5, "episode_return": 2.0, "episode_return_stderr": 0.0}
    found = of_score(metrics | {"mode": 3.0}, 4)
    assert found == {"success": success_interval(0.5, 4), "episode_return": (2.0, 2.0)}
    assert of_score({"success": 7.0}, 4) == of_score({"success": math.nan}, 4) == {}
    assert set(of_score(metrics, 1)) == {"success"}
    assert in_words((0.25, 0.75)) == "95 % in [0.25, 0.75]" and in_words(None) == ""
