"""Laws of the value networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.networks import StateActionCritic, StateCritic

KEY = jax.random.key(0)
OBS = {"state": jnp.arange(12.0).reshape(2, 2, 3)}
ACTION = jnp.ones((2, 4, 1))


@pytest.mark.parametrize("options", [{}, {"residual": True, "layer_norm": True}])
def test_value_is_one_number_per_sample(options):
    critic = StateCritic((8, 8, 8), **options)
    value, params = critic.init_with_output(KEY, OBS)
    assert value.shape == (2,)
    jitted = jax.jit(critic.apply)(params, OBS)
    np.testing.assert_allclose(jitted, value, rtol=1e-5, atol=1e-6)


def test_values_are_float32_whatever_the_layers_compute_in():
    critic, rough = (
        StateCritic((8, 8, 8), residual=True, compute_dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    value, params = critic.init_with_output(KEY, OBS)
    rough_value = rough.apply(params, OBS)
    assert rough_value.dtype == jnp.float32
    assert 0 < np.abs(rough_value - value).max() < 0.02 * np.abs(value).max()


def test_double_critics_are_independent_and_read_the_action():
    critic = StateActionCritic((8,))
    values, params = critic.init_with_output(KEY, OBS, ACTION)
    assert values.shape == (2, 2)
    assert np.abs(values[0] - values[1]).min() > 0
    assert np.abs(critic.apply(params, OBS, 2 * ACTION) - values).min() > 0


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="1, 3, 5, ... equal sizes"):
        StateCritic((8, 8), residual=True)
    with pytest.raises(ValueError, match="num_critics=0"):
        StateActionCritic((8,), num_critics=0)
    with pytest.raises(ValueError, match="compute_dtype='half'.*float32, bfloat16"):
        StateCritic((8,), compute_dtype="half")
