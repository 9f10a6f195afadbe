"""Properties of the replay buffer, compared with Python lists."""

import functools
import json
import os
import subprocess
import sys
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dppo_jax import replay
from tests.conftest import REPOSITORY


class Step(NamedTuple):
    """id: [] identifies a step; image: [2] bytes, the id's last two digits."""

    id: Any
    image: Any
    terminated: Any
    truncated: Any


EXAMPLE = Step(np.int32(0), np.zeros(2, np.uint8), np.float32(0), np.float32(0))
INSERT = jax.jit(replay.insert)
SAMPLE = jax.jit(replay.sample, static_argnums=2, static_argnames="num_groups")
PLACES = jax.jit(replay.sample_places, static_argnums=2)
FILL = jax.jit(replay.fill)
WRITE = jax.jit(replay.write)
MIXED = jax.jit(replay.sample_mixed, static_argnums=3, static_argnames="offline_share")
WINDOWS = jax.jit(replay.sample_windows, static_argnums=(2, 3))


def steps(ids, ended=None):
    """Items with these ids; every third end is a time limit, the others are not."""
    ids = np.asarray(ids)
    ended = np.zeros(ids.shape, bool) if ended is None else np.asarray(ended)
    image = np.stack([ids // 10 % 10, ids % 10], axis=-1)
    return Step(
        id=ids.astype(np.int32),
        image=image.astype(np.uint8),
        terminated=(ended & (ids % 3 > 0)).astype(np.float32),
        truncated=(ended & (ids % 3 == 0)).astype(np.float32),
    )


def empty(num_envs, length):
    return replay.init(EXAMPLE, num_envs, num_envs * length)


def rings(buffer):
    """The ids in every ring, oldest first; each must have kept its image."""
    head, length = int(buffer.head), buffer.items.id.shape[1]
    ids, images = np.asarray(buffer.items.id), np.asarray(buffer.items.image)
    slots = [(head - n + np.arange(n)) % length for n in np.asarray(buffer.size)]
    found = [row[slot].tolist() for row, slot in zip(ids, slots)]
    for env, slot in enumerate(slots):
        expected = steps(np.array(found[env], int)).image
        np.testing.assert_array_equal(images[env, slot], expected)
    return found


def numbered(start, num_steps, num_envs):
    """Ids [T, B] that count steps and, in their last digit, environments."""
    return 10 * (start + np.arange(num_steps)[:, None]) + np.arange(num_envs)


sizes = st.sampled_from([(1, 1), (3, 4)])  # B, L
# None, less than a ring, more, and more than two rings; few, because each compiles.
num_steps = st.sampled_from([0, 1, 3, 5, 9])


@given(sizes, st.lists(num_steps, max_size=5))
def test_rings_hold_exactly_the_last_steps_in_order(size, lengths):
    num_envs, length = size
    buffer, expected = empty(num_envs, length), [[] for _ in range(num_envs)]
    for start, num_steps in zip(np.cumsum([0, *lengths]), lengths):
        ids = numbered(start, num_steps, num_envs)
        buffer = INSERT(buffer, steps(ids))
        expected = [
            (ring + column.tolist())[-length:] for ring, column in zip(expected, ids.T)
        ]
        assert rings(buffer) == expected


@given(sizes, num_steps, num_steps)
def test_inserting_many_steps_equals_inserting_each(size, before, num_steps):
    num_envs, length = size
    one = many = INSERT(empty(num_envs, length), steps(numbered(50, before, num_envs)))
    ids = numbered(0, num_steps, num_envs)
    for row in ids[:, None]:
        many = INSERT(many, steps(row))
    chex.assert_trees_all_equal(INSERT(one, steps(ids)), many)


@given(sizes, st.sampled_from([3, 5, 10, 11, 12]), num_steps)
def test_offline_data_are_spread_evenly_and_kept_in_order(size, num_items, num_steps):
    num_envs, length = size
    num_items = min(num_items, num_envs * length)
    later = numbered(50, num_steps, num_envs)
    # `fill` removes what the buffer held before.
    before = INSERT(empty(num_envs, length), steps(numbered(90, 3, num_envs)))
    filled = FILL(before, steps(np.arange(num_items)))
    assert sum(rings(filled), []) == list(range(num_items))
    assert np.ptp(np.asarray(filled.size)) <= 1
    expected = [
        (ring + column.tolist())[-length:]
        for ring, column in zip(rings(filled), later.T)
    ]
    assert rings(INSERT(filled, steps(later))) == expected


@given(sizes, num_steps, st.booleans(), st.integers(0, 99))
def test_all_that_is_stored_is_drawn_and_nothing_else(size, num_steps, filled, seed):
    num_envs, length = size
    buffer = empty(num_envs, length)
    if filled:
        num_items = max(num_envs, num_envs * length - 2)
        buffer = FILL(buffer, steps(800 + np.arange(num_items)))
    num_steps = num_steps if filled else max(num_steps, 1)
    buffer = INSERT(buffer, steps(numbered(0, num_steps, num_envs)))
    drawn = SAMPLE(buffer, jax.random.key(seed), 512)
    assert set(drawn.id.tolist()) == set(sum(rings(buffer), []))
    np.testing.assert_array_equal(drawn.image, steps(drawn.id).image)


def test_draws_are_uniform_and_independent():
    # Rings of 3, 2 and 2 steps: drawing a ring first would favour the short ones.
    buffer = FILL(empty(3, 4), steps(np.arange(7)))
    num_draws = 70_000
    drawn = np.asarray(SAMPLE(buffer, jax.random.key(0), num_draws).id)
    count = np.bincount(drawn, minlength=7)
    np.testing.assert_allclose(count, num_draws / 7, atol=5 * np.sqrt(num_draws / 7))
    pairs = np.bincount(drawn[::2] * 7 + drawn[1::2], minlength=49)
    expected = num_draws / 2 / 49
    np.testing.assert_allclose(pairs, expected, atol=5 * np.sqrt(expected))


def test_groups_of_neighbours_give_equally_many_items_each_from_its_own_key():
    buffer = INSERT(empty(4, 3), steps(numbered(0, 3, 4)))
    drawn = SAMPLE(buffer, jax.random.key(0), 24, num_groups=2)
    drawn = np.asarray(drawn.id).reshape(2, 12)
    env = np.asarray(drawn % 10)
    assert (env[0] < 2).all() and (env[1] >= 2).all()
    assert not np.array_equal(drawn[0], drawn[1] - 2)


@pytest.mark.parametrize("batch_size, num_offline", [(1, 0), (7, 2), (16, 16)])
def test_shares_of_a_mixture_are_exact(batch_size, num_offline):
    online = INSERT(empty(3, 4), steps(numbered(1, 3, 3)))
    offline = FILL(empty(1, 9), steps(900 + np.arange(9)))
    drawn = MIXED(
        online,
        offline,
        jax.random.key(batch_size),
        batch_size,
        offline_share=num_offline / batch_size,
    )
    assert drawn.image.shape == (batch_size, 2)
    assert (np.asarray(drawn.id) >= 900).tolist() == [
        i >= batch_size - num_offline for i in range(batch_size)
    ]


def test_the_two_parts_of_a_mixture_are_drawn_independently():
    one = INSERT(empty(2, 8), steps(numbered(0, 8, 2)))
    drawn = MIXED(one, one, jax.random.key(0), 32, offline_share=0.5)
    ids = np.asarray(drawn.id).reshape(2, 16)
    assert not np.array_equal(ids[0], ids[1])


def test_a_buffer_without_a_share_may_be_empty():
    one, none = INSERT(empty(2, 3), steps(numbered(1, 3, 2))), empty(2, 3)
    for online, offline, share in ((one, none, 0.0), (none, one, 1.0)):
        drawn = MIXED(online, offline, jax.random.key(0), 8, offline_share=share)
        assert set(drawn.id.tolist()) <= set(sum(rings(one), []))


@given(
    sizes,
    st.sampled_from([1, 3, 5, 9]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["insert", "fill"]),
    st.data(),
)
def test_windows_never_cross_the_head_or_an_end(size, num_steps, length, how, data):
    num_envs, longest = size
    length = min(length, longest)
    shape = (num_steps, num_envs)
    if how == "fill":
        shape = (min(max(num_steps, num_envs), num_envs * longest),)
    num_flags = int(np.prod(shape))
    flags = st.lists(st.booleans(), min_size=num_flags, max_size=num_flags)
    ended = np.array(data.draw(flags)).reshape(shape)
    ids = np.arange(num_flags).reshape(shape)
    put = INSERT if how == "insert" else FILL
    buffer = put(empty(num_envs, longest), steps(ids, ended))
    ended = dict(zip(ids.ravel().tolist(), ended.ravel().tolist()))
    after = {id_: ring[i:] for ring in rings(buffer) for i, id_ in enumerate(ring)}

    items, valid = WINDOWS(buffer, jax.random.key(num_flags), 256, length)
    assert items.image.shape == (256, length, 2) and valid.dtype == bool
    for found, mask in zip(items.id.tolist(), valid.tolist()):
        run = after[found[0]][:length]
        stop = next((i + 1 for i, id_ in enumerate(run) if ended[id_]), len(run))
        rest = length - stop
        assert found == run[:stop] + rest * [run[stop - 1]]
        assert mask == stop * [True] + rest * [False]
    assert {found[0] for found in items.id.tolist()} == set(after)


def test_the_caller_chooses_what_ends_a_window():
    buffer = INSERT(empty(1, 4), steps(numbered(0, 4, 1), np.ones((4, 1), bool)))
    windows = functools.partial(
        replay.sample_windows, ends=lambda items: items.id == 10
    )
    items, valid = jax.jit(windows, static_argnums=(2, 3))(
        buffer, jax.random.key(0), 64, 2
    )
    # Step 10 ended an episode, step 30 is the newest.
    assert valid[:, 1].tolist() == [i not in (10, 30) for i in items.id[:, 0].tolist()]


def test_a_donated_scan_does_not_copy_the_storage():
    num_envs, length = 4, 50_000
    shapes = jax.eval_shape(lambda: empty(num_envs, length))
    items = jax.eval_shape(lambda: steps(np.zeros((3, 7, num_envs), int)))

    def iterate(buffer, items, key):
        def one(buffer, new):
            buffer = replay.insert(buffer, new)
            batch = replay.sample(buffer, key, 8)
            windows, _ = replay.sample_windows(buffer, key, 8, 3)
            return buffer, batch.id.sum() + windows.id.sum()

        return jax.lax.scan(one, buffer, items)

    jitted = jax.jit(iterate, donate_argnums=0)
    memory = jitted.lower(shapes, items, jax.random.key(0)).compile().memory_analysis()
    storage = replay.nbytes(EXAMPLE, num_envs, num_envs * length)
    assert memory.alias_size_in_bytes == storage
    assert memory.temp_size_in_bytes < storage / 100


def test_jit_and_vmap_change_nothing():
    ids = [numbered(start, 7, 2) for start in (0, 50)]
    apart = [INSERT(empty(2, 4), steps(i)) for i in ids]
    chex.assert_trees_all_equal(replay.insert(empty(2, 4), steps(ids[0])), apart[0])
    keys = jax.random.split(jax.random.key(3), 2)
    drawn = [SAMPLE(buffer, key, 16) for buffer, key in zip(apart, keys)]
    chex.assert_trees_all_equal(replay.sample(apart[0], keys[0], 16), drawn[0])

    @jax.jit
    @jax.vmap
    def together(items, key):
        buffer = replay.insert(empty(2, 4), items)
        return buffer, replay.sample(buffer, key, 16)

    both = jax.tree.map(lambda *x: np.stack(x), *zip(apart, drawn))
    chex.assert_trees_all_equal(together(steps(np.stack(ids)), keys), both)


def test_bytes_are_those_that_are_allocated():
    # 14 steps make 3 rings of 4; a step has 4 + 2 + 4 + 4 bytes, plus 4 counters.
    buffer = replay.init(EXAMPLE, 3, 14)
    assert replay.nbytes(EXAMPLE, 3, 14) == 3 * 4 * 14 + 4 * 4
    assert sum(x.nbytes for x in jax.tree.leaves(buffer)) == 3 * 4 * 14 + 4 * 4
    assert buffer.items.image.dtype == jnp.uint8


ONE = steps(numbered(0, 1, 2))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda b: replay.init(EXAMPLE, 4, 3), "capacity=3 .*num_envs=4"),
        (lambda b: replay.init(EXAMPLE, 0, 3), "num_envs=0"),
        (lambda b: replay.init(EXAMPLE, 1, 2**31), "less than 2.31"),
        (lambda b: replay.init((), 1, 3), "holds no array"),
        (lambda b: replay.insert(b, ONE._asdict()), "differ from those of the buffer"),
        (lambda b: replay.insert(b, steps(numbered(0, 1, 3))), r"\(1, 3\).*\(1, 2\)"),
        (
            lambda b: replay.insert(b, ONE._replace(image=jnp.zeros((1, 2, 2)))),
            r"items.image float32 \(1, 2, 2\) must be uint8",
        ),
        (lambda b: replay.fill(b, steps(np.arange(9))), "9 items .* at least 10"),
        (lambda b: replay.fill(b, steps(np.arange(1))), "num_envs to at most 1"),
        (lambda b: replay.sample(b, jax.random.key(0), 4), "buffer is empty"),
        (lambda b: replay.sample(b, jax.random.key(0), 0), "divide the 0 items"),
        (
            lambda b: replay.sample(b, jax.random.key(0), 9, num_groups=2),
            "num_groups=2 must divide the 9 items",
        ),
        (
            lambda b: replay.sample(b, jax.random.key(0), 9, num_groups=3),
            "the 2 environments",
        ),
        (
            lambda b: replay.sample_windows(b, jax.random.key(0), 4, 5),
            "length=5 .*the 4 items",
        ),
        (
            lambda b: replay.sample_windows(b, jax.random.key(0), 4, 0),
            "length=0 of a window",
        ),
        (lambda b: replay.sample_mixed(b, b, jax.random.key(0), 5), "0.5 of .*size=5"),
        (
            lambda b: replay.sample_mixed(
                b, b, jax.random.key(0), 4, offline_share=1.25
            ),
            "offline_share=1.25",
        ),
        (
            lambda b: replay.sample_mixed(
                b, replay.init({"id": 0}, 1, 3), jax.random.key(0), 4
            ),
            "differ from those of the buffer",
        ),
    ],
)
def test_wrong_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(empty(2, 4))


@pytest.mark.slow
def test_four_devices_store_and_draw_the_same_as_one():
    child = subprocess.run(
        [sys.executable, "-m", "tests.sharded_replay"],
        cwd=REPOSITORY,
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    said = json.loads(child.stdout)
    assert said["four"] == said["one"]
    assert len(set(said["one"]["drawn"])) > 8  # Draws differ.
    assert "multiple of the 4 devices" in said["refusal"]


@given(sizes, st.sampled_from([1, 5, 9]))
def test_values_are_written_where_items_were_drawn_and_nowhere_else(size, num_steps):
    """Every drawn item gets 100 more; other items, and empty slots, stay."""
    num_envs, length = size
    buffer = INSERT(empty(num_envs, length), steps(numbered(3, num_steps, num_envs)))
    places, drawn = PLACES(buffer, jax.random.key(num_steps), 4)
    same_draw = SAMPLE(buffer, jax.random.key(num_steps), 4)
    np.testing.assert_array_equal(drawn.id, same_draw.id)
    ids = np.asarray(buffer.items.id)
    np.testing.assert_array_equal(ids[places.env, places.slot], drawn.id)
    written = WRITE(buffer.items.id, places, drawn.id + 100)
    expected = ids + 100 * np.isin(ids, drawn.id) * (ids > 0)
    np.testing.assert_array_equal(written, expected)
