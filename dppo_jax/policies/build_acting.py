"""From a configuration to what acts, for algorithms that act with a critic."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dppo_jax.networks.build_encoder import make_state_action_critic, make_state_critic
from dppo_jax.policies.candidates import (
    CandidateParams,
    CandidatePolicy,
    candidate_policy,
)
from dppo_jax.policies.chain import ChainPolicy

# Settings of `candidate_policy` in the section of an algorithm -> its arguments.
_CANDIDATES = {
    "num_samples": "num_samples",
    "explore": "explore",
    "evaluate": "evaluate",
    "explore_expectile": "expectile",
    "temperature": "temperature",
}


def make_candidates(
    policy: ChainPolicy, critic: ConfigDict, settings: ConfigDict
) -> CandidatePolicy:
    """Make the policy that acts by the best of several candidates.

    Args:
        critic: the section `config.critic`, of both value networks.
        settings: the section `config.algorithm.idql`.

    Raises:
        SettingsError: as `candidate_policy`, or settings of no network.
    """
    return candidate_policy(
        policy,
        make_state_action_critic(critic, num_critics=settings.num_critics),
        make_state_critic(critic),
        **{argument: settings[name] for name, argument in _CANDIDATES.items()},
    )


def make_saved_acting(
    policy: Any,
    params: Any,
    saved: Mapping[str, Any],
    acting: Mapping[str, Any] | None = None,
) -> Any:
    """What acts with parameters that were saved: the policy, or candidates of it.

    Args:
        policy: made from the settings of the run.
        params: nested dictionaries, as saved.
        saved: content of the run's `config.json`; KeyError if it lacks a setting.
        acting: settings of the algorithm to use instead of the saved ones.
    """
    if not isinstance(params, Mapping) or set(params) != set(CandidateParams._fields):
        return policy
    if acting is None:
        algorithm = saved["algorithm"]
        acting = algorithm[algorithm["name"]]
    return make_candidates(policy, ConfigDict(saved["critic"]), ConfigDict(acting))
