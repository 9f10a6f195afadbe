"""Fit the servo gains of the avoidance task to the recorded human episodes.

The episodes hold desired and actual positions of the rod. Per axis, a spring and a
damper pull a unit mass to a target, x'' = kp (target - x) - kd x', where
target = desired position + `LEAD` * (its last change). The gains are the least-squares
fit of replayed positions to recorded ones.
"""

import numpy as np
from scipy.linalg import expm
from scipy.optimize import least_squares

from dppo_jax.envs.tasks.avoid import CONTROL_PERIOD, LEAD


def stitched_to_padded(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[sum(lengths), D] -> [N, max(lengths), D]; repeat the last row of an episode."""
    starts = np.cumsum(lengths) - lengths
    index = np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)
    return values[starts[:, None] + index]


def replay_servo(
    desired: np.ndarray, start: np.ndarray, stiffness: float, damping: float
) -> np.ndarray:
    """Positions [N, T] of one axis for desired positions [N, T], from `start` [N].

    The target is constant within a control period, so the integration is exact.
    """
    dynamics = np.array([[0, 1, 0], [-stiffness, -damping, stiffness], [0, 0, 0]])
    transition = expm(dynamics * CONTROL_PERIOD)[:2]
    state = np.stack([start, np.zeros_like(start)])
    positions = [start]
    for before, now in zip(desired.T[:-1], desired.T[1:]):
        target = now + LEAD * (now - before)
        state = transition @ np.concatenate([state, target[None]])
        positions.append(state[0])
    return np.stack(positions, axis=1)


def fit_servo(
    desired: np.ndarray, actual: np.ndarray, episode_lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fit stiffness kp [2] and damping kd [2] to recorded episodes.

    Args:
        desired: [sum(episode_lengths), 2] desired x, y in metres, one row per
            control period.
        actual: actual x, y, likewise.
        episode_lengths: [N] rows of each episode.

    Returns:
        kp in 1/s^2 and kd in 1/s, per axis.
    """
    lengths = np.asarray(episode_lengths)
    desired = stitched_to_padded(np.asarray(desired, np.float64), lengths)
    actual = stitched_to_padded(np.asarray(actual, np.float64), lengths)
    recorded = np.arange(lengths.max()) < lengths[:, None]

    def fit_axis(axis: int) -> np.ndarray:
        def residual(log_gains: np.ndarray) -> np.ndarray:
            replayed = replay_servo(
                desired[..., axis], actual[:, 0, axis], *np.exp(log_gains)
            )
            return ((replayed - actual[..., axis]) * recorded).ravel()

        # Logarithms keep the gains positive.
        return np.exp(least_squares(residual, np.log([300.0, 30.0])).x)

    stiffness, damping = np.stack([fit_axis(0), fit_axis(1)], axis=1)
    return stiffness, damping
