"""Functions of a key whose random numbers become inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.errors import SettingsError
from dppo_jax.noise_inputs import open_draws
from tests import tiny

X = np.float32([1.0, 2.0])


def walk(key, x):
    """Four steps of x <- x / 2 + draw, in a loop that also keeps x^2 in vain."""
    draws = jax.random.normal(key, (4, 2))

    def step(x, draw):
        x = x / 2 + draw
        return x, (x, x**2)

    _, (xs, _) = jax.lax.scan(step, x, draws, reverse=True)
    return xs


@pytest.mark.parametrize("max_equations", [0, 3_000], ids=["loop", "unrolled"])
def test_draws_become_an_input_and_loops_are_unrolled(max_equations):
    opened = open_draws(walk, X, max_equations=max_equations)
    assert opened.shapes == ((4, 2),)
    numbers = np.float32([[1, 10], [2, 20], [3, 30], [4, 40]])
    program = jax.make_jaxpr(opened.run)([numbers], X)
    kinds = {equation.primitive.name for equation in program.eqns}
    assert ("scan" in kinds) == (max_equations == 0)
    assert "integer_pow" not in str(program)  # Nobody reads the squares.
    xs, x = {}, X
    for i in (3, 2, 1, 0):
        xs[i] = x = x / 2 + numbers[i]
    wanted = [xs[i] for i in range(4)]
    np.testing.assert_allclose(jax.jit(opened.run)([numbers], X), wanted, rtol=1e-6)


def test_what_was_drawn_reproduces_the_result_of_a_key():
    opened = open_draws(walk, X)
    key = jax.random.key(7)
    wanted, (numbers,) = opened.recorded(key, X)
    np.testing.assert_allclose(wanted, walk(key, X), rtol=1e-6)
    np.testing.assert_allclose(numbers, jax.random.normal(key, (4, 2)), rtol=1e-6)


def test_draws_that_nobody_reads_are_no_inputs():
    def add(key, x):
        one, other = jax.random.split(key)
        jax.random.normal(one, (5,))
        return x + jax.random.normal(other, (2,))

    opened = open_draws(add, X)
    assert opened.shapes == ((2,),)
    np.testing.assert_array_equal(opened.run([np.float32([1, 2])], X), [2, 4])


def test_other_random_numbers_are_refused():
    def in_loop(key, x):
        return jax.lax.fori_loop(0, 3, lambda i, x: x + jax.random.normal(key), x)

    def uniform(key, x):
        return x + jax.random.uniform(key)

    for function in (in_loop, uniform, jax.random.categorical):
        with pytest.raises(SettingsError, match="not standard-normal, or draws them w"):
            open_draws(function, X)


@pytest.mark.parametrize(
    ("policy", "shape"),
    [
        (tiny.tiny_diffusion_policy, (1, 5, 2, 1)),
        (tiny.tiny_flow_policy, (1, 3, 2, 1)),
        (tiny.tiny_gaussian_policy, (1, 2, 1)),
        (tiny.tiny_squashed_policy, (1, 2, 1)),
    ],
)
def test_policies_draw_one_array(policy, shape):
    """[1, K + 1, Ta, Da] of a chain, [1, Ta, Da] of a Gaussian."""
    obs = {"state": tiny.OBS["state"][:1]}
    params = jax.eval_shape(policy().init, jax.random.key(0), obs)

    def act(key, params, obs):
        return policy().act(params, key[None], obs, deterministic=False)[0]

    opened = open_draws(act, params, obs)
    assert opened.shapes == (shape,)
    numbers = [jnp.zeros(shape)]
    assert jax.eval_shape(opened.run, numbers, params, obs).shape == (1, 2, 1)
