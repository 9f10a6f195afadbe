"""Flow policies: Euler steps along a learned velocity, with learned noise."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dppo_jax.diffusion.denoising import Cloning
from dppo_jax.diffusion.flow import Flow, bounded_std, flow_chain, flow_time
from dppo_jax.policies.chain import (
    ChainPolicy,
    PolicyParams,
    chain_policy,
    gaussian_entropy,
)
from dppo_jax.types import Array, Obs, PyTree


class FlowParams(NamedTuple):
    """Parameters of a flow.

    velocity: of the network that is cloned.
    noise: of the network behind the standard deviation, which `ChainPolicy.prepare`
        adds; None: the standard deviation is that of an output of zero.
    """

    velocity: PyTree
    noise: PyTree | None = None


class _Velocity(NamedTuple):
    """A denoiser that finds its parameters in those of a flow."""

    network: nn.Module

    def init(self, key: Array, *inputs: Any) -> FlowParams:
        return FlowParams(self.network.init(key, *inputs))

    def apply(self, params: FlowParams, *inputs: Any, method: str) -> Any:
        apply: Callable[..., Any] = self.network.apply
        return apply(params.velocity, *inputs, method=method)


def flow_policy(
    network: nn.Module,
    flow: Flow,
    cloning: Cloning,
    *,
    chunk: int,
    action_dim: int,
    num_tuned_steps: int | None = None,
    noise_network: nn.Module | None = None,
) -> ChainPolicy:
    """A flow whose last K' Euler steps are a tunable policy (arXiv 2505.22094).

    Cloning does not train the noise network: `init` leaves it out, and so does a cloned
    checkpoint. `prepare` adds the same noise network to the tuned and to the frozen
    parameters; the frozen velocity stays the cloned one. The standard deviation gives
    the velocity network no gradient, so the entropy bonus changes only the noise
    network. (In ReinFlow the encoder gets a gradient too.)

    Args:
        network: see `chain_policy`; its output is the velocity.
        flow: steps and bounds.
        cloning: what the network learns from demonstrations, such as `flow_cloning`.
        chunk: Ta.
        action_dim: Da.
        num_tuned_steps: K'; None: all K.
        noise_network: a module (time [B] or [1], condition) -> [B, Ta, Da], to be
            bounded by `bounded_std`; None: the standard deviation is
            sqrt(std_min std_max) throughout.

    Raises:
        SettingsError: K' outside [1, K].
    """
    velocity = _Velocity(network)
    num_tuned = flow.num_steps if num_tuned_steps is None else num_tuned_steps

    def std(params: FlowParams, time: Array, condition: PyTree) -> Array:
        if noise_network is None or params.noise is None:
            return bounded_std(flow, jnp.zeros(()))
        apply: Callable[..., Any] = noise_network.apply
        output = apply(params.noise, time, jax.lax.stop_gradient(condition))
        return bounded_std(flow, output)

    def entropy(params: FlowParams, obs: Obs) -> Array:
        condition = velocity.apply(params, obs, method="encode")
        batch = next(iter(obs.values())).shape[0]

        def of_move(step: Array) -> Array:
            time = jnp.atleast_1d(flow_time(flow, step))
            each = std(params, time, condition)
            return jnp.broadcast_to(each, (batch, chunk, action_dim))

        steps = flow.num_steps - num_tuned + jnp.arange(num_tuned)
        return gaussian_entropy(jax.vmap(of_move)(steps)).mean((0, 2, 3))

    def prepare(key: Array, params: PolicyParams, obs: Obs) -> PolicyParams:
        if noise_network is None or params.tuned.noise is not None:
            return params
        condition = velocity.apply(params.tuned, obs, method="encode")
        noise = noise_network.init(key, jnp.zeros(1), condition)
        return params._replace(
            base=params.base._replace(noise=noise),
            tuned=params.tuned._replace(noise=noise),
        )

    def velocity_error(
        params: FlowParams, obs: Obs, action: Array, noise: Array, time: Array
    ) -> Array:
        # An observation is encoded once for all its pairs.
        every_pair = functools.partial(jnp.repeat, repeats=time.shape[1], axis=0)
        condition = velocity.apply(params, obs, method="encode")
        x, told, target = cloning.corrupt(
            every_pair(action), noise.reshape(-1, chunk, action_dim), time.reshape(-1)
        )
        condition = jax.tree.map(every_pair, condition)
        output = velocity.apply(params, x, told, condition, method="denoise")
        return (output - target).reshape(noise.shape)

    policy = chain_policy(
        velocity,
        functools.partial(flow_chain, flow, std=std, tells_length=cloning.tells_length),
        cloning,
        entropy,
        chunk=chunk,
        action_dim=action_dim,
        num_tuned_steps=num_tuned,
        min_std=0.0,
    )
    policy = policy._replace(prepare=prepare, narrow=True)
    if cloning.tells_length:
        # It acts by average velocities, not by those of straight paths.
        return policy
    return policy._replace(velocity_error=velocity_error)
