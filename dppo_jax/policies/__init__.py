"""Policies: acting, log-probabilities of actions, and loss of behaviour cloning."""

from dppo_jax.policies.best_of import BestOfParams, BestOfPolicy, best_of_policy
from dppo_jax.policies.build import (
    default_config,
    defaults_of,
    make_policy,
    make_saved_policy,
    num_executable,
    obs_like,
    sampling_note,
)
from dppo_jax.policies.candidates import (
    CandidateParams,
    CandidatePolicy,
    candidate_policy,
)
from dppo_jax.policies.chain import (
    ChainPolicy,
    PolicyParams,
    chain_policy,
    diffusion_policy,
)
from dppo_jax.policies.flow import FlowParams, flow_policy
from dppo_jax.policies.gaussian import gaussian_policy
from dppo_jax.policies.gmm import gmm_policy
from dppo_jax.policies.proposals import ProposalParams, ProposalPolicy
from dppo_jax.policies.squashed import SquashedPolicy, scaled_policy, squashed_policy
from dppo_jax.policies.steered import SteeredParams, SteeredPolicy, steered_policy
