"""From a configuration to what acts, for algorithms that act with a critic."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dppo_jax.networks.build_encoder import make_state_action_critic
from dppo_jax.policies.chain import ChainPolicy
from dppo_jax.policies.proposals import (
    ProposalParams,
    ProposalPolicy,
    proposal_policy,
)


def make_proposals(
    policy: ChainPolicy, critic: ConfigDict, settings: ConfigDict
) -> ProposalPolicy:
    """Make the policy that chooses between a cloned and a trained network.

    Args:
        critic: the section `config.critic`.
        settings: the section `config.algorithm.ibrl`.
    """
    return proposal_policy(
        policy,
        make_state_action_critic(critic, num_critics=settings.num_critics),
        beta=settings.beta,
        exponent_twice="exponent_twice" in settings.reference_quirks,
    )


def make_saved_acting(
    policy: Any,
    params: Any,
    saved: Mapping[str, Any],
    acting: Mapping[str, Any] | None = None,
) -> Any:
    """What acts with parameters that were saved: the policy, or proposals of it.

    Args:
        policy: made from the settings of the run.
        params: nested dictionaries, as saved.
        saved: content of the run's `config.json`; KeyError if it lacks a setting.
        acting: settings of the algorithm to use instead of the saved ones.
    """
    if not isinstance(params, Mapping) or set(params) != set(ProposalParams._fields):
        return policy
    if acting is None:
        algorithm = saved["algorithm"]
        acting = algorithm[algorithm["name"]]
    return make_proposals(policy, ConfigDict(saved["critic"]), ConfigDict(acting))
