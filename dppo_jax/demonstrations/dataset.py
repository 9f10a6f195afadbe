"""Demonstrations as flat arrays, and the windows that behaviour cloning trains on."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.normalize import (
    Normalizer,
    fit_normalizer,
    normalize_action,
    normalize_obs,
    unnormalize_obs,
)
from dppo_jax.types import Array, Obs


class Episodes(NamedTuple):
    """E concatenated episodes with N steps in total.

    observations: "state" [N, Do] float32 and optionally "rgb" [N, H, W, C] uint8.
    actions: [N, Da] float32.
    episode_lengths: [E] integers whose sum is N.
    rewards: [N] float32, or None.
    terminals: [N] bool, True where the task ended, or None.
    normalizer: bounds with which observations and actions were normalised; None if they
        are in task units.
    """

    observations: dict[str, np.ndarray]
    actions: np.ndarray
    episode_lengths: np.ndarray
    rewards: np.ndarray | None = None
    terminals: np.ndarray | None = None
    normalizer: Normalizer | None = None


class Windows(NamedTuple):
    """W samples of behaviour cloning, as row indices into arrays that are stored once.

    observations, actions: the arrays of `Episodes`, on the device.
    observation_rows: for each observation entry, row indices of the history [W, To].
    action_rows: row indices of the action chunk [W, Ta].
    """

    observations: Obs
    actions: Array
    observation_rows: dict[str, Array]
    action_rows: Array

    @property
    def size(self) -> int:
        """W."""
        return self.action_rows.shape[0]


def windows(
    episodes: Episodes, *, chunk: int, history: int = 1, image_history: int = 1
) -> Windows:
    """Make all windows that lie within one episode, in the order of the data.

    A window is an action chunk and the observations up to its first step. The first
    observation of an episode is repeated to fill the history.

    Args:
        chunk: Ta; chunks must be complete, so none starts in the last Ta - 1 steps.
        history: To of the state.
        image_history: To of the images, at most `history`.

    Raises:
        SettingsError: inconsistent episodes (see `check_episodes`), a chunk longer than
            every episode, or a history that is not positive.
    """
    check_episodes(episodes, "episodes")
    check_window(chunk, history, image_history)
    lengths = np.asarray(episodes.episode_lengths)
    counts = np.maximum(lengths - chunk + 1, 0)
    if counts.sum() == 0:
        raise SettingsError(
            f"chunk={chunk} is longer than every episode (the longest has "
            f"{lengths.max()} steps); shorten the chunk."
        )
    begin = np.repeat(np.cumsum(lengths) - lengths, counts)
    skipped = np.repeat(np.cumsum(counts) - counts, counts)
    start = begin + np.arange(counts.sum()) - skipped

    def rows_before(steps: int) -> Array:
        rows = start[:, None] + np.arange(1 - steps, 1)
        return jnp.asarray(np.maximum(rows, begin[:, None]), jnp.int32)

    steps = {"state": history, "rgb": image_history}
    return Windows(
        observations={k: jnp.asarray(v) for k, v in episodes.observations.items()},
        actions=jnp.asarray(episodes.actions),
        observation_rows={k: rows_before(steps[k]) for k in episodes.observations},
        action_rows=jnp.asarray(start[:, None] + np.arange(chunk), jnp.int32),
    )


def gather(windows: Windows, window: Array) -> tuple[Obs, Array]:
    """Gather a batch of windows; pure, for use inside `jit`.

    Args:
        window: [B] indices in [0, W).

    Returns:
        Observations {"state": [B, To, Do], ...} and actions [B, Ta, Da].
    """
    chex.assert_rank(window, 1)
    obs = {
        name: values[windows.observation_rows[name][window]]
        for name, values in windows.observations.items()
    }
    return obs, windows.actions[windows.action_rows[window]]


def concatenate(parts: Sequence[Episodes], source: str) -> Episodes:
    """Concatenate episodes of one task, in task units.

    Rewards and terminals are kept only if every part has them.

    Args:
        parts: their normalisers, if any, are dropped, because bounds of parts differ.
        source: name of the data in messages, for example its file.

    Raises:
        SettingsError: no parts, or parts with different sizes of observations or
            actions.
    """
    if not parts:
        raise SettingsError(f"{source} holds no episodes; check the data.")

    def sizes(part: Episodes) -> dict[str, tuple[int, ...]]:
        tables = {**part.observations, "actions": part.actions}
        return {name: array.shape[1:] for name, array in tables.items()}

    for index, part in enumerate(parts):
        if sizes(part) != sizes(parts[0]):
            raise SettingsError(
                f"{source}: episode {index} has sizes {sizes(part)}, but episode 0 has "
                f"{sizes(parts[0])}; do not mix data of different tasks."
            )
    rewards = [part.rewards for part in parts if part.rewards is not None]
    terminals = [part.terminals for part in parts if part.terminals is not None]
    return Episodes(
        observations={
            name: np.concatenate([part.observations[name] for part in parts])
            for name in parts[0].observations
        },
        actions=np.concatenate([part.actions for part in parts]),
        episode_lengths=np.concatenate([part.episode_lengths for part in parts]),
        rewards=np.concatenate(rewards) if len(rewards) == len(parts) else None,
        terminals=np.concatenate(terminals) if len(terminals) == len(parts) else None,
    )


def select_episodes(episodes: Episodes, indices: np.ndarray) -> Episodes:
    """Select episodes by index, in the order of `indices`."""
    lengths = np.asarray(episodes.episode_lengths)
    begin = np.cumsum(lengths) - lengths
    rows = np.concatenate([begin[i] + np.arange(lengths[i]) for i in indices])
    rewards, terminals = episodes.rewards, episodes.terminals
    return episodes._replace(
        observations={k: v[rows] for k, v in episodes.observations.items()},
        actions=episodes.actions[rows],
        episode_lengths=lengths[indices],
        rewards=None if rewards is None else rewards[rows],
        terminals=None if terminals is None else terminals[rows],
    )


def thin_episodes(episodes: Episodes, num: int) -> Episodes:
    """Select `num` episodes, evenly spaced, so that an order in the data stays.

    Data sets may hold one kind of episode after the other.

    Raises:
        SettingsError: there are not as many.
    """
    total = len(episodes.episode_lengths)
    if not 1 <= num <= total:
        raise SettingsError(
            f"pretrain.num_episodes={num} must lie between 1 and the {total} episodes "
            "that there are; None takes all."
        )
    return select_episodes(episodes, np.arange(num) * total // num)


def split_episodes(
    episodes: Episodes, fraction: float, seed: int
) -> tuple[Episodes, Episodes]:
    """Draw episodes for validation.

    Whole episodes are drawn, because neighbouring steps are too similar.

    Args:
        fraction: fraction of the episodes for validation, in (0, 1); both sets get at
            least one episode.
        seed: of the random draw.

    Returns:
        (train, validation), each in the order of the data.

    Raises:
        SettingsError: a fraction outside (0, 1), or fewer than two episodes.
    """
    total = len(episodes.episode_lengths)
    if not 0 < fraction < 1 or total < 2:
        raise SettingsError(
            f"fraction={fraction} of {total} episodes cannot be drawn for validation; "
            "it must lie in (0, 1), and there must be at least 2 episodes."
        )
    held_out = min(max(round(fraction * total), 1), total - 1)
    order = np.random.default_rng(seed).permutation(total)
    train, validation = np.sort(order[held_out:]), np.sort(order[:held_out])
    return select_episodes(episodes, train), select_episodes(episodes, validation)


def normalize_episodes(
    episodes: Episodes, normalizer: Normalizer | None = None
) -> Episodes:
    """Normalise episodes in task units to [-1, 1]; return normalised ones unchanged.

    Args:
        normalizer: bounds to use; None: fit them to the episodes.
    """
    if episodes.normalizer is not None:
        return episodes
    state, actions = episodes.observations["state"], episodes.actions
    if normalizer is None:
        normalizer = fit_normalizer(state, actions)
    state = np.asarray(normalize_obs(normalizer, state), np.float32)
    return episodes._replace(
        observations={**episodes.observations, "state": state},
        actions=np.asarray(normalize_action(normalizer, actions), np.float32),
        normalizer=normalizer,
    )


def unnormalize_episodes(episodes: Episodes) -> Episodes:
    """Convert episodes to task units, the inverse of `normalize_episodes`."""
    bounds = episodes.normalizer
    if bounds is None:
        return episodes
    low, high = bounds.action_min, bounds.action_max
    state = unnormalize_obs(bounds, episodes.observations["state"])
    # `unnormalize_action` is not an exact inverse, so that a policy reaches its bounds.
    # Recorded actions need the exact inverse, which is `unnormalize_obs`.
    actions = unnormalize_obs(Normalizer(low, high, low, high), episodes.actions)
    return episodes._replace(
        observations={**episodes.observations, "state": np.asarray(state, np.float32)},
        actions=np.asarray(actions, np.float32),
        normalizer=None,
    )


def check_episodes(episodes: Episodes, source: str) -> None:
    """Check that episodes are consistent and finite.

    Args:
        source: name of the data in messages, for example its file.

    Raises:
        SettingsError: no steps, arrays of unequal length, episode lengths with a wrong
            sum, an unknown observation entry, a list instead of an array, NaN or
            infinite values.
    """
    named = getattr(episodes, "observations", None)
    if not isinstance(episodes, Episodes) or not isinstance(named, Mapping):
        raise SettingsError(
            f"{source}: pass dppo_jax.Episodes with a dictionary of observations, "
            "{'state': array}."
        )
    if "state" not in named or set(named) - {"state", "rgb"}:
        raise SettingsError(
            f"{source}: observations {sorted(named)} must be state and optionally rgb; "
            "rename or remove others."
        )
    tables = {**named, "actions": episodes.actions}
    if episodes.rewards is not None:
        tables["rewards"] = episodes.rewards
    if episodes.terminals is not None:
        tables["terminals"] = episodes.terminals
    ranks = {"state": 2, "actions": 2, "rgb": 4, "rewards": 1, "terminals": 1}
    for name, array in {**tables, "lengths": episodes.episode_lengths}.items():
        if not hasattr(array, "ndim"):
            raise SettingsError(
                f"{source}: {name} must be an array, not {type(array).__name__}; "
                "convert it with numpy.asarray."
            )
    steps = episodes.actions.shape[0] if episodes.actions.ndim else 0
    for name, array in tables.items():
        if array.ndim != ranks[name] or len(array) != steps:
            raise SettingsError(
                f"{source}: {name} {array.shape} must have {ranks[name]} axes, the "
                f"first of length {steps}, like the actions."
            )
    _check_lengths(episodes.episode_lengths, steps, source)
    for name, array in tables.items():
        if array.size == 0:
            raise SettingsError(
                f"{source}: {name} {array.shape} has rows without numbers; write the "
                "data set again."
            )
        if array.dtype.kind == "f":
            finite = np.isfinite(array.reshape(steps, -1)).all(axis=1)
            rows = np.flatnonzero(~finite)
            if len(rows):
                raise SettingsError(
                    f"{source}: {name} has NaN or infinite values in {len(rows)} of "
                    f"{steps} rows, first {rows[:5].tolist()}; drop those episodes."
                )


def check_window(chunk: int, history: int, image_history: int) -> None:
    """Raise SettingsError for invalid lengths of a chunk or a history."""
    if chunk < 1 or history < 1 or not 1 <= image_history <= history:
        raise SettingsError(
            f"chunk={chunk}, history={history}, image_history={image_history}: all "
            "must be at least 1, and image_history at most history."
        )


def summary(episodes: Episodes) -> str:
    """Describe the data in a few lines: sizes, lengths, ranges."""
    lengths = episodes.episode_lengths
    lines = [
        f"{len(lengths)} episodes, {len(episodes.actions)} steps (shortest "
        f"{lengths.min()}, mean {lengths.mean():.1f}, longest {lengths.max()})"
    ]
    for name, array in {**episodes.observations, "action": episodes.actions}.items():
        size = list(array.shape[1:])
        lines.append(f"{name} {size}, from {array.min():.4g} to {array.max():.4g}")
    if episodes.rewards is not None:
        ends = np.cumsum(lengths)
        returns = np.add.reduceat(episodes.rewards, ends - lengths)
        lines.append(
            f"return {returns.mean():.4g} +- {returns.std():.4g} (from "
            f"{returns.min():.4g} to {returns.max():.4g})"
        )
    if episodes.terminals is not None:
        ended = np.asarray(episodes.terminals)[np.cumsum(lengths) - 1]
        lines.append(f"{int(ended.sum())} episodes ended by themselves")
    bounds = episodes.normalizer
    known = (
        "unknown"
        if bounds is None
        else (
            f"state from {np.min(bounds.obs_min):.4g} to {np.max(bounds.obs_max):.4g}, "
            f"action from {np.min(bounds.action_min):.4g} to "
            f"{np.max(bounds.action_max):.4g}"
        )
    )
    lines.append(f"bounds in task units: {known}")
    return "\n".join(lines)


def _check_lengths(lengths: np.ndarray, steps: int, source: str) -> None:
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise SettingsError(
            f"{source}: the episode lengths must be a vector of integers, got "
            f"{lengths.dtype} {lengths.shape}."
        )
    if len(lengths) == 0 or steps == 0:
        raise SettingsError(
            f"{source}: the data set is empty ({len(lengths)} episodes, {steps} steps);"
            " give one with episodes."
        )
    if lengths.min() < 1:
        raise SettingsError(
            f"{source}: episode {int(lengths.argmin())} has length {lengths.min()}; "
            "every episode needs at least one step."
        )
    # Before the sum, which could overflow.
    if lengths.max() > steps or len(lengths) > steps:
        raise SettingsError(
            f"{source}: {len(lengths)} episodes with up to {lengths.max()} steps cannot"
            f" add up to the {steps} that there are; write the data set again."
        )
    if lengths.sum() != steps:
        raise SettingsError(
            f"{source}: the episode lengths add up to {lengths.sum()} steps, but there "
            f"are {steps}; write the data set again."
        )
