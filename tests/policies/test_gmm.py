"""Laws of mixtures: their density, their entropy, and how they act."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax import policies
from dppo_jax.errors import SettingsError
from dppo_jax.networks import MixtureMLP, MixtureTransformer
from dppo_jax.networks import build as networks
from dppo_jax.policies import (
    PolicyParams,
    gaussian_policy,
    gmm,
    gmm_policy,
    make_policy,
)
from tests import tiny

component_entropy = jax.jit(gmm.component_entropy)
mixture_entropy = jax.jit(gmm.mixture_entropy)
mixture_log_prob = jax.jit(gmm.mixture_log_prob)

B, M, TA, DA = 3, 4, 2, 3
KEYS = jax.random.split(jax.random.key(1), B)
ORDER = jnp.array([2, 0, 3, 1])


def mixture(seed=0, spread=1.0):
    """Means, standard deviations and logits of B mixtures, at random."""
    keys = jax.random.split(jax.random.key(seed), 3)
    means = spread * jax.random.normal(keys[0], (B, M, TA, DA))
    stds = jnp.exp(0.5 * jax.random.normal(keys[1], (B, M, TA, DA)))
    return means, stds, jax.random.normal(keys[2], (B, M))


def line(means, stds, weights):
    """One mixture over a single number."""
    shape = (1, len(means), 1, 1)
    means, stds = (jnp.array(x).reshape(shape) for x in (means, stds))
    return means, stds, jnp.log(jnp.array([weights]))


LINES = {
    "one mode": ([0.3], [0.5], [1.0]),
    "apart": ([-8.0, 8.0], [0.5, 1.0], [0.25, 0.75]),
    "together": ([0.3, 0.3, 0.3], [0.5, 0.5, 0.5], [0.2, 0.3, 0.5]),
    "overlapping": ([-0.5, 0.1, 1.0], [0.3, 0.5, 0.4], [0.2, 0.3, 0.5]),
    "narrow in wide": ([0.0, 0.2], [0.1, 2.0], [0.6, 0.4]),
}
GRID = np.linspace(-20, 20, 40_001)
STEP = GRID[1] - GRID[0]


def log_density(line):
    """[N] on the grid."""
    action = jnp.array(GRID, jnp.float32)[:, None, None]
    whole = (jnp.repeat(x, len(GRID), axis=0) for x in line)
    return np.asarray(mixture_log_prob(action, *whole)[:, 0, 0], np.float64)


@pytest.mark.parametrize("case", LINES)
def test_the_density_integrates_to_one(case):
    density = np.exp(log_density(line(*LINES[case])))
    assert density.sum() * STEP == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("case", LINES)
def test_the_entropy_is_a_lower_bound_that_is_exact_in_its_limits(case):
    """Against the integral of -p log p."""
    means, stds, logits = line(*LINES[case])
    log_p = log_density((means, stds, logits))
    true = -(np.exp(log_p) * log_p).sum() * STEP
    components = float(component_entropy(stds, logits)[0])
    bound = float(mixture_entropy(means, stds, logits)[0])
    weights = np.array(LINES[case][2])
    of_weights = -(weights * np.log(weights)).sum()
    assert components - 1e-4 <= bound <= true + 1e-4
    assert true <= components + of_weights + 1e-4
    if case in ("one mode", "apart", "together"):
        assert bound == pytest.approx(true, abs=1e-4)
    else:
        # Nearer to the truth by half than the reference's estimate.
        assert true - bound < 0.5 * (true - components)
    if case == "apart":
        assert bound == pytest.approx(components + of_weights, abs=1e-4)


def test_entries_sum_to_the_joint_log_density():
    """log sum_m w_m prod_i N(a_i; mean_mi, std_mi), in float64."""
    means, stds, logits = mixture()
    action = jax.random.normal(jax.random.key(5), (B, TA, DA))
    entries = mixture_log_prob(action, means, stds, logits)
    assert entries.shape == (B, TA, DA)
    mean, std, logit = (np.asarray(x, np.float64) for x in (means, stds, logits))
    weight = np.exp(logit) / np.exp(logit).sum(-1, keepdims=True)
    z = (np.asarray(action, np.float64)[:, None] - mean) / std
    density = np.exp(-0.5 * z**2) / (std * np.sqrt(2 * np.pi))
    joint = np.log((weight * density.prod((-2, -1))).sum(-1))
    np.testing.assert_allclose(entries.sum((-2, -1)), joint, rtol=1e-4)
    # The first action alone has the marginal density.
    first = np.log((weight * density[:, :, :1].prod((-2, -1))).sum(-1))
    np.testing.assert_allclose(entries[:, :1].sum((-2, -1)), first, rtol=1e-4)


def test_first_actions_have_the_density_that_is_left_if_others_are_integrated_out():
    means, stds, logits = (x[:1, :, :, :1] if x.ndim > 2 else x[:1] for x in mixture())
    grid = jnp.linspace(-15, 15, 3001)
    action = jnp.stack([jnp.full_like(grid, 0.4), grid], axis=1)[..., None]
    whole = (jnp.repeat(x, len(grid), axis=0) for x in (means, stds, logits))
    entries = mixture_log_prob(action, *whole)
    np.testing.assert_allclose(entries[:, 0, 0], entries[0, 0, 0], rtol=1e-5)
    integral = jnp.exp(entries.sum((-2, -1))).sum() * (grid[1] - grid[0])
    np.testing.assert_allclose(jnp.log(integral), entries[0, 0, 0], rtol=1e-3)


def test_permuting_modes_changes_nothing():
    means, stds, logits = mixture()
    other = means[:, ORDER], stds[:, ORDER], logits[:, ORDER]
    action = jax.random.normal(jax.random.key(5), (B, TA, DA))
    for function in (
        lambda *outputs: mixture_log_prob(action, *outputs),
        mixture_entropy,
        lambda means, *outputs: component_entropy(*outputs),
    ):
        one, two = function(means, stds, logits), function(*other)
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_shifting_logits_and_splitting_a_mode_changes_nothing():
    means, stds, logits = mixture()
    action = jax.random.normal(jax.random.key(5), (B, TA, DA))
    before = mixture_log_prob(action, means, stds, logits)
    np.testing.assert_allclose(
        before, mixture_log_prob(action, means, stds, logits + 7), rtol=1e-4, atol=1e-5
    )
    twice = [jnp.concatenate([x, x[:, :1]], axis=1) for x in (means, stds, logits)]
    twice[2] = twice[2].at[:, [0, -1]].add(jnp.log(jnp.array([0.3, 0.7])))
    after = mixture_log_prob(action, *twice)
    np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-5)


def test_far_from_all_modes_log_densities_and_gradients_are_finite():
    means, stds, logits = mixture()
    action = jnp.full((B, TA, DA), 1e3)

    def joint(means, stds, logits):
        return mixture_log_prob(action, means, stds, logits).sum()

    both = jax.jit(jax.value_and_grad(joint, argnums=(0, 1, 2)))
    value, gradients = both(means, stds, logits)
    assert value < -1e5
    assert all(jnp.isfinite(x).all() for x in gradients)
    # The mode that explains the action best is drawn to it.
    assert (gradients[0].max(1) > 0).all()


class Given(NamedTuple):
    """A network whose outputs are its parameters, the same for all observations."""

    def init(self, key, obs):
        return tuple(x[:1] for x in mixture(spread=10.0))

    def apply(self, params, obs):
        batch = obs["state"].shape[0]
        return tuple(jnp.repeat(x, batch, axis=0) for x in params)


class First(NamedTuple):
    """The first mode of `Given` as a Gaussian."""

    def init(self, key, obs):
        raise AssertionError("shares the parameters of the mixture")

    def apply(self, params, obs):
        means, stds, _ = Given().apply(params, obs)
        return means[:, 0], stds[:, 0]


def given(num_modes=M):
    params = tuple(x[:, :num_modes] for x in Given().init(None, None))
    return gmm_policy(Given()), PolicyParams(params, params)


def test_one_mode_is_a_gaussian_policy():
    policy, params = given(num_modes=1)
    policy, obs = tiny.jitted(policy), tiny.OBS
    gaussian = tiny.jitted(gaussian_policy(First()))
    sample = policy.sample(params, KEYS, obs)
    args = params.tuned, sample.chain[:, 0], sample.chain[:, 1], obs, jnp.zeros(B)
    np.testing.assert_allclose(
        policy.log_prob(*args), gaussian.log_prob(*args), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        policy.chain_log_prob(params.tuned, sample.chain, obs),
        gaussian.chain_log_prob(params.tuned, sample.chain, obs),
        rtol=1e-4,
        atol=1e-5,
    )
    # A Gaussian policy averages over the TA * DA entries of a chunk.
    action = sample.chain[:, 1]
    for one, mean in (
        (policy.entropy, gaussian.entropy),
        (
            lambda p, obs: policy.clone_loss(p, KEYS, obs, action),
            lambda p, obs: gaussian.clone_loss(p, KEYS, obs, action),
        ),
    ):
        expected = TA * DA * mean(params.tuned, obs)
        np.testing.assert_allclose(one(params.tuned, obs), expected, rtol=1e-4)


def draws(number, **settings):
    policy, params = given()
    obs = {"state": jnp.zeros((number, 1, 2))}
    keys = jax.random.split(jax.random.key(3), number)
    return params.tuned, jax.jit(
        lambda keys: policy.sample(params, keys, obs, **settings)
    )(keys)


@pytest.mark.parametrize("deterministic", [False, True])
def test_modes_are_drawn_by_their_weights_and_a_chunk_is_of_one_mode(deterministic):
    (means, stds, logits), sample = draws(4000, deterministic=deterministic)
    assert sample.chain.shape == (4000, 2, TA, DA)
    assert not sample.chain[:, 0].any()
    action = sample.chain[:, 1]
    # Modes are ten apart, so the nearest one is that of a draw.
    distance = ((action[:, None] - means) ** 2).sum((-2, -1))
    mode = distance.argmin(1)
    share = np.bincount(mode, minlength=M) / 4000
    np.testing.assert_allclose(share, jax.nn.softmax(logits[0]), atol=0.03)
    z = (action - means[0, mode]) / (1e-4 if deterministic else stds[0, mode])
    tolerance = 0.15 if deterministic else 0.05  # float32 near 10 knows 1e-6
    np.testing.assert_allclose(z.mean(0), 0, atol=tolerance)
    np.testing.assert_allclose(z.std(0), 1, atol=tolerance)
    assert jnp.abs(z).max() < 3.1  # draws are clipped


def test_samples_are_as_unlikely_as_the_entropy_says():
    (means, stds, logits), sample = draws(4000)
    log_prob = sample.log_prob
    assert log_prob.shape == (4000, 1, TA, DA)
    entropy = float(mixture_entropy(means, stds, logits)[0])
    surprise = -float(log_prob.sum((-3, -2, -1)).mean())
    # The modes lie apart; clipped draws are a little less unlikely.
    assert surprise == pytest.approx(entropy, abs=0.15)


def test_cloning_is_by_the_joint_likelihood():
    policy, params = given()
    action = jax.random.normal(jax.random.key(5), (B, TA, DA))
    loss = policy.clone_loss(params.tuned, KEYS, tiny.OBS, action)
    outputs = Given().apply(params.tuned, tiny.OBS)
    expected = -mixture_log_prob(action, *outputs).sum((-2, -1))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
@pytest.mark.parametrize("role", ["gaussian", "gmm"])
def test_a_configuration_makes_it_of_either_network(kind, role):
    config = policies.default_config()
    config.kind = role
    config.network = networks.default_config(kind)
    if kind == "mlp":
        config.network.update(hidden_sizes=(8,))
    else:
        config.network.update(embed_dim=8, num_heads=2, num_layers=1)
    config.gmm.num_modes = 2
    policy = make_policy(config, action_dim=2)
    assert policy.joint == (role == "gmm") and not policy.denoises
    params = jax.eval_shape(policy.init, jax.random.key(0), tiny.OBS)
    sample = jax.eval_shape(policy.sample, params, KEYS, tiny.OBS)
    assert sample.chain.shape == (B, 2, 4, 2) and sample.log_prob.shape[1:] == (1, 4, 2)
    if role == "gmm" and kind == "mlp":
        logits = params.tuned["params"]["logits"]["linear_1"]["bias"]
        assert logits.shape == (2,)


def test_settings_of_a_mixture_reach_its_network():
    """The draws are bounded by the setting that bounds those of a Gaussian."""
    config = policies.default_config()
    config.kind = "gmm"
    config.network.update(hidden_sizes=(8,))
    config.gmm.update(num_modes=3, fixed_std=None, std_min=0.2, std_max=0.2)
    config.sampling.draw_clip = 1e-3
    policy = make_policy(config, action_dim=2)
    params = jax.jit(policy.init)(jax.random.key(0), tiny.OBS)
    assert set(params.tuned["params"]) == {"mean", "log_variance", "logits"}
    near = jax.jit(policy.sample)(params, KEYS, tiny.OBS).chain[:, 1]
    network = MixtureMLP(2, 4, 3, (8,), "relu", residual=True, std_min=0.2, std_max=0.2)
    means, stds, _ = jax.jit(network.apply)(params.tuned, tiny.OBS)
    np.testing.assert_allclose(stds, 0.2, rtol=1e-6)
    gap = jnp.abs(near[:, None] - means).max((-2, -1)).min(-1)
    assert (gap <= 2.1e-4).all()


def test_cloning_leaves_the_standard_deviation_as_it_is_if_told_to():
    """Gradients of both kinds of policies, in one program."""
    config = policies.default_config()
    config.network.update(hidden_sizes=(8,))
    config.gmm.num_modes = 2
    action = jnp.full((B, 4, 2), 0.5)

    def gradients(kind):
        config.kind = kind
        config[kind].update(learn_fixed_std=True, clone_std=False)
        policy = make_policy(config, action_dim=2)
        shapes = jax.eval_shape(policy.init, KEYS[0], tiny.OBS).tuned
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)

        def loss(params):
            return policy.clone_loss(params, KEYS, tiny.OBS, action).mean()

        return jax.grad(loss)(zeros)["params"]

    for grads in jax.jit(lambda: [gradients("gaussian"), gradients("gmm")])():
        assert (grads.pop("fixed_log_variance") == 0).all()
        assert any((x != 0).any() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("kind", ["gaussian", "gmm"])
def test_a_predicted_standard_deviation_cannot_be_left_as_it_is(kind):
    config = policies.default_config()
    config.kind = kind
    config.network.residual = False
    config[kind].update(fixed_std=None, clone_std=False)
    with pytest.raises(SettingsError, match=f"{kind}.fixed_std=None predicts it"):
        make_policy(config, action_dim=2)


def test_dropout_is_for_cloning_alone():
    network = MixtureTransformer(
        *(1, 2, 2), embed_dim=8, num_heads=2, num_layers=1, attention_dropout=0.5
    )
    policy = gmm_policy(network)
    params = jax.jit(policy.init)(jax.random.key(0), tiny.OBS).tuned
    clone_loss = jax.jit(policy.clone_loss)
    action = jnp.full((B, 2, 1), 0.3)
    loss = clone_loss(params, KEYS, tiny.OBS, action)
    other = clone_loss(params, KEYS[::-1], tiny.OBS, action)
    assert (loss != other).any()
    step = jnp.zeros(B, jnp.int32)
    scored = jax.jit(policy.log_prob)(params, 0 * action, action, tiny.OBS, step)
    exact = mixture_log_prob(action, *jax.jit(network.apply)(params, tiny.OBS))
    np.testing.assert_allclose(scored, exact, rtol=1e-5, atol=1e-6)
