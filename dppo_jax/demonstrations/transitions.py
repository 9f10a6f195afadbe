"""Demonstrations as transitions of action chunks, for off-policy algorithms."""

from typing import NamedTuple

import numpy as np

from dppo_jax.demonstrations.dataset import (
    Episodes,
    check_episodes,
    check_window,
)
from dppo_jax.errors import SettingsError
from dppo_jax.types import VecEnv


class Transitions(NamedTuple):
    """N transitions of chunks in the order of the data, on the host.

    obs: "state" [N, To, Do], and "rgb" [N, To, H, W, C] if the data have images.
    action: [N, Ta, Da].
    reward: [N] summed over the executed control steps of the chunk.
    next_obs: as `obs`, after the chunk or at the end of the episode.
    terminated: [N] 1 where the task ended within the chunk; nothing is bootstrapped.
    truncated: [N] 1 where the recording ended within the chunk but the task did not;
        the value of `next_obs` is bootstrapped.
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
    """Convert episodes to the transitions that `chunk_actions` would give.

    If a chunk reaches the end of its episode, its reward is the sum up to there, its
    last action is repeated in the entries that were not executed, and `next_obs` is the
    last observation.

    Data sets hold the observation before each action, so the observation after the last
    action is missing. A terminated episode does not need it. A truncated one bootstraps
    from the observation before the last action instead; with Ta = 1 the `next_obs` of
    this transition equals its `obs`. `drop_unfollowed` leaves out the last action of
    truncated episodes, so that `next_obs` is always the true next observation, except
    at terminations.

    Args:
        episodes: with rewards, and in the units in which the policy acts, see
            `normalize_episodes`. Terminals before the last step of an episode are
            ignored; without terminals all episodes are truncated.
        chunk: Ta.
        discount: of `return_to_go`, per chunk.
        history: To of the state; the first observation of an episode is repeated.
        image_history: To of the images, at most `history`.
        stride: control steps from one transition to the next, at most Ta. 1 starts a
            transition at every step. Ta makes consecutive transitions, which windows
            (`replay.sample_windows`) need.
        step_discount: of the rewards within a chunk, per control step; 1 sums them, as
            environments do.
        drop_unfollowed: see above.

    Returns:
        Transitions, float32 (images uint8). `return_to_go` of a truncated episode ends
        with its last reward.

    Raises:
        SettingsError: no rewards, inconsistent episodes, settings out of range, or no
            transition left.
    """
    check_episodes(episodes, "episodes")
    check_window(chunk, history, image_history)
    if not 1 <= stride <= chunk:
        raise SettingsError(
            f"stride={stride} must lie between 1 and chunk={chunk}; larger strides "
            "would skip actions."
        )
    for name, value in dict(discount=discount, step_discount=step_discount).items():
        if not 0 <= value <= 1:
            raise SettingsError(f"{name}={value} must lie between 0 and 1.")
    if episodes.rewards is None:
        raise SettingsError(
            "these episodes have no rewards, which off-policy training needs; use a "
            "data set with `rewards`, or record one with experiments.collect."
        )
    length = np.asarray(episodes.episode_lengths)
    begin, end = np.cumsum(length) - length, np.cumsum(length)
    terminals = episodes.terminals
    ended = np.zeros(len(length), bool) if terminals is None else terminals[end - 1] > 0
    # Row of the last observation for next_obs, and of the last action to use.
    last_seen = end - 1
    last_acted = end - 1 - (~ended & drop_unfollowed)
    count = last_acted - begin + 1
    if count.sum() == 0:
        raise SettingsError(
            "drop_unfollowed=True leaves nothing of truncated episodes of one step; "
            "set it to False."
        )
    # From here on, arrays have one entry per control step; `stride` selects later.
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


def transitions_of(
    env: VecEnv, data: Episodes | None, *, algorithm: str, discount: float
) -> Transitions:
    """Convert demonstrations to the transitions that an environment would give.

    One starts at every control step. The last action of an episode that was cut off is
    left out, so that every `next_obs` is the true one. Without terminals all episodes
    count as cut off, and a line says so.

    Args:
        env: decides how many actions a chunk has, how many observations a history, and
            whether there are images.
        data: normalised as the policy's observations and actions are.
        algorithm: which algorithm needs them, for messages.
        discount: of `return_to_go`, per chunk.

    Raises:
        SettingsError: no data, or data without rewards, without images that the
            environment has, or of other sizes than the environment.
    """
    if data is None:
        raise SettingsError(
            f"{algorithm} learns from demonstrations and got none; pass "
            "--config.data=<file or folder>, or `data` to make_algorithm."
        )
    if data.rewards is None:
        raise SettingsError(
            f"{algorithm} needs demonstrations with rewards, and these have none; use "
            "a data set with `rewards`, or record one with experiments.collect."
        )
    missing = env.obs_shape.keys() - data.observations.keys()
    if missing:
        raise SettingsError(
            f"{algorithm}: the environment observes {', '.join(sorted(missing))}, and "
            "the demonstrations do not; use data with such observations."
        )
    if data.terminals is None:
        print(
            "note: the demonstrations have no terminals, so all of their episodes count"
            f" as cut off by a time limit, and {algorithm} bootstraps after their ends"
        )
    given = chunked_transitions(
        data._replace(
            observations={name: data.observations[name] for name in env.obs_shape}
        ),
        chunk=env.action_shape[0],
        discount=discount,
        history=env.obs_shape["state"][0],
        image_history=env.obs_shape.get("rgb", (1,))[0],
        drop_unfollowed=True,
    )
    wanted = {**env.obs_shape, "action": env.action_shape}
    for name, array in {**given.obs, "action": given.action}.items():
        if array.shape[1:] != tuple(wanted[name]):
            raise SettingsError(
                f"{algorithm}: the demonstrations have {name} of shape "
                f"{array.shape[1:]}, but the environment {tuple(wanted[name])}; use "
                "demonstrations of this task."
            )
    return given


def _returns(
    reward: np.ndarray, steps_left: np.ndarray, chunk: int, discount: float
) -> np.ndarray:
    """Discounted sums [N] float32 over every `chunk`-th row to the end of the episode.

    Args:
        reward: [N] float64 of the chunk that starts at each control step.
        steps_left: [N] number of later rows of the same episode.
    """
    result = reward.copy()
    # Rows with equally many chunks left do not depend on each other.
    chunks_left = steps_left // chunk
    order = np.argsort(chunks_left, kind="stable")
    bounds = np.cumsum(np.bincount(chunks_left))[:-1]
    for rows in np.split(order, bounds)[1:]:
        result[rows] += discount * result[rows + chunk]
    return result.astype(np.float32)
