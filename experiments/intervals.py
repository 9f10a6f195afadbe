"""Intervals that contain the expected score of a policy in 95 of 100 evaluations."""

import math
from collections.abc import Mapping, Sequence

from scipy import special

from dppo_jax.training.metric_names import SCORES

CONFIDENCE = 0.95
Interval = tuple[float, float]


def success_interval(
    rate: float, num_episodes: int, *, confidence: float = CONFIDENCE
) -> Interval:
    """The interval of Wilson (1927) for a probability, lower and upper end.

    It holds for few episodes and for rates of 0 and 1, unlike the rate plus and minus
    two standard errors. It is the set of probabilities p at which the measured rate is
    at most z standard errors sqrt(p (1 - p) / n) from p.

    Args:
        rate: share of n episodes that succeeded.
    """
    z = special.ndtri((1 + confidence) / 2)
    spread = z**2 / num_episodes
    centre = rate + spread / 2
    half = z * math.sqrt((rate * (1 - rate) + spread / 4) / num_episodes)
    low, high = (float((centre + x) / (1 + spread)) for x in (-half, half))
    # Rounding would leave 1e-17 and 1 - 1e-16.
    return 0.0 if rate == 0 else low, 1.0 if rate == 1 else high


def mean_interval(
    mean: float, stderr: float, num_episodes: int, *, confidence: float = CONFIDENCE
) -> Interval | None:
    """Student's interval of a mean; None for one episode, whose spread is unknown."""
    if num_episodes < 2:
        return None
    half = stderr * float(special.stdtrit(num_episodes - 1, (1 + confidence) / 2))
    return mean - half, mean + half


def of_score(metrics: Mapping[str, float], num_episodes: int) -> dict[str, Interval]:
    """The intervals of the means in `summarize` for which they are known.

    These are `success`, a share of the episodes, and `episode_return`.
    """
    found: dict[str, Interval | None] = {}
    if 0 <= metrics.get("success", math.nan) <= 1:
        found["success"] = success_interval(metrics["success"], num_episodes)
    if "episode_return_stderr" in metrics:
        value, error = metrics["episode_return"], metrics["episode_return_stderr"]
        found["episode_return"] = mean_interval(value, error, num_episodes)
    return {name: ends for name, ends in found.items() if ends is not None}


def headline(
    metrics: Mapping[str, float], num_episodes: int
) -> tuple[str, float, Interval | None]:
    """What a policy is judged by: the first of `SCORES`, its mean, and its interval."""
    name = next(x for x in SCORES if x in metrics)
    return name, metrics[name], of_score(metrics, num_episodes).get(name)


def spread(
    scores: Sequence[float], interval: Interval | None
) -> tuple[float, Interval | None]:
    """The mean over runs and their range; of one run its score and its interval."""
    ends = (min(scores), max(scores)) if len(scores) > 1 else interval
    return sum(scores) / len(scores), ends


def in_words(ends: Interval | None) -> str:
    """Such as "95 % in [0.1, 0.2]"; empty for None."""
    if ends is None:
        return ""
    return f"{100 * CONFIDENCE:.0f} % in [{ends[0]:.4g}, {ends[1]:.4g}]"
