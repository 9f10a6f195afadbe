import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax import runtime
from dppo_jax.learning.losses import weighted_mean
from dppo_jax.learning.minibatch import (
    covering_batches,
    drawn_rows,
    grouped_batches,
    mean_over_micro_batches,
    micro_batch_size,
    shuffled_batches,
)

KEY = jax.random.key(0)


def test_no_item_comes_twice_and_the_remainder_is_left_out():
    batches = np.asarray(shuffled_batches(KEY, 10, 3))
    assert batches.shape == (3, 3)
    assert len(set(batches.ravel())) == 9 and set(batches.ravel()) <= set(range(10))


def test_the_order_depends_on_the_key():
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


@pytest.mark.parametrize("drawn", [[3, 1], [3, 1, 3, 0, 3, 1]])
def test_evaluating_drawn_rows_once_gives_the_mean_over_the_draws(drawn):
    data = {"a": jnp.array([1.0, 2.0, 4.0, 8.0])}
    rows, weight = drawn_rows(data, jnp.array(drawn))
    assert rows["a"].size <= 4
    expected = np.mean([float(data["a"][i]) ** 2 for i in drawn])
    assert weighted_mean(rows["a"] ** 2, weight) == pytest.approx(expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [1, 2, 6])
def test_micro_batches_give_the_mean_and_the_gradient_of_the_whole(size, weighted):
    """The micro-batches of the weighted case hold 0, 1 and 2 rows that count."""
    x = jnp.array([1.0, -2.0, 3.0, 0.5, 4.0, -1.0])
    weight = jnp.array([0.0, 0.0, 1.0, 0.0, 1.0, 1.0]) if weighted else None

    def mean(scale, part):
        x, weight = part
        loss = weighted_mean(jnp.sin(scale * x), weight)
        return loss, 2 * loss

    def gradient(part):
        return jax.grad(mean, has_aux=True)(2.0, part)

    found = jax.jit(
        lambda: mean_over_micro_batches(gradient, (x, weight), size, weight)
    )()
    np.testing.assert_allclose(found, gradient((x, weight)), rtol=1e-6)


def test_micro_batches_of_which_none_counts_have_no_gradient():
    found = mean_over_micro_batches(jnp.mean, jnp.ones(4), 2, jnp.zeros(4))
    assert found == 0.0


def test_the_size_of_micro_batches_divides_the_minibatch(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    for cores, sizes in (
        (1, [100, 1250, 1250, 1250, 5003]),
        (2, [100, 2500, 2500, 1250, 5003]),
    ):
        monkeypatch.setattr(runtime, "num_cores", lambda: cores)
        # A prime number has no useful divisor.
        assert [micro_batch_size(x) for x in (100, 2500, 50_000, 6250, 5003)] == sizes
    assert micro_batch_size(5000, moves=10) == 250
    assert micro_batch_size(50_000, 500) == 500
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert micro_batch_size(50_000) == 50_000


@pytest.mark.parametrize("wanted", [0, 3])
def test_micro_batches_that_do_not_divide_a_minibatch_are_refused(wanted):
    with pytest.raises(ValueError, match=f"micro_batch_size={wanted} .* 10 rows"):
        micro_batch_size(10, wanted)


def test_groups_of_environments_give_every_minibatch_the_same():
    """T = 3 steps of B = 4 environments with M = 2 moves, in groups of two."""
    batches = np.asarray(grouped_batches(KEY, (3, 4, 2), 8, num_groups=2))
    assert batches.shape == (3, 8)
    assert sorted(batches.ravel()) == list(range(24))
    env = batches // 2 % 4
    assert (env[:, :4] < 2).all() and (env[:, 4:] >= 2).all()


def test_one_group_is_the_plain_shuffle():
    one = grouped_batches(KEY, (3, 4, 2), 5, num_groups=1)
    np.testing.assert_array_equal(one, shuffled_batches(KEY, 24, 5))
