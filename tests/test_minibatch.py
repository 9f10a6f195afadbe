import jax
import numpy as np
import pytest

from dppo_jax.minibatch import covering_batches, shuffled_batches

KEY = jax.random.key(0)


def test_no_item_comes_twice_and_the_remainder_is_left_out():
    batches = np.asarray(shuffled_batches(KEY, 10, 3))
    assert batches.shape == (3, 3)
    assert len(set(batches.ravel())) == 9 and set(batches.ravel()) <= set(range(10))


def test_the_order_is_a_fresh_one_for_every_key():
    one, two = (shuffled_batches(jax.random.key(i), 100, 10) for i in (1, 2))
    assert (one != two).any()
    np.testing.assert_array_equal(one, shuffled_batches(jax.random.key(1), 100, 10))


@pytest.mark.parametrize("size, batch_size, num", [(10, 5, 2), (10, 4, 3), (3, 8, 1)])
def test_covering_batches_show_every_item_before_any_comes_again(size, batch_size, num):
    batches = np.asarray(covering_batches(KEY, size, batch_size))
    assert batches.shape == (num, batch_size)
    assert set(batches.ravel()[:size]) == set(range(size))
    counts = np.bincount(batches.ravel(), minlength=size)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_minibatch_larger_than_the_data_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} .* 10 items"):
        shuffled_batches(KEY, 10, batch_size)
