"""Shuffled minibatches of array indices, and means over minibatches in parts."""

from collections.abc import Callable
from typing import TypeVar

import chex
import jax
import jax.numpy as jnp

from dppo_jax import runtime
from dppo_jax.training import parallel
from dppo_jax.types import Array, PyTree

Result = TypeVar("Result")

# Rows for each core. Of 500 to 20,000 rows at a time, through a network 512 wide on an
# AMD EPYC, 1250 were fastest on one core and 2500 on two: a third less time per row
# than with all 20,000. `benchmarks.train_step` measures what is reached.
CPU_PART = 1250


def shuffled_batches(key: Array, size: int, batch_size: int) -> Array:
    """A fresh permutation of range(size), cut into whole minibatches.

    Args:
        size: number of items.
        batch_size: items of a minibatch; the remainder is left out this time.

    Returns:
        [size // batch_size, batch_size] indices.

    Raises:
        ValueError: a minibatch larger than the data.
    """
    if not 1 <= batch_size <= size:
        raise ValueError(
            f"batch_size={batch_size} must lie between 1 and the {size} items of an "
            "iteration; lower it or collect more."
        )
    order = jax.random.permutation(key, size)
    return order[: size - size % batch_size].reshape(-1, batch_size)


def grouped_batches(
    key: Array, shape: tuple[int, int, int], batch_size: int, *, num_groups: int
) -> Array:
    """As `shuffled_batches`, but items are shuffled within groups of environments.

    Each of the groups, neighbours all, gives a minibatch the same number of its items.
    Inside of a sharded step a device has whole groups, and nothing of the others; the
    order within a group does not depend on how many devices there are.

    Args:
        shape: T, B, M: M items of each step of each environment of this device.
        batch_size: items of a minibatch, of all devices; a multiple of `num_groups`.
        num_groups: of all devices; a multiple of their number.

    Returns:
        [number of minibatches, items of this device] indices into T * B * M.
    """
    num_steps, num_envs, moves = shape
    if num_groups == 1:
        return shuffled_batches(key, num_steps * num_envs * moves, batch_size)
    keys = parallel.local_part(jax.random.split(key, num_groups))
    group = num_envs * moves // keys.shape[0]  # Items of a step.
    index = jax.vmap(
        lambda key: shuffled_batches(key, num_steps * group, batch_size // num_groups)
    )(keys)
    step, item = jnp.divmod(index, group)
    first = jnp.arange(keys.shape[0])[:, None, None] * group
    index = step * num_envs * moves + first + item
    return jnp.moveaxis(index, 0, 1).reshape(index.shape[1], -1)


def covering_batches(key: Array, size: int, batch_size: int) -> Array:
    """As `shuffled_batches`, but every item is seen: the last batch starts over.

    Returns:
        [ceil(size / batch_size), batch_size] indices.
    """
    num_batches = -(-size // batch_size)
    order = jax.random.permutation(key, size)
    repeats = -(-num_batches * batch_size // size)
    order = jnp.tile(order, repeats)[: num_batches * batch_size]
    return order.reshape(num_batches, batch_size)


def drawn_rows(data: PyTree, row: Array) -> tuple[PyTree, Array | None]:
    """What to evaluate for a minibatch of rows of which some may be drawn repeatedly.

    Where more rows are drawn than there are, each is evaluated once instead and counts
    as often as it was drawn.

    Args:
        data: leaves [N, ...].
        row: [B] indices.

    Returns:
        Leaves [min(B, N), ...] and weights, None for all alike; the weighted mean over
        these rows is the mean over the drawn ones.
    """
    num_rows = jax.tree.leaves(data)[0].shape[0]
    if row.size <= num_rows:
        return jax.tree.map(lambda x: x[row], data), None
    return data, jnp.zeros(num_rows).at[row].add(1.0)


def part_size(size: int, wanted: int | None = None, *, moves: int = 1) -> int:
    """Items of the equal parts that a minibatch of `size` items is computed in.

    On a CPU the activations of many rows at once leave the caches; parts of at most
    `CPU_PART` rows per core are faster and give the same mean. Accelerators take all at
    once, and so do sizes without a divisor near that.

    Args:
        wanted: rows of a part, if that fits; None chooses.
        moves: rows of an item, as a chain has one for each of its moves.

    Raises:
        ValueError: parts of `wanted` rows do not fit.
    """
    if wanted is not None:
        if wanted < 1 or wanted % moves or size * moves % wanted:
            raise ValueError(
                f"micro_batch_size={wanted} must divide the {size * moves} rows of a "
                f"minibatch and hold whole items of {moves}; change one of them, or "
                "leave it unset."
            )
        return wanted // moves
    at_most = CPU_PART * runtime.num_cores() // moves
    if jax.default_backend() != "cpu" or size <= at_most:
        return size
    largest = max(x for x in range(1, at_most + 1) if size % x == 0)
    # A size with no divisor near would fall into crumbs.
    return largest if largest >= at_most // 4 else size


def mean_over_parts(
    function: Callable[[PyTree], Result],
    batch: PyTree,
    size: int,
    weight: Array | None = None,
) -> Result:
    """What `function(batch)` gives, computed part by part.

    Args:
        function: part of the batch -> arrays, each a mean over the rows of the part,
            weighted by `weight` where there is one.
        batch: leaves [B, ...].
        size: rows of a part; divides B.
        weight: [B]; a part counts by the sum of its weights. None: all count alike.

    Returns:
        The same as `function(batch)` but for rounding.
    """
    num_rows = jax.tree.leaves(batch)[0].shape[0]
    chex.assert_tree_shape_prefix(batch, (num_rows,))
    num_parts = num_rows // size
    assert num_parts * size == num_rows, "parts must be equal"
    if num_parts == 1:
        return function(batch)
    if weight is None:
        share = jnp.full(num_parts, 1 / num_parts)
    else:
        share = weight.reshape(num_parts, size).sum(1)
        share /= jnp.maximum(share.sum(), 1.0)
    parts = jax.tree.map(lambda x: x.reshape(num_parts, size, *x.shape[1:]), batch)

    def add(total: Result, inputs: tuple[PyTree, Array]) -> tuple[Result, None]:
        part, share = inputs
        result = function(part)
        return jax.tree.map(lambda t, r: t + share * r, total, result), None

    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (parts, share))[0]
