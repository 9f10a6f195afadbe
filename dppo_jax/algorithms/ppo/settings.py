"""Settings of PPO, their checks, and the functions that they parametrise."""

import functools
from collections.abc import Callable

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from dppo_jax.errors import SettingsError
from dppo_jax.learning import chain_losses, on_policy_settings
from dppo_jax.policies import ChainPolicy
from dppo_jax.types import Array

MINIBATCHES = ("pair", "chain")
RATIOS = ("move", "chain")


def default_config() -> ConfigDict:
    """Settings of the paper's appendix where one value holds for all its tasks."""
    config = on_policy_settings.default_config()
    # Number of actions of a chunk in a log-probability. None: all executed actions.
    config.reward_horizon = placeholder(int)
    # log_prob_bounds: log-probabilities are clamped to these. None: not clamped.
    # bound_entries: whether to clamp the entries or their mean. None: as the reference
    # does, the entries of a diffusion policy and the mean of a Gaussian policy. Those
    # of a flow are never clamped. The joint log-probability of a mixture is clamped
    # only with False, as the reference does; nearly all values lie outside of the
    # bounds, where they have no gradient.
    config.log_prob_bounds = FieldReference(
        chain_losses.LOG_PROB_BOUNDS, field_type=tuple
    )
    config.bound_entries = placeholder(bool)
    config.denoising_discount = 0.99  # of advantages, per move before the last
    config.batch_size = 1000  # pairs (t, k)
    # "pair" shuffles the pairs, as the reference does. "chain" shuffles the chunks and
    # takes all K' moves of each: an observation is encoded and valued once for K'
    # pairs, but the pairs of a minibatch are no longer drawn independently.
    config.minibatch = "pair"
    # "move" gives every pair its own ratio and clip range. "chain" gives all moves of a
    # chunk one ratio, as ReinFlow does (arXiv 2505.22094).
    config.ratio = "move"
    config.clip_top = 0.01  # clip range of the last move
    config.clip_base = 0.001  # clip range of the first tuned move
    config.clip_rate = 3.0  # of the exponential rise from clip_base to clip_top
    config.entropy_coef = 0.0  # of a bonus on the entropy of the policy
    config.clone_coef = 0.0  # of the cloning loss on chains of the frozen policy
    config.distance_coef = 0.0  # of the squared distance to the frozen policy's actions
    # A penalty on the KL divergence of a chain, in nats, from the policy that sampled
    # it; it needs minibatch="chain". coef: of its mean; 0: none. limit: chains at or
    # above it contribute the penalty alone, the others the objective alone, as in TruDi
    # (arXiv 2606.15260). None: all chains contribute both.
    config.chain_kl = ConfigDict(dict(coef=0.0, limit=placeholder(float)))
    config.advantage_quantiles = (0.0, 1.0)  # beyond them advantages are clipped
    # Annealing; 0 switches it off. The sampling floor moves linearly to min_std_end
    # over min_std_steps iterations. Every tuned_steps_every iterations, the tuned
    # network replaces the base network, which then runs tuned_steps_drop more moves.
    config.min_std_end = 0.1
    config.min_std_steps = 0
    config.tuned_steps_drop = 0
    config.tuned_steps_every = 0
    # Pixels that the images of an iteration are shifted by at most, once and at random,
    # before anything is learned from them; 4 in the paper, 0: none.
    config.random_shift = 0
    return config


def check_config(config: ConfigDict, policy: ChainPolicy) -> None:
    """Raise a SettingsError that names an invalid or contradictory setting."""
    if not isinstance(policy, ChainPolicy):
        raise SettingsError(
            f"ppo needs a chain of moves, not a {type(policy).__name__}; set "
            "model.kind='diffusion', 'gaussian' or 'gmm'."
        )
    if config.minibatch not in MINIBATCHES:
        raise SettingsError(
            f"minibatch={config.minibatch!r} is unknown; use one of "
            f"{', '.join(MINIBATCHES)}."
        )
    _check_ratio(config, policy)
    _check_chain_kl(config, policy)
    if config.minibatch == "chain" and config.batch_size % policy.num_tuned_steps:
        raise SettingsError(
            f"batch_size={config.batch_size} must be a multiple of the "
            f"{policy.num_tuned_steps} moves of a chain with minibatch='chain'; change "
            "batch_size or num_tuned_steps."
        )
    on_policy_settings.check_config(config)
    bounds = config.log_prob_bounds
    if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
        raise SettingsError(
            f"log_prob_bounds={tuple(bounds)} must be two numbers, the lower one "
            "first; use None to not clamp log-probabilities."
        )
    for name in (
        *("entropy_coef", "clone_coef", "distance_coef"),
        *("min_std_end", "min_std_steps", "tuned_steps_drop", "tuned_steps_every"),
        "random_shift",
    ):
        if config[name] < 0:
            raise SettingsError(f"{name}={config[name]} must not be negative.")
    if config.distance_coef and policy.joint:
        raise SettingsError(
            f"distance_coef={config.distance_coef} compares single actions, which for "
            "a mixture may come from different modes, and has no gradient for the "
            "weights of the modes; use 0, and clone_coef to stay near the cloned one."
        )
    if config.min_std_steps > 0 and (policy.narrow or not policy.denoises):
        raise SettingsError(
            f"min_std_steps={config.min_std_steps} anneals the sampling floor of a "
            f"denoising chain, but a {_kind(policy)} has no such floor; "
            "use 0, and set its standard deviation instead."
        )
    if (config.tuned_steps_drop > 0) != (config.tuned_steps_every > 0):
        raise SettingsError(
            f"tuned_steps_drop={config.tuned_steps_drop} and "
            f"tuned_steps_every={config.tuned_steps_every} anneal K' together; set "
            "both to positive numbers or both to 0."
        )
    if not 0 <= config.denoising_discount <= 1:
        raise SettingsError(
            f"denoising_discount={config.denoising_discount} must lie in [0, 1]."
        )
    quantiles = tuple(config.advantage_quantiles)
    numbers = [x for x in quantiles if isinstance(x, (int, float))]
    if not (len(quantiles) == len(numbers) == 2 and 0 <= numbers[0] < numbers[1] <= 1):
        raise SettingsError(
            f"advantage_quantiles={quantiles} must be two numbers (lower, upper) with "
            "0 <= lower < upper <= 1; use (0.0, 1.0) to clip nothing."
        )
    if not 0 < config.clip_base <= config.clip_top or config.clip_rate <= 0:
        raise SettingsError(
            f"the clip range needs 0 < clip_base <= clip_top and clip_rate > 0, got "
            f"clip_base={config.clip_base}, clip_top={config.clip_top}, "
            f"clip_rate={config.clip_rate}."
        )


def _kind(policy: ChainPolicy) -> str:
    if policy.denoises:
        return "flow" if policy.narrow else "diffusion policy"
    return "mixture" if policy.joint else "Gaussian policy"


def _check_ratio(config: ConfigDict, policy: ChainPolicy) -> None:
    """Refuse settings that do not suit one ratio for all moves of a chain."""
    if config.ratio not in RATIOS:
        raise SettingsError(
            f"ratio={config.ratio!r} is unknown; use one of {', '.join(RATIOS)}."
        )
    if config.ratio == "move":
        return
    if not policy.denoises:
        raise SettingsError(
            "ratio='chain' averages the log-ratio over the start of a chain and its "
            f"moves, but a {_kind(policy)} has a single move without such a start, "
            "whose log-ratio would be halved; set ratio='move'."
        )
    if config.minibatch != "chain":
        raise SettingsError(
            f"ratio='chain' needs all moves of a chain in one minibatch, which "
            f"minibatch={config.minibatch!r} does not give; set minibatch='chain'."
        )
    if config.denoising_discount != 1:
        raise SettingsError(
            f"denoising_discount={config.denoising_discount} is for ratios of single "
            "moves; set denoising_discount=1.0 with ratio='chain'."
        )
    if config.clip_base != config.clip_top:
        raise SettingsError(
            f"clip_base={config.clip_base} and clip_top={config.clip_top} widen the "
            "clip range along the moves of a chain, which share one ratio with "
            "ratio='chain'; set both to the same value."
        )


def _check_chain_kl(config: ConfigDict, policy: ChainPolicy) -> None:
    """Refuse a KL penalty that cannot be computed or would do nothing."""
    coef, limit = config.chain_kl.coef, config.chain_kl.get("limit")
    if coef < 0:
        raise SettingsError(f"chain_kl.coef={coef} must not be negative.")
    if limit is not None and not limit > 0:
        raise SettingsError(
            f"chain_kl.limit={limit} must be positive; use None to penalise all chains."
        )
    if coef == 0 and limit is not None:
        raise SettingsError(
            f"chain_kl.limit={limit} replaces the objective of chains by a penalty, "
            "which chain_kl.coef=0 switches off; set chain_kl.coef to a positive "
            "number, or chain_kl.limit=None."
        )
    if coef == 0:
        return
    if policy.chain_moments is None:
        raise SettingsError(
            f"chain_kl.coef={coef} needs Gaussian moves, but those of a "
            f"{_kind(policy)} are not; set chain_kl.coef=0.0."
        )
    if config.minibatch != "chain" and policy.num_tuned_steps > 1:
        raise SettingsError(
            f"chain_kl.coef={coef} needs all moves of a chain in one minibatch, which "
            f"minibatch={config.minibatch!r} does not give; set minibatch='chain'."
        )


def check_groups(config: ConfigDict, policy: ChainPolicy, *, num_envs: int) -> None:
    """Raise SettingsError if `shuffle_groups` does not give groups of equal size."""
    chains = config.minibatch == "chain"
    items = config.batch_size // (policy.num_tuned_steps if chains else 1)
    what = f"{'chains' if chains else 'pairs'} of a minibatch"
    on_policy_settings.check_groups(
        config.shuffle_groups, {"environments": num_envs, what: items}
    )


def check_devices(config: ConfigDict, num_devices: int) -> None:
    """Raise a SettingsError for settings that do not work on this many devices."""
    on_policy_settings.check_devices(config.shuffle_groups, num_devices, name="ppo")
    if tuple(config.advantage_quantiles) != (0.0, 1.0):
        quantiles = tuple(config.advantage_quantiles)
        raise SettingsError(
            f"algorithm.ppo.advantage_quantiles={quantiles} need a whole minibatch on "
            f"one device, but it is split over {num_devices} devices; use one device, "
            "or (0.0, 1.0)."
        )


def log_prob_mean(
    config: ConfigDict, policy: ChainPolicy, *, executed: int
) -> Callable[[Array], Array]:
    """Make the function that averages log-probabilities over a move's entries.

    Args:
        executed: number of actions of a chunk that the environment executes; the mean
            is over these unless `reward_horizon` sets fewer.

    Returns:
        [..., Ta, Da] -> [...].

    Raises:
        SettingsError: `reward_horizon` is below 1 or above `executed`.
    """
    horizon = config.get("reward_horizon")
    horizon = executed if horizon is None else horizon
    if not 1 <= horizon <= executed:
        raise SettingsError(
            f"reward_horizon={horizon} must lie between 1 and the {executed} executed "
            "actions of a chunk; use None for all of them."
        )
    bounds, bound_entries = config.get("log_prob_bounds"), config.get("bound_entries")
    bounds = None if bounds is None else tuple(bounds)
    if policy.narrow:
        if bounds is not None and bounds != chain_losses.LOG_PROB_BOUNDS:
            raise SettingsError(
                f"log_prob_bounds={bounds} would cut off the gradients of a "
                "flow, whose moves have high densities; set None."
            )
        bounds = None
    if policy.joint:
        if bound_entries:
            raise SettingsError(
                "bound_entries=True clamps single entries, but a mixture has a joint "
                "log-probability; use None to not clamp it, or False to clamp it."
            )
        return functools.partial(
            chain_losses.joint_log_prob,
            horizon=horizon,
            bounds=None if bound_entries is None else bounds,
        )
    return functools.partial(
        chain_losses.mean_log_prob,
        horizon=horizon,
        bounds=bounds,
        bound_entries=policy.denoises if bound_entries is None else bound_entries,
    )
