"""The loss of PPO whose ratio is that of the likelihoods of whole chunks.

The DPPO paper (arXiv 2409.00588, App. B.5) compares with this policy gradient: the
clipped objective with r = exp(log p_new(a | s) - log p_old(a | s)), where log p is the
log-density of the action under the probability-flow ODE, `diffusion/likelihood.py`.
The probes of its divergence are drawn in the roll-out and stored, so that the two
log-densities of a chunk differ only by the parameters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dppo_jax.diffusion.likelihood import draw_probes
from dppo_jax.learning import losses
from dppo_jax.learning.on_policy import Steps
from dppo_jax.learning.on_policy_chunks import ChunkObjective
from dppo_jax.policies import ChainPolicy, PolicyParams
from dppo_jax.rollout import BoundAct
from dppo_jax.types import Array, Metrics, Obs, PyTree

REDUCTIONS = ("mean", "sum")


class Scored(NamedTuple):
    """Chunks and what their log-densities depend on; leaves [B, ...].

    chunk: [B, Ta, Da].
    probes: [B, P, Ta, Da].
    log_prob: [B], reduced, with the parameters that acted.
    """

    chunk: Array
    probes: Array
    log_prob: Array


def likelihood_objective(
    policy: ChainPolicy,
    *,
    num_probes: int,
    ode_steps: int | None,
    ode_tolerance: float | None,
    reduction: str,
    clip: float,
) -> ChunkObjective:
    """Make the objective of a policy with an `ode_log_prob`; extras are `Scored`.

    Args:
        num_probes: P.
        ode_steps: steps of Heun's method; None: one between any two denoising steps.
        ode_tolerance: of the solver of diffrax; None: Heun's method.
        reduction: "sum", the log-density of a chunk; "mean", this divided by the Ta Da
            entries of the chunk, so that the same `clip` suits chunks of any size.
        clip: half-width of the range of ratios.
    """
    ode_log_prob = policy.ode_log_prob
    assert ode_log_prob is not None, "the policy must have a likelihood"

    def log_prob_of(
        params: PolicyParams, obs: Obs, chunk: Array, probes: Array
    ) -> Array:
        total = ode_log_prob(
            params,
            obs,
            chunk,
            probes,
            num_steps=ode_steps,
            tolerance=ode_tolerance,
        )
        return total / chunk[0].size if reduction == "mean" else total

    def explore(params: PolicyParams) -> BoundAct:
        def act(keys: Array, obs: Obs) -> tuple[Array, Scored]:
            act_keys, probe_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
            chunk, _ = policy.act(params, act_keys, obs)
            probes = draw_probes(probe_keys, chunk.shape[1:], num_probes=num_probes)
            log_prob = log_prob_of(params, obs, chunk, probes)
            return chunk, Scored(chunk, probes, log_prob)

        return act

    def loss(
        tuned: PyTree, params: PolicyParams, steps: Steps
    ) -> tuple[Array, Metrics]:
        kept: Scored = steps.extras
        log_prob = log_prob_of(
            params._replace(tuned=tuned), steps.obs, kept.chunk, kept.probes
        )
        surrogate, info = losses.clipped_surrogate(
            log_prob, kept.log_prob, steps.advantage, jnp.asarray(clip)
        )
        metrics = {"policy_loss": surrogate, "log_prob": log_prob.mean()}
        return surrogate, metrics | info._asdict()

    return ChunkObjective(explore, loss)
