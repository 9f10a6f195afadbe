"""A replay buffer on the device: one ring of items for each environment.

An item is any pytree of arrays, usually the Transition of one chunk. Stored leaves are
environment-major, [B, L, ...] with L = capacity // B, so that environments can be split
over devices; `insert` takes time-major leaves [T, B, ...] of a roll-out. All functions
are pure and work under `jit` and inside `scan`. If the buffer is donated or carried by
a scan, it is updated in place, without a copy.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from dppo_jax.errors import SettingsError
from dppo_jax.training import parallel
from dppo_jax.types import Array, PyTree


class Replay(NamedTuple):
    """Rings of the last L items of each of B environments.

    items: leaves [B, L, ...]; the newest item of every ring is at `head - 1`, modulo L.
    head: [] int32 slot that is written next, the same in all rings.
    size: [B] int32 number of items in each ring; equal, or after `fill` at most one
        apart.
    """

    items: PyTree
    head: Array
    size: Array


class Places(NamedTuple):
    """Where items are stored, on this device: ring and slot, both [batch_size]."""

    env: Array
    slot: Array


def init(example: PyTree, num_envs: int, capacity: int) -> Replay:
    """Make an empty buffer.

    Args:
        example: one item, without leading axes; only shapes and types are read, so the
            leaves may be `jax.ShapeDtypeStruct`.
        num_envs: B.
        capacity: items of all environments together, rounded down to a multiple of B.

    Raises:
        SettingsError: no environment, a capacity below B or not below 2^31, or an item
            without leaves.
    """
    check_capacity(capacity, num_envs=num_envs)
    shapes = _shapes(example)
    if not jax.tree.leaves(shapes):
        raise SettingsError(
            f"example={example} holds no array; give an example of one item."
        )
    lead = (num_envs, capacity // num_envs)
    return Replay(
        items=jax.tree.map(lambda x: jnp.zeros(lead + x.shape, x.dtype), shapes),
        head=jnp.int32(0),
        size=jnp.zeros(num_envs, jnp.int32),
    )


def check_capacity(capacity: int, *, num_envs: int) -> None:
    """Raise SettingsError for a capacity that `init` does not accept."""
    if num_envs < 1 or not num_envs <= capacity < 2**31:
        raise SettingsError(
            f"capacity={capacity} must be at least num_envs={num_envs}, one item for "
            "each, and less than 2^31."
        )


def nbytes(example: PyTree, num_envs: int, capacity: int) -> int:
    """Bytes of the buffer that `init` would make from the same arguments."""
    shapes = jax.eval_shape(lambda: init(example, num_envs, capacity))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def partition(replay: Replay, axis: str) -> PyTree:
    """Split the rings of a buffer (or its shapes) along the mesh axis `axis`.

    Returns:
        A Replay of PartitionSpec: rings and their sizes are split, the head is
        replicated.
    """
    specs = jax.tree.map(lambda _: PartitionSpec(axis), replay)
    return specs._replace(head=PartitionSpec())


def insert(replay: Replay, items: PyTree) -> Replay:
    """Append T items to every ring, over the oldest ones if it is full.

    Args:
        items: leaves [T, B, ...], oldest first, as `rollout` returns them. If T > L,
            the last L are kept.

    Raises:
        SettingsError: other fields, shapes or types than the buffer was made for.
    """
    num_envs, length = _lead(replay)
    num_inserted = _first_axis(items)
    _check(items, replay, (num_inserted, num_envs))
    num_kept = min(num_inserted, length)
    skipped = num_inserted - num_kept
    slot = (replay.head + skipped + jnp.arange(num_kept)) % length

    def write(ring: Array, x: Array) -> Array:
        new = jnp.moveaxis(x[skipped:], 0, 1)
        return ring.at[:, slot].set(new, mode="promise_in_bounds", unique_indices=True)

    return Replay(
        items=jax.tree.map(write, replay.items, items),
        head=(replay.head + num_inserted) % length,
        size=jnp.minimum(replay.size + num_inserted, length),
    )


def fill(replay: Replay, items: PyTree) -> Replay:
    """Replace the contents of a buffer by offline data, spread evenly over the rings.

    Ring 0 takes the first items, ring 1 the next, and so on. An episode may begin in
    one ring and end in the next. The sizes of rings differ by at most one. More items
    can be inserted afterwards. A buffer only for offline data may have one ring, or one
    per device.

    Args:
        items: leaves [N, ...] in the order of time, B <= N <= capacity.

    Raises:
        SettingsError: other fields, shapes or types than the buffer was made for, or an
            N outside [B, capacity].
    """
    num_envs, length = _lead(replay)
    num_items = _first_axis(items)
    _check(items, replay, (num_items,))
    if not num_envs <= num_items <= num_envs * length:
        raise SettingsError(
            f"{num_items} items do not fit {num_envs} rings of {length} items; set "
            f"num_envs to at most {num_items} and the capacity to at least "
            f"{-(-num_items // num_envs) * num_envs}, or use less data."
        )
    size = num_items // num_envs + (np.arange(num_envs) < num_items % num_envs)
    begin = (np.cumsum(size) - size)[:, None]
    # The head is common to all rings, so a shorter ring starts one slot later; the slot
    # before it is never drawn.
    longest = size.max()
    row = np.arange(longest) - (longest - size)[:, None]
    row = begin + np.maximum(row, 0)
    return Replay(
        items=jax.tree.map(
            lambda ring, x: ring.at[:, :longest].set(x[row]), replay.items, items
        ),
        head=jnp.int32(longest % length),
        size=jnp.asarray(size, jnp.int32),
    )


def sample(
    replay: Replay, key: Array, batch_size: int, *, num_groups: int = 1
) -> PyTree:
    """Draw stored items uniformly with replacement.

    Args:
        replay: not empty; this is checked only outside `jit`.
        batch_size: items to draw, on all devices together.
        num_groups: groups of neighbouring environments. Each contributes equally many
            items and has its own key, so that the draws do not depend on the number of
            devices. It must be a multiple of that number and divide B and `batch_size`.

    Returns:
        Leaves [batch_size, ...]; in a sharded step, this device's part of them.

    Raises:
        SettingsError: an invalid `batch_size` or `num_groups`, or an empty buffer.
    """
    return sample_places(replay, key, batch_size, num_groups=num_groups)[1]


def sample_places(
    replay: Replay, key: Array, batch_size: int, *, num_groups: int = 1
) -> tuple[Places, PyTree]:
    """As `sample`; also return where the items are, for `write`."""
    env, age = _draw(replay, key, batch_size, num_groups)
    slot = (replay.head - replay.size[env] + age) % _lead(replay)[1]
    return _join((Places(env, slot), _take(replay, env, age)))


def write(rings: PyTree, places: Places, values: PyTree) -> PyTree:
    """Write over stored values, in place where `insert` is.

    Args:
        rings: leaves [B, L, ...], a part of `Replay.items`.
        places: as drawn from the buffer since the last `insert`. Values for a place
            that occurs twice must be equal.
        values: leaves [batch_size, ...].
    """
    return jax.tree.map(
        lambda ring, x: ring.at[places.env, places.slot].set(x), rings, values
    )


def sample_mixed(
    online: Replay,
    offline: Replay,
    key: Array,
    batch_size: int,
    *,
    offline_share: float = 0.5,
    num_groups: int = 1,
) -> PyTree:
    """Draw fixed shares of a batch from two buffers; RLPD (Ball et al. 2023) has 0.5.

    Args:
        online, offline: buffers of the same kind of item, with any numbers of
            environments. A buffer whose share is zero may be empty.
        batch_size: as for `sample`, of both parts together.
        num_groups: as for `sample`, for each part.
        offline_share: share of the batch from `offline`, in [0, 1].

    Returns:
        Leaves [batch_size, ...]; in each group the online items come first.

    Raises:
        SettingsError: as `sample`, different kinds of items, or a share that is not a
            whole number of items.
    """
    num_offline = round(offline_share * batch_size)
    if not 0 <= offline_share <= 1 or abs(offline_share * batch_size - num_offline) > (
        1e-6 * batch_size
    ):
        raise SettingsError(
            f"offline_share={offline_share} of batch_size={batch_size} must be a whole "
            f"number of items between 0 and {batch_size}; change one of them."
        )
    _check(offline.items, online, _lead(offline))
    online_key, offline_key = jax.random.split(key)
    parts = [
        _take(replay, *_draw(replay, key, size, num_groups))
        for replay, key, size in (
            (online, online_key, batch_size - num_offline),
            (offline, offline_key, num_offline),
        )
        if size > 0
    ]
    return _join(jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts))


def episode_ends(items: Any) -> Array:
    """1 where an item with `terminated` and `truncated` ended an episode, else 0."""
    return jnp.maximum(items.terminated, items.truncated)


def sample_windows(
    replay: Replay,
    key: Array,
    batch_size: int,
    length: int,
    *,
    ends: Callable[[PyTree], Array] = episode_ends,
    num_groups: int = 1,
) -> tuple[PyTree, Array]:
    """Draw windows of n consecutive items of one environment, for n-step targets.

    The first item is drawn as in `sample`. A window is valid up to the end of its
    episode or the newest item of its ring, whichever comes first. The rest repeats the
    last valid item, so after `valid.sum(1)` steps, bootstrap from `next_obs[:, -1]`
    unless `terminated[:, -1]`.

    If a reset between two roll-outs breaks off an episode, set `truncated` on its last
    item before inserting it; otherwise windows continue into the next episode.

    Args:
        length: n, items of a window.
        ends: items [..., n] -> [..., n], above zero where an item ended an episode.
        batch_size, num_groups: as for `sample`.

    Returns:
        Leaves [batch_size, n, ...] and `valid` [batch_size, n] bool, which is True for
        the first items of a window, at least one.

    Raises:
        SettingsError: as `sample`, or a window longer than a ring.
    """
    _, longest = _lead(replay)
    if not 1 <= length <= longest:
        raise SettingsError(
            f"length={length} of a window must lie between 1 and the {longest} items "
            "that a ring holds; shorten it or raise the capacity."
        )
    env, age = (x[..., None] for x in _draw(replay, key, batch_size, num_groups))
    ages = age + jnp.arange(length)
    newest = replay.size[env] - 1
    seen = _take(replay, env, jnp.minimum(ages, newest))
    ended = (ends(seen) > 0).astype(jnp.int32)
    ended_before = jnp.cumsum(ended, axis=-1) - ended
    valid = (ended_before == 0) & (ages <= newest)
    last = age + valid.sum(axis=-1, keepdims=True) - 1
    return _join((_take(replay, env, jnp.minimum(ages, last)), valid))


def _draw(
    replay: Replay, key: Array, batch_size: int, num_groups: int
) -> tuple[Array, Array]:
    """Draw environments and ages (0: the oldest of its ring), [groups, items] each."""
    num_shards = parallel.num_shards()
    num_envs = replay.size.shape[0] * num_shards
    if (
        min(batch_size, num_groups) < 1
        or batch_size % num_groups
        or num_envs % num_groups
        or num_groups % num_shards
    ):
        raise SettingsError(
            f"num_groups={num_groups} must divide the {batch_size} items to draw and "
            f"the {num_envs} environments, and be a multiple of the {num_shards} "
            "devices; change one of them."
        )
    # NumPy can read a known size even while an enclosing function is traced.
    is_known = not isinstance(replay.size, jax.core.Tracer)
    if is_known and not np.asarray(replay.size).any():
        raise SettingsError("the replay buffer is empty; insert items before sampling.")
    keys = parallel.local_part(jax.random.split(key, num_groups))
    size = replay.size.reshape(keys.shape[0], -1)

    def draw(key: Array, size: Array) -> tuple[Array, Array]:
        end = jnp.cumsum(size)
        item = jax.random.randint(key, (batch_size // num_groups,), 0, end[-1])
        env = jnp.searchsorted(end, item, side="right")
        return env, item - (end - size)[env]

    env, age = jax.vmap(draw)(keys, size)
    return env + jnp.arange(size.shape[0])[:, None] * size.shape[1], age


def _take(replay: Replay, env: Array, age: Array) -> PyTree:
    """The items of these environments and ages."""
    _, length = _lead(replay)
    slot = (replay.head - replay.size[env] + age) % length
    return jax.tree.map(lambda ring: ring[env, slot], replay.items)


def _join(groups: PyTree) -> PyTree:
    """Leaves [groups, items, ...] -> [groups * items, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), groups)


def _lead(replay: Replay) -> tuple[int, int]:
    """B and L on this device."""
    return jax.tree.leaves(replay.items)[0].shape[:2]


def _first_axis(items: PyTree) -> int:
    shapes = [x.shape for x in jax.tree.leaves(_shapes(items))]
    return shapes[0][0] if shapes and shapes[0] else 0


def _shapes(tree: PyTree) -> PyTree:
    """Shapes and types that JAX gives to arrays, NumPy arrays and numbers."""
    return jax.eval_shape(lambda x: x, tree)


def _check(items: PyTree, replay: Replay, lead: tuple[int, ...]) -> None:
    """Raise SettingsError unless `items` match those of `replay`, with axes `lead`."""
    fields: Any = jax.tree.structure(items)
    stored: Any = jax.tree.structure(replay.items)
    if fields != stored:
        raise SettingsError(
            f"items {fields} differ from those of the buffer, {stored}; insert items "
            "with the fields that it was made for."
        )
    leaves = jax.tree_util.tree_leaves_with_path(_shapes(items))
    for (path, x), ring in zip(leaves, jax.tree.leaves(replay.items)):
        shape = lead + ring.shape[2:]
        if (x.shape, x.dtype) != (shape, ring.dtype):
            raise SettingsError(
                f"items{jax.tree_util.keystr(path)} {x.dtype} {x.shape} must be "
                f"{ring.dtype} {shape}, as the buffer was made for; convert them."
            )
