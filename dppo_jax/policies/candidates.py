"""Act by one of several chunks that a policy proposes (IDQL, arXiv 2304.10573).

A critic Q(s, a) scores the candidates of an observation, with V(s) as the reference for
their advantages Q - V; one of them is executed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppo_jax.errors import SettingsError
from dppo_jax.networks import StateActionCritic, StateCritic
from dppo_jax.policies.chain import ChainPolicy, PolicyParams
from dppo_jax.types import Act, Array, Obs, PyTree

# How a candidate is chosen:
# - "argmax": the one of the highest value;
# - "expectile": drawn with weight tau where its advantage is positive, else 1 - tau,
#   which is the policy that the expectile tau of V(s) implies (IDQL, Sec. 4);
# - "boltzmann": drawn with weight exp(advantage / temperature);
# - "first": the first, so nothing is chosen.
CHOICES = ("argmax", "expectile", "boltzmann", "first")


class CandidateParams(NamedTuple):
    """policy: proposes chunks. critic: of Q(s, a). value: of V(s)."""

    policy: PolicyParams
    critic: PyTree
    value: PyTree


class CandidatePolicy(NamedTuple):
    """init: (key, obs) -> CandidateParams. act: see `types.Act`; it has no extras."""

    init: Callable[[Array, Obs], CandidateParams]
    act: Act


def choose(
    kind: str, key: Array, advantage: Array, *, expectile: float, temperature: float
) -> Array:
    """Choose one of S candidates.

    Args:
        kind: a name in `CHOICES`.
        advantage: [S].
        expectile: tau, the weight of candidates better than V.
        temperature: divides advantages; only "boltzmann" uses it.

    Returns:
        [] int32, the index of the candidate.
    """
    if kind == "argmax":
        return advantage.argmax()
    if kind == "expectile":
        weight = jnp.where(advantage > 0, expectile, 1 - expectile)
        return jax.random.categorical(key, jnp.log(weight))
    if kind == "boltzmann":
        return jax.random.categorical(key, advantage / temperature)
    return jnp.int32(0)


def candidate_policy(
    policy: ChainPolicy,
    critic: StateActionCritic,
    value: StateCritic,
    *,
    num_samples: int,
    explore: str,
    evaluate: str,
    expectile: float,
    temperature: float,
) -> CandidatePolicy:
    """Make a policy that proposes several chunks, scores them and executes one.

    Args:
        policy: proposes chunks in the mode, deterministic or exploring, of `act`.
        critic: the value of a chunk is the least of its members.
        num_samples: S; 1 acts as `policy` does, from the same draws.
        explore, evaluate: names in `CHOICES`, for exploring and deterministic actions.
        expectile, temperature: see `choose`.

    Raises:
        SettingsError: an unknown name or a number out of its range.
    """
    for name, kind in (("explore", explore), ("evaluate", evaluate)):
        if kind not in CHOICES:
            raise SettingsError(
                f"{name}={kind!r} is unknown; use one of {', '.join(CHOICES)}."
            )
    if num_samples < 1:
        raise SettingsError(f"num_samples={num_samples} must be at least 1.")
    if not 0 < expectile < 1:
        raise SettingsError(f"explore_expectile={expectile} must be between 0 and 1.")
    if not temperature > 0:
        raise SettingsError(f"temperature={temperature} must be positive.")
    value_of: Callable[..., Any] = critic.apply
    baseline_of: Callable[..., Any] = value.apply

    def init(key: Array, obs: Obs) -> CandidateParams:
        policy_key, critic_key, value_key = jax.random.split(key, 3)
        params = policy.init(policy_key, obs)
        action, _ = policy.act(params, jax.random.split(key, _rows(obs)), obs)
        return CandidateParams(
            policy=params,
            critic=critic.init(critic_key, obs, action),
            value=value.init(value_key, obs),
        )

    def act(
        params: CandidateParams,
        keys: Array,
        obs: Obs,
        *,
        deterministic: bool = False,
    ) -> tuple[Array, PyTree]:
        kind = evaluate if deterministic else explore
        if num_samples == 1 or kind == "first":
            action, _ = policy.act(
                params.policy, keys, obs, deterministic=deterministic
            )
            return action, {}
        choice_keys, many, action = propose(
            policy,
            params.policy,
            keys,
            obs,
            num_samples=num_samples,
            deterministic=deterministic,
        )
        score = value_of(params.critic, many, action).min(0).reshape(-1, num_samples)
        advantage = score - baseline_of(params.value, obs)[:, None]
        chosen = jax.vmap(
            lambda key, advantage: choose(
                kind, key, advantage, expectile=expectile, temperature=temperature
            )
        )(choice_keys, advantage)
        candidates = action.reshape(-1, num_samples, *action.shape[1:])
        return candidates[jnp.arange(len(chosen)), chosen], {}

    return CandidatePolicy(init, act)


def propose(
    policy: ChainPolicy,
    params: PolicyParams,
    keys: Array,
    obs: Obs,
    *,
    num_samples: int,
    deterministic: bool = False,
) -> tuple[Array, Obs, Array]:
    """Let a policy propose S chunks for every observation.

    Args:
        keys: [B].
        num_samples: S.

    Returns:
        A key [B] for the choice among the candidates of each observation; observations
        [B S, ...] and chunks [B S, Ta, Da], those of one observation side by side.
    """
    each = jax.vmap(lambda key: jax.random.split(key, num_samples + 1))(keys)
    many = jax.tree.map(lambda x: jnp.repeat(x, num_samples, axis=0), obs)
    action, _ = policy.act(
        params, each[:, 1:].reshape(-1), many, deterministic=deterministic
    )
    return each[:, 0], many, action


def _rows(obs: Obs) -> int:
    return next(iter(obs.values())).shape[0]
