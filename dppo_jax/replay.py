"""A replay buffer on the device: one ring of chunk steps for each environment.

Storage leaves are environment-major, [B, L, ...] with L = capacity // B, so that
devices may share the environments; `insert` takes what a roll-out records, time-major
[T, B, ...]. All functions are pure and work under `jit`, inside `scan`, and in place
where the state is donated or carried: nothing copies the storage.

An item is any pytree of arrays, and `next_obs` counts: what a buffer takes is `nbytes`.
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
    """Rings of the last L steps of each of B environments.

    items: leaves [B, L, ...]; the newest step of every ring is at `head - 1`, modulo L.
    head: [] int32 slot that is written next, the same in all rings.
    size: [B] int32 steps that a ring holds. Only `fill` makes them differ, by one.
    """

    items: PyTree
    head: Array
    size: Array


def init(example: PyTree, num_envs: int, capacity: int) -> Replay:
    """An empty buffer.

    Args:
        example: one item, without leading axes; only shapes and types are read, so
            `jax.ShapeDtypeStruct` will do.
        num_envs: B.
        capacity: chunk steps of all environments together, rounded down to a multiple
            of B.

    Raises:
        SettingsError: no environment, less than one step for each, more than int32
            counts, or an item without leaves.
    """
    if num_envs < 1 or not num_envs <= capacity < 2**31:
        raise SettingsError(
            f"capacity={capacity} must be at least num_envs={num_envs}, one step for "
            "each, and less than 2^31."
        )
    shapes = _shapes(example)
    if not jax.tree.leaves(shapes):
        raise SettingsError(
            f"example={example} holds no array; give one item to store."
        )
    lead = (num_envs, capacity // num_envs)
    return Replay(
        items=jax.tree.map(lambda x: jnp.zeros(lead + x.shape, x.dtype), shapes),
        head=jnp.int32(0),
        size=jnp.zeros(num_envs, jnp.int32),
    )


def nbytes(example: PyTree, num_envs: int, capacity: int) -> int:
    """Bytes of a buffer that `init` would make of the same arguments."""
    shapes = jax.eval_shape(lambda: init(example, num_envs, capacity))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def partition(replay: Replay, axis: str) -> PyTree:
    """How devices along the mesh axis `axis` share a buffer (or its shapes).

    Returns:
        A Replay of PartitionSpec: rings and their sizes are split, the head is
        everywhere.
    """
    specs = jax.tree.map(lambda _: PartitionSpec(axis), replay)
    return specs._replace(head=PartitionSpec())


def insert(replay: Replay, items: PyTree) -> Replay:
    """Append T steps to every ring; the oldest make room.

    Args:
        items: leaves [T, B, ...], oldest first, as `rollout` records them. Of more than
            L steps the last L are kept.

    Raises:
        SettingsError: items unlike those that the buffer was made for.
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
    """Replace what a buffer holds by offline data, spread evenly over the rings.

    Ring 0 takes the first rows, ring 1 the next; an episode may begin in one and end in
    another, and rings differ by at most one step. More can be inserted afterwards. A
    buffer for offline data alone may have one ring, or one per device.

    Args:
        items: leaves [N, ...] in the order of time, B <= N <= capacity.

    Raises:
        SettingsError: items unlike those that the buffer was made for, more than fit,
            or less than one for each ring.
    """
    num_envs, length = _lead(replay)
    num_items = _first_axis(items)
    _check(items, replay, (num_items,))
    if not num_envs <= num_items <= num_envs * length:
        raise SettingsError(
            f"{num_items} items do not fit {num_envs} rings of {length} steps; choose "
            f"num_envs of at most {num_items} and a capacity of at least "
            f"{-(-num_items // num_envs) * num_envs}, or select among the data."
        )
    size = num_items // num_envs + (np.arange(num_envs) < num_items % num_envs)
    begin = (np.cumsum(size) - size)[:, None]
    # Heads must agree, so a shorter ring starts later, behind a slot that is not drawn.
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
    """Draw items, uniformly and with replacement, among all that are stored.

    Args:
        replay: not empty. This is checked outside of `jit` alone.
        batch_size: items to draw, on all devices together.
        num_groups: groups of neighbouring environments. Each gives the batch equally
            many items and has a key of its own, so that the draws do not depend on how
            many devices share the environments; a multiple of their number that divides
            B and `batch_size`.

    Returns:
        Leaves [batch_size, ...]; inside of a sharded step this device's part of them.

    Raises:
        SettingsError: sizes that do not divide, or an empty buffer.
    """
    env, age = _draw(replay, key, batch_size, num_groups)
    return _join(_take(replay, env, age))


def sample_mixed(
    online: Replay,
    offline: Replay,
    key: Array,
    batch_size: int,
    *,
    offline_share: float = 0.5,
    num_groups: int = 1,
) -> PyTree:
    """Draw from two buffers in fixed shares, as RLPD (Ball et al. 2023) does in halves.

    Args:
        online, offline: of the same items; environments may differ in number. One
            without a share may be empty.
        batch_size, num_groups: as for `sample`, of both parts.
        offline_share: of the batch, in [0, 1].

    Returns:
        Leaves [batch_size, ...]; in each group the online items come first.

    Raises:
        SettingsError: as `sample`, items that differ, or a share that is no whole
            number of items.
    """
    num_offline = round(offline_share * batch_size)
    if not 0 <= offline_share <= 1 or abs(offline_share * batch_size - num_offline) > (
        1e-6 * batch_size
    ):
        raise SettingsError(
            f"offline_share={offline_share} of batch_size={batch_size} is no whole "
            "number of items between 0 and all; change one of them."
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
    """Where steps with the fields `terminated` and `truncated` ended an episode."""
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
    """Draw runs of consecutive steps of one environment, for n-step targets.

    The first step is drawn as in `sample`. A window is valid up to the end of its
    episode or the newest step of its ring, whichever comes first; the rest repeats the
    last valid step, so `next_obs[:, -1]` and `terminated[:, -1]` always say what to
    bootstrap from, after `valid.sum(1)` steps.

    An episode that was broken off without a flag (a reset between two roll-outs) is
    invisible here: set `truncated` on its last step before inserting.

    Args:
        length: n, steps of a window.
        ends: items [..., n] -> [..., n], above zero where a step ended an episode.
        batch_size, num_groups: as for `sample`.

    Returns:
        Leaves [batch_size, n, ...] and `valid` [batch_size, n] bool, a prefix of at
        least one step.

    Raises:
        SettingsError: as `sample`, or a window that no ring can hold.
    """
    _, longest = _lead(replay)
    if not 1 <= length <= longest:
        raise SettingsError(
            f"length={length} of a window must lie between 1 and the {longest} steps "
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
    """Environments and ages (0: the oldest step of its ring), [groups, items] each."""
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
    # NumPy looks at what is known also while something else is traced around it.
    is_known = not isinstance(replay.size, jax.core.Tracer)
    if is_known and not np.asarray(replay.size).any():
        raise SettingsError(
            "the replay buffer is empty; insert something before sampling."
        )
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
    """B, L; on this device."""
    return jax.tree.leaves(replay.items)[0].shape[:2]


def _first_axis(items: PyTree) -> int:
    shapes = [x.shape for x in jax.tree.leaves(_shapes(items))]
    return shapes[0][0] if shapes and shapes[0] else 0


def _shapes(tree: PyTree) -> PyTree:
    """Shapes and types as JAX sees them, of NumPy arrays and numbers too."""
    return jax.eval_shape(lambda x: x, tree)


def _check(items: PyTree, replay: Replay, lead: tuple[int, ...]) -> None:
    """Raises SettingsError unless `items` are those of `replay`, with axes `lead`."""
    fields: Any = jax.tree.structure(items)
    stored: Any = jax.tree.structure(replay.items)
    if fields != stored:
        raise SettingsError(
            f"items {fields} differ from those of the buffer, {stored}; insert the "
            "fields that it was made for."
        )
    leaves = jax.tree_util.tree_leaves_with_path(_shapes(items))
    for (path, x), ring in zip(leaves, jax.tree.leaves(replay.items)):
        shape = lead + ring.shape[2:]
        if (x.shape, x.dtype) != (shape, ring.dtype):
            raise SettingsError(
                f"items{jax.tree_util.keystr(path)} {x.dtype} {x.shape} must be "
                f"{ring.dtype} {shape}, as the buffer was made for; convert them."
            )
