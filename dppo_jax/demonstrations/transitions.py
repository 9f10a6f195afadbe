"""Demonstrations as transitions of action chunks, for off-policy algorithms."""

from typing import NamedTuple

import numpy as np

from dppo_jax.demonstrations.dataset import (
    Episodes,
    check_episodes,
    check_window,
)
from dppo_jax.errors import SettingsError


class Transitions(NamedTuple):
    """N chunk steps in the order of the data, on the host.

    obs: "state" [N, To, Do], and "rgb" [N, To, H, W, C] where the data have images.
    action: [N, Ta, Da]
    reward: [N] summed over the executed control steps of the chunk.
    next_obs: as `obs`, after the chunk or at the end of the episode.
    terminated: [N] 1 where the task ended within the chunk; nothing is bootstrapped.
    truncated: [N] 1 where the recording ended within the chunk and the task did not;
        still bootstrapped.
    return_to_go: [N] discounted sum of this and all later rewards of the episode.
    """

    obs: dict[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    next_obs: dict[str, np.ndarray]
    terminated: np.ndarray
    truncated: np.ndarray
    return_to_go: np.ndarray


def chunked_transitions(
    episodes: Episodes,
    *,
    chunk: int,
    discount: float,
    history: int = 1,
    image_history: int = 1,
    stride: int = 1,
    step_discount: float = 1.0,
    drop_unfollowed: bool = False,
) -> Transitions:
    """What an environment behind `chunk_actions` would show of the same episodes.

    A chunk that reaches the end of its episode sums the rewards up to there, repeats
    the last action in the entries that were not executed, and leads to the last
    observation.

    Data sets hold what was seen before each action, so the observation after the last
    one is missing. An episode whose task ended does not need it. One that was cut off
    bootstraps from its last observation instead, the one that its last action answered:
    with Ta = 1 that transition leads to itself. `drop_unfollowed` leaves that action
    out, so that every `next_obs` but those of terminations is what really followed.

    Args:
        episodes: with rewards, and in the units that the policy acts in, see
            `normalize_episodes`. Only a terminal at the last step of an episode counts;
            without terminals all episodes were cut off.
        chunk: Ta.
        discount: of `return_to_go`, per chunk.
        history: To of the state; the first observation of an episode is repeated.
        image_history: To of the images, at most `history`.
        stride: control steps from one transition to the next, at most Ta. 1 uses every
            step; with Ta transitions follow each other, as windows of consecutive ones
            (`replay.sample_windows`) need.
        step_discount: of the rewards within a chunk, per control step; 1 adds them up,
            which is what environments do.
        drop_unfollowed: see above.

    Returns:
        Transitions, float32 (images uint8). `return_to_go` of an episode that was cut
        off has nothing after the cut.

    Raises:
        SettingsError: no rewards, inconsistent episodes, settings out of range, or no
            transition left.
    """
    check_episodes(episodes, "episodes")
    check_window(chunk, history, image_history)
    if not 1 <= stride <= chunk:
        raise SettingsError(
            f"stride={stride} must lie between 1, for every control step, and "
            f"chunk={chunk}, beyond which actions are skipped."
        )
    for name, value in dict(discount=discount, step_discount=step_discount).items():
        if not 0 <= value <= 1:
            raise SettingsError(f"{name}={value} must lie between 0 and 1.")
    if episodes.rewards is None:
        raise SettingsError(
            "these episodes have no rewards, which off-policy training needs; choose a "
            "data set that holds them (`rewards`), or record one with "
            "experiments.collect."
        )
    length = np.asarray(episodes.episode_lengths)
    begin, end = np.cumsum(length) - length, np.cumsum(length)
    terminals = episodes.terminals
    ended = np.zeros(len(length), bool) if terminals is None else terminals[end - 1] > 0
    # The last observation that a next_obs may be; the last action that counts.
    last_seen = end - 1
    last_acted = end - 1 - (~ended & drop_unfollowed)
    count = last_acted - begin + 1
    if count.sum() == 0:
        raise SettingsError(
            "drop_unfollowed=True leaves nothing of episodes of one step that were cut "
            "off; set it to False."
        )
    # Per control step from here on; `stride` selects at the end.
    begin, ended, last_seen, last_acted = (
        np.repeat(x, count) for x in (begin, ended, last_seen, last_acted)
    )
    row = begin + np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    step = row[:, None] + np.arange(chunk)
    executed = step <= last_acted[:, None]
    step = np.minimum(step, last_acted[:, None])
    weight = executed * step_discount ** np.arange(chunk)
    reward = (np.asarray(episodes.rewards, np.float64)[step] * weight).sum(axis=1)
    is_last = row + chunk > last_acted
    kept = (row - begin) % stride == 0

    def observed(latest: np.ndarray) -> dict[str, np.ndarray]:
        frames = {"state": history, "rgb": image_history}
        latest, first = latest[kept, None], begin[kept, None]
        return {
            name: values[np.maximum(latest + np.arange(1 - frames[name], 1), first)]
            for name, values in episodes.observations.items()
        }

    return Transitions(
        obs=observed(row),
        action=episodes.actions[step[kept]],
        reward=reward[kept].astype(np.float32),
        next_obs=observed(np.minimum(row + chunk, last_seen)),
        terminated=(is_last & ended)[kept].astype(np.float32),
        truncated=(is_last & ~ended)[kept].astype(np.float32),
        return_to_go=_returns(reward, last_acted - row, chunk, discount)[kept],
    )


def _returns(
    reward: np.ndarray, steps_left: np.ndarray, chunk: int, discount: float
) -> np.ndarray:
    """[N] float32 discounted sums over every `chunk`-th row, to the end of the episode.

    Args:
        reward: [N] float64 of the chunk that starts at each control step.
        steps_left: [N] rows of the same episode that follow.
    """
    result = reward.copy()
    # Rows with equally many chunks to come need nothing of each other.
    chunks_left = steps_left // chunk
    order = np.argsort(chunks_left, kind="stable")
    bounds = np.cumsum(np.bincount(chunks_left))[:-1]
    for rows in np.split(order, bounds)[1:]:
        result[rows] += discount * result[rows + chunk]
    return result.astype(np.float32)
