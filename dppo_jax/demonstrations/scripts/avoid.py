"""A scripted demonstrator for all 24 modes of the avoidance task.

A mode is the triple of gaps taken, e.g. (1, 2, 5). The script draws a smooth path
through the gaps, follows it with varying speed and a slight tremor, and executes the
commands open loop in the task. It keeps only episodes that take the requested gaps,
touch nothing and cross the reward line. Paths and speeds have the medians and spreads
of the 96 human episodes of D3IL (arXiv 2402.14606).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter1d

from dppo_jax.envs.tasks.avoid import (
    REWARD_Y,
    ROW_CODES,
    ROW_Y,
    START,
    make_avoid,
)
from dppo_jax.errors import SettingsError

Mode = tuple[int, int, int]

# Median and standard deviation of x at which humans cross a row, per gap, in metres.
CROSSINGS = {
    0: (0.428, 0.019),
    1: (0.580, 0.018),
    2: (0.347, 0.018),
    3: (0.494, 0.014),
    4: (0.644, 0.018),
    5: (0.281, 0.012),
    6: (0.424, 0.013),
    7: (0.573, 0.013),
    8: (0.719, 0.020),
}
MAX_SPEED = 0.0125  # metres per control step and axis
MIN_STEPS = 60
MAX_LENGTH = 106
MAX_ROUNDS = 20

# The modes of DPPO's three pre-training data sets, with four human episodes per mode.
SUBSETS: dict[str, tuple[Mode, Mode]] = {
    "m1": ((1, 2, 5), (1, 2, 6)),
    "m2": ((1, 2, 5), (1, 2, 7)),
    "m3": ((1, 2, 5), (1, 2, 8)),
}
ALL_MODES: tuple[Mode, ...] = tuple(
    (first, second, third)
    for first in ROW_CODES[0]
    for second in ROW_CODES[1]
    for third in ROW_CODES[2]
)


class ScriptedEpisode(NamedTuple):
    """One demonstration, in metres.

    mode: the gap taken in each row.
    states: [T, 4] desired x, y and actual x, y, before the action with the same index.
    actions: [T, 2] change of the desired position.
    rewards: [T] of the action with the same index.
    """

    mode: Mode
    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray


def scripted_episodes(
    modes: Sequence[Mode],
    episodes_per_mode: int,
    seed: int,
    *,
    engine: str = "auto",
    rewarded_gap: int = 5,
) -> list[ScriptedEpisode]:
    """Demonstrate `modes`, `episodes_per_mode` times each, in the order given.

    Args:
        engine, rewarded_gap: of the task, see `make_avoid`. Only the rewards depend on
            the gap.

    Raises:
        SettingsError: no modes, an unknown mode, or `episodes_per_mode` below 1.
        RuntimeError: a mode gives too few valid episodes.
    """
    for mode in modes:
        if len(mode) != 3 or any(g not in row for g, row in zip(mode, ROW_CODES)):
            raise SettingsError(
                f"Unknown mode {tuple(mode)}; a mode is one gap of each row, "
                f"{ROW_CODES}, e.g. (1, 2, 5)."
            )
    if not modes or episodes_per_mode < 1:
        raise SettingsError(
            f"{len(modes)} modes and episodes_per_mode={episodes_per_mode}: both must "
            "be at least 1."
        )
    rng = np.random.default_rng(seed)
    wanted = np.repeat(np.array(modes, np.int64), episodes_per_mode, axis=0)
    replay = _make_replay(engine, rewarded_gap)
    found: dict[int, ScriptedEpisode] = {}
    for _ in range(MAX_ROUNDS):
        # Draw all episodes again in each round: equal shapes compile only once.
        actions = _draw_commands(rng, wanted)
        states, gaps, collision, rewards = replay(actions)
        ends = _draw_ends(rng, len(wanted))
        for index in range(len(wanted)):
            length = _valid_length(
                states[index], gaps[index], collision[index], wanted[index], ends[index]
            )
            if index not in found and length:
                found[index] = ScriptedEpisode(
                    mode=tuple(wanted[index].tolist()),
                    states=states[index, :length],
                    actions=actions[index, :length],
                    rewards=rewards[index, :length],
                )
        if len(found) == len(wanted):
            return [found[index] for index in range(len(wanted))]
    lacking = {
        tuple(wanted[index].tolist())
        for index in range(len(wanted))
        if index not in found
    }
    raise RuntimeError(
        f"No valid episode of the modes {sorted(lacking)} in {MAX_ROUNDS} attempts; "
        "the script no longer works with this task."
    )


def _draw_commands(rng: np.random.Generator, modes: np.ndarray) -> np.ndarray:
    """Changes of the desired position [N, MAX_LENGTH, 2] for `modes` [N, 3]."""
    num = len(modes)
    height = np.linspace(START[1], 0.7, 400)
    paths = np.stack([_draw_path(rng, mode)(height) for mode in modes])

    # Humans push the stick fully forward most of the time and sometimes less.
    level = rng.uniform(0.8, 1.05, (num, 1))
    waves = _smooth_noise(rng, (num, MAX_LENGTH), sigma=4.0)
    speed = MAX_SPEED * np.clip(level + 0.15 * waves, 0.0, 1.0)
    delay = rng.uniform(0.0, 5.0, (num, 1))
    ramp = rng.uniform(1.0, 5.0, (num, 1))
    speed *= np.clip((np.arange(MAX_LENGTH) - delay) / ramp, 0.0, 1.0)
    # A tremor of one or two millimetres, which grows from zero at the start.
    tremor = 0.0015 * _smooth_noise(rng, (num, MAX_LENGTH, 2), sigma=3.0, axis=1)
    tremor *= np.clip(np.arange(MAX_LENGTH) / 10, 0.0, 1.0)[:, None]

    def lookup(y: np.ndarray) -> np.ndarray:
        position = (y - height[0]) / (height[1] - height[0])
        left = np.clip(position.astype(int), 0, len(height) - 2)
        weight, rows = position - left, np.arange(num)
        return (1 - weight) * paths[rows, left] + weight * paths[rows, left + 1]

    progress = np.full(num, START[1])
    desired = np.tile(np.array(START), (num, 1))
    actions = np.zeros((num, MAX_LENGTH, 2), np.float32)
    for step in range(MAX_LENGTH):
        slope = (lookup(progress + 0.01) - lookup(progress)) / 0.01
        # Where the path is steep in x, slow down in y so that x keeps its speed limit.
        progress = progress + speed[:, step] / np.maximum(1.0, np.abs(slope))
        goal = np.stack([lookup(progress), progress], axis=1) + tremor[:, step]
        change = np.clip(goal - desired, [-MAX_SPEED, 0.0], MAX_SPEED)
        actions[:, step] = change
        desired = desired + change
    return actions


def _draw_path(rng: np.random.Generator, mode: np.ndarray) -> PchipInterpolator:
    """x as a function of y: a monotone cubic through jittered gap waypoints."""
    crossings = [
        # Human paths are hardly ever beyond two standard deviations.
        median + spread * np.clip(rng.standard_normal(), -2.0, 2.0)
        for median, spread in (CROSSINGS[int(gap)] for gap in mode)
    ]
    heights = np.array(ROW_Y) + rng.uniform(-0.02, 0.02, 3)
    beyond = crossings[-1] + 0.02 * rng.standard_normal()
    return PchipInterpolator(
        [START[1], *heights, 0.45, 0.7],
        [START[0], *crossings, beyond, beyond],
    )


def _draw_ends(rng: np.random.Generator, num: int) -> np.ndarray:
    """Draw the y [N] at which the demonstrator ends its episodes."""
    return rng.uniform(0.42, 0.48, num)


def _smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma: float, axis: int = -1
) -> np.ndarray:
    """Gaussian noise of unit variance that varies over about `sigma` samples."""
    noise = gaussian_filter1d(rng.standard_normal(shape), sigma, axis=axis)
    return noise * np.sqrt(2 * np.sqrt(np.pi) * sigma)


def _make_replay(engine: str, rewarded_gap: int):
    """Make actions [N, T, 2] -> states [N, T, 4], gaps [N, T, 3], collision, rewards.

    Collisions and rewards are [N, T]. The rewards are those of the action with the same
    index, everything else is as it was before that action.
    """
    env = make_avoid(engine=engine, rewarded_gap=rewarded_gap)

    @jax.jit
    def replay(actions: jax.Array):
        def step(state, action):
            after, outcome = jax.vmap(env.step)(state, action)
            before = (state.obs["state"], state.gaps, state.collision)
            return after, (*before, outcome.reward)

        keys = jax.random.split(jax.random.key(0), actions.shape[0])
        start = jax.vmap(env.reset)(keys)
        _, seen = jax.lax.scan(step, start, actions.swapaxes(0, 1))
        return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), seen)

    return lambda actions: jax.tree.map(np.asarray, replay(jnp.asarray(actions)))


def _valid_length(
    states: np.ndarray,
    gaps: np.ndarray,
    collision: np.ndarray,
    mode: np.ndarray,
    end: float,
) -> int:
    """Number of steps to keep of a replayed episode; 0 if it is not valid."""
    done = states[:, 3] > max(end, REWARD_Y)
    if not done.any():
        return 0
    last = int(done.argmax())
    valid = (gaps[last] == mode).all() and not collision[last]
    return last + 1 if valid and last + 1 >= MIN_STEPS else 0
