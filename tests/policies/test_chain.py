import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dppo_jax import policies
from dppo_jax.diffusion.denoising import make_diffusion
from dppo_jax.networks import DiffusionMLP
from dppo_jax.policies import PolicyParams, diffusion_policy, make_policy
from tests import tiny
from tests.tiny import OBS

B = 3
KEY = jax.random.split(jax.random.key(1), B)
POLICIES = {
    "diffusion": tiny.tiny_diffusion_policy(),
    "diffusion, K' = 1": tiny.tiny_diffusion_policy(1),
    "diffusion, K' = K": tiny.tiny_diffusion_policy(tiny.NUM_STEPS),
    "ddim": tiny.tiny_diffusion_policy(ddim_steps=2),
    "gaussian": tiny.tiny_gaussian_policy(),
    "gmm": tiny.tiny_gmm_policy(),
}


@pytest.fixture(params=POLICIES.values(), ids=POLICIES.keys(), scope="module")
def policy(request):
    return tiny.jitted(request.param)


@pytest.fixture(scope="module")
def params(policy):
    return policy.init(jax.random.key(0), OBS)


def moves(policy, sample):
    """All moves of all chains as one batch, chain by chain."""
    chain, num = sample.chain, policy.num_tuned_steps
    return (
        chain[:, :-1].reshape(-1, *chain.shape[2:]),
        chain[:, 1:].reshape(-1, *chain.shape[2:]),
        jax.tree.map(lambda x: jnp.repeat(x, num, axis=0), OBS),
        jnp.tile(jnp.arange(num), B),
    )


def test_log_prob_of_a_move_is_that_of_sampling(policy, params):
    sample = policy.sample(params, KEY, OBS)
    assert sample.chain.shape == (B, policy.num_tuned_steps + 1, tiny.CHUNK, 1)
    again = policy.log_prob(params.tuned, *moves(policy, sample))
    assert again.shape == (B * policy.num_tuned_steps, tiny.CHUNK, 1)
    said = sample.log_prob.reshape(again.shape)
    np.testing.assert_allclose(said, again, rtol=1e-4, atol=1e-5)


def test_log_probs_of_whole_chains_are_those_of_their_moves(policy, params):
    chain, log_prob = policy.sample(params, KEY, OBS)
    again = policy.chain_log_prob(params.tuned, chain, OBS)
    assert again.shape == (B, policy.num_tuned_steps, tiny.CHUNK, 1)
    np.testing.assert_allclose(log_prob, again, rtol=1e-4, atol=1e-5)


def test_observations_are_encoded_once_per_chain():
    """Of four steps two are tuned, so each of the two networks encodes once."""
    calls = []

    class Counting(DiffusionMLP):
        def encode(self, obs):
            calls.append(obs["state"].shape[0])
            return super().encode(obs)

    policy = diffusion_policy(
        Counting(
            action_dim=tiny.ACTION_DIM,
            chunk=tiny.CHUNK,
            time_dim=4,
            hidden_sizes=(16,),
            condition_sizes=(8,),
        ),
        make_diffusion(num_denoising_steps=tiny.NUM_STEPS),
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


def test_bfloat16_is_used_only_inside_layers():
    """Parameters and results are float32 and close to those of a float32 policy."""
    exact = tiny.jitted(tiny.tiny_diffusion_policy())
    rough = tiny.jitted(tiny.tiny_diffusion_policy(compute_dtype="bfloat16"))
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


@pytest.mark.parametrize("kind", ["diffusion", "gmm"])
def test_jit_changes_nothing(kind):
    plain = POLICIES[kind]
    params = plain.init(jax.random.key(0), OBS)
    jitted = tiny.jitted(plain).sample(params, KEY, OBS)
    for a, b in zip(plain.sample(params, KEY, OBS), jitted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_key_decides_the_sample(policy, params):
    first, again, other = (policy.sample(params, k, OBS).chain[:, -1] for k in KEYS)
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


KEYS = (KEY, KEY, jax.random.split(jax.random.key(2), B))


def test_a_row_depends_on_its_own_key_and_observation_alone(policy, params):
    """Results for a batch equal those for each row alone."""
    action = jnp.full((B, tiny.CHUNK, 1), 0.3)

    def everything(rows):
        obs = jax.tree.map(lambda x: x[rows], OBS)
        sample = policy.sample(params, KEY[rows], obs)
        loss = policy.clone_loss(params.tuned, KEY[rows], obs, action[rows])
        acted, _ = policy.act(params, KEY[rows], obs)
        np.testing.assert_array_equal(acted, sample.chain[:, -1])
        return sample, loss, policy.entropy(params.tuned, obs)

    whole = everything(slice(None))
    assert whole[1].shape == whole[2].shape == (B,)
    for i in range(B):
        for one, all_rows in zip(
            jax.tree.leaves(everything(slice(i, i + 1))), jax.tree.leaves(whole)
        ):
            np.testing.assert_allclose(one[0], all_rows[i], rtol=1e-4, atol=1e-5)


def test_the_entropy_is_minus_the_mean_log_prob_of_samples(policy, params):
    """Samples have the standard deviation of the densities, 0.1."""
    obs = {"state": jnp.tile(OBS["state"], (1000, 1, 1))}
    keys = jax.random.split(jax.random.key(4), 1000 * B)
    log_prob = policy.sample(params, keys, obs).log_prob
    entropy = float(policy.entropy(params.tuned, OBS).mean())
    if policy.joint:  # a lower bound, of chunks of two entries
        assert -0.1 < entropy / 2 + float(log_prob.mean()) < 0.03
        return
    # The mean of z^2 / 2 over 6,000 or more draws, a little less if clipped at 3.
    assert entropy == pytest.approx(-float(log_prob.mean()), abs=0.03)


def clone_loss(policy, params, action):
    obs = {"state": jnp.zeros((len(action), 1, 2))}
    keys = jax.random.split(jax.random.key(4), len(action))
    return jax.jit(policy.clone_loss)(params, keys, obs, action).mean()


def silent(policy):
    """Parameters of a network whose output is zero."""
    return jax.tree.map(jnp.zeros_like, policy.init(jax.random.key(0), OBS).tuned)


def test_a_gaussian_policy_clones_by_likelihood():
    policy = tiny.tiny_gaussian_policy(fixed_std=0.2)
    action = jnp.full((5, tiny.CHUNK, 1), 0.3)
    loss = clone_loss(policy, silent(policy), action)
    expected = 0.5 * (0.3 / 0.2) ** 2 + np.log(0.2 * np.sqrt(2 * np.pi))
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ddim_steps", [None, 2])
def test_a_diffusion_policy_clones_standard_noise_at_every_time_of_training(ddim_steps):
    """A network that predicts its time as the noise has the error E[t^2] + 1, if the
    times 0 to 3 are equally frequent."""

    class Clock(nn.Module):
        def encode(self, obs):
            return obs

        def denoise(self, x, time, condition):
            return time[:, None, None] * jnp.ones_like(x)

    policy = diffusion_policy(
        Clock(),
        make_diffusion(num_denoising_steps=tiny.NUM_STEPS, ddim_steps=ddim_steps),
        chunk=tiny.CHUNK,
        action_dim=tiny.ACTION_DIM,
        num_tuned_steps=tiny.NUM_TUNED,
    )
    loss = clone_loss(policy, {}, jnp.full((20_000, tiny.CHUNK, 1), 0.3))
    assert loss == pytest.approx((0 + 1 + 4 + 9) / 4 + 1, rel=0.03)


def test_a_gaussian_policy_is_a_chain_of_one_move_from_zero():
    policy = tiny.jitted(tiny.tiny_gaussian_policy(fixed_std=0.2))
    params = policy.init(jax.random.key(0), OBS)
    assert policy.num_tuned_steps == 1
    sample = policy.sample(params, KEY, OBS)
    np.testing.assert_array_equal(sample.chain[:, 0], 0)
    calm = policy.sample(params, KEY, OBS, deterministic=True).chain[:, -1]
    other = policy.sample(params, KEYS[2], OBS, deterministic=True).chain[:, -1]
    np.testing.assert_allclose(calm, other, atol=1e-3)  # the mean
    draw = (sample.chain[:, 1] - calm) / 0.2
    expected = -0.5 * draw**2 - np.log(0.2 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(sample.log_prob[:, 0], expected, atol=1e-2)
    entropy = policy.entropy(params.tuned, OBS)
    expected = np.log(0.2 * np.sqrt(2 * np.pi * np.e))
    np.testing.assert_allclose(entropy, expected, rtol=1e-5)


def test_the_floor_of_the_std_is_a_default_that_sampling_may_replace():
    policy = tiny.jitted(tiny.tiny_diffusion_policy(min_std=0.3))
    params = policy.init(jax.random.key(0), OBS)
    assert policy.min_std == 0.3
    default, same, calm = (
        policy.sample(params, KEY, OBS, **kw).chain
        for kw in ({}, {"min_std": 0.3}, {"min_std": 0.0})
    )
    np.testing.assert_array_equal(default, same)
    assert (default[:, -1] != calm[:, -1]).all()


def test_moves_that_are_no_longer_tuned_use_the_frozen_network():
    """If one of two tuned moves is active, only the last uses the tuned network."""
    policy = tiny.jitted(tiny.tiny_diffusion_policy())
    base = policy.init(jax.random.key(0), OBS).base
    tuned = policy.init(jax.random.key(7), OBS).tuned
    one = policy.sample(PolicyParams(base, tuned, jnp.array(1)), KEY, OBS)
    both = policy.sample(PolicyParams(base, tuned, jnp.array(2)), KEY, OBS)
    frozen = policy.sample(PolicyParams(base, base), KEY, OBS)
    free = policy.sample(PolicyParams(base, tuned), KEY, OBS)
    np.testing.assert_allclose(one.chain[:, :2], frozen.chain[:, :2], atol=1e-6)
    assert (one.chain[:, 2] != frozen.chain[:, 2]).any(axis=(-2, -1)).all()
    np.testing.assert_allclose(both.chain, free.chain, atol=1e-6)


def test_log_probs_are_unclamped_and_entry_by_entry():
    """An entry ten deviations off has a low density, and the others do not change."""
    policy = tiny.jitted(tiny.tiny_diffusion_policy())
    params = policy.init(jax.random.key(0), OBS)
    x, step = jnp.zeros((B, tiny.CHUNK, 1)), jnp.zeros(B, jnp.int32)
    near = policy.log_prob(params.tuned, x, x, OBS, step)
    far = policy.log_prob(params.tuned, x, x.at[:, 1].add(1e3), OBS, step)
    np.testing.assert_array_equal(near[:, 0], far[:, 0])
    assert (far[:, 1] < -1e5).all()


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_tuned=5), "num_tuned_steps=5 .* 4 denoising steps"),
        (dict(num_tuned=0), "num_tuned_steps=0"),
        (dict(num_tuned=2, ddim_steps=1), "num_tuned_steps=2 .* 1 denoising"),
    ],
)
def test_contradictions_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny.tiny_diffusion_policy(**settings)


def model_config(**changes) -> ConfigDict:
    model = policies.default_config()
    model.network.update(hidden_sizes=(8,))
    model.network.time_dim = 4
    model.diffusion.num_denoising_steps = tiny.NUM_STEPS
    model.sampling.num_tuned_steps = tiny.NUM_TUNED
    model.update_from_flattened_dict(changes)
    return model


@pytest.mark.parametrize(
    "kind, num_tuned_steps", [("diffusion", 2), ("gaussian", 1), ("gmm", 1)]
)
def test_a_configuration_makes_any_policy(kind, num_tuned_steps):
    policy = make_policy(model_config(kind=kind), action_dim=2)
    assert policy.num_tuned_steps == num_tuned_steps
    params = jax.eval_shape(policy.init, jax.random.key(0), OBS)
    sample = jax.eval_shape(policy.sample, params, KEY, OBS)
    assert sample.chain.shape == (B, num_tuned_steps + 1, 4, 2)


def test_an_unknown_kind_of_policy_is_refused():
    with pytest.raises(ValueError, match="model.kind='diffusoin'"):
        make_policy(model_config(kind="diffusoin"), action_dim=2)


def test_past_actions_of_a_network_stand_at_the_end_of_a_chunk():
    """The same draws in the network's own order give the same actions in that order."""
    num_past, network_order = 1, tiny.jitted(tiny.tiny_diffusion_policy())
    ours = tiny.jitted(tiny.tiny_diffusion_policy(past_actions=num_past))
    params = ours.init(jax.random.key(0), OBS)
    chain, log_prob = ours.sample(params, KEY, OBS)
    assert not np.allclose(
        chain[:, -1], network_order.sample(params, KEY, OBS)[0][:, -1]
    )
    theirs = jnp.roll(chain, num_past, axis=2)
    again = network_order.chain_log_prob(params.tuned, theirs, OBS)
    np.testing.assert_allclose(
        log_prob, jnp.roll(again, -num_past, axis=2), rtol=1e-4, atol=1e-5
    )
    found = ours.chain_log_prob(params.tuned, chain, OBS)
    np.testing.assert_allclose(found, log_prob, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_past", [-1, tiny.CHUNK])
def test_past_actions_must_leave_an_action(num_past):
    with pytest.raises(ValueError, match=f"past_actions={num_past} must leave"):
        tiny.tiny_diffusion_policy(past_actions=num_past)
