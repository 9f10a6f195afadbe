"""Compares a program that was made of a policy with the policy."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from dppo_jax.deploy import LoadedPolicy

# Observations on which a program is compared with its policy.
NUM_COMPARED = 16


class Difference(NamedTuple):
    """How far the actions of an exported program are from those of its policy.

    largest: of all entries of all compared chunks, in the units of the task.
    share: the same in shares of the range of the entry in the demonstrations.
    """

    largest: float
    share: float


def compare(
    policy: LoadedPolicy,
    chunks: Callable[[int, dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]],
    *,
    what: str,
) -> Difference:
    """Compare a program with its policy on random observations.

    Args:
        chunks: (seed, entries of an observation [To, ...]) -> the chunk of the program
            and that of the policy, both [n, Da].
        what: the program, for the message.

    Raises:
        RuntimeError: they differ by more than a thousandth of the range of actions.
    """
    normalizer = policy.normalizer
    span = np.asarray(normalizer.action_max) - np.asarray(normalizer.action_min)
    span = np.where(span > 0, span, 1.0)
    errors = []
    for seed, obs in enumerate(random_observations(policy, NUM_COMPARED)):
        found, wanted = chunks(seed, obs)
        errors.append(np.abs(found - wanted))
    # The largest of numbers that are not finite is not finite either.
    largest, share = (float(np.max(x)) for x in (errors, np.array(errors) / span))
    if not share <= 1e-3:
        raise RuntimeError(
            f"{what} differs from the policy by {largest:.3g}, {share:.2%} of the "
            "range of actions; nothing was written. Please report the run and the "
            "versions of its packages."
        )
    return Difference(largest, share)


def random_observations(
    policy: LoadedPolicy, count: int
) -> Iterator[dict[str, np.ndarray]]:
    """Draw the entries [To, ...] of observations within the bounds of a policy."""
    rng = np.random.default_rng(0)
    low, high = (
        np.asarray(x) for x in (policy.normalizer.obs_min, policy.normalizer.obs_max)
    )
    for _ in range(count):
        obs = {}
        for name, like in policy.reads.items():
            if like.dtype == np.uint8:
                obs[name] = rng.integers(0, 256, like.shape, np.uint8)
            elif name == "state":
                obs[name] = rng.uniform(low, high, like.shape).astype(like.dtype)
            else:
                obs[name] = rng.uniform(-1, 1, like.shape).astype(like.dtype)
        yield obs
