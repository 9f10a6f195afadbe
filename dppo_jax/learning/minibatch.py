"""Shuffled minibatches of array indices, and means over their micro-batches."""

from collections.abc import Callable
from typing import TypeVar

import chex
import jax
import jax.numpy as jnp

from dppo_jax import runtime
from dppo_jax.errors import SettingsError
from dppo_jax.training import parallel
from dppo_jax.types import Array, PyTree

Result = TypeVar("Result")

# Rows per core: few enough that their activations stay in the caches. Measure other
# numbers with `benchmarks.train_step --set algorithm.ppo.micro_batch_size=...`.
CPU_ROWS = 1250


def shuffled_batches(key: Array, size: int, batch_size: int) -> Array:
    """Permute range(size) and cut it into minibatches of equal size.

    Args:
        size: number of items.
        batch_size: items of a minibatch; items that do not fill one are left out.

    Returns:
        [size // batch_size, batch_size] indices.

    Raises:
        SettingsError: a minibatch larger than the data.
    """
    if not 1 <= batch_size <= size:
        raise SettingsError(
            f"batch_size={batch_size} must lie between 1 and the {size} items of an "
            "iteration; lower it or collect more."
        )
    order = jax.random.permutation(key, size)
    return order[: size - size % batch_size].reshape(-1, batch_size)


def grouped_batches(
    key: Array, shape: tuple[int, int, int], batch_size: int, *, num_groups: int
) -> Array:
    """As `shuffled_batches`, but shuffle within groups of neighbouring environments.

    Every minibatch has the same number of items from each group. In a sharded step a
    device holds whole groups. The order within a group does not depend on the number
    of devices.

    Args:
        shape: (T, B, M), M items of each of T chunks in B environments of this device.
        batch_size: items of a minibatch on all devices together; a multiple of
            `num_groups`.
        num_groups: groups on all devices together; a multiple of the number of devices.

    Returns:
        [number of minibatches, items of this device] indices into T * B * M.
    """
    num_chunks, num_envs, moves = shape
    if num_groups == 1:
        return shuffled_batches(key, num_chunks * num_envs * moves, batch_size)
    keys = parallel.local_part(jax.random.split(key, num_groups))
    group = num_envs * moves // keys.shape[0]  # Items per group and time t.
    index = jax.vmap(
        lambda key: shuffled_batches(key, num_chunks * group, batch_size // num_groups)
    )(keys)
    step, item = jnp.divmod(index, group)
    first = jnp.arange(keys.shape[0])[:, None, None] * group
    index = step * num_envs * moves + first + item
    return jnp.moveaxis(index, 0, 1).reshape(index.shape[1], -1)


def covering_batches(key: Array, size: int, batch_size: int) -> Array:
    """As `shuffled_batches`, but use every item.

    If the last minibatch is not full, items from the beginning of the permutation fill
    it up.

    Returns:
        [ceil(size / batch_size), batch_size] indices.
    """
    num_batches = -(-size // batch_size)
    order = jax.random.permutation(key, size)
    repeats = -(-num_batches * batch_size // size)
    order = jnp.tile(order, repeats)[: num_batches * batch_size]
    return order.reshape(num_batches, batch_size)


def drawn_rows(data: PyTree, row: Array) -> tuple[PyTree, Array | None]:
    """Select the rows to evaluate for a minibatch that may contain a row several times.

    If B > N, all N rows are returned once, each with the number of times that it was
    drawn as its weight.

    Args:
        data: leaves [N, ...].
        row: [B] indices.

    Returns:
        Leaves [min(B, N), ...] and weights (None: equal weights). The weighted mean
        over these rows is the mean over the drawn rows.
    """
    num_rows = jax.tree.leaves(data)[0].shape[0]
    if row.size <= num_rows:
        return jax.tree.map(lambda x: x[row], data), None
    return data, jnp.zeros(num_rows).at[row].add(1.0)


def micro_batch_size(size: int, wanted: int | None = None, *, moves: int = 1) -> int:
    """Choose how many of the `size` items of a minibatch form a micro-batch.

    On a CPU the activations of many rows do not fit into the caches. Micro-batches of
    at most `CPU_ROWS` rows per core are faster and give the same mean. On accelerators
    the whole minibatch is one micro-batch, and also on a CPU if no divisor of `size` is
    near that number.

    Args:
        wanted: rows of a micro-batch; None: choose automatically.
        moves: rows of an item: K' if items are whole chains, else 1.

    Raises:
        SettingsError: `wanted` does not divide the rows of the minibatch into whole
            items.
    """
    if wanted is not None:
        if wanted < 1 or wanted % moves or size * moves % wanted:
            raise SettingsError(
                f"micro_batch_size={wanted} must divide the {size * moves} rows of a "
                f"minibatch and hold whole items of {moves}; change one of them, or "
                "leave it unset."
            )
        return wanted // moves
    at_most = CPU_ROWS * runtime.num_cores() // moves
    if jax.default_backend() != "cpu" or size <= at_most:
        return size
    largest = max(x for x in range(1, at_most + 1) if size % x == 0)
    # Without a divisor near `at_most`, micro-batches would be too small to be fast.
    return largest if largest >= at_most // 4 else size


def mean_over_micro_batches(
    function: Callable[[PyTree], Result],
    batch: PyTree,
    size: int,
    weight: Array | None = None,
) -> Result:
    """Compute `function(batch)` micro-batch by micro-batch.

    Args:
        function: micro-batch -> arrays, each a mean over the rows of the micro-batch,
            weighted by `weight` if it is given.
        batch: leaves [B, ...].
        size: rows of a micro-batch; divides B.
        weight: [B]; a micro-batch has the sum of these as its weight. None: equal
            weights.

    Returns:
        `function(batch)`, apart from rounding.
    """
    num_rows = jax.tree.leaves(batch)[0].shape[0]
    chex.assert_tree_shape_prefix(batch, (num_rows,))
    num_micro = num_rows // size
    assert num_micro * size == num_rows, "micro-batches must be equal"
    if num_micro == 1:
        return function(batch)
    if weight is None:
        share = jnp.full(num_micro, 1 / num_micro)
    else:
        share = weight.reshape(num_micro, size).sum(1)
        share /= jnp.maximum(share.sum(), 1.0)
    micro_batches = jax.tree.map(
        lambda x: x.reshape(num_micro, size, *x.shape[1:]), batch
    )

    def add(total: Result, inputs: tuple[PyTree, Array]) -> tuple[Result, None]:
        micro_batch, share = inputs
        result = function(micro_batch)
        return jax.tree.map(lambda t, r: t + share * r, total, result), None

    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], micro_batches))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (micro_batches, share))[0]
