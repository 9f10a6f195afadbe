"""The vocabulary of the project: states are arrays, behaviour is pure functions.

Axis letters, the same everywhere: `T` environment steps, `B` environments or
samples, `K` denoising steps, `K'` tuned denoising steps, `To` observation
history, `Ta` action chunk, `Do` / `Da` observation / action size. Time-major.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
PyTree = Any
Obs = dict[str, Array]
Metrics = dict[str, Array]


class Transition(NamedTuple):
    """What a roll-out records; every leaf has leading axes [T, B].

    obs: observation acted on, `{"state": [T, B, To, Do]}`.
    action: [T, B, Ta, Da] the executed action chunk.
    reward: [T, B] summed over the executed chunk.
    next_obs: what followed, before any reset.
    terminated: [T, B] 1 where the task ended; nothing is bootstrapped.
    truncated: [T, B] 1 where a time limit cut in; still bootstrapped.
    extras: what `act` returned beside the action, the algorithm's own.
    """

    obs: Obs
    action: Array
    reward: Array
    next_obs: Obs
    terminated: Array
    truncated: Array
    extras: PyTree


class Act(Protocol):
    """How a policy acts: the only thing that roll-outs and evaluations know of it.

    Args:
        params: what `Algorithm.params` returns.
        keys: [B] one random key per row, so that a row's action depends neither on how
            many rows there are nor on how many devices share them.
        obs: leaves [B, ...].
        deterministic: the mode of evaluation, or the exploring one.

    Returns:
        action [B, Ta, Da] and extras, leaves [B, ...], for the algorithm's own use.
    """

    def __call__(
        self, params: PyTree, keys: Array, obs: Obs, *, deterministic: bool = False
    ) -> tuple[Array, PyTree]: ...


class TimeStep(NamedTuple):
    """The outcome of one step, before any reset.

    obs: observation that followed.
    reward: scalar ([B] for a VecEnv).
    terminated, truncated: 0/1 floats; the task ended / a time limit cut in.
    metrics: named numbers that describe the episode so far, scalars ([B]).
    trace: named arrays for pictures, of any shape; behind `chunk_actions` those that
        were asked for, of every control step, [Ta, ...] ([B, Ta, ...]).
    """

    obs: Obs
    reward: Array
    terminated: Array
    truncated: Array
    metrics: Metrics
    trace: dict[str, Array]


class Env(NamedTuple):
    """One environment, pure; vmap it for many.

    reset: key -> state; `state.obs` is what to act on.
    step: (state, action) -> (state, TimeStep)
    obs_shape: shape of every observation entry, e.g. `{"state": (To, Do)}`
    action_shape: (Da,) or, behind `chunk_actions`, (Ta, Da)
    max_steps: steps until the time limit, in units of `step`; None without one
    """

    reset: Callable[[Array], Any]
    step: Callable[[Any, Array], tuple[Any, TimeStep]]
    obs_shape: dict[str, tuple[int, ...]]
    action_shape: tuple[int, ...]
    max_steps: int | None


class VecEnv(NamedTuple):
    """`num_envs` environments that reset themselves; as `Env`, with axis [B].

    reset: keys [B] -> state, one key per environment, from which all its randomness
        comes.

    After a step `state.obs` belongs to the new episode where one ended, while the
    returned TimeStep keeps the observation that ended it.
    """

    reset: Callable[[Array], Any]
    step: Callable[[Any, Array], tuple[Any, TimeStep]]
    obs_shape: dict[str, tuple[int, ...]]
    action_shape: tuple[int, ...]
    max_steps: int | None
    num_envs: int


class Algorithm(NamedTuple):
    """What trains, as pure functions; `state` is a pytree of its own.

    init: (key, ...) -> state.
    step: state -> (state, metrics), one whole iteration.
    params: state -> what acts and what is deployed, any pytree; the host loop,
        checkpoints and evaluation copy only this.
    act: see `Act`; takes what `params` returns.
    split: (state or its shapes, number of devices) -> tree of PartitionSpec, where the
        leaves that belong to environments are split along their leading axis, see
        `parallel.shard`; it raises SettingsError where settings do not fit. None: one
        device only.
    finite: names of the metrics that must be finite; otherwise training ends.
    phases: functions that make up `step`, state -> (state, ...) -> ... -> (state,
        metrics), each taking what the one before returns; empty: just `step`. The host
        loop makes a program of each on the CPU backend: a program that calls the host
        for its physics has one thread less for all that it computes, and no
        compilation cache keeps it.
    """

    init: Callable[..., Any]
    step: Callable[[Any], tuple[Any, Metrics]]
    params: Callable[[Any], PyTree]
    act: Act
    split: Callable[[Any, int], Any] | None = None
    finite: tuple[str, ...] = ()
    phases: tuple[Callable[..., tuple], ...] = ()
