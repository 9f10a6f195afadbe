import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dppo_jax import policies
from dppo_jax.denoising import make_diffusion
from dppo_jax.networks import DiffusionMLP
from dppo_jax.policies import diffusion_policy, make_policy
from dppo_jax.types import PolicyParams
from tests import tiny
from tests.tiny import OBS

KEY = jax.random.key(1)
B = 3
POLICIES = {
    "diffusion": tiny.tiny_diffusion_policy(),
    "diffusion, K' = 1": tiny.tiny_diffusion_policy(1),
    "diffusion, K' = K": tiny.tiny_diffusion_policy(tiny.NUM_STEPS),
    "ddim": tiny.tiny_diffusion_policy(ddim_steps=2),
    "reward horizon": tiny.tiny_diffusion_policy(reward_horizon=1),
    "gaussian": tiny.tiny_gaussian_policy(),
}


@pytest.fixture(params=POLICIES.values(), ids=POLICIES.keys(), scope="module")
def policy(request):
    return request.param


@pytest.fixture(scope="module")
def params(policy):
    return policy.init(jax.random.key(0), OBS)


def moves(policy, sample):
    """All moves of all chains as one batch, chain by chain."""
    chain, num = sample.chain, policy.num_steps
    return (
        chain[:, :-1].reshape(-1, *chain.shape[2:]),
        chain[:, 1:].reshape(-1, *chain.shape[2:]),
        jax.tree.map(lambda x: jnp.repeat(x, num, axis=0), OBS),
        jnp.tile(jnp.arange(num), B),
    )


def test_log_prob_of_a_move_is_what_sampling_said(policy, params):
    sample = policy.sample(params, KEY, OBS)
    assert sample.chain.shape == (B, policy.num_steps + 1, tiny.CHUNK, 1)
    again = policy.log_prob(params.tuned, *moves(policy, sample))
    np.testing.assert_allclose(sample.log_prob.reshape(-1), again, rtol=1e-4, atol=1e-5)


def test_log_probs_of_whole_chains_are_those_of_their_moves(policy, params):
    chain, log_prob = policy.sample(params, KEY, OBS)
    again = policy.chain_log_prob(params.tuned, chain, OBS)
    assert again.shape == (B, policy.num_steps)
    np.testing.assert_allclose(log_prob, again, rtol=1e-4, atol=1e-5)


def test_observations_are_encoded_once_per_chain():
    """Four steps, two of them tuned: each of both networks encodes once."""
    calls = []

    class Counting(DiffusionMLP):
        def encode(self, obs):
            calls.append(obs["state"].shape[0])
            return super().encode(obs)

    policy = diffusion_policy(
        Counting(tiny.ACTION_DIM, tiny.CHUNK, 4, (16,), condition_sizes=(8,)),
        make_diffusion(num_steps=tiny.NUM_STEPS),
        chunk=tiny.CHUNK,
        action_dim=tiny.ACTION_DIM,
        num_tuned_steps=tiny.NUM_TUNED,
    )
    params = policy.init(jax.random.key(0), OBS)
    calls.clear()
    chain, log_prob = policy.sample(params, KEY, OBS)
    assert calls == [B, B]
    calls.clear()
    again = policy.chain_log_prob(params.tuned, chain, OBS)
    assert calls == [B]
    np.testing.assert_allclose(log_prob, again, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_for_the_layers_alone():
    """Parameters and results are float32, near those of a float32 policy."""
    exact = tiny.tiny_diffusion_policy()
    rough = tiny.tiny_diffusion_policy(compute_dtype="bfloat16")
    params = exact.init(jax.random.key(0), OBS)
    rough_params = rough.init(jax.random.key(0), OBS)
    assert tiny.same(params, rough_params)
    chain, log_prob = exact.sample(params, KEY, OBS)
    rough_chain, rough_log_prob = rough.sample(params, KEY, OBS)
    again = rough.chain_log_prob(params.tuned, chain, OBS)
    for x in (*jax.tree.leaves(rough_params), rough_chain, rough_log_prob, again):
        assert x.dtype == jnp.float32
    assert 0 < jnp.abs(rough_chain - chain).max() < 0.05
    assert 0 < jnp.abs(again - log_prob).max() < 0.05


def test_jit_changes_nothing(policy, params):
    plain = policy.sample(params, KEY, OBS)
    jitted = jax.jit(policy.sample)(params, KEY, OBS)
    for a, b in zip(plain, jitted):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_key_decides_the_sample(policy, params):
    first, again, other = (policy.sample(params, k, OBS).chain[:, -1] for k in KEYS)
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


KEYS = (KEY, KEY, jax.random.key(2))


def test_cloning_and_entropy_are_finite_scalars(policy, params):
    action = jnp.full((B, tiny.CHUNK, 1), 0.3)
    loss = policy.clone_loss(params.tuned, KEY, OBS, action)
    entropy = policy.entropy(params.tuned, OBS)
    assert loss.shape == entropy.shape == ()
    assert jnp.isfinite(loss) and jnp.isfinite(entropy)


def test_a_gaussian_policy_is_a_chain_of_one_move_from_zero():
    policy = tiny.tiny_gaussian_policy(fixed_std=0.2)
    params = policy.init(jax.random.key(0), OBS)
    assert policy.num_steps == 1
    sample = policy.sample(params, KEY, OBS)
    np.testing.assert_array_equal(sample.chain[:, 0], 0)
    calm = policy.sample(params, KEY, OBS, deterministic=True).chain[:, -1]
    other = policy.sample(params, KEYS[2], OBS, deterministic=True).chain[:, -1]
    np.testing.assert_allclose(calm, other, atol=1e-3)  # the mean
    draw = (sample.chain[:, 1] - calm) / 0.2
    expected = (-0.5 * draw**2 - np.log(0.2 * np.sqrt(2 * np.pi))).mean((-2, -1))
    np.testing.assert_allclose(sample.log_prob[:, 0], expected, atol=1e-2)
    entropy = policy.entropy(params.tuned, OBS)
    assert entropy == pytest.approx(np.log(0.2 * np.sqrt(2 * np.pi * np.e)), rel=1e-5)


def test_a_gaussian_floor_widens_the_sample_and_not_the_density():
    policy = tiny.tiny_gaussian_policy(fixed_std=0.2)
    params = policy.init(jax.random.key(0), OBS)
    narrow = policy.sample(params, KEY, OBS)
    wide = policy.sample(params, KEY, OBS, min_std=0.4)
    mean = 2 * narrow.chain[:, 1] - wide.chain[:, 1]
    np.testing.assert_allclose(
        policy.log_prob(params.tuned, *moves(policy, wide)),
        wide.log_prob[:, 0],
        rtol=1e-5,
    )
    assert abs(wide.chain[:, 1] - mean).max() > abs(narrow.chain[:, 1] - mean).max()


def test_the_floor_of_the_std_is_a_default_that_sampling_may_replace():
    policy = tiny.tiny_diffusion_policy(min_std=0.3)
    params = policy.init(jax.random.key(0), OBS)
    assert policy.min_std == 0.3
    default, same, calm = (
        policy.sample(params, KEY, OBS, **kw).chain
        for kw in ({}, {"min_std": 0.3}, {"min_std": 0.0})
    )
    np.testing.assert_array_equal(default, same)
    assert (default[:, -1] != calm[:, -1]).all()


def test_moves_that_are_no_longer_tuned_belong_to_the_frozen_network():
    """With one of two tuned moves active, only the last one follows the tuned net."""
    policy = tiny.tiny_diffusion_policy()
    base = policy.init(jax.random.key(0), OBS).base
    tuned = policy.init(jax.random.key(7), OBS).tuned
    one = policy.sample(PolicyParams(base, tuned, jnp.array(1)), KEY, OBS)
    both = policy.sample(PolicyParams(base, tuned, jnp.array(2)), KEY, OBS)
    frozen = policy.sample(PolicyParams(base, base), KEY, OBS)
    free = policy.sample(PolicyParams(base, tuned), KEY, OBS)
    np.testing.assert_allclose(one.chain[:, :2], frozen.chain[:, :2], atol=1e-6)
    assert (one.chain[:, 2] != frozen.chain[:, 2]).any(axis=(-2, -1)).all()
    np.testing.assert_allclose(both.chain, free.chain, atol=1e-6)


def test_the_reward_horizon_hides_later_actions_from_the_log_prob():
    policy = tiny.tiny_diffusion_policy(reward_horizon=1)
    params = policy.init(jax.random.key(0), OBS)
    x = jnp.zeros((B, tiny.CHUNK, 1))
    step = jnp.zeros(B, jnp.int32)

    def log_prob(entry):
        next_x = x.at[:, entry].set(0.5)
        return policy.log_prob(params.tuned, x, next_x, OBS, step)

    unmoved = policy.log_prob(params.tuned, x, x, OBS, step)
    np.testing.assert_array_equal(log_prob(1), unmoved)
    assert (log_prob(0) != unmoved).all()


def test_log_probs_are_clamped_entry_by_entry():
    policy = tiny.tiny_diffusion_policy()
    params = policy.init(jax.random.key(0), OBS)
    x = jnp.zeros((B, tiny.CHUNK, 1))
    far = policy.log_prob(params.tuned, x, x + 1e3, OBS, jnp.zeros(B, jnp.int32))
    np.testing.assert_array_equal(far, -5.0)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_tuned=5), "num_tuned_steps=5 .* 4 denoising steps"),
        (dict(num_tuned=0), "num_tuned_steps=0"),
        (dict(num_tuned=2, ddim_steps=1), "num_tuned_steps=2 .* 1 denoising"),
        (dict(reward_horizon=3), "reward_horizon=3 .* chunk of 2"),
        (dict(reward_horizon=0), "reward_horizon=0"),
    ],
)
def test_contradictions_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny.tiny_diffusion_policy(**settings)


def model_config(**changes) -> ConfigDict:
    model = policies.default_config()
    model.network.update(hidden_sizes=(8,))
    model.diffusion.update(num_steps=tiny.NUM_STEPS, time_dim=4)
    model.sampling.num_tuned_steps = tiny.NUM_TUNED
    model.update_from_flattened_dict(changes)
    return model


@pytest.mark.parametrize("kind, num_steps", [("diffusion", 2), ("gaussian", 1)])
def test_a_configuration_makes_either_policy(kind, num_steps):
    policy = make_policy(model_config(kind=kind), action_dim=2)
    assert policy.num_steps == num_steps
    params = jax.eval_shape(policy.init, jax.random.key(0), OBS)
    sample = jax.eval_shape(policy.sample, params, KEY, OBS)
    assert sample.chain.shape == (B, num_steps + 1, 4, 2)


def test_an_unknown_kind_of_policy_is_refused():
    with pytest.raises(ValueError, match="model.kind='diffusoin'"):
        make_policy(model_config(kind="diffusoin"), action_dim=2)
