"""`load_policy` loads the policies of stages and of `dppo_jax.train`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dppo_jax
from dppo_jax import algorithms
from dppo_jax.deploy import load_policy
from dppo_jax.errors import SettingsError
from dppo_jax.policies import PolicyParams, SteeredParams, make_policy
from dppo_jax.training.checkpoint import Checkpoints
from dppo_jax.training.config_file import save_config
from experiments.defaults import default_config
from tests import tiny

KEYS = jax.random.split(jax.random.key(1), 3)


def train(run_dir, algorithm, *, num_iterations=1, config=None, **settings):
    state = algorithm.init(jax.random.key(0))
    final = dppo_jax.train(
        algorithm,
        state,
        run_dir=run_dir,
        num_iterations=num_iterations,
        normalizer=tiny.NORMALIZER,
        config=config,
        **settings,
    )
    return algorithm.params(final)


def tiny_config(**changes):
    """A configuration of the stages for `tiny.point_env`."""
    config = default_config()
    config.model.update(chunk=tiny.CHUNK)
    config.model.network.update(hidden_sizes=(16,), residual=False)
    config.model.diffusion.num_denoising_steps = tiny.NUM_STEPS
    config.model.sampling.num_tuned_steps = tiny.NUM_TUNED
    config.critic.update(hidden_sizes=(16,), residual=False)
    config.rollout.update(num_envs=4, num_chunks=4)
    config.algorithm.ppo.update(batch_size=16, epochs=1)
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return config


def make(config):
    policy = make_policy(config.model, action_dim=tiny.ACTION_DIM)
    return algorithms.make_algorithm(tiny.point_env(4), policy, config)


def acts_as(loaded, act, params):
    """Whether the same keys and observations give the same actions."""
    found, _ = loaded.act(loaded.params, KEYS, tiny.OBS, deterministic=False)
    act = jax.jit(act, static_argnames="deterministic")
    expected, _ = act(params, KEYS, tiny.OBS, deterministic=False)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """A run of `dppo_jax.train` without a configuration, and its trained policy."""
    run_dir, policy = tmp_path_factory.mktemp("run"), tiny.tiny_diffusion_policy()
    params = train(
        run_dir, tiny.make_tiny_ppo(policy), num_iterations=2, checkpoint_every=1
    )
    return run_dir, policy, params


def test_a_run_of_a_notebook_is_loaded_with_its_policy(notebook):
    run_dir, policy, params = notebook
    loaded = load_policy(run_dir, policy=policy)
    assert isinstance(loaded.params, PolicyParams) and tiny.same(loaded.params, params)
    assert tiny.same(loaded.normalizer, tiny.NORMALIZER)
    assert loaded.config == {"stage": "train"} and loaded.iteration == 2
    acts_as(loaded, policy.act, params)
    first = load_policy(run_dir, 1, policy=policy)
    assert first.iteration == 1 and not tiny.same(first.params, params)


@pytest.mark.parametrize(
    "obs, message",
    [
        (
            {"state": np.zeros((1, 1, 5))},
            r"obs\['state'\] has shape \(1, 1, 5\); .*B, 1,",
        ),
        ({"state": np.zeros((1, 1))}, r"has shape .*takes \[B, 1, "),
        ({}, r"obs\['state'\] has shape None"),
    ],
)
def test_observations_of_other_shapes_are_refused(notebook, obs, message):
    run_dir, policy, _ = notebook
    loaded = load_policy(run_dir, policy=policy)
    with pytest.raises(SettingsError, match=message):
        loaded.act(loaded.params, jax.random.split(jax.random.key(0), 1), obs)


def test_without_a_policy_parameters_are_plain(notebook):
    run_dir, _, params = notebook
    loaded = load_policy(run_dir)
    assert loaded.act is None
    assert tiny.same(loaded.params["tuned"], params.tuned)


def test_a_run_of_a_notebook_needs_its_history(tmp_path):
    policy = tiny.tiny_diffusion_policy()
    obs = {"state": jnp.zeros((1, 2, 2))}
    params = policy.init(jax.random.key(0), obs)
    algorithm = tiny.silent(
        init=lambda key: params,
        step=lambda state: (state, {"loss": jnp.float32(0)}),
        params=lambda state: state,
    )
    train(tmp_path, algorithm)
    loaded = load_policy(tmp_path, policy=policy, history=2)
    assert tiny.same(loaded.params, params)
    with pytest.raises(ValueError, match="pass the policy .*, and its history"):
        load_policy(tmp_path, policy=policy)


def test_a_configuration_rebuilds_the_policy(tmp_path):
    config = tiny_config()
    algorithm = make(config)
    params = train(tmp_path, algorithm, config=config.to_dict())
    loaded = load_policy(tmp_path)
    assert loaded.config["stage"] == "train"
    assert tiny.same(loaded.params, params)
    acts_as(loaded, algorithm.act, params)


def test_a_policy_may_act_by_other_settings_of_sampling(tmp_path):
    config = tiny_config()
    params = train(tmp_path, make(config), config=config.to_dict())
    config.model.sampling.ddim_steps = 2
    loaded = load_policy(tmp_path, model=config.model)
    expected = make_policy(config.model, action_dim=tiny.ACTION_DIM)
    acts_as(loaded, expected.act, params)
    action, _ = load_policy(tmp_path).act(params, KEYS, tiny.OBS)
    assert not np.allclose(action, loaded.act(params, KEYS, tiny.OBS)[0])


def test_a_soft_actor_critic_policy_is_loaded(tmp_path):
    config = tiny_config(
        algorithm__name="sac",
        model__kind="squashed",
        rollout__reset_at_iteration=False,
        critic=dict(hidden_sizes=(16,), activation="relu"),
    )
    config.algorithm.sac.replay.update(
        capacity=400, batch_size=8, random_steps=0, min_fill=0
    )
    algorithm = make(config)
    params = train(tmp_path, algorithm, config=config.to_dict())
    loaded = load_policy(tmp_path)
    assert tiny.same(loaded.params, params)
    acts_as(loaded, algorithm.act, params)


def test_a_steered_policy_is_rebuilt_with_the_frozen_one_and_its_actor(tmp_path):
    """Parameters without an actor are those of a policy to start from."""
    config = tiny_config(algorithm__name="dsrl", model__sampling__ddim_steps=2)
    config.algorithm.dsrl.network.hidden_sizes = (8,)
    saved = {"stage": "finetune", **config.to_dict()}
    algorithm = make(config)
    state = algorithm.init(jax.random.key(0))
    params = algorithm.params(state)
    for name, given in (("steered", params), ("cloned", params.decoder)):
        save_config(tmp_path / name, saved)
        with Checkpoints(tmp_path / name) as checkpoints:
            checkpoints.save_policy(1, given, tiny.NORMALIZER)
    loaded = load_policy(tmp_path / "steered")
    assert isinstance(loaded.params, SteeredParams)
    assert tiny.same(loaded.params, params)
    acts_as(loaded, algorithm.act, params)
    cloned = load_policy(tmp_path / "cloned")
    assert tiny.same(cloned.params, params.decoder)
    acts_as(cloned, make_policy(config.model, action_dim=1).act, params.decoder)
    saved["algorithm"]["dsrl"].pop("noise_bound")
    save_config(tmp_path / "steered", saved)
    with pytest.raises(SettingsError, match="algorithm.dsrl .* incomplete"):
        load_policy(tmp_path / "steered")


def test_an_annealed_number_of_tuned_steps_is_loaded(tmp_path):
    """K' drops from 2 to 1, so the frozen network makes one more move."""
    config = tiny_config(
        algorithm__ppo__tuned_steps_drop=1, algorithm__ppo__tuned_steps_every=1
    )
    algorithm = make(config)
    params = train(tmp_path, algorithm, config=config.to_dict())
    loaded = load_policy(tmp_path)
    assert loaded.params.num_active == params.num_active == 1
    assert tiny.same(loaded.params, params)
    acts_as(loaded, algorithm.act, params)


@pytest.mark.parametrize(
    "policy, message",
    [
        (tiny.tiny_gaussian_policy(), "does not match .*pass the policy that was"),
        (tiny.tiny_squashed_policy(), "does not match .*pass the policy that was"),
    ],
)
def test_another_policy_than_the_one_saved_is_refused(notebook, policy, message):
    with pytest.raises(ValueError, match=message):
        load_policy(notebook[0], policy=policy)


def test_another_architecture_than_the_one_saved_is_refused(tmp_path):
    config = tiny_config()
    train(tmp_path, make(config), config=config.to_dict())
    config.model.network.hidden_sizes = (8,)
    message = r"has shape \(16,\), expected \(8,\); restore the config.json"
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path, model=config.model)
    with pytest.raises(ValueError, match="incomplete.*default_config"):
        load_policy(tmp_path, model={"kind": "diffusion"})


def test_missing_checkpoints_and_runs_are_named(notebook, tmp_path):
    run_dir, policy, _ = notebook
    for checkpoint, message in [
        (7, r"no checkpoint 7; it has \[1, 2\]"),
        ("newest", r"no checkpoint 'newest'; it has \[1, 2\], 'latest'"),
        ("best", "no checkpoint 'best', because its run set no keep_best"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_policy(run_dir, checkpoint, policy=policy)
    with pytest.raises(ValueError, match="is not a run directory"):
        load_policy(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no checkpoint yet"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(model=None), "model=None must be a section"),
        (dict(model=dict(chunk="4")), "model.chunk='4' must be of type int"),
        (
            dict(model=dict(network=dict(kind="unet", dim=[8]))),
            r"model.network.dim=\[8\] must be of type int",
        ),
        (dict(model={}, env=None), "env=None must be a section"),
        (dict(model={}, env=dict(history="2")), "env.history='2' must be of type"),
    ],
)
def test_a_damaged_setting_is_named_with_its_file(notebook, settings, message):
    run_dir, policy, _ = notebook
    before = (run_dir / "config.json").read_text()
    (run_dir / "config.json").write_text(json.dumps(settings))
    for given in (None, policy):
        with pytest.raises(SettingsError, match=f"config.json: {message}.*restore"):
            load_policy(run_dir, policy=given)
    (run_dir / "config.json").write_text(before)


def test_a_run_of_a_notebook_may_have_any_settings(notebook):
    run_dir, policy, params = notebook
    before = (run_dir / "config.json").read_text()
    (run_dir / "config.json").write_text('{"env": "hopper", "width": [3]}')
    assert tiny.same(load_policy(run_dir, policy=policy).params, params)
    assert load_policy(run_dir).act is None
    (run_dir / "config.json").write_text(before)


def test_a_configuration_that_is_not_plain_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"such as config.to_dict\(\)"):
        train(tmp_path, tiny.make_tiny_ppo(), config={"model": tiny_config().model})
    assert not (tmp_path / "metrics.csv").exists()


def idql_config():
    config = tiny_config(
        algorithm__name="idql",
        rollout__reset_at_iteration=False,
        model__sampling__num_tuned_steps=tiny.NUM_STEPS,
    )
    settings = config.algorithm.idql
    settings.update(num_samples=5, critic_warmup=0)
    settings.replay.update(capacity=400, batch_size=8, updates_per_transition=0.5)
    return config


def test_a_policy_that_acts_with_its_critics_is_loaded(tmp_path):
    """Exploring and deterministic, and also with other settings of the choice."""
    config = idql_config()
    algorithm = make(config)
    params = train(tmp_path, algorithm, config=config.to_dict())
    loaded = load_policy(tmp_path)
    assert tiny.same(loaded.params, params)
    acts_as(loaded, algorithm.act, params)
    chosen, first = (
        policy.act(params, KEYS, tiny.OBS, deterministic=True)[0]
        for policy in (
            loaded,
            load_policy(
                tmp_path, acting=config.algorithm.idql.to_dict() | {"num_samples": 1}
            ),
        )
    )
    expected, _ = algorithm.act(params, KEYS, tiny.OBS, deterministic=True)
    np.testing.assert_allclose(chosen, expected, rtol=1e-6)
    alone, _ = make_policy(config.model, action_dim=tiny.ACTION_DIM).act(
        params.policy, KEYS, tiny.OBS, deterministic=True
    )
    np.testing.assert_allclose(first, alone, rtol=1e-6)
    assert not np.allclose(first, chosen)


def test_a_policy_with_critics_needs_the_settings_of_its_choice(tmp_path):
    config = idql_config()
    algorithm = make(config)
    plain = config.to_dict()
    train(tmp_path, algorithm, config=plain | {"critic": None, "algorithm": {}})
    with pytest.raises(ValueError, match="are incomplete"):
        load_policy(tmp_path)
