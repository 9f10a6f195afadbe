"""A frozen policy, steered by a second policy over the noise its chains start from.

DSRL (arXiv 2506.15799): where a policy's deterministic mode is a function of the start
of its chain, a = f(s, w), a policy over w acts through it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from dppo_jax.errors import SettingsError
from dppo_jax.policies.chain import ChainPolicy, PolicyParams
from dppo_jax.policies.squashed import SquashedPolicy
from dppo_jax.types import Act, Array, Obs, PyTree


class SteeredParams(NamedTuple):
    """Parameters of a steered policy.

    decoder: of the frozen policy.
    actor: of the policy over its noise.
    """

    decoder: PolicyParams
    actor: PyTree


class SteeredPolicy(NamedTuple):
    """A policy that acts by a = f(s, w).

    init: (key, obs) -> SteeredParams.
    act: see `types.Act`; its extras are the noise w, [B, Ta, Da].
    decode: (PolicyParams, obs, noise [B, Ta, Da]) -> action like noise, without a
        gradient for the parameters or the noise.
    noise: the policy over w.
    """

    init: Callable[[Array, Obs], SteeredParams]
    act: Act
    decode: Callable[[PolicyParams, Obs, Array], Array]
    noise: SquashedPolicy


def steered_policy(decoder: ChainPolicy, noise: SquashedPolicy) -> SteeredPolicy:
    """Make a policy that steers another one.

    Args:
        decoder: a diffusion policy that samples by DDIM, or a flow.
        noise: a policy over the start of its chains, [Ta, Da].

    Raises:
        SettingsError: the chains of `decoder` draw more than their start.
    """
    decode_of = decoder.decode if isinstance(decoder, ChainPolicy) else None
    if decode_of is None:
        raise SettingsError(
            "a policy is steered by the start of its chain, so its deterministic mode "
            "must draw nothing else; use model.kind='flow', or model.kind='diffusion' "
            "with model.sampling.ddim_steps set."
        )

    def init(key: Array, obs: Obs) -> SteeredParams:
        decoder_key, actor_key = jax.random.split(key)
        return SteeredParams(decoder.init(decoder_key, obs), noise.init(actor_key, obs))

    def decode(params: PolicyParams, obs: Obs, start: Array) -> Array:
        return jax.lax.stop_gradient(decode_of(params, obs, start))

    def act(
        params: SteeredParams, keys: Array, obs: Obs, *, deterministic: bool = False
    ) -> tuple[Array, Array]:
        start, _ = noise.act(params.actor, keys, obs, deterministic=deterministic)
        return decode(params.decoder, obs, start), start

    return SteeredPolicy(init, act, decode, noise)
