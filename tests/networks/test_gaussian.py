"""Properties of the Gaussian policy network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.networks import GaussianMLP

KEY = jax.random.key(0)
OBS = {"state": 100 * jax.random.normal(KEY, (50, 1, 3))}


def outputs(**options):
    network = GaussianMLP(2, 4, **{"hidden_sizes": (8, 8)} | options)
    (mean, std), params = network.init_with_output(KEY, OBS)
    assert mean.shape == std.shape == (50, 4, 2)
    return mean, std, params


def test_mean_is_squashed_unless_told_otherwise():
    assert np.abs(outputs()[0]).max() <= 1
    assert np.abs(outputs(tanh_output=False)[0]).max() > 1


def test_fixed_std_is_that_number_everywhere_and_has_no_parameter():
    _, std, params = outputs(fixed_std=0.3)
    np.testing.assert_allclose(std, 0.3, rtol=1e-6)
    assert set(params["params"]) == {"mean"}


def test_learned_std_is_one_number_per_action_dimension_within_bounds():
    _, std, params = outputs(fixed_std=0.3, learn_fixed_std=True)
    np.testing.assert_allclose(std, 0.3, rtol=1e-6)
    network = GaussianMLP(2, 4, (8, 8), fixed_std=0.3, learn_fixed_std=True)
    params["params"]["fixed_log_variance"] = jnp.array([100.0, -100.0])
    _, std = network.apply(params, OBS)
    np.testing.assert_allclose(std[..., 0], 1.0)
    np.testing.assert_allclose(std[..., 1], 0.01, rtol=1e-6)


def test_learned_std_that_starts_at_its_bound_can_leave_it():
    network = GaussianMLP(2, 4, (8,), fixed_std=0.5, std_max=0.5, learn_fixed_std=True)
    params = network.init(KEY, OBS)
    gradient = jax.grad(lambda p: network.apply(p, OBS)[1].mean())(params)
    # The mean of d std / d log-variance = std / 2 over two dimensions.
    gradient = gradient["params"]["fixed_log_variance"]
    np.testing.assert_allclose(gradient, 0.5 / 2 / 2, rtol=1e-5)


def test_predicted_std_spans_its_bounds():
    _, std, _ = outputs(std_min=0.1, std_max=0.4)
    assert 0.1 - 1e-6 <= std.min() < std.max() <= 0.4 + 1e-6


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(std_min=2.0), "std_min=2.0 and std_max=1.0"),
        (dict(fixed_std=-1.0), "fixed_std=-1.0"),
        (dict(learn_fixed_std=True), "learn_fixed_std=True"),
        (dict(residual=True, hidden_sizes=(8, 8, 8)), "2, 4, 6, ... sizes"),
        (dict(residual=True, fixed_std=0.1), "1, 3, 5, ... equal sizes"),
        (dict(hidden_sizes=()), "hidden_sizes="),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        outputs(**options)
