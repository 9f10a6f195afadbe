"""Policies as chains of Gaussian moves; an ordinary Gaussian policy has one."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from dppo_jax import chain as chains
from dppo_jax import denoising
from dppo_jax.chain import Chain, Encoded, Sample, gaussian_log_prob
from dppo_jax.denoising import Cloning, Diffusion
from dppo_jax.networks import build as networks
from dppo_jax.squashed import SquashedPolicy, squashed_policy
from dppo_jax.types import Act, Array, Obs, PyTree

# A deterministic Gaussian policy keeps this much noise, as the reference does.
_DETERMINISTIC_STD = 1e-4


class PolicyParams(NamedTuple):
    """Network parameters of the frozen early steps and of the trained late ones.

    num_active: steps, counted from the last, that the tuned network owns where K' is
        annealed; None: all K'. It decides how the policy acts, so it belongs to what is
        saved and deployed.
    """

    base: PyTree
    tuned: PyTree
    num_active: Array | None = None


class ChainPolicy(NamedTuple):
    """A policy that acts by a chain of Gaussian moves, the last K' of them tunable.

    init: (key, obs) -> PolicyParams
    act: see `types.Act`; its extras are the `Sample`
    sample: (params, keys [B], obs, *, deterministic, min_std) -> Sample
    log_prob: (network parameters, x [B, Ta, Da], next_x, obs, step [B]) -> like x, the
        log-density of every entry of a tuned move; step 0 is the noisiest tuned one
    chain_log_prob: (network parameters, chain [B, K' + 1, Ta, Da], obs)
        -> [B, K', Ta, Da], of all tuned moves, the observations encoded once
    clone_loss: (network parameters, keys [B], obs, action [B, Ta, Da]) -> [B], the
        behaviour-cloning loss of every row
    entropy: (network parameters, obs) -> [B], mean over moves and entries
    num_steps: K', tuned moves in a chain
    min_std: the floor of the exploring standard deviation that `sample` uses when
        none is passed; 0: none
    denoises: whether the chain starts from noise; False for a Gaussian policy, whose
        only move starts from zero and has a standard deviation of its own
    """

    init: Callable[..., PolicyParams]
    act: Act
    sample: Callable[..., Sample]
    log_prob: Callable[..., Array]
    chain_log_prob: Callable[..., Array]
    clone_loss: Callable[..., Array]
    entropy: Callable[..., Array]
    num_steps: int
    min_std: float
    denoises: bool


def diffusion_policy(
    network: nn.Module,
    diffusion: Diffusion,
    *,
    chunk: int,
    action_dim: int,
    num_tuned_steps: int,
    min_std: float = 0.1,
) -> ChainPolicy:
    """A denoising chain whose last K' steps are a tunable policy (paper Sec. 4).

    Args:
        network: see `chain_policy`.
        diffusion: schedules and bounds.
        chunk: Ta.
        num_tuned_steps: K'; the first K - K' steps use the frozen network.
        min_std: floor of the sampling standard deviation while exploring.

    Raises:
        ValueError: K' outside [1, K], or a negative floor.
    """
    first_tuned = diffusion.explore.num_steps - num_tuned_steps
    std = jnp.maximum(diffusion.explore.std[first_tuned:], diffusion.min_log_prob_std)

    def entropy(params: PyTree, obs: Obs) -> Array:
        # The moves have a fixed standard deviation, so this is a constant.
        return jnp.broadcast_to(_gaussian_entropy(std).mean(), (_batch(obs),))

    return chain_policy(
        network,
        functools.partial(denoising.diffusion_chain, diffusion),
        denoising.diffusion_cloning(diffusion),
        entropy,
        chunk=chunk,
        action_dim=action_dim,
        num_tuned_steps=num_tuned_steps,
        min_std=min_std,
    )


def chain_policy(
    network: nn.Module,
    make_chain: Callable[[denoising.Denoise], Chain],
    cloning: Cloning,
    entropy: Callable[[PyTree, Obs], Array],
    *,
    chunk: int,
    action_dim: int,
    num_tuned_steps: int,
    min_std: float,
) -> ChainPolicy:
    """A policy that denoises, whatever its moves are.

    Args:
        network: a module (x [B, Ta, Da], time [B] or [1], obs) -> like x, whose methods
            `encode(obs) -> condition` and `denoise(x, time, condition)` are its two
            halves; the first is evaluated once per chain.
        make_chain: (params, x, time, condition) -> output, to the chain of it.
        cloning: what the network learns from demonstrations.
        entropy: (params, obs) -> [B].

    Raises:
        ValueError: as `diffusion_policy`.
    """
    apply: Callable[..., Any] = network.apply

    def encode(params: PyTree, obs: Obs) -> Encoded:
        return Encoded(params, apply(params, obs, method="encode"))

    def denoise(params: PyTree, x: Array, time: Array, condition: PyTree) -> Array:
        return apply(params, x, time, condition, method="denoise")

    chain = make_chain(denoise)
    if not 1 <= num_tuned_steps <= chain.num_steps:
        raise ValueError(
            f"num_tuned_steps={num_tuned_steps} must lie between 1 and the "
            f"schedule's {chain.num_steps} denoising steps; change one of them."
        )
    if min_std < 0:
        raise ValueError(f"min_std={min_std} must not be negative.")
    first_tuned = chain.num_steps - num_tuned_steps

    def init(key: Array, obs: Obs) -> PolicyParams:
        x = jnp.zeros((_batch(obs), chunk, action_dim))
        params = network.init(key, x, jnp.zeros(_batch(obs)), obs)
        return PolicyParams(base=params, tuned=params)

    def sample(
        params: PolicyParams,
        keys: Array,
        obs: Obs,
        *,
        deterministic: bool = False,
        min_std: Array | float = min_std,
    ) -> Sample:
        base, tuned = encode(params.base, obs), encode(params.tuned, obs)

        def network_of(step: Array) -> Encoded:
            if params.num_active is None:
                return tuned
            owned = step >= chain.num_steps - params.num_active
            return jax.tree.map(functools.partial(jnp.where, owned), tuned, base)

        draws = _normal(keys, (chain.num_steps + 1, chunk, action_dim))
        return chains.sample_chain(
            chain,
            base,
            network_of,
            jnp.moveaxis(draws, 0, 1),
            num_tuned=num_tuned_steps,
            min_std=min_std,
            deterministic=deterministic,
        )

    def log_prob(
        params: PyTree, x: Array, next_x: Array, obs: Obs, step: Array
    ) -> Array:
        network = encode(params, obs)
        return chains.move_log_prob(chain, network, x, next_x, first_tuned + step)

    def chain_log_prob(params: PyTree, entries: Array, obs: Obs) -> Array:
        def every_move(x: Array) -> Array:
            return jnp.repeat(x, num_tuned_steps, axis=0)

        network = encode(params, obs)
        network = network._replace(
            condition=jax.tree.map(every_move, network.condition)
        )
        x, next_x = (
            x.reshape(-1, chunk, action_dim) for x in (entries[:, :-1], entries[:, 1:])
        )
        step = jnp.tile(first_tuned + jnp.arange(num_tuned_steps), len(entries))
        log_prob = chains.move_log_prob(chain, network, x, next_x, step)
        return log_prob.reshape(-1, num_tuned_steps, chunk, action_dim)

    def clone_loss(params: PyTree, keys: Array, obs: Obs, action: Array) -> Array:
        time_keys, noise_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        return denoising.cloning_loss(
            cloning,
            denoise,
            params,
            action,
            encode(params, obs).condition,
            time=jax.vmap(cloning.draw_time)(time_keys),
            noise=_normal(noise_keys, action.shape[1:]),
        )

    return ChainPolicy(
        init=init,
        act=_act_by(sample),
        sample=sample,
        log_prob=log_prob,
        chain_log_prob=chain_log_prob,
        clone_loss=clone_loss,
        entropy=entropy,
        num_steps=num_tuned_steps,
        min_std=min_std,
        denoises=True,
    )


def gaussian_policy(network: nn.Module, *, draw_clip: float = 3.0) -> ChainPolicy:
    """A Gaussian over action chunks, as a chain of one move from zero.

    Args:
        network: `apply(params, obs) -> mean, std`, both [B, Ta, Da].
        draw_clip: bound of standard-normal draws; the density stays unclipped.
    """

    apply: Callable[..., Any] = network.apply

    def init(key: Array, obs: Obs) -> PolicyParams:
        params = network.init(key, obs)
        return PolicyParams(base=params, tuned=params)

    def sample(
        params: PolicyParams, keys: Array, obs: Obs, *, deterministic: bool = False
    ) -> Sample:
        mean, std = apply(params.tuned, obs)
        draw = jnp.clip(_normal(keys, mean.shape[1:]), -draw_clip, draw_clip)
        action = mean + (_DETERMINISTIC_STD if deterministic else std) * draw
        entries = jnp.stack([jnp.zeros_like(action), action], axis=1)
        return Sample(entries, gaussian_log_prob(action, mean, std)[:, None])

    def log_prob(
        params: PyTree, x: Array, next_x: Array, obs: Obs, step: Array
    ) -> Array:
        chex.assert_equal_shape([x, next_x])
        mean, std = apply(params, obs)
        return gaussian_log_prob(next_x, mean, std)

    def chain_log_prob(params: PyTree, entries: Array, obs: Obs) -> Array:
        mean, std = apply(params, obs)
        return gaussian_log_prob(entries[:, 1], mean, std)[:, None]

    def clone_loss(params: PyTree, keys: Array, obs: Obs, action: Array) -> Array:
        mean, std = apply(params, obs)
        return -gaussian_log_prob(action, mean, std).mean((-2, -1))

    def entropy(params: PyTree, obs: Obs) -> Array:
        return _gaussian_entropy(apply(params, obs)[1]).mean((-2, -1))

    return ChainPolicy(
        init=init,
        act=_act_by(sample),
        sample=sample,
        log_prob=log_prob,
        chain_log_prob=chain_log_prob,
        clone_loss=clone_loss,
        entropy=entropy,
        num_steps=1,
        min_std=0.0,
        denoises=False,
    )


def _act_by(sample: Callable[..., Sample]) -> Act:
    """Execute the end of a sampled chain."""

    def act(
        params: PolicyParams, keys: Array, obs: Obs, *, deterministic: bool = False
    ) -> tuple[Array, Sample]:
        sampled = sample(params, keys, obs, deterministic=deterministic)
        return sampled.chain[:, -1], sampled

    return act


def _normal(keys: Array, shape: tuple[int, ...]) -> Array:
    """[B, *shape] standard-normal draws, every row from a key of its own."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def _gaussian_entropy(std: Array) -> Array:
    return 0.5 * jnp.log(2 * jnp.pi * jnp.e) + jnp.log(std)


def _batch(obs: Obs) -> int:
    return next(iter(obs.values())).shape[0]


def default_config() -> ConfigDict:
    """What a policy is made of; of a saved one only `sampling` may still change."""
    config = ConfigDict()
    config.kind = "diffusion"  # or "gaussian", or "squashed" (for sac)
    config.chunk = 4  # Ta, predicted actions
    config.network = networks.default_config()
    config.diffusion = ConfigDict(
        dict(
            num_steps=20,  # K of training, and of sampling unless by DDIM
            predict_noise=True,
            x0_clip=FieldReference(1.0, field_type=float),  # None: no bound
        )
    )
    config.gaussian = ConfigDict(
        dict(
            fixed_std=FieldReference(0.1, field_type=float),  # None: predicted
            learn_fixed_std=False,
            std_min=0.01,
            std_max=1.0,
            tanh_output=True,
        )
    )
    # Bounds of the standard deviation before tanh, e^-5 and e^2 as in the SAC paper.
    config.squashed = ConfigDict(dict(std_min=0.0067, std_max=7.39))
    # What a chain needs to act and to be scored; no weight depends on it.
    config.sampling = ConfigDict(
        dict(
            num_tuned_steps=10,  # K', the moves that fine-tuning may change
            min_std=0.1,  # exploration: floor of a chain's sampling std
            min_log_prob_std=0.1,  # stability: floor of the std in log-probs
            eta=1.0,
            draw_clip=3.0,
            noise_clip=placeholder(float),
            final_clip=placeholder(float),
            ddim_steps=placeholder(int),  # K of a DDIM chain; None: DDPM
        )
    )
    return config


def make_policy(config: ConfigDict, *, action_dim: int) -> ChainPolicy | SquashedPolicy:
    """The policy that `default_config` describes.

    Args:
        config: `default_config` with changes.
        action_dim: Da.

    Raises:
        ValueError: settings that contradict each other, by name.
    """
    sampling = config.sampling
    if not sampling.draw_clip > 0:
        raise ValueError(f"draw_clip={sampling.draw_clip} must be positive.")
    network = functools.partial(
        networks.make_network,
        config.network,
        action_dim=action_dim,
        chunk=config.chunk,
    )
    if config.kind == "gaussian":
        head = dict(config.gaussian)
        return gaussian_policy(
            network(role="gaussian", head=head), draw_clip=sampling.draw_clip
        )
    if config.kind == "squashed":
        head = dict(config.squashed) | dict(fixed_std=None, tanh_output=False)
        return squashed_policy(network(role="gaussian", head=head))
    if config.kind != "diffusion":
        raise ValueError(
            f"model.kind={config.kind!r} is unknown; use 'diffusion', 'gaussian' or "
            "'squashed'."
        )
    return diffusion_policy(
        network(role="denoiser"),
        denoising.make_diffusion(
            **config.diffusion,
            ddim_steps=sampling.ddim_steps,
            eta=sampling.eta,
            noise_clip=sampling.noise_clip,
            draw_clip=sampling.draw_clip,
            final_clip=sampling.final_clip,
            min_log_prob_std=sampling.min_log_prob_std,
        ),
        chunk=config.chunk,
        action_dim=action_dim,
        num_tuned_steps=sampling.num_tuned_steps,
        min_std=sampling.min_std,
    )
