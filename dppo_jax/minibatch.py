"""Shuffled minibatches of array indices."""

import jax

from dppo_jax.types import Array


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


def covering_batches(key: Array, size: int, batch_size: int) -> Array:
    """As `shuffled_batches`, but every item is seen: the last batch starts over.

    Returns:
        [ceil(size / batch_size), batch_size] indices.
    """
    num_batches = -(-size // batch_size)
    order = jax.random.permutation(key, size)
    repeats = -(-num_batches * batch_size // size)
    order = jax.numpy.tile(order, repeats)[: num_batches * batch_size]
    return order.reshape(num_batches, batch_size)
