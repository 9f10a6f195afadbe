"""Collects episodes of the scripted demonstrators of the manipulation tasks."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.demonstrations.dataset import Episodes
from dppo_jax.demonstrations.scripts import can, lift, square, transport
from dppo_jax.demonstrations.scripts.hands import Script
from dppo_jax.envs.robots import control
from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, Env

SCRIPTS: dict[str, Script] = {
    "lift": lift.SCRIPT,
    "can": can.SCRIPT,
    "square": square.SCRIPT,
    "transport": transport.SCRIPT,
}
# Episodes that run at once, and control steps between two looks whether all have ended.
MAX_ENVS = 128
BLOCK = 25
# Share of successes below which collecting only these would take too long.
MIN_SUCCESS = 0.05


class Rows(NamedTuple):
    """Control steps of N episodes that run at once, leaves [T, N, ...].

    obs is the observation before the action, all else follows from the action.
    """

    obs: Array
    action: Array
    reward: Array
    success: Array
    terminated: Array


class Played(NamedTuple):
    """What a demonstrator has shown, in task units.

    episodes: those that were kept.
    styles: [E] of the kept ones.
    solved: [E] whether the task was solved in the kept ones.
    starts: [E] keys with which `Env.reset` makes their first states.
    num_tried, num_solved: episodes that were run, and how many of them succeeded.
    """

    episodes: Episodes
    styles: np.ndarray
    solved: np.ndarray
    starts: Array
    num_tried: int
    num_solved: int


def reach_of(options: dict[str, Any]) -> tuple[float, float]:
    """Metres and radians that a hand moves for an action of 1."""
    scale = options.get("action_scale", control.ACTION_SCALE)
    response = options.get("response", control.RESPONSE)
    return response * scale[0], response * scale[1]


def scripted_episodes(
    env: Env,
    script: Script,
    num_episodes: int,
    seed: int,
    *,
    max_steps: int,
    noise: float = 0.1,
    success_only: bool = True,
    steps_after_success: int = 20,
    reach: tuple[float, float] = reach_of({}),
) -> Played:
    """Demonstrate a task `num_episodes` times.

    Actions are recorded as they are executed, with their noise. An episode ends
    `steps_after_success` control steps after the task is solved for the first time, or
    after `max_steps`.

    Args:
        env: the task of the script, in task units.
        script: one of `SCRIPTS`.
        noise: see `hands.drifted`.
        success_only: whether to leave out episodes in which the task is not solved.
        steps_after_success: shows policies how to hold what they have achieved.
        reach: see `reach_of`.

    Raises:
        SettingsError: a number that is too small.
        RuntimeError: hardly any episode succeeds.
    """
    if num_episodes < 1 or noise < 0 or steps_after_success < 0:
        raise SettingsError(
            f"num_episodes={num_episodes} must be at least 1, and noise={noise} and "
            f"steps_after_success={steps_after_success} not negative."
        )
    play = make_play(
        env,
        script,
        noise=noise,
        reach=reach,
        num_envs=min(num_episodes, MAX_ENVS),
        max_steps=max_steps,
        steps_after_success=steps_after_success,
    )
    key = jax.random.key(seed)
    kept: list[Rows] = []
    styles: list[int] = []
    starts: list[Array] = []
    num_tried = num_solved = 0
    while len(kept) < num_episodes:
        key, round_key = jax.random.split(key)
        rows, style, start, lengths = play(round_key)
        for index, length in enumerate(lengths):
            episode = jax.tree.map(lambda leaf: leaf[:length, index], rows)
            is_solved = bool(episode.success[-1] > 0)
            num_tried, num_solved = num_tried + 1, num_solved + is_solved
            if len(kept) < num_episodes and (is_solved or not success_only):
                kept.append(episode)
                styles.append(int(style[index]))
                starts.append(start[index])
        if num_solved < MIN_SUCCESS * num_tried and success_only:
            raise RuntimeError(
                f"{num_solved} of {num_tried} scripted episodes succeeded; lower "
                f"noise={noise}, or pass success_only=False."
            )
    return Played(
        episodes=_join(kept),
        styles=np.array(styles),
        solved=np.array([part.success[-1] > 0 for part in kept]),
        starts=jnp.stack(starts),
        num_tried=num_tried,
        num_solved=num_solved,
    )


def replayed_success(
    env: Env, actions: np.ndarray, episode_lengths: np.ndarray, starts: Array
) -> np.ndarray:
    """Execute recorded actions again from the same starts, without looking.

    If a recording is what happened, nearly all episodes that succeeded do so again.
    Contacts amplify rounding, so a few may not.

    Args:
        env: the task of the recordings, in task units.
        actions: [N, Da] of all episodes, one after the other.
        episode_lengths: [E], of sum N.
        starts: [E] keys of `Env.reset`, as in `Played`.

    Returns:
        [E] 1 where the task was solved within the episode, otherwise 0.
    """
    lengths = np.asarray(episode_lengths)
    firsts = np.cumsum(lengths) - lengths
    num_envs = min(len(lengths), MAX_ENVS)
    # As many steps for all, so that one program runs every group of episodes.
    steps = np.arange(lengths.max())

    @jax.jit
    def play(starts: Array, chosen: Array) -> Array:
        state = jax.vmap(env.reset)(starts)

        def step(state: Any, action: Array) -> tuple[Any, Array]:
            state, outcome = jax.vmap(env.step)(state, action)
            return state, outcome.metrics["success"]

        return jax.lax.scan(step, state, chosen)[1]

    success = np.zeros(len(lengths))
    for first in range(0, len(lengths), num_envs):
        # The last group repeats its last episode until it is full.
        group = np.minimum(np.arange(first, first + num_envs), len(lengths) - 1)
        last = firsts[group] + lengths[group] - 1
        rows = np.minimum(firsts[group] + steps[:, None], last)
        solved = np.asarray(play(starts[group], actions[rows]))
        success[group] = solved[lengths[group] - 1, np.arange(num_envs)]
    return success


def make_play(
    env: Env,
    script: Script,
    *,
    noise: float,
    reach: tuple[float, float],
    num_envs: int,
    max_steps: int,
    steps_after_success: int,
) -> Callable[[Array], tuple[Rows, np.ndarray, Array, np.ndarray]]:
    """Make the function that plays one episode in each of N environments.

    Returns:
        key -> (rows [T, N, ...], style [N], key of each reset [N], length of each
        episode [N]).
    """
    act = functools.partial(script.act, noise=noise, reach=reach)

    @jax.jit
    def begin(key: Array) -> tuple[tuple[Any, Any, Array], Array]:
        env_key, script_key, noise_key = jax.random.split(key, 3)
        starts = jax.random.split(env_key, num_envs)
        state = jax.vmap(env.reset)(starts)
        memory = jax.vmap(script.start)(jax.random.split(script_key, num_envs))
        return (state, memory, jax.random.split(noise_key, num_envs)), starts

    def step(carry: Any, time: Array) -> tuple[Any, Rows]:
        state, memory, keys = carry
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, time)
        obs = state.obs["state"]
        action, memory = jax.vmap(act)(memory, now, obs)
        state, outcome = jax.vmap(env.step)(state, action)
        row = Rows(
            obs=obs,
            action=action,
            reward=outcome.reward,
            success=outcome.metrics["success"],
            terminated=outcome.terminated,
        )
        return (state, memory, keys), row

    @jax.jit
    def go_on(carry: Any, first: Array) -> tuple[Any, Rows]:
        return jax.lax.scan(step, carry, first + jnp.arange(BLOCK))

    def play(key: Array) -> tuple[Rows, np.ndarray, Array, np.ndarray]:
        carry, starts = begin(key)
        blocks: list[Rows] = []
        lengths = np.full(num_envs, max_steps)
        for first in range(0, max_steps, BLOCK):
            carry, block = go_on(carry, first)
            blocks.append(jax.tree.map(np.asarray, block))
            solved = np.concatenate([block.success for block in blocks]) > 0
            ended = np.concatenate([block.terminated for block in blocks]) > 0
            ends = solved.argmax(axis=0) + 1 + steps_after_success
            ends = np.where(solved.any(axis=0), ends, max_steps)
            ends = np.where(ended.any(axis=0), ended.argmax(axis=0) + 1, ends)
            lengths = np.minimum(ends, max_steps)
            if first + BLOCK >= lengths.max():
                break
        rows = jax.tree.map(lambda *parts: np.concatenate(parts), *blocks)
        return rows, np.asarray(carry[1].style), starts, lengths

    return play


def _join(parts: list[Rows]) -> Episodes:
    rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return Episodes(
        observations={"state": rows.obs},
        actions=rows.action,
        episode_lengths=np.array([len(part.reward) for part in parts]),
        rewards=rows.reward,
        terminals=rows.terminated > 0,
    )
