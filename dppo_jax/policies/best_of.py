"""Explore by the best of several chunks, as a random subset of the critics scores them.

OGPO (arXiv 2605.03065) explores in this way. Deterministic actions are those of the
policy that proposes the chunks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppo_jax.errors import SettingsError
from dppo_jax.networks import StateActionCritic
from dppo_jax.policies.candidates import propose
from dppo_jax.policies.chain import ChainPolicy, PolicyParams
from dppo_jax.types import Act, Array, Obs, PyTree


class BestOfParams(NamedTuple):
    """policy: proposes chunks. critic: of Q(s, a), an ensemble."""

    policy: PolicyParams
    critic: PyTree


class BestOfPolicy(NamedTuple):
    """init: (key, obs) -> BestOfParams. act: see `types.Act`; it has no extras."""

    init: Callable[[Array, Obs], BestOfParams]
    act: Act


def best_of_policy(
    policy: ChainPolicy,
    critic: StateActionCritic,
    *,
    num_samples: int,
    judges: int,
    own_judges: bool = False,
) -> BestOfPolicy:
    """Make a policy that explores by the proposed chunk of the highest value.

    The value of a chunk is the least of `judges` random critics, which are drawn anew
    for each observation.

    Args:
        policy: proposes chunks as it explores.
        num_samples: proposals for an observation; 1 acts as `policy` does, from the
            same draws.
        judges: how many critics score a chunk.
        own_judges: draw them anew for each proposal.

    Raises:
        SettingsError: no proposal, or more judges than critics.
    """
    if num_samples < 1:
        raise SettingsError(f"num_samples={num_samples} must be at least 1.")
    if not 1 <= judges <= critic.num_critics:
        raise SettingsError(
            f"judges={judges} must be between 1 and num_critics={critic.num_critics}."
        )
    value_of: Callable[..., Any] = critic.apply

    def init(key: Array, obs: Obs) -> BestOfParams:
        policy_key, critic_key = jax.random.split(key)
        params = policy.init(policy_key, obs)
        rows = next(iter(obs.values())).shape[0]
        action, _ = policy.act(params, jax.random.split(key, rows), obs)
        return BestOfParams(params, critic.init(critic_key, obs, action))

    def best(key: Array, value: Array) -> Array:
        """Index of the best proposal, given [num_critics, num_samples]."""
        keys = jax.random.split(key, num_samples if own_judges else 1)

        def draw(key: Array) -> Array:
            members = jnp.arange(critic.num_critics)
            return jax.random.choice(key, members, (judges,), replace=False)

        drawn = jax.vmap(draw, out_axes=1)(keys)  # [judges, num_samples or 1]
        return jnp.take_along_axis(value, drawn, axis=0).min(0).argmax()

    def act(
        params: BestOfParams, keys: Array, obs: Obs, *, deterministic: bool = False
    ) -> tuple[Array, PyTree]:
        if deterministic or num_samples == 1:
            action, _ = policy.act(
                params.policy, keys, obs, deterministic=deterministic
            )
            return action, {}
        choice_keys, many, action = propose(
            policy, params.policy, keys, obs, num_samples=num_samples
        )
        value = value_of(params.critic, many, action)
        value = value.reshape(critic.num_critics, -1, num_samples).swapaxes(0, 1)
        chosen = jax.vmap(best)(choice_keys, value)
        proposals = action.reshape(-1, num_samples, *action.shape[1:])
        return proposals[jnp.arange(len(chosen)), chosen], {}

    return BestOfPolicy(init, act)
