"""Statistics of few runs, as Agarwal et al. 2021 (arXiv 2108.13264) recommend.

Their bootstrap draws runs with replacement, task by task. A comparison here has one
task, so it draws seeds, of each entry by itself. `scipy.stats.bootstrap` does that and
is installed with JAX. The authors' package rliable would bring nine more packages,
among them pandas, statsmodels, seaborn and arch.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
_RESAMPLES = 10_000


def interquartile_mean(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """The mean without the lowest and the highest quarter of the scores.

    Args:
        scores: [..., N]. A quarter is rounded down: of three scores it drops none, of
            four to seven the lowest and the highest.

    Returns:
        [...]
    """
    return stats.trim_mean(scores, 0.25, axis=axis)


def improvement(scores: np.ndarray, base: np.ndarray, axis: int = -1) -> np.ndarray:
    """The probability that a run scores higher than one of the base; ties count half.

    It is the Mann-Whitney statistic divided by the number of pairs, the probability of
    improvement of the paper for one task.

    Args:
        scores: [..., N]
        base: [..., M]
        axis: only the last one.

    Returns:
        [...]
    """
    assert axis == -1  # `interval` passes it.
    difference = scores[..., :, None] - base[..., None, :]
    return (0.5 + 0.5 * np.sign(difference)).mean(axis=(-2, -1))


def interval(
    statistic: Callable[..., np.ndarray],
    *samples: Sequence[float],
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile interval of the bootstrap; every sample is drawn by itself.

    It assumes that the scores represent all that runs may score, so with few seeds it
    is too narrow.

    Args:
        statistic: (*samples [..., N], axis=-1) -> [...]
        seed: of the draws; the same seed gives the same interval.

    Returns:
        Lower and upper end; None if a sample has fewer than two scores, whose spread is
        unknown.
    """
    if min(map(len, samples)) < 2:
        return None
    found = stats.bootstrap(
        [np.asarray(sample, float) for sample in samples],
        statistic,
        n_resamples=_RESAMPLES,
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
