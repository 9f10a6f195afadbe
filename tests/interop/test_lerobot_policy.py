"""Policies of LeRobot: names of weights, what a chain computes, and refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.interop import load_lerobot_policy
from dppo_jax.interop.lerobot_unet import params_from_lerobot
from dppo_jax.networks import DiffusionUNet
from dppo_jax.normalize import policy_obs, unnormalize_action
from dppo_jax.policies import PolicyParams, make_policy
from experiments.defaults import default_config
from experiments.settings import use_network
from tests import lerobot_policies as lerobot

MODES = ("MIN_MAX", "MEAN_STD", "IDENTITY", "QUANTILES", "QUANTILE10")
INPUTS = ("observation.state", "observation.environment_state")
# In the columns of `lerobot.STATS`, inside and outside the data.
OBS = np.array(
    [[-0.5, 2.0, 100.0, -7.0], [0.7, 2.9, 170.0, 3.0], [2.0, 3.5, 320.0, 9.5]]
)


def configured(policy, **sampling):
    """Our policy with the settings of one of LeRobot."""
    config = default_config()
    use_network(config, "unet")
    config.update_from_flattened_dict(policy.settings)
    config.model.sampling.num_tuned_steps = 1
    config.model.sampling.update(sampling)
    return make_policy(config.model, action_dim=lerobot.ACTION_DIM)


def draws_of(keys, num_steps, chunk):
    shape = (num_steps + 1, chunk, lerobot.ACTION_DIM)
    draws = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    return np.moveaxis(np.asarray(draws), 0, 1)


CASES = {
    "ddpm": ({}, {}),
    "one_level": (
        dict(down_dims=[16], n_obs_steps=1, n_action_steps=4, kernel_size=5),
        {},
    ),
    "sample_linear": (
        dict(
            use_film_scale_modulation=False,
            beta_schedule="linear",
            beta_end=0.3,
            prediction_type="sample",
            clip_sample=False,
            n_groups=8,
        ),
        {},
    ),
    "ddpm_strided": (
        dict(num_train_timesteps=11, num_inference_steps=3, clip_sample_range=0.5),
        dict(deterministic=False, min_std=0.0),
    ),
    "ddim": (
        dict(
            noise_scheduler_type="DDIM",
            num_train_timesteps=10,
            num_inference_steps=4,
            n_obs_steps=3,
            down_dims=[8, 16, 8],
            horizon=8,
        ),
        {},
    ),
    "ddim_sample": (
        dict(
            noise_scheduler_type="DDIM",
            prediction_type="sample",
            clip_sample_range=0.4,
            beta_schedule="linear",
            beta_end=0.5,
        ),
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_chain_is_that_of_lerobot(tmp_path, case):
    """The same draws give the same executed actions."""
    changes, how = CASES[case]
    config = lerobot.make_config(**changes)
    weights = lerobot.make_weights(config)
    policy = load_lerobot_policy(
        lerobot.save_policy(tmp_path / "a", config, weights=weights)
    )
    how = dict(how)
    ours = configured(policy, min_std=how.pop("min_std", 0.1))
    horizon, history = config["horizon"], config["n_obs_steps"]
    obs = np.random.default_rng(1).uniform(-1, 1, (2, history, 4)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    deterministic = how.pop("deterministic", True)
    params = PolicyParams(policy.params, policy.params)
    action, _ = ours.act(
        params, keys, {"state": jnp.asarray(obs)}, deterministic=deterministic
    )
    assert action.shape == (2, horizon, lerobot.ACTION_DIM)
    num_steps = config["num_inference_steps"] or config["num_train_timesteps"]
    # Our chunks start at the present action and hold the past ones at their end.
    draws = np.roll(draws_of(keys, num_steps, horizon), history - 1, axis=2)
    wanted = lerobot.sample(config, weights, obs.reshape(2, -1), draws)
    assert np.abs(wanted).max() > 0.1
    executed = policy.settings["env.executed"]
    np.testing.assert_allclose(action[:, :executed], wanted, rtol=2e-4, atol=2e-4)


def test_the_clip_of_ddim_matters(tmp_path):
    """With the noise of the clipped action the same chain would end elsewhere."""
    config = lerobot.make_config(noise_scheduler_type="DDIM")
    policy = load_lerobot_policy(lerobot.save_policy(tmp_path / "a", config))
    assert policy.settings["model.sampling.rederive_noise"] is False
    obs = {"state": jnp.full((1, 2, 4), 0.3)}
    keys = jax.random.split(jax.random.key(0), 1)
    params = PolicyParams(policy.params, policy.params)
    one, other = (
        configured(policy, rederive_noise=x).act(params, keys, obs, deterministic=True)
        for x in (False, True)
    )
    assert np.abs(one[0] - other[0]).max() > 1e-2


def test_every_weight_has_its_place():
    """Names and shapes are those that our network has, and no value is lost."""
    config = lerobot.make_config()
    weights = lerobot.make_weights(config)
    unet = {name.removeprefix("diffusion.unet."): x for name, x in weights.items()}
    params = params_from_lerobot(unet)
    network = DiffusionUNet(
        2,
        4,
        time_dim=4,
        dim=8,
        kernel_size=3,
        num_groups=4,
        num_out_groups=8,
        larger_encoder=False,
    )
    expected = jax.eval_shape(
        network.init,
        jax.random.key(0),
        jnp.zeros((1, 4, 2)),
        jnp.zeros(1),
        {"state": jnp.zeros((1, 2, 4))},
    )
    found = jax.tree.map(jnp.shape, params)
    assert found == jax.tree.map(lambda x: x.shape, expected)
    total = sum(np.asarray(x).sum(dtype=float) for x in jax.tree.leaves(params))
    np.testing.assert_allclose(total, sum(x.sum(dtype=float) for x in weights.values()))
    up = params["params"]["upsample_0"]["kernel"]  # [size, out, in]
    np.testing.assert_array_equal(
        up[3, 1], weights["diffusion.unet.up_modules.0.2.weight"][:, 1, 3]
    )


@pytest.mark.parametrize("pipelines", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_normalisation_is_that_of_lerobot(tmp_path, mode, pipelines):
    if mode.startswith("QUANTILE") and not pipelines:
        pytest.skip("older versions have no quantiles")
    modes = dict.fromkeys(("STATE", "ENV", "ACTION"), mode)
    stats = lerobot.STATS
    if mode == "IDENTITY":  # With ranges that are not clipped.
        stats = stats | {"observation.state": {"min": [-1.0] * 3, "max": [10.0] * 3}}
    config = lerobot.make_config(normalization_mapping=modes)
    path = lerobot.save_policy(tmp_path / "a", config, stats=stats, pipelines=pipelines)
    normalizer = load_lerobot_policy(path).normalizer
    obs = np.clip(OBS, -1, 9) if mode == "IDENTITY" else OBS
    wanted = np.concatenate(
        [
            lerobot.normalize(obs[:, cut], mode, stats[name], pipelines=pipelines)
            for name, cut in zip(INPUTS, (slice(0, 3), slice(3, 4)))
        ],
        axis=-1,
    )
    found = policy_obs(normalizer, obs.astype(np.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    z = np.array([[-1.0, 1.0], [0.3, -0.2], [1.5, -2.0]])
    wanted = lerobot.unnormalize(z, mode, stats["action"])
    found = unnormalize_action(normalizer, z.astype(np.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_the_epsilon_counts_where_it_can_be_seen(tmp_path):
    """A range of 1e-3: our own epsilon of 1e-6 would make 0.999 of 1."""
    stats = lerobot.STATS | {
        "observation.environment_state": {"min": [0], "max": [1e-3]}
    }
    path = lerobot.save_policy(tmp_path / "a", stats=stats)
    normalizer = load_lerobot_policy(path).normalizer
    obs = np.float32([0.0, 2.0, 200.0, 1e-3])
    np.testing.assert_allclose(policy_obs(normalizer, obs)[3], 1.0, atol=1e-5)


@pytest.mark.parametrize("pipelines, wanted", [(True, 1.0), (False, 2 / 1.005 - 1)])
def test_older_versions_add_an_epsilon_to_every_range(tmp_path, pipelines, wanted):
    """A range of 2e-6, to which versions before 0.4 add 1e-8, and we 1e-6."""
    stats = lerobot.STATS | {
        "observation.environment_state": {"min": [0], "max": [2e-6]}
    }
    path = lerobot.save_policy(tmp_path / "a", stats=stats, pipelines=pipelines)
    normalizer = load_lerobot_policy(path).normalizer
    obs = np.float32([0.0, 2.0, 200.0, 2e-6])
    np.testing.assert_allclose(policy_obs(normalizer, obs)[3], wanted, atol=1e-4)


def test_the_state_alone_is_an_observation_too(tmp_path):
    config = lerobot.make_config(input_features=STATE)
    policy = load_lerobot_policy(lerobot.save_policy(tmp_path / "a", config))
    assert len(policy.normalizer.obs_min) == 3
    film = policy.params["params"]["down_0_0"]["film"]["linear"]["kernel"]
    assert film.shape == (4 + 2 * 3, 2 * 8)


def test_a_constant_column_is_minus_one_as_in_lerobot(tmp_path):
    stats = lerobot.STATS | {"observation.environment_state": {"min": [4], "max": [4]}}
    path = lerobot.save_policy(tmp_path / "a", stats=stats)
    normalizer = load_lerobot_policy(path).normalizer
    obs = np.float32([0.0, 2.0, 200.0, 4.0])
    assert policy_obs(normalizer, obs)[3] == -1.0


def test_without_statistics_a_pipeline_changes_nothing(tmp_path):
    path = lerobot.save_policy(tmp_path / "a", stats={})
    normalizer = load_lerobot_policy(path).normalizer
    obs = np.float32([0.5, -3.0, 9.0, 0.0])
    np.testing.assert_allclose(policy_obs(normalizer, obs), obs, atol=1e-5)


def test_only_the_listed_observations_are_normalised(tmp_path):
    keys = ["observation.state"]
    path = lerobot.save_policy(tmp_path / "a", normalize_observation_keys=keys)
    normalizer = load_lerobot_policy(path).normalizer
    assert policy_obs(normalizer, np.float32([1.5, 3, 300, 5]))[3] == pytest.approx(5)


def test_settings_are_those_of_the_policy(tmp_path):
    config = lerobot.make_config(clip_sample=False, n_groups=8)
    settings = load_lerobot_policy(lerobot.save_policy(tmp_path / "a", config)).settings
    assert settings["env.history"] == 2 and settings["env.executed"] == 2
    assert settings["model.chunk"] == 4
    assert settings["model.diffusion.past_actions"] == 1
    assert settings["model.diffusion.x0_clip"] is None
    assert settings["model.network.num_out_groups"] is None
    assert settings["model.network.dim_mults"] == (1, 2)
    assert settings["model.sampling.ddim_steps"] is None


def test_a_compiled_network_has_longer_names(tmp_path):
    weights = {
        name.replace("unet.", "unet._orig_mod."): array
        for name, array in lerobot.make_weights(lerobot.make_config()).items()
    }
    policies = [
        load_lerobot_policy(lerobot.save_policy(tmp_path / name, weights=w))
        for name, w in (("a", None), ("b", weights))
    ]
    jax.tree.map(np.testing.assert_array_equal, policies[0].params, policies[1].params)


IMAGE = {"observation.image": {"type": "VISUAL", "shape": [3, 96, 96]}}
STATE = {"observation.state": {"type": "STATE", "shape": [3]}}


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(type="act"), "type='act'; only policies of the type 'diffusion'"),
        (dict(horizon=None), "horizon=None must be of type int"),
        (dict(horizon=True), "horizon=True must be of type int"),
        (dict(beta_end="x"), "beta_end='x' must be of type float"),
        (
            dict(input_features=STATE | IMAGE),
            "image observation.image, .*vision_backbone",
        ),
        (dict(input_features={}), "input_features={}"),
        (dict(input_features={"a": {"type": "STATE"}}), "no observation.state"),
        (
            dict(input_features=STATE | {"a": {"type": "ENV", "shape": [1]}}),
            "has a of type ENV",
        ),
        (
            dict(input_features={"observation.state": {"type": "STATE", "shape": []}}),
            r"observation.state of type STATE and shape \[\]",
        ),
        (dict(output_features={"b": {"type": "ACTION", "shape": [2]}}), "no action"),
        (dict(n_action_steps=4), "n_action_steps=4; it must be at most 3"),
        (dict(n_obs_steps=0), "n_obs_steps=0; it must be a number from 1 to"),
        (dict(down_dims=[]), r"down_dims=\[\]"),
        (dict(down_dims=[16, 24]), "multiples of the first, 16"),
        (dict(beta_schedule="scaled_linear"), "one of squaredcos_cap_v2, linear"),
        (dict(noise_scheduler_type="PNDM"), "noise_scheduler_type='PNDM'"),
        (dict(prediction_type="v_prediction"), "prediction_type='v_prediction'"),
        (dict(num_inference_steps=6), "num_inference_steps=6.* from 1 to 5"),
        (dict(normalization_mapping={"STATE": "LOG"}), "normalisation 'LOG'"),
    ],
)
def test_what_cannot_be_imported_is_refused_by_name(tmp_path, changes, said):
    config = lerobot.make_config()
    path = lerobot.save_policy(
        tmp_path / "a",
        config | {k: v for k, v in changes.items() if k.startswith("norm")},
        weights=lerobot.make_weights(config),
    )
    (tmp_path / "a" / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=said):
        load_lerobot_policy(path)


@pytest.mark.parametrize(
    "mode, stats, said",
    [
        ("MIN_MAX", {"min": [0], "max": [5e-7]}, "MIN_MAX with min=0, max=5e-07"),
        ("MIN_MAX", {"min": [2], "max": [1]}, "min=2, max=1"),
        ("MIN_MAX", {"min": [100], "max": [100.00002]}, "below the rounding"),
        ("MIN_MAX", {"min": [0]}, "needs max of 1 numbers; .* has none"),
        ("MIN_MAX", {"min": [0, 1], "max": [1, 2]}, r"of shape \(2,\)"),
        ("MIN_MAX", {"min": [0], "max": [np.inf]}, "is not finite"),
        ("MEAN_STD", {"mean": [0], "std": [0]}, "MEAN_STD with mean=0, std=0"),
        ("MEAN_STD", {"mean": [1e6], "std": [1e-3]}, "below the rounding"),
        ("IDENTITY", {"min": [0], "max": [512]}, "max of its data is 512 in column 0"),
    ],
)
def test_a_scaling_that_no_bounds_have_is_refused(tmp_path, mode, stats, said):
    modes = {"STATE": "MIN_MAX", "ENV": mode, "ACTION": "MIN_MAX"}
    path = lerobot.save_policy(
        tmp_path / "a",
        lerobot.make_config(normalization_mapping=modes),
        stats=lerobot.STATS | {"observation.environment_state": stats},
    )
    with pytest.raises(ValueError, match=f"environment_state.*{said}"):
        load_lerobot_policy(path)


def test_actions_of_which_float32_bounds_lose_the_range_are_refused(tmp_path):
    modes = {"STATE": "MIN_MAX", "ACTION": "MEAN_STD"}
    path = lerobot.save_policy(
        tmp_path / "a",
        lerobot.make_config(normalization_mapping=modes),
        stats=lerobot.STATS | {"action": {"mean": [0, 1e6], "std": [1, 0.01]}},
    )
    with pytest.raises(
        ValueError, match="action is normalised by MEAN_STD .* column 1"
    ):
        load_lerobot_policy(path)


def test_files_that_are_missing_or_of_another_policy_are_refused(tmp_path):
    with pytest.raises(ValueError, match="config.json does not exist"):
        load_lerobot_policy(tmp_path)
    path = tmp_path / "a"
    weights = lerobot.make_weights(lerobot.make_config())
    lerobot.save_policy(path, weights=weights, pipelines=False)
    cases = [
        ({"diffusion.rgb_encoder.out.bias": np.zeros(2)}, "it has also diffusion.rgb"),
        ({"diffusion.unet.new.weight": np.zeros(2)}, "no weights named new.weight"),
        (
            {"diffusion.unet.final_conv.1.weight": np.zeros((2, 8))},
            r"final_conv.1.weight has shape \(2, 8\)",
        ),
    ]
    for extra, said in cases:
        lerobot.save_safetensors(path / "model.safetensors", weights | extra)
        with pytest.raises(ValueError, match=said):
            load_lerobot_policy(path)
    lerobot.save_safetensors(path / "model.safetensors", weights)
    with pytest.raises(ValueError, match="the weights normalize_inputs.* has none"):
        load_lerobot_policy(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.safetensors does not exist"):
        load_lerobot_policy(path)


def test_pipelines_that_do_more_or_less_are_refused(tmp_path):
    path = tmp_path / "a"
    lerobot.save_policy(path)
    file = path / "policy_preprocessor.json"
    whole = file.read_text()
    for old, new, said in [
        ("to_batch_processor", "relative_actions_processor", "relative_actions"),
        ('"float_dtype": null', '"float_dtype": "float16"', "float_dtype=float16"),
        ('"normalizer_', '"device_', "has 0 steps normalizer_processor"),
        ('"state_file": "', '"state_file": "../', "must be a file in the same folder"),
        ('"eps": 1e-08', '"eps": "x"', "are no settings of LeRobot"),
        ('"steps"', '"stages"', "is no pipeline"),
    ]:
        assert old in whole
        file.write_text(whole.replace(old, new))
        with pytest.raises(ValueError, match=said):
            load_lerobot_policy(path)
    file.write_text(whole)
    (path / "policy_postprocessor.json").unlink()
    with pytest.raises(ValueError, match="copy the whole folder"):
        load_lerobot_policy(path)


@pytest.mark.slow
def test_the_library_itself_computes_the_same(tmp_path):
    """Where lerobot is installed: its network on weights that it saved."""
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("lerobot.policies.diffusion.modeling_diffusion")
    configuration = pytest.importorskip(
        "lerobot.policies.diffusion.configuration_diffusion"
    )
    types = pytest.importorskip("lerobot.configs.types")
    factory = pytest.importorskip("lerobot.policies.factory")
    config = lerobot.make_config()

    def features(section):
        return {
            name: types.PolicyFeature(
                type=types.FeatureType[feature["type"]], shape=tuple(feature["shape"])
            )
            for name, feature in config[section].items()
        }

    settings = {
        name: config[name]
        for name in ("n_obs_steps", "horizon", "n_action_steps", "kernel_size")
    }
    theirs = modeling.DiffusionPolicy(
        configuration.DiffusionConfig(
            input_features=features("input_features"),
            output_features=features("output_features"),
            normalization_mapping={
                name: types.NormalizationMode[mode]
                for name, mode in config["normalization_mapping"].items()
            },
            down_dims=(8, 16),
            n_groups=4,
            diffusion_step_embed_dim=4,
            num_train_timesteps=5,
            device="cpu",
            **settings,
        )
    ).eval()
    stats = {
        name: {key: torch.tensor(x, dtype=torch.float32) for key, x in values.items()}
        for name, values in lerobot.STATS.items()
    }
    pipelines = factory.make_pre_post_processors(theirs.config, dataset_stats=stats)
    for saved in (theirs, *pipelines):
        saved.save_pretrained(tmp_path / "a")
    policy = load_lerobot_policy(tmp_path / "a")
    obs = OBS[:2].astype(np.float32)
    batch = {
        "observation.state": torch.tensor(obs[:, :3]),
        "observation.environment_state": torch.tensor(obs[:, 3:]),
    }
    batch = pipelines[0](batch)
    wanted = np.concatenate([batch[name].numpy() for name in INPUTS], axis=-1)
    found = policy_obs(policy.normalizer, obs)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    x = np.random.default_rng(0).normal(size=(2, 4, 2)).astype(np.float32)
    condition = np.repeat(found[:, None], 2, axis=1)
    with torch.no_grad():
        out = theirs.diffusion.unet(
            torch.tensor(x),
            torch.full((2,), 3),
            global_cond=torch.tensor(condition.reshape(2, -1)),
        ).numpy()
    network = DiffusionUNet(
        2,
        4,
        time_dim=4,
        dim=8,
        kernel_size=3,
        num_groups=4,
        num_out_groups=8,
        larger_encoder=False,
    )
    ours = network.apply(policy.params, x, jnp.full(2, 3.0), {"state": condition})
    np.testing.assert_allclose(ours, out, rtol=1e-4, atol=1e-5)
