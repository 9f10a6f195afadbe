"""Policies as chains of Gaussian moves."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dppo_jax.diffusion import chain as chains
from dppo_jax.diffusion import denoising, likelihood
from dppo_jax.diffusion.chain import Chain, Encoded, Moments, Sample
from dppo_jax.diffusion.denoising import Cloning, Diffusion
from dppo_jax.errors import SettingsError
from dppo_jax.types import Act, Array, Obs, PyTree


class PolicyParams(NamedTuple):
    """Parameters of a chain policy.

    base: of the frozen network, which runs the first moves.
    tuned: of the network that fine-tuning changes, which runs the last moves.
    num_active: number of last moves that the tuned network runs if K' is annealed;
        None: K'. Acting depends on it, so it is saved with the policy.
    """

    base: PyTree
    tuned: PyTree
    num_active: Array | None = None


def as_they_are(key: Array, params: PolicyParams, obs: Obs) -> PolicyParams:
    """The `ChainPolicy.prepare` of policies that cloning trains completely."""
    return params


class ChainPolicy(NamedTuple):
    """A policy that acts by a chain of Gaussian moves, of which K' are tuned.

    init: (key, obs) -> PolicyParams.
    act: see `types.Act`; its extras are the `Sample`.
    sample: (params, keys [B], obs, *, deterministic, min_std) -> Sample. A Gaussian
        policy takes no `min_std`.
    log_prob: (network parameters, x [B, Ta, Da], next_x, obs, step [B]) -> like x, the
        log-density of every entry of a tuned move; step 0 is the noisiest tuned one.
    chain_log_prob: (network parameters, chain [B, K' + 1, Ta, Da], obs)
        -> [B, K', Ta, Da], of all tuned moves; observations are encoded once.
    clone_loss: (network parameters, keys [B], obs, action [B, Ta, Da]) -> [B], the
        behaviour-cloning loss of every row. That of a chain that `denoises` takes a
        `target_of`, see `denoising.cloning_loss`.
    entropy: (network parameters, obs) -> [B], mean over moves and entries.
    num_tuned_steps: K', tuned moves in a chain.
    min_std: default floor of the standard deviation with which `sample` explores; 0: no
        floor.
    denoises: True if the chain starts from noise; False for a Gaussian policy, whose
        only move starts from zero.
    narrow: True if moves are scored with the standard deviation of sampling, which is
        so small that PPO's bounds of log-probabilities would remove all gradients. PPO
        then applies neither these bounds nor a floor.
    joint: True if the entries of a move depend on each other, as in a mixture. Only the
        sum of their log-probabilities has a meaning then, and whole chunks have a
        `clone_loss` and an `entropy`.
    prepare: (key, PolicyParams, obs) -> PolicyParams; adds the parameters that
        fine-tuning trains and cloning does not, unless they are there.
    chain_moments: as `chain_log_prob`, of the same moves -> Moments. None: the moves
        are no independent Gaussians.
    velocity_error: (network parameters, obs, action [B, Ta, Da], noise
        [B, N, Ta, Da], time [B, N]) -> like noise, the velocity that the network
        predicts on N paths from noise to each action, minus the one that cloning
        teaches. None: the policy is no flow, or one of average velocities.
    ode_log_prob: (PolicyParams, obs, action [B, Ta, Da], probes [B, P, Ta, Da], *,
        num_steps, tolerance) -> [B], the log-density of chunks, see
        `diffusion/likelihood.py`.
        None: the policy is no diffusion policy, or one of a single denoising step or
        whose clean action has no bound.
    decode: (PolicyParams, obs, noise [B, Ta, Da]) -> action like noise, which the
        deterministic mode makes of the start of its chain. None: that mode draws more
        than the start.
    """

    init: Callable[..., PolicyParams]
    act: Act
    sample: Callable[..., Sample]
    log_prob: Callable[..., Array]
    chain_log_prob: Callable[..., Array]
    clone_loss: Callable[..., Array]
    entropy: Callable[..., Array]
    num_tuned_steps: int
    min_std: float
    denoises: bool
    narrow: bool = False
    joint: bool = False
    prepare: Callable[[Array, PolicyParams, Obs], PolicyParams] = as_they_are
    chain_moments: Callable[..., Moments] | None = None
    velocity_error: Callable[..., Array] | None = None
    ode_log_prob: Callable[..., Array] | None = None
    decode: Callable[[PolicyParams, Obs, Array], Array] | None = None


def diffusion_policy(
    network: nn.Module,
    diffusion: Diffusion,
    *,
    chunk: int,
    action_dim: int,
    num_tuned_steps: int,
    min_std: float = 0.1,
    past_actions: int = 0,
) -> ChainPolicy:
    """Make a policy that denoises in K steps, the last K' of them tuned (paper Sec. 4).

    Args:
        network: see `chain_policy`.
        diffusion: schedules and bounds.
        chunk: Ta.
        action_dim: Da.
        num_tuned_steps: K'; the first K - K' steps use the base network.
        min_std: floor of the sampling standard deviation while exploring.
        past_actions: see `chain_policy`.

    Raises:
        SettingsError: K' outside [1, K], a negative floor, or `past_actions` that leave
            no action of the chunk.
    """
    first_tuned = diffusion.explore.num_denoising_steps - num_tuned_steps
    std = jnp.maximum(diffusion.explore.std[first_tuned:], diffusion.min_log_prob_std)

    def entropy(params: PyTree, obs: Obs) -> Array:
        # The schedule fixes the standard deviations, so the entropy is constant.
        return jnp.broadcast_to(gaussian_entropy(std).mean(), (_batch(obs),))

    policy = chain_policy(
        network,
        functools.partial(denoising.diffusion_chain, diffusion),
        denoising.diffusion_cloning(diffusion),
        entropy,
        chunk=chunk,
        action_dim=action_dim,
        num_tuned_steps=num_tuned_steps,
        min_std=min_std,
        past_actions=past_actions,
    )
    if diffusion.deterministic.std.any():  # DDPM keeps some noise, DDIM none.
        policy = policy._replace(decode=None)
    if diffusion.explore.num_denoising_steps < 2 or diffusion.x0_clip is None:
        return policy
    ode_log_prob = _ode_log_prob(
        network,
        diffusion,
        num_tuned_steps=num_tuned_steps,
        past_actions=past_actions,
    )
    return policy._replace(ode_log_prob=ode_log_prob)


def _ode_log_prob(
    network: nn.Module, diffusion: Diffusion, *, num_tuned_steps: int, past_actions: int
) -> Callable[..., Array]:
    """Make `ChainPolicy.ode_log_prob`.

    At every level of noise runs the network that denoises the nearest step of the
    chain, so the tuned network runs the cleanest. The frozen one gets no gradient.
    """
    apply: Callable[..., Any] = network.apply
    num_denoising_steps = diffusion.explore.num_denoising_steps

    def ode_log_prob(
        params: PolicyParams,
        obs: Obs,
        action: Array,
        probes: Array,
        *,
        num_steps: int | None = None,
        tolerance: float | None = None,
    ) -> Array:
        base, tuned = (
            Encoded(owner, apply(owner, obs, method="encode"))
            for owner in (jax.lax.stop_gradient(params.base), params.tuned)
        )
        active = num_tuned_steps if params.num_active is None else params.num_active

        def clean(x: Array, level: likelihood.Levels) -> Array:
            owned = level.step >= num_denoising_steps - active
            owner = jax.tree.map(functools.partial(jnp.where, owned), tuned, base)
            time = level.time[None]
            out = apply(owner.params, x, time, owner.condition, method="denoise")
            return likelihood.clean_action(diffusion, x, out, level)

        levels = likelihood.ode_levels(diffusion.explore, num_steps)
        # The density does not depend on the order of the actions, but the network does.
        action, probes = (jnp.roll(x, past_actions, axis=-2) for x in (action, probes))
        return likelihood.ode_log_prob(
            clean, levels, action, probes, tolerance=tolerance
        )

    return ode_log_prob


def chain_policy(
    network: Any,
    make_chain: Callable[[denoising.Denoise], Chain],
    cloning: Cloning,
    entropy: Callable[[PyTree, Obs], Array],
    *,
    chunk: int,
    action_dim: int,
    num_tuned_steps: int,
    min_std: float,
    past_actions: int = 0,
) -> ChainPolicy:
    """Make a policy whose chain has Gaussian moves of any kind.

    Args:
        network: a module (x [B, Ta, Da], time [B] or [1], obs) -> like x, which is
            `denoise(x, time, encode(obs))`; `encode` is evaluated once per chain.
        make_chain: function (params, x, time, condition) -> output that denoises, ->
            Chain.
        cloning: what the network learns from demonstrations.
        entropy: (params, obs) -> [B].
        chunk, action_dim, num_tuned_steps, min_std: as in `diffusion_policy`.
        past_actions: the first actions that the network predicts, before the present
            one. Everywhere else, chunks hold them at their end, after all actions that
            may be executed.

    Raises:
        SettingsError: as `diffusion_policy`.
    """
    apply: Callable[..., Any] = network.apply

    def encode(params: PyTree, obs: Obs) -> Encoded:
        return Encoded(params, apply(params, obs, method="encode"))

    def denoise(params: PyTree, x: Array, time: Array, condition: PyTree) -> Array:
        if not past_actions:
            return apply(params, x, time, condition, method="denoise")
        x = jnp.roll(x, past_actions, axis=1)
        out = apply(params, x, time, condition, method="denoise")
        return jnp.roll(out, -past_actions, axis=1)

    if not 0 <= past_actions < chunk:
        raise SettingsError(
            f"past_actions={past_actions} must leave one of the {chunk} actions "
            "of a chunk (model.chunk); use 0 if the first action is the present one."
        )
    chain = make_chain(denoise)
    if not 1 <= num_tuned_steps <= chain.num_denoising_steps:
        raise SettingsError(
            f"num_tuned_steps={num_tuned_steps} must lie between 1 and the "
            f"{chain.num_denoising_steps} denoising steps of the schedule; change one."
        )
    if min_std < 0:
        raise SettingsError(f"min_std={min_std} must not be negative.")
    first_tuned = chain.num_denoising_steps - num_tuned_steps

    def init(key: Array, obs: Obs) -> PolicyParams:
        batch = _batch(obs)
        x = jnp.zeros((batch, chunk, action_dim))
        time = jnp.zeros((batch, 2) if cloning.tells_length else batch)
        params = network.init(key, x, time, obs)
        return PolicyParams(base=params, tuned=params)

    def run(
        params: PolicyParams,
        draws: Array,
        obs: Obs,
        *,
        deterministic: bool,
        min_std: Array | float = 0.0,
    ) -> Sample:
        base, tuned = encode(params.base, obs), encode(params.tuned, obs)

        def network_of(step: Array) -> Encoded:
            if params.num_active is None:
                return tuned
            owned = step >= chain.num_denoising_steps - params.num_active
            return jax.tree.map(functools.partial(jnp.where, owned), tuned, base)

        return chains.sample_chain(
            chain,
            base,
            network_of,
            draws,
            num_tuned=num_tuned_steps,
            min_std=min_std,
            deterministic=deterministic,
        )

    def sample(
        params: PolicyParams,
        keys: Array,
        obs: Obs,
        *,
        deterministic: bool = False,
        min_std: Array | float = min_std,
    ) -> Sample:
        draws = row_normal(keys, (chain.num_denoising_steps + 1, chunk, action_dim))
        return run(
            params,
            jnp.moveaxis(draws, 0, 1),
            obs,
            deterministic=deterministic,
            min_std=min_std,
        )

    def decode(params: PolicyParams, obs: Obs, noise: Array) -> Array:
        others = jnp.zeros((chain.num_denoising_steps, *noise.shape))
        draws = jnp.concatenate([noise[None], others])
        return run(params, draws, obs, deterministic=True).chain[:, -1]

    def log_prob(
        params: PyTree, x: Array, next_x: Array, obs: Obs, step: Array
    ) -> Array:
        network = encode(params, obs)
        return chains.move_log_prob(chain, network, x, next_x, first_tuned + step)

    def chain_log_prob(params: PyTree, entries: Array, obs: Obs) -> Array:
        return chains.chain_log_prob(chain, encode(params, obs), entries)

    def chain_moments(params: PyTree, entries: Array, obs: Obs) -> Moments:
        return chains.chain_moments(chain, encode(params, obs), entries)

    def clone_loss(
        params: PyTree, keys: Array, obs: Obs, action: Array, **options: Any
    ) -> Array:
        time_keys, noise_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        return denoising.cloning_loss(
            cloning,
            denoise,
            params,
            action,
            encode(params, obs).condition,
            time=jax.vmap(cloning.draw_time)(time_keys),
            noise=row_normal(noise_keys, action.shape[1:]),
            **options,
        )

    return ChainPolicy(
        init=init,
        act=act_by(sample),
        sample=sample,
        log_prob=log_prob,
        chain_log_prob=chain_log_prob,
        chain_moments=chain_moments,
        clone_loss=clone_loss,
        entropy=entropy,
        num_tuned_steps=num_tuned_steps,
        min_std=min_std,
        denoises=True,
        decode=decode,
    )


def act_by(sample: Callable[..., Sample]) -> Act:
    """Make an `Act` that executes the last entry of a sampled chain."""

    def act(
        params: PolicyParams, keys: Array, obs: Obs, *, deterministic: bool = False
    ) -> tuple[Array, Sample]:
        sampled = sample(params, keys, obs, deterministic=deterministic)
        return sampled.chain[:, -1], sampled

    return act


def row_normal(keys: Array, shape: tuple[int, ...]) -> Array:
    """[B, *shape] standard-normal draws, every row from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def gaussian_entropy(std: Array) -> Array:
    """Entropy in nats of Gaussians with these standard deviations, like `std`."""
    return 0.5 * jnp.log(2 * jnp.pi * jnp.e) + jnp.log(std)


def _batch(obs: Obs) -> int:
    return next(iter(obs.values())).shape[0]
