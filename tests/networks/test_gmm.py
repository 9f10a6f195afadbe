"""Laws of networks that output a mixture, whatever they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.networks import GaussianMLP, MixtureMLP, MixtureTransformer

KEY = jax.random.key(0)
OBS = {"state": 100 * jax.random.normal(KEY, (50, 1, 3))}
M, TA, DA = 3, 4, 2
SMALL = {
    MixtureMLP: dict(hidden_sizes=(8, 8)),
    MixtureTransformer: dict(embed_dim=8, num_heads=2, num_layers=1),
}


@pytest.fixture(params=SMALL, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


def make(kind, **options):
    return kind(DA, TA, M, **SMALL[kind] | options)


def start(network, obs=OBS):
    return jax.jit(network.init)(KEY, obs)


def apply(network, params, obs=OBS):
    return jax.jit(network.apply)(params, obs)


def outputs(kind, **options):
    network = make(kind, **options)
    params = start(network)
    means, stds, logits = apply(network, params)
    assert means.shape == stds.shape == (50, M, TA, DA) and logits.shape == (50, M)
    return means, stds, logits, params


def test_means_are_squashed_unless_told_otherwise(kind):
    squashed, *_, params = outputs(kind)
    free, *_ = apply(make(kind, tanh_output=False), params)
    np.testing.assert_allclose(squashed, np.tanh(free), rtol=1e-5)


def test_fixed_std_is_that_number_everywhere_and_has_no_parameter(kind):
    _, stds, _, params = outputs(kind, fixed_std=0.3)
    np.testing.assert_allclose(stds, 0.3, rtol=1e-6)
    assert not {"fixed_log_variance", "log_variance"} & set(params["params"])


def test_learned_std_is_one_number_per_mode_and_action_dimension(kind):
    network = make(kind, fixed_std=0.3, learn_fixed_std=True)
    params = start(network)
    np.testing.assert_allclose(apply(network, params)[1], 0.3, rtol=1e-6)
    std = np.linspace(0.1, 0.6, M * DA).astype(np.float32)
    params["params"]["fixed_log_variance"] = jnp.log(std**2)
    stds = np.asarray(apply(network, params)[1])
    expected = np.broadcast_to(std.reshape(M, 1, DA), stds.shape)
    np.testing.assert_allclose(stds, expected, rtol=1e-5)
    params["params"]["fixed_log_variance"] = jnp.array([9.0, -99, 9, 9, 9, 9])
    stds = apply(network, params)[1]
    np.testing.assert_allclose(stds[:, 0, :, 0], 1.0)
    np.testing.assert_allclose(stds[:, 0, :, 1], 0.01, rtol=1e-6)


def test_predicted_std_is_clamped_to_its_bounds(kind):
    """Scaled up weights predict more than the bounds allow, in both directions."""
    network = make(kind, std_min=0.1, std_max=0.4)
    scale = 3 if kind is MixtureMLP else 20
    params = jax.tree.map(lambda x: scale * x, start(network))
    stds = apply(network, params)[1]
    np.testing.assert_allclose([stds.min(), stds.max()], [0.1, 0.4], rtol=1e-5)
    assert ((stds > 0.11) & (stds < 0.39)).any()


def test_every_mode_has_its_own_outputs(kind):
    means, stds, logits, _ = outputs(kind)
    assert (means[:, 0] != means[:, 1]).any() and (stds[:, 0] != stds[:, 1]).any()
    assert (logits[:, 0] != logits[:, 1]).any()


def test_one_mode_has_the_means_of_a_gaussian_perceptron():
    mixture = MixtureMLP(DA, TA, 1, (8, 8), fixed_std=0.1)
    params = start(mixture)
    alone = {"params": {"mean": params["params"]["mean"]}}
    gaussian = GaussianMLP(DA, TA, (8, 8), fixed_std=0.1)
    mean, std = apply(gaussian, alone)
    means, stds, _ = apply(mixture, params)
    np.testing.assert_allclose(means[:, 0], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(stds[:, 0], std)


def test_bfloat16_is_for_hidden_layers_alone(kind):
    exact, rough = make(kind), make(kind, compute_dtype="bfloat16")
    obs = {"state": 0.01 * OBS["state"]}
    params = start(exact, obs)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(start(rough, obs)))
    for one, other in zip(*(apply(x, params, obs) for x in (exact, rough))):
        assert other.dtype == jnp.float32
        assert 0 < jnp.abs(one - other).max() < 0.1


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(std_min=2.0), "std_min=2.0 and std_max=1.0"),
        (dict(fixed_std=-1.0), "fixed_std=-1.0"),
        (dict(learn_fixed_std=True), "learn_fixed_std=True"),
        (dict(num_modes=0), "num_modes=0 must be at least 1"),
        (dict(compute_dtype="float16"), "compute_dtype='float16'"),
        (dict(activation="sine"), "activation='sine'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**dict(action_dim=DA, chunk=TA) | SMALL[kind] | options)


def test_a_residual_mixture_has_an_odd_number_of_layers_also_with_predicted_std():
    outputs(MixtureMLP, residual=True, hidden_sizes=(8, 8, 8))
    with pytest.raises(ValueError, match="1, 3, 5, ... equal sizes"):
        outputs(MixtureMLP, residual=True)


# Millions of parameters that tables A9 and A10 of the DPPO paper (arXiv 2409.00588)
# name for robomimic's Can, Square and Transport; two or three digits.
CAN, SQUARE = dict(obs=23, action_dim=7, chunk=4), dict(obs=23, action_dim=7, chunk=4)
TRANSPORT = dict(obs=59, action_dim=14, chunk=8)


@pytest.mark.parametrize(
    "kind, task, options, millions",
    [
        (MixtureMLP, CAN, dict(hidden_sizes=(512,) * 3), 1.15),
        (MixtureMLP, SQUARE, dict(hidden_sizes=(1024,) * 3), 4.40),
        (MixtureMLP, TRANSPORT, dict(hidden_sizes=(1024,) * 3), 4.90),
        (MixtureTransformer, CAN, dict(embed_dim=96), 0.68),
        (MixtureTransformer, SQUARE, dict(embed_dim=160), 1.87),
        (MixtureTransformer, TRANSPORT, dict(embed_dim=160), 1.89),
    ],
)
def test_sizes_are_those_of_the_paper(kind, task, options, millions):
    task = dict(task)
    obs = {"state": jnp.zeros((1, 1, task.pop("obs")))}
    if kind is MixtureMLP:
        options = options | dict(residual=True)
    else:
        options = options | dict(num_heads=4, num_layers=4)
    network = kind(**task, **options, fixed_std=0.1)
    shapes = jax.tree.leaves(jax.eval_shape(network.init, KEY, obs))
    assert sum(x.size for x in shapes) / 1e6 == pytest.approx(millions, abs=0.005)
