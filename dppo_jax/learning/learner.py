"""The functions that an off-policy algorithm adds to the shared iteration."""

from collections.abc import Callable
from typing import Any, NamedTuple

from dppo_jax.rollout import env_keys
from dppo_jax.training import parallel
from dppo_jax.types import Act, Array, Obs, PyTree, Transition


class Learner(NamedTuple):
    """The functions that an off-policy algorithm adds to the shared iteration.

    init: (key, obs with leaves [1, ...], ...) -> state, any pytree; the arguments after
        the observation are those of the Algorithm's `init` after its key.
    update: (state, batches, key) -> (state, metrics), one round of updates. `batches`
        is a Transition with leaves [updates_per_round, N, ...], whose extras are those
        of `explore` or `keep`. In a sharded step N is this device's part, and `update`
        must reduce gradients and metrics with `parallel.mean`.
    params: state -> the parameters that act.
    act: see `types.Act`; takes what `params` returns.
    finite: names of the metrics that must be finite.
    keep: Transition with leaves [T, B, ...] -> what to store with each as its `extras`,
        leaves [T, B, ...]. `update` then finds it in the extras of its batches, and
        returns a third value: what to store instead, leaves like those of the extras.
        An item that a round has drawn twice must get the same value both times. None:
        nothing is stored.
    explore: (params, keys [B], obs) -> (action, extras), of roll-outs; the extras are
        stored. None: as `act`, and no extras.
    warm_up: as `explore`, of the first `random_steps`. None: uniform actions in
        [-1, 1], and no extras.
    """

    init: Callable[..., Any]
    update: Callable[[Any, Transition, Array], tuple]
    params: Callable[[Any], PyTree]
    act: Act
    finite: tuple[str, ...] = ()
    keep: Callable[[Transition], PyTree] | None = None
    explore: Callable[[PyTree, Array, Obs], tuple[Array, PyTree]] | None = None
    warm_up: Callable[[PyTree, Array, Obs], tuple[Array, PyTree]] | None = None


def row_keys(key: Array, num_rows: int) -> Array:
    """One key per row of this device's part of a batch, which has `num_rows` rows."""
    return env_keys(key, num_rows * parallel.num_shards())
