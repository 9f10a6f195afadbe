"""The types that all modules share: states are pytrees, behaviour is pure functions.

Axes have the same letters everywhere: `T` chunks (steps of a roll-out), `B`
environments or samples, `K` denoising steps, `K'` tuned denoising steps, `To`
observations of a history, `Ta` actions of a chunk, `Do` and `Da` sizes of an
observation and an action. Arrays are time-major, [T, B, ...].
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
PyTree = Any
Obs = dict[str, Array]
Metrics = dict[str, Array]

# Metrics of a roll-out that the environment alone makes NaN or infinite, and with what.
# Single steps of that kind are left out (`envs.quarantine`), unless there is no other.
OF_ENVIRONMENT = {"obs_magnitude": "an observation", "reward": "a reward"}
# The one metric that is no number: the `Break` of a roll-out.
BREAK = "break"


class Transition(NamedTuple):
    """What a roll-out records; every leaf has leading axes [T, B].

    obs: observation before the action, `{"state": [T, B, To, Do]}`.
    action: [T, B, Ta, Da] the executed action chunk.
    reward: [T, B] summed over the executed chunk.
    next_obs: observation after the action, before any reset.
    terminated: [T, B] 1 where the task ended; nothing is bootstrapped.
    truncated: [T, B] 1 where a time limit ended the episode; the value of `next_obs` is
        bootstrapped.
    extras: what `act` returned besides the action, for the algorithm's own use.
    """

    obs: Obs
    action: Array
    reward: Array
    next_obs: Obs
    terminated: Array
    truncated: Array
    extras: PyTree


class Act(Protocol):
    """The function by which a policy acts; roll-outs and evaluations use only this.

    Args:
        params: what `Algorithm.params` returns.
        keys: [B] one random key per row, so that a row's action depends neither on the
            number of rows nor on the number of devices.
        obs: leaves [B, ...].
        deterministic: True for evaluation, False for exploring.

    Returns:
        action [B, Ta, Da] and extras, leaves [B, ...], for the algorithm's own use.
    """

    def __call__(
        self, params: PyTree, keys: Array, obs: Obs, *, deterministic: bool = False
    ) -> tuple[Array, PyTree]: ...


class TimeStep(NamedTuple):
    """The outcome of one step, before any reset.

    obs: observation after the action.
    reward: scalar ([B] for a VecEnv).
    terminated, truncated: 0/1 floats; the task / a time limit ended the episode.
    metrics: named numbers that describe the episode so far, scalars ([B]).
    trace: named arrays for plots, of any shape. After `chunk_actions` only those that
        it was told to keep, of every control step, [Ta, ...] ([B, Ta, ...]).
    """

    obs: Obs
    reward: Array
    terminated: Array
    truncated: Array
    metrics: Metrics
    trace: dict[str, Array]


class Break(NamedTuple):
    """What one needs to repeat a step of a roll-out in which a simulation diverged.

    found: [] bool; if False, none diverged and the rest means nothing.
    env, chunk: [] int32 which environment, and which chunk of the roll-out.
    state: of that environment before the step, leaves without the axis [B]; random
        keys as integers.
    action: [Ta, Da] the chunk that was executed.
    """

    found: Array
    env: Array
    chunk: Array
    state: PyTree
    action: Array


class View(NamedTuple):
    """What it takes to draw an environment whose trace has `qpos`.

    model: a mujoco.MjModel.
    period: seconds from one control step to the next.
    camera: a camera of the model; empty: one that sees the whole model.
    """

    model: Any
    period: float
    camera: str = ""


class Env(NamedTuple):
    """One environment as pure functions; `vmap` gives many.

    reset: key -> state; `state.obs` is the first observation.
    step: (state, action) -> (state, TimeStep).
    obs_shape: shape of every observation entry, e.g. `{"state": (To, Do)}`.
    action_shape: (Da,), or (Ta, Da) after `chunk_actions`.
    max_steps: calls of `step` until the time limit; None: no time limit.
    view: for videos; None: it cannot be drawn.
    action_range: lowest and highest action that the task takes, each a number or [Da],
        in task units; None: unknown. Data with other actions are warned of; nothing is
        clipped.
    physics: the `envs.physics.Physics` that steps the states inside `state`, so that
        `envs.randomize` may change its model; None: there is none, or it is unknown.
    quarantined: whether its steps have the metric `diverged`, see `envs.quarantine`.
    """

    reset: Callable[[Array], Any]
    step: Callable[[Any, Array], tuple[Any, TimeStep]]
    obs_shape: dict[str, tuple[int, ...]]
    action_shape: tuple[int, ...]
    max_steps: int | None
    view: View | None = None
    action_range: tuple[Any, Any] | None = None
    physics: Any = None
    quarantined: bool = False


class VecEnv(NamedTuple):
    """`num_envs` environments that reset themselves; as `Env`, with a leading axis [B].

    reset: keys [B] -> state; an environment draws all its randomness from its key.

    If a step ends an episode, `state.obs` is the first observation of the next episode,
    and the returned TimeStep has the last observation of the one that ended.

    notes: what a user should know about it, such as actions that it does not take.
    keeps_breaks: whether a roll-out keeps what precedes a step that diverged, as a
        `Break`. Only for steps with the metric `diverged` that depend on nothing but
        state and action; a simulator in a host process has more.
    restart: (state, keys [B]) -> state, as `reset`, but what outlives an episode stays;
        None: nothing does. `rollout.restart` calls it.
    """

    reset: Callable[[Array], Any]
    step: Callable[[Any, Array], tuple[Any, TimeStep]]
    obs_shape: dict[str, tuple[int, ...]]
    action_shape: tuple[int, ...]
    max_steps: int | None
    num_envs: int
    notes: tuple[str, ...] = ()
    keeps_breaks: bool = False
    restart: Callable[[Any, Array], Any] | None = None


class Algorithm(NamedTuple):
    """A training algorithm as pure functions; `state` may be any pytree.

    init: (key, ...) -> state.
    step: state -> (state, metrics), one whole iteration.
    params: state -> the parameters that act, any pytree. Evaluations and saved policies
        copy only these.
    act: see `Act`; takes what `params` returns.
    split: (state or its shapes, number of devices) -> tree of PartitionSpec, which
        splits leaves that belong to environments along their leading axis, see
        `parallel.shard`. It raises SettingsError for settings that do not work on this
        many devices. None: the algorithm runs on one device only.
    finite: names of the metrics that must be finite; training stops if one is not.
    phases: functions whose composition is `step`, each called with what the previous
        one returns: state -> (state, ...) -> ... -> (state, metrics). Empty: only
        `step`. On the CPU backend the host loop compiles each phase separately, because
        a program that calls C MuJoCo has one thread less for everything it computes,
        and the compilation cache does not store it.
    dispensable: names of fields of the state that a checkpoint may lack, such as a
        replay buffer; a resumed run then takes them from `init`. Only for a state that
        is a NamedTuple.
    saves_dispensable: whether checkpoints hold them nevertheless.
    """

    init: Callable[..., Any]
    step: Callable[[Any], tuple[Any, Metrics]]
    params: Callable[[Any], PyTree]
    act: Act
    split: Callable[[Any, int], Any] | None = None
    finite: tuple[str, ...] = ()
    phases: tuple[Callable[..., tuple], ...] = ()
    dispensable: tuple[str, ...] = ()
    saves_dispensable: bool = True
