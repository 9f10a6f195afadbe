"""A scripted demonstrator for the avoidance task, one that masters all 24 modes.

A mode is the triple of gaps taken, e.g. (1, 2, 5). The script draws a smooth path
through the gaps, follows it with varying speed and a slight tremor, and replays the
commands open loop through the task. Only episodes that take the requested gaps,
touch nothing and cross the reward line are kept. Where paths run and how fast follows
the medians and spreads of the 96 human episodes of D3IL (arXiv 2402.14606).
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

# Where humans cross a row: median and standard deviation of x per gap, in metres.
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

# The three data sets that DPPO pre-trains on, four human episodes per mode.
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
    """One demonstration in physical units (metres).

    mode: gaps taken, row by row.
    states: [T, 4] desired x, y and actual x, y, before the action of the same row.
    actions: [T, 2] change of the desired position.
    """

    mode: Mode
    states: np.ndarray
    actions: np.ndarray


def scripted_episodes(
    modes: Sequence[Mode],
    episodes_per_mode: int,
    seed: int,
    *,
    engine: str = "auto",
) -> list[ScriptedEpisode]:
    """Demonstrate `modes`, `episodes_per_mode` times each, in the order given.

    Raises:
        SettingsError: for no modes, an impossible one, or less than one episode.
        RuntimeError: if a mode yields too few valid episodes.
    """
    for mode in modes:
        if len(mode) != 3 or any(g not in row for g, row in zip(mode, ROW_CODES)):
            raise SettingsError(
                f"Unknown mode {tuple(mode)}; a mode takes one gap out of each row, "
                f"{ROW_CODES}, e.g. (1, 2, 5)."
            )
    if not modes or episodes_per_mode < 1:
        raise SettingsError(
            f"{len(modes)} modes and episodes_per_mode={episodes_per_mode}: both must "
            "be at least 1."
        )
    rng = np.random.default_rng(seed)
    wanted = np.repeat(np.array(modes, np.int64), episodes_per_mode, axis=0)
    replay = _make_replay(engine)
    found: dict[int, ScriptedEpisode] = {}
    for _ in range(MAX_ROUNDS):
        # Every round draws all episodes anew, so that the replay compiles once.
        actions = _draw_commands(rng, wanted)
        states, gaps, collision = replay(actions)
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
        "the script does not suit this task any more."
    )


def _draw_commands(rng: np.random.Generator, modes: np.ndarray) -> np.ndarray:
    """Changes of the desired position [N, MAX_LENGTH, 2] for `modes` [N, 3]."""
    num = len(modes)
    height = np.linspace(START[1], 0.7, 400)
    paths = np.stack([_draw_path(rng, mode)(height) for mode in modes])

    # Humans push the stick forward most of the time and ease off now and then.
    level = rng.uniform(0.8, 1.05, (num, 1))
    waves = _smooth_noise(rng, (num, MAX_LENGTH), sigma=4.0)
    speed = MAX_SPEED * np.clip(level + 0.15 * waves, 0.0, 1.0)
    delay = rng.uniform(0.0, 5.0, (num, 1))
    ramp = rng.uniform(1.0, 5.0, (num, 1))
    speed *= np.clip((np.arange(MAX_LENGTH) - delay) / ramp, 0.0, 1.0)
    # One or two millimetres of tremor, absent before the start.
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
        # Where the path is flat in x, x is as fast as it may be and y waits for it.
        progress = progress + speed[:, step] / np.maximum(1.0, np.abs(slope))
        goal = np.stack([lookup(progress), progress], axis=1) + tremor[:, step]
        change = np.clip(goal - desired, [-MAX_SPEED, 0.0], MAX_SPEED)
        actions[:, step] = change
        desired = desired + change
    return actions


def _draw_path(rng: np.random.Generator, mode: np.ndarray) -> PchipInterpolator:
    """x as a function of y: a monotone cubic through jittered gap waypoints."""
    crossings = [
        # Beyond two standard deviations humans were hardly ever seen.
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
    """Heights [N] at which the demonstrator considers an episode done."""
    return rng.uniform(0.42, 0.48, num)


def _smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma: float, axis: int = -1
) -> np.ndarray:
    """Gaussian noise of unit variance that varies over about `sigma` samples."""
    noise = gaussian_filter1d(rng.standard_normal(shape), sigma, axis=axis)
    return noise * np.sqrt(2 * np.sqrt(np.pi) * sigma)


def _make_replay(engine: str):
    """actions [N, T, 2] -> states [N, T, 4]; gaps [N, T, 3] and collision [N, T].

    Gaps and collisions are those seen before the action of the same row.
    """
    env = make_avoid(engine=engine)

    @jax.jit
    def replay(actions: jax.Array):
        def step(state, action):
            seen = (state.obs["state"], state.gaps, state.collision)
            return jax.vmap(env.step)(state, action)[0], seen

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
    """Rows [T] to keep of a replayed episode; 0 if it is not what was asked for."""
    done = states[:, 3] > max(end, REWARD_Y)
    if not done.any():
        return 0
    last = int(done.argmax())
    valid = (gaps[last] == mode).all() and not collision[last]
    return last + 1 if valid and last + 1 >= MIN_STEPS else 0
