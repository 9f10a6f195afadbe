"""The vocabulary of the project: states are arrays, behaviour is pure functions.

Axis letters, the same everywhere: `T` environment steps, `B` environments or
samples, `K` denoising steps, `K'` tuned denoising steps, `To` observation
history, `Ta` action chunk, `Do` / `Da` observation / action size. Time-major.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any
Obs = dict[str, Array]
Metrics = dict[str, Array]


class Transition(NamedTuple):
    """What a roll-out records; every leaf has leading axes [T, B].

    obs: observation acted on, `{"state": [T, B, To, Do]}`.
    chain: [T, B, K' + 1, Ta, Da] tuned part of the denoising chain; the last
        entry is the executed action chunk.
    log_prob: [T, B, K'] of every tuned move, from the sampling pass itself.
    reward: [T, B] summed over the executed chunk.
    next_obs: what followed, before any reset.
    terminated: [T, B] 1 where the task ended; nothing is bootstrapped.
    truncated: [T, B] 1 where a time limit cut in; still bootstrapped.
    """

    obs: Obs
    chain: Array
    log_prob: Array
    reward: Array
    next_obs: Obs
    terminated: Array
    truncated: Array


class PolicyParams(NamedTuple):
    """Network parameters of the frozen early steps and of the trained late ones.

    num_active: moves, counted from the last, that the tuned network still owns where
        K' is annealed; None: all K'.
    """

    base: PyTree
    tuned: PyTree
    num_active: Array | None = None


class Sample(NamedTuple):
    """A sampled chain.

    chain: [B, K' + 1, Ta, Da]; `chain[:, -1]` is the action chunk.
    log_prob: [B, K'].
    """

    chain: Array
    log_prob: Array


class Policy(NamedTuple):
    """A chain of `num_steps` Gaussian moves; an ordinary Gaussian policy has one.

    init: (key, obs) -> PolicyParams
    sample: (params, key, obs [B, To, Do], *, deterministic, min_std) -> Sample
    log_prob: (network parameters, x [B, Ta, Da], next_x, obs, step [B]) -> [B]
    chain_log_prob: (network parameters, chain [B, K' + 1, Ta, Da], obs) -> [B, K'], of
        all tuned moves, the observations encoded once
    clone_loss: (network parameters, key, obs, action [B, Ta, Da]) -> scalar, the
        behaviour-cloning loss
    entropy: (network parameters, obs) -> scalar, mean over batch and entries
    num_steps: K', tuned moves in a chain
    min_std: the floor of the exploring standard deviation that `sample` uses when
        none is passed
    """

    init: Callable[..., PolicyParams]
    sample: Callable[..., Sample]
    log_prob: Callable[..., Array]
    chain_log_prob: Callable[..., Array]
    clone_loss: Callable[..., Array]
    entropy: Callable[..., Array]
    num_steps: int
    min_std: float


class TimeStep(NamedTuple):
    """The outcome of one step, before any reset.

    obs: observation that followed.
    reward: scalar ([B] for a VecEnv).
    terminated, truncated: 0/1 floats; the task ended / a time limit cut in.
    metrics: named numbers that describe the episode so far.
    """

    obs: Obs
    reward: Array
    terminated: Array
    truncated: Array
    metrics: Metrics


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
    """init: key -> state.  step: state -> (state, metrics), one whole iteration.

    split: (state or its shapes, number of devices) -> tree of bool, which leaves have a
        leading axis of environments that devices may share, see `parallel.shard`; it
        raises ValueError where settings do not fit. None: one device only.
    """

    init: Callable[..., Any]
    step: Callable[[Any], tuple[Any, Metrics]]
    split: Callable[[Any, int], Any] | None = None
