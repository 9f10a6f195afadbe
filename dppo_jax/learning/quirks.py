"""Named departures of the reference implementation from the papers it implements."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dppo_jax.errors import SettingsError
from dppo_jax.learning.learner import Learner
from dppo_jax.types import Array, Obs, PyTree


def check_quirks(name: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise a SettingsError for a quirk that the algorithm `name` does not have."""
    for quirk in (given,) if isinstance(given, str) else given:
        if quirk not in known:
            raise SettingsError(
                f"{name}.reference_quirks has {quirk!r}, which is unknown; use some of "
                f"{', '.join(known)}, as in ({known[0]!r},), or () for the method of "
                "the paper."
            )


def with_equal_members(learner: Learner) -> Learner:
    """Start all critics of an ensemble from the same parameters.

    They get the same batches and targets, so they stay equal, and an ensemble of any
    size is one critic (quirk `same_initialisation`).

    Args:
        learner: whose state has the fields `critic` and `target`.
    """

    def init(key: Array, obs: Obs, *args: Any) -> Any:
        state = learner.init(key, obs, *args)
        critic = state.critic._replace(params=equal_members(state.critic.params))
        return state._replace(critic=critic, target=equal_members(state.target))

    return learner._replace(init=init)


def equal_members(params: PyTree) -> PyTree:
    """Parameters of a `StateActionCritic`, with copies of its first member for all."""
    members = jax.tree.map(
        lambda x: jnp.broadcast_to(x[:1], x.shape).copy(), params["params"]["members"]
    )
    return {**params, "params": {**params["params"], "members": members}}
