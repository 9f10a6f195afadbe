"""A policy that chooses between the proposals of a cloned and a trained network.

Imitation bootstrapped reinforcement learning (Hu et al. 2024, arXiv 2311.02198): of the
action of a frozen cloned policy and that of an actor, the one with the higher Q is
executed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppo_jax.networks import StateActionCritic
from dppo_jax.policies.chain import ChainPolicy, PolicyParams
from dppo_jax.types import Act, Array, Obs, PyTree


class ProposalParams(NamedTuple):
    """Parameters of all networks that act.

    cloned, actor: parameters of the network of each Gaussian policy.
    critic: of the ensemble that chooses.
    """

    cloned: PyTree
    actor: PyTree
    critic: PyTree


class ProposalPolicy(NamedTuple):
    """init: (key, obs) -> ProposalParams.

    act: see `types.Act`; its extras are `is_cloned` [B], whether the action is that of
        the cloned policy.
    """

    init: Callable[[Array, Obs], ProposalParams]
    act: Act


def proposal_policy(
    policy: ChainPolicy,
    critic: StateActionCritic,
    *,
    beta: float | None,
    exponent_twice: bool = False,
) -> ProposalPolicy:
    """Make the policy; the value of an action is the least of all critics.

    Deterministic: the actor proposes its mean, and the proposal of the higher value is
    executed. Exploring: the actor proposes a sample, and one of the two is drawn with
    probabilities softmax(beta Q). The cloned policy always proposes its mean.

    Args:
        policy: the Gaussian policy of both networks.
        beta: inverse temperature; None: exploring takes the higher value too.
        exponent_twice: softmax(exp(beta Q)), as in the reference implementation.
    """

    def init(key: Array, obs: Obs) -> ProposalParams:
        network_key, critic_key, act_key = jax.random.split(key, 3)
        network = policy.init(network_key, obs).tuned
        action = propose(policy, network, act_key[None], obs, deterministic=True)
        return ProposalParams(network, network, critic.init(critic_key, obs, action))

    def value_of(params: PyTree, obs: Obs, action: Array) -> Array:
        values: Any = critic.apply(params, obs, action)
        return values.min(0)

    def act(
        params: ProposalParams, keys: Array, obs: Obs, *, deterministic: bool = False
    ) -> tuple[Array, PyTree]:
        cloned_keys, actor_keys, choice_keys = jnp.moveaxis(
            jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0
        )
        cloned = propose(policy, params.cloned, cloned_keys, obs, deterministic=True)
        actor = propose(
            policy, params.actor, actor_keys, obs, deterministic=deterministic
        )
        value = jnp.stack(
            [value_of(params.critic, obs, action) for action in (actor, cloned)], -1
        )
        if deterministic or beta is None:
            choice = value.argmax(-1)
        else:
            logits = jnp.exp(beta * value) if exponent_twice else beta * value
            choice = jax.vmap(jax.random.categorical)(choice_keys, logits)
        is_cloned = choice == 1
        action = jnp.where(is_cloned[:, None, None], cloned, actor)
        return action, {"is_cloned": is_cloned}

    return ProposalPolicy(init, act)


def propose(
    policy: ChainPolicy,
    network: PyTree,
    keys: Array,
    obs: Obs,
    *,
    deterministic: bool = False,
) -> Array:
    """The action [B, Ta, Da] of a Gaussian policy, differentiable in its network."""
    params = PolicyParams(base=network, tuned=network)
    return policy.sample(params, keys, obs, deterministic=deterministic).chain[:, -1]
