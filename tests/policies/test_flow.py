"""A flow as a policy: what is cloned, what fine-tuning adds, and how it acts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import dppo_jax
from dppo_jax import algorithms, policies
from dppo_jax.deploy import load_policy
from dppo_jax.diffusion.chain import gaussian_log_prob
from dppo_jax.policies import FlowParams, PolicyParams, make_policy
from experiments.defaults import default_config
from tests import tiny
from tests.tiny import OBS

B = 3
KEYS = jax.random.split(jax.random.key(1), B)
STEPS = (1, 2, 4)  # K


def make(*args, **settings):
    """A small flow, each function of which compiles once."""
    return tiny.jitted(tiny.tiny_flow_policy(*args, **settings))


def prepared(policy, seed=0, noise_seed=None):
    """Parameters with a noise network, whose output is not zero if it has a seed."""
    params = policy.init(jax.random.key(seed), OBS)
    params = policy.prepare(jax.random.key(5), params, OBS)
    if noise_seed is None:
        return params
    leaves, tree = jax.tree.flatten(params.tuned.noise)
    draw = np.random.default_rng(noise_seed).normal
    noise = tree.unflatten(
        [np.asarray(x + draw(size=x.shape), np.float32) for x in leaves]
    )
    return params._replace(tuned=params.tuned._replace(noise=noise))


@pytest.mark.parametrize("final_clip", [None, 0.2])
@pytest.mark.parametrize("num_steps", STEPS)
def test_a_chain_is_scored_again_as_it_was_sampled(num_steps, final_clip):
    """Ratios are one to 1e-5 for every chain, also for those at the action bound, and
    move by move as well as for whole chains."""
    policy = make(num_steps, final_clip=final_clip)
    params = prepared(policy, noise_seed=3)
    obs = {"state": jnp.tile(OBS["state"], (20, 1, 1))}
    keys = jax.random.split(jax.random.key(2), 20 * B)
    chain, log_prob = policy.sample(params, keys, obs)
    assert chain.shape == (20 * B, num_steps + 1, tiny.CHUNK, 1)
    assert final_clip is None or (jnp.abs(chain[:, -1]) == final_clip).any()
    again = policy.chain_log_prob(params.tuned, chain, obs)
    ratio = jnp.exp((again - log_prob).mean((-2, -1)).sum(-1) / (num_steps + 1))
    np.testing.assert_allclose(ratio, 1, atol=1e-5)
    for k in range(num_steps):
        step = jnp.full(20 * B, k)
        alone = policy.log_prob(params.tuned, chain[:, k], chain[:, k + 1], obs, step)
        np.testing.assert_allclose(alone, log_prob[:, k], rtol=1e-4, atol=1e-4)


def test_log_probs_are_those_of_the_std_that_is_sampled():
    """Neither has a floor: at 0.01 the density at the mean is 3.7, and no less."""
    policy = make(1, std_min=0.01, std_max=0.01)
    params = prepared(policy)
    chain, log_prob = policy.sample(params, KEYS, OBS)
    mean = policy.sample(params, KEYS, OBS, deterministic=True).chain[:, 1]
    assert (jnp.abs(chain[:, 1] - mean) < 0.0301).all()
    expected = gaussian_log_prob(chain[:, 1], mean, jnp.array(0.01))
    np.testing.assert_allclose(log_prob[:, 0], expected, rtol=1e-3, atol=1e-3)


def test_the_deterministic_mode_starts_from_noise_and_adds_none():
    policy = make(2)
    params = prepared(policy, noise_seed=3)
    calm = policy.sample(params, KEYS, OBS, deterministic=True).chain
    again = policy.sample(params, KEYS, OBS, deterministic=True).chain
    np.testing.assert_array_equal(calm, again)
    others = jax.random.split(jax.random.key(2), B)
    other = policy.sample(params, others, OBS, deterministic=True).chain
    assert (calm[:, -1] != other[:, -1]).any()
    # The noise network has no share in it.
    plain = policy.sample(prepared(policy), KEYS, OBS, deterministic=True).chain
    np.testing.assert_array_equal(calm, plain)
    noisy = policy.sample(params, KEYS, OBS).chain
    np.testing.assert_array_equal(calm[:, 0], noisy[:, 0])
    assert (calm[:, 1] != noisy[:, 1]).all()


def test_the_noise_network_is_added_after_cloning_and_changes_nothing():
    policy = make(2)
    cloned = policy.init(jax.random.key(0), OBS)
    assert cloned.tuned.noise is None
    params = policy.prepare(jax.random.key(5), cloned, OBS)
    assert tiny.same(params.base.velocity, cloned.base.velocity)
    assert tiny.same(params.tuned.velocity, cloned.tuned.velocity)
    assert tiny.same(params.base, params.tuned)
    for a, b in zip(*(policy.sample(p, KEYS, OBS) for p in (cloned, params))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    # What has one keeps it.
    stirred = prepared(policy, noise_seed=3)
    assert tiny.same(policy.prepare(jax.random.key(6), stirred, OBS), stirred)
    fixed = tiny.tiny_flow_policy(2, has_noise_network=False)
    assert fixed.prepare(jax.random.key(5), cloned, OBS).tuned.noise is None


def test_policies_that_are_cloned_whole_need_no_preparation():
    policy = tiny.tiny_diffusion_policy()
    params = policy.init(jax.random.key(0), OBS)
    assert policy.prepare(jax.random.key(1), params, OBS) is params
    assert not policy.narrow and tiny.tiny_flow_policy().narrow


def test_the_entropy_belongs_to_the_noise_alone():
    """No gradient reaches the velocity or what the network makes of observations."""
    policy = make(4)
    params = prepared(policy, noise_seed=3)
    gradient = jax.jit(jax.grad(lambda p: policy.entropy(p, OBS).sum()))(params.tuned)
    assert all((x == 0).all() for x in jax.tree.leaves(gradient.velocity))
    assert all((x != 0).any() for x in jax.tree.leaves(gradient.noise))


@pytest.mark.parametrize("num_tuned", [1, 4])
def test_the_entropy_is_how_unlikely_samples_are_on_average(num_tuned):
    """Over the tuned moves; draws are clipped at 3 deviations, which costs little."""
    policy = make(4, num_tuned)
    params = prepared(policy, noise_seed=3)
    params = params._replace(base=params.tuned)
    obs = {"state": jnp.tile(OBS["state"], (1000, 1, 1))}
    keys = jax.random.split(jax.random.key(4), 1000 * B)
    log_prob = policy.sample(params, keys, obs).log_prob
    assert log_prob.shape[1] == num_tuned
    entropy = float(policy.entropy(params.tuned, OBS).mean())
    assert entropy == pytest.approx(-float(log_prob.mean()), abs=0.03)


def test_the_entropy_at_first_is_that_of_the_middle_of_the_bounds():
    policy = make(2, std_min=0.05, std_max=0.2)
    for params in (policy.init(jax.random.key(0), OBS), prepared(policy)):
        entropy = policy.entropy(params.tuned, OBS)
        expected = np.log(0.1 * np.sqrt(2 * np.pi * np.e))
        np.testing.assert_allclose(entropy, np.full(B, expected), rtol=1e-5)


def test_no_weight_depends_on_the_number_of_steps():
    """What was cloned acts in 1, 2 or 4 steps, each from the same noise; a velocity
    that is the same everywhere leads to the same place."""
    cloned = [tiny.tiny_flow_policy(k).init(jax.random.key(0), OBS) for k in STEPS]
    assert all(tiny.same(cloned[0], other) for other in cloned[1:])

    def still(x):
        """Only the bias of the last layer is left."""
        return 0.1 * jnp.ones_like(x) if x.shape == (tiny.CHUNK,) else 0 * x

    params = jax.tree.map(still, cloned[0])
    for num_steps in STEPS:
        policy = make(num_steps, mean_clip=None)
        chain = policy.sample(params, KEYS, OBS, deterministic=True).chain
        np.testing.assert_allclose(chain[:, -1] - chain[:, 0], 0.1, atol=1e-6)


def test_early_steps_may_belong_to_the_frozen_network():
    """K' = 2 of 4: another tuned network changes nothing before its first move."""
    policy = make(4, 2)
    params = prepared(policy)
    other = params._replace(tuned=prepared(policy, seed=7, noise_seed=3).tuned)
    one, two = (policy.sample(p, KEYS, OBS).chain for p in (params, other))
    assert one.shape[1] == 3
    np.testing.assert_array_equal(one[:, 0], two[:, 0])
    assert (one[:, 1] != two[:, 1]).all()
    with pytest.raises(ValueError, match="num_tuned_steps=5 .* 4 denoising steps"):
        tiny.tiny_flow_policy(4, 5)


def test_cloning_learns_the_velocity_and_leaves_the_noise_alone():
    policy = make(2)
    params = prepared(policy).tuned
    action = jnp.full((B, tiny.CHUNK, 1), 0.3)

    def loss(params):
        return policy.clone_loss(params, KEYS, OBS, action).mean()

    gradient = jax.jit(jax.grad(loss))(params)
    assert all((x == 0).all() for x in jax.tree.leaves(gradient.noise))
    # A velocity of zero errs by the square of a - z: 0.3^2 + 1 on average.
    keys = jax.random.split(jax.random.key(4), 20_000)
    obs = {"state": jnp.zeros((20_000, 1, 2))}
    silent = jax.tree.map(jnp.zeros_like, params)
    actions = jnp.full((20_000, tiny.CHUNK, 1), 0.3)
    mean = policy.clone_loss(silent, keys, obs, actions).mean()
    assert mean == pytest.approx(1 + 0.3**2, rel=0.03)


def model_config(**changes) -> ConfigDict:
    model = policies.default_config()
    model.kind = "flow"
    model.network.hidden_sizes = (8,)
    model.sampling.num_tuned_steps = 4
    model.update_from_flattened_dict(changes)
    return model


def num_params(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_the_error_of_the_velocity_is_that_of_cloning_on_given_pairs():
    """On the path x = (1 - t) z + t a the velocity to predict is a - z."""
    policy = make(2)
    params = policy.init(jax.random.key(0), OBS).tuned
    params = jax.tree.map(lambda x: x + 0.1, params)
    draws = np.random.default_rng(0)
    action = jnp.asarray(draws.normal(size=(3, tiny.CHUNK, 1)), jnp.float32)
    noise = jnp.asarray(draws.normal(size=(3, 4, tiny.CHUNK, 1)), jnp.float32)
    time = jnp.asarray(draws.uniform(size=(3, 4)), jnp.float32).at[0, 0].set(0)
    network = tiny.DiffusionMLP(
        action_dim=1, chunk=tiny.CHUNK, time_dim=4, hidden_sizes=(16,)
    )
    found = policy.velocity_error(params, OBS, action, noise, time)
    for n in range(4):
        z, t = noise[:, n], time[:, n]
        x = (1 - t[:, None, None]) * z + t[:, None, None] * action
        velocity = network.apply(params.velocity, x, t, OBS)
        np.testing.assert_allclose(
            found[:, n], velocity - (action - z), rtol=1e-4, atol=1e-5
        )
    for other in (tiny.tiny_diffusion_policy(), tiny.tiny_gaussian_policy()):
        assert other.velocity_error is None


def test_a_configuration_makes_a_flow_with_the_network_of_a_diffusion_policy():
    """The noise network reads 16 numbers of the time and 2 of the observation."""
    policy = make_policy(model_config(), action_dim=2)
    params = policy.init(jax.random.key(0), OBS)
    diffusion = make_policy(
        model_config(**{"kind": "diffusion", "sampling.num_tuned_steps": 10}),
        action_dim=2,
    )
    expected = diffusion.init(jax.random.key(0), OBS)
    assert tiny.same(params.base.velocity, expected.base)
    noise = policy.prepare(jax.random.key(1), params, OBS).tuned.noise
    layers = [(16 + 2, 64), (64, 64), (64, 4 * 2)]
    assert num_params(noise) == sum(n * m + m for n, m in layers)
    sample = jax.eval_shape(policy.sample, params, KEYS, OBS)
    assert sample.chain.shape == (B, 5, 4, 2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sampling.num_tuned_steps": 10}, "num_tuned_steps=10 .* 4 denoising steps"),
        ({"sampling.flow_steps": 2}, "num_tuned_steps=4 .* 2 denoising steps"),
        ({"sampling.ddim_steps": 2}, "sampling.ddim_steps=2 .*flow_steps"),
        ({"sampling.noise_clip": 2.0}, "sampling.noise_clip=2.0 .* use None"),
        ({"sampling.mean_clip": 0.0}, "mean_clip=0.0"),
        ({"noise.std_min": 0.3}, "std_min=0.3 and std_max=0.24"),
        ({"noise.activation": "thanh"}, "activation='thanh'"),
        ({"flow.times": "beta"}, "flow.times='beta'"),
    ],
)
def test_settings_that_make_no_flow_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        make_policy(model_config(**changes), action_dim=2)


def test_equal_bounds_fix_the_standard_deviation():
    changes = {"noise.std_min": 0.1, "noise.std_max": 0.1}
    policy = make_policy(model_config(**changes), action_dim=2)
    params = policy.init(jax.random.key(0), OBS)
    assert policy.prepare(jax.random.key(1), params, OBS).tuned.noise is None
    expected = np.log(0.1 * np.sqrt(2 * np.pi * np.e))
    np.testing.assert_allclose(policy.entropy(params.tuned, OBS), expected, rtol=1e-5)


def run_config(num_steps=2):
    config = default_config()
    config.model.update(kind="flow", chunk=tiny.CHUNK)
    config.model.network.update(hidden_sizes=(16,), residual=False)
    config.model.noise.hidden_sizes = (8,)
    config.model.sampling.update(flow_steps=num_steps, num_tuned_steps=num_steps)
    config.critic.update(hidden_sizes=(16,), residual=False)
    config.rollout.update(num_envs=4, num_chunks=4)
    config.algorithm.ppo.update(batch_size=8, epochs=1, **tiny.FLOW_PPO)
    return config


def save(run_dir, config, algorithm, state):
    state = dppo_jax.train(
        algorithm,
        state,
        run_dir=run_dir,
        num_iterations=1,
        normalizer=tiny.NORMALIZER,
        config=config.to_dict(),
    )
    return algorithm.params(state)


def test_a_cloned_flow_is_saved_tuned_saved_again_and_acts_as_it_did(tmp_path):
    """Cloned with two steps and no noise network; tuned with four, and with one."""
    config = run_config()
    policy = make_policy(config.model, action_dim=tiny.ACTION_DIM)
    cloned = policy.init(jax.random.key(3), OBS)
    silent = tiny.silent(
        init=lambda key: cloned,
        step=lambda state: (state, {"loss": jnp.float32(0)}),
        params=lambda state: state,
    )
    save(tmp_path / "cloned", config, silent, cloned)
    config = run_config(4)
    loaded = load_policy(tmp_path / "cloned", model=config.model)
    assert isinstance(loaded.params.base, FlowParams)
    assert tiny.same(loaded.params, cloned)

    policy = make_policy(config.model, action_dim=tiny.ACTION_DIM)
    algorithm = algorithms.make_algorithm(tiny.point_env(4), policy, config)
    state = algorithm.init(jax.random.key(0), loaded.params)
    assert tiny.same(state.params.base.velocity, cloned.base.velocity)
    params = save(tmp_path / "tuned", config, algorithm, state)
    assert tiny.same(params.base.velocity, cloned.base.velocity)
    loaded = load_policy(tmp_path / "tuned")
    assert isinstance(loaded.params, PolicyParams)
    assert tiny.same(loaded.params, params)
    for mode in (False, True):
        found, _ = loaded.act(loaded.params, KEYS, OBS, deterministic=mode)
        expected, _ = algorithm.act(params, KEYS, OBS, deterministic=mode)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
