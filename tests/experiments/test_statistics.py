"""Statistics of few runs: numbers that can be computed by hand, and limit cases."""

import numpy as np
import pytest

from experiments.statistics import improvement, interquartile_mean, interval


@pytest.mark.parametrize(
    "scores, mean",
    [
        ([1, 2, 3, 100], 2.5),  # without 1 and 100
        ([5, 1, 100, 2, 3, 4, -100, 6], 3.5),  # 2, 3, 4 and 5 of eight
        ([0, 1, 2, 3, 4, 10, 20], 4),  # without 0 and 20
        ([1, 2, 6], 3),  # A quarter of three is less than one.
        ([7], 7),
    ],
)
def test_the_interquartile_mean_drops_a_quarter_at_either_end(scores, mean):
    np.testing.assert_allclose(interquartile_mean(np.array(scores, float)), mean)


@pytest.mark.parametrize(
    "scores, base, chance",
    [
        ([3, 4], [1, 2], 1),
        ([1, 2], [3, 4, 5], 0),
        ([2, 2], [2, 2, 2], 0.5),
        ([1, 3], [2], 0.5),
        ([1, 2], [2, 0], 0.625),  # one tie, and 1 > 0 and 2 > 0, of four pairs
    ],
)
def test_improvement_counts_pairs_and_half_of_the_ties(scores, base, chance):
    scores, base = np.array(scores, float), np.array(base, float)
    np.testing.assert_allclose(improvement(scores, base), chance)
    np.testing.assert_allclose(improvement(base, scores), 1 - chance)


def test_an_interval_contains_the_value_and_narrower_ones():
    scores, base = [0.2, 0.5, 0.6, 0.7, 0.95], [0.1, 0.4, 0.55, 0.6]
    for statistic, samples in (
        (interquartile_mean, [scores]),
        (improvement, [scores, base]),
    ):
        value = statistic(*(np.array(sample) for sample in samples))
        low, high = interval(statistic, *samples)
        assert low < value < high
        narrow = interval(statistic, *samples, confidence=0.5)
        assert low < narrow[0] < narrow[1] < high


def test_the_seed_alone_decides_what_is_drawn():
    """Twenty scores have so many means that two draws hardly end at the same."""
    scores = list(np.random.default_rng(0).normal(size=20))
    ends = [interval(interquartile_mean, scores, seed=seed) for seed in (0, 0, 1)]
    first, again, other = ends
    assert first == again != other
    np.testing.assert_allclose(first, other, atol=0.1)


def test_the_interval_of_two_scores_has_their_quantiles():
    """A quarter of the draws is (0, 0), another (1, 1); the rest have the mean 0.5."""
    assert interval(interquartile_mean, [0.0, 1.0]) == (0, 1)
    low, high = interval(interquartile_mean, [0.0, 1.0], confidence=0.4)
    assert low == high == 0.5


def test_equal_scores_have_no_spread_and_one_score_has_no_interval():
    assert interval(interquartile_mean, [2.0, 2.0, 2.0]) == (2, 2)
    assert interval(improvement, [3.0, 4.0], [1.0, 2.0]) == (1, 1)
    assert interval(interquartile_mean, [2.0]) is None
    assert interval(improvement, [1.0, 2.0], [0.0]) is None
