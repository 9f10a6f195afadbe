"""Ends a run whose metrics are not finite, and says why that may be."""

import math
from collections.abc import Mapping, Sequence

from dppo_jax.types import OF_ENVIRONMENT


def check_finite(
    numbers: Mapping[str, float],
    names: Sequence[str],
    *,
    iteration: int,
    last_row: int,
    where: str = "",
) -> None:
    """Raise FloatingPointError if a metric that must be finite is not.

    Args:
        names: of the metrics that must be finite.
        last_row: the last iteration that was looked at.
        where: names the run, in front of the message.
    """
    for name in names:
        value = numbers.get(name, 0.0)
        if math.isfinite(value):
            continue
        cure = (
            "lower the learning rate or the clip range. If resuming fails at once, "
            "the newest folder in checkpoints/ holds a diverged policy; remove it."
        )
        if name in OF_ENVIRONMENT:
            cure = (
                f"the environment returned {OF_ENVIRONMENT[name]} that is NaN or "
                "infinite; correct env.task or env.wrappers."
            )
            if name == "reward" and numbers.get("diverged", 0) > 0:
                cure = (
                    "every simulation broke in every step (diverged), so nothing "
                    "is left to learn from; correct env.task or env.wrappers, or "
                    "lower the time step of its physics."
                )
        if iteration > last_row + 1:
            cure += (
                f" This may have begun in any iteration after {last_row}, the "
                "last one with a row; set log_every=1 to see what came first."
            )
        raise FloatingPointError(
            f"{where}{name} became {value} in iteration {iteration}; {cure}"
        )
