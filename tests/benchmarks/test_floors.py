"""The operations that floors count, and the programs that they time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import floors, timing
from dppo_jax.networks.mlp import DiffusionMLP

ROWS, WIDTH = 8, 64


def network(width=WIDTH):
    """A function (params, x) and its arguments."""
    module = DiffusionMLP(
        action_dim=3, chunk=4, hidden_sizes=(width,) * 3, activation="relu"
    )
    x, time = jnp.ones((ROWS, 4, 3)), jnp.zeros(ROWS)
    obs = {"state": jnp.ones((ROWS, 1, 11))}
    params = module.init(jax.random.key(0), x, time, obs)
    return lambda params, x: module.apply(params, x, time, obs), params, x


def test_a_product_takes_two_operations_for_each_of_its_terms():
    x, weight = jnp.ones((3, 5)), jnp.ones((5, 7))
    assert floors.flops(jnp.matmul, x, weight) == 2 * 3 * 5 * 7
    batched = jnp.ones((4, 3, 5)), jnp.ones((4, 5, 7))
    assert floors.flops(jnp.matmul, *batched) == 4 * 2 * 3 * 5 * 7
    assert floors.flops(lambda x: jnp.einsum("ij,ik->jk", x, x), x) == 2 * 5 * 3 * 5


def test_loops_count_every_iteration_and_branches_once():
    weight = jnp.ones((5, 5))
    one = 2 * 5**3

    def loop(x):
        return jax.lax.scan(lambda x, _: (x @ weight, None), x, length=6)[0]

    assert floors.flops(loop, weight) == 6 * one
    assert floors.flops(jax.jit(loop), weight) == 6 * one
    nested = jax.vmap(loop)
    assert floors.flops(nested, jnp.ones((2, 5, 5))) == 2 * 6 * one

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)

    assert floors.flops(branch, weight) == 2 * one

    def endless(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ weight, x)

    with pytest.raises(ValueError, match="unknown length"):
        floors.flops(endless, weight)
    ((_, count),) = floors.products(endless, weight, unknown=3)
    assert count == 3


def test_products_alone_take_the_time_of_each_as_often_as_it_runs(monkeypatch):
    """The smallest products, below one percent, count with the rate of the others."""
    seconds = {(64, 64): 0.5, (32, 64): 0.25}
    monkeypatch.setattr(
        floors, "_product_seconds", lambda product: seconds[product.lhs.shape]
    )
    weight = jnp.ones((64, 64))

    def run(x, weight):
        def one(x, _):
            return x @ weight, (x[:32] @ weight, x[:1, :1] @ weight[:1])

        return jax.lax.scan(one, x, length=3)

    found = floors.products(run, jnp.ones((64, 64)), weight)
    measured = 3 * (64 + 32) * 64 * 64
    expected = 3 * (0.5 + 0.25) * (measured + 3 * 64) / measured
    assert floors.alone_seconds(found) == pytest.approx(expected)


def test_products_that_nothing_uses_do_not_count():
    """The compiler removes them, in a loop as well."""
    weight = jnp.ones((5, 5))
    one = 2 * 5**3

    def loop(x):
        def both(carry, _):
            return (carry[0] @ weight, carry[1] @ weight @ weight), None

        return jax.lax.scan(both, (x, x), length=6)[0]

    assert floors.flops(loop, weight) == 18 * one
    assert floors.flops(jax.jit(lambda x: loop(x)[0]), weight) == 6 * one


def test_a_network_costs_two_operations_per_weight_and_row():
    apply, params, x = network()
    weights = sum(w.size for w in jax.tree.leaves(params) if w.ndim == 2)
    assert floors.flops(apply, params, x) == 2 * ROWS * weights


def test_a_gradient_costs_three_products_per_layer_except_the_first():
    apply, params, x = network()
    forward = floors.flops(apply, params, x)
    backward = floors.flops(jax.grad(lambda *a: (apply(*a) ** 2).sum()), params, x)
    # The sinusoids of the time embedding need no gradient.
    spared = 2 * ROWS * params["params"]["time_embedding"]["linear_1"]["kernel"].size
    assert backward == 3 * forward - spared


@pytest.mark.parametrize("differentiate", [False, True])
def test_xla_counts_the_same_plus_elementwise_arithmetic(differentiate):
    apply, params, x = network(width=256)
    if differentiate:
        function = jax.grad(lambda *a: (apply(*a) ** 2).sum())
    else:
        function = apply
    counted, cost = (f(function, params, x) for f in (floors.flops, floors.cost_flops))
    assert counted <= cost < 1.05 * counted


def test_replays_run_exactly_the_products_of_the_function():
    apply, params, x = network()
    function = jax.grad(lambda *a: (apply(*a) ** 2).sum())
    replay = floors.Replay(function, params, x)
    assert replay.flops == floors.flops(function, params, x)
    assert sum(product.flops for product, _ in replay.products) == replay.flops
    for name, call in replay.calls().items():
        compiled = call.function.lower(*call.args).compile().as_text()
        # XLA merged, moved or reduced none of them.
        assert compiled.count(" dot(") == len(replay.products), name
        # The loop has few copies, which would take time.
        assert compiled.count(" copy(") < len(replay.products) / 2, name


def test_replays_repeat_products_in_the_proportions_of_loops(monkeypatch):
    """Of 2 + 4 and 6 runs, a replay makes 3 and 3."""
    monkeypatch.setattr(floors, "CALL_SECONDS", 1e-4)
    x, weight = jnp.ones((3, 5)), jnp.ones((5, 5))

    def function(x):
        for length in (2, 4):
            x = jax.lax.scan(lambda x, _: (x @ weight, None), x, length=length)[0]
        return jax.lax.scan(lambda y, _: (y @ y, None), weight, length=6)[0], x

    replay = floors.Replay(function, x)
    small, large = 2 * 3 * 5**2, 2 * 5**3
    assert floors.flops(function, x) == 6 * (small + large)
    assert replay.flops == 3 * (small + large)
    assert replay.flops_without_loops == 2 * small + large


def test_weights_stay_apart_where_activations_share_an_array():
    apply, params, x = network()
    weights = [w for w in jax.tree.leaves(params) if w.ndim == 2]
    replay = floors.Replay(apply, params, x)
    pool, _ = replay.calls()["in turn"].args[0]
    shapes = [array.shape for array in pool.values()]
    for weight in weights:
        same = [w for w in weights if w.shape == weight.shape]
        assert shapes.count(weight.shape) == len(same)
    # Two of the layers read activations of equal shape.
    assert shapes.count((ROWS, WIDTH)) == 1


def test_replays_stay_finite_and_run_all_rounds():
    replay = floors.Replay(jnp.matmul, jnp.ones((4, 4)), jnp.ones((4, 4)))
    replay.count = 1000
    for name in ("apart", "in turn"):
        call = replay.calls()[name]
        pool, count = call.function(*call.args)
        assert count == replay.evaluations(name) == 1000
        for operand in pool.values():
            assert np.all(np.isfinite(operand))
    assert replay.evaluations("straight") == 1


def test_a_rate_is_all_rounds_of_a_call_over_its_median():
    replay = floors.Replay(jnp.matmul, jnp.ones((4, 4)), jnp.ones((4, 4)))
    replay.count = 10
    second, half = (timing.Timing(x, 0.1, 9.0, 0.0, 3) for x in (1.0, 0.5))
    rates = replay.rates({"apart": second, "in turn": half, "straight": second})
    one = 2 * 4**3
    assert rates == {"apart": 10 * one, "in turn": 20 * one, "straight": one}


def test_a_function_without_products_is_refused():
    with pytest.raises(ValueError, match="no matrix product"):
        floors.Replay(jnp.sin, jnp.ones(3))


def test_a_stream_reads_four_arrays_and_writes_three():
    stream = floors.Stream({"w": jnp.ones((10, 10)), "b": jnp.ones(10)})
    assert stream.num_bytes == 7 * 4 * 110
    stream.count = 5
    assert stream.rate(timing.Timing(0.5, 0.5, 0.5, 0.0, 3)) == 10 * 7 * 4 * 110


def test_rates_are_plausible_for_hardware():
    assert 1e7 < floors.matmul_rate(64, 64) < 1e16
    stream = floors.Stream(jnp.ones((64, 64)))
    (timed,) = timing.measure_together([stream.call()], repeats=3)
    assert 1e6 < stream.rate(timed) < 1e15
