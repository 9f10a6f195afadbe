"""Import of LeRobot's diffusion policies, and what later stages make of them."""

import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.deploy import load_policy
from experiments import (
    directories,
    evaluate,
    export_reference,
    finetune,
    import_lerobot,
    inputs,
    pretrain,
)
from experiments.configs import avoid
from experiments.defaults import default_config
from experiments.settings import override
from tests import lerobot_policies as lerobot
from tests.stages import TINY

# The task `avoid` has the same sizes: 4 observed numbers and actions of 2.
TASK = {
    name: value
    for name, value in TINY.items()
    if not name.startswith("model.") or name == "model.sampling.num_tuned_steps"
}


def make_config(*settings, **changes):
    """A configuration of `avoid`; `settings` are those of a command line."""
    config = avoid.get_config("m1")
    config.update_from_flattened_dict(TASK | changes)
    config.lock()
    override(config, settings)
    return config


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A folder with a policy of LeRobot, `lerobot`, and its run, `run`."""
    folder = tmp_path_factory.mktemp("imported")
    path = lerobot.save_policy(folder / "lerobot", lerobot.make_config())
    import_lerobot.main(path, str(folder / "run"), make_config())
    return folder


@pytest.fixture
def settings(imported, tmp_path, capsys):
    """What an import tells to pass to later stages."""
    path, run_dir = str(imported / "lerobot"), str(tmp_path / "told")
    import_lerobot.main(path, run_dir, make_config())
    flags = capsys.readouterr().out.splitlines()[-1]
    return [flag.removeprefix("--config.") for flag in shlex.split(flags)]


def test_an_imported_policy_acts_as_in_lerobot(imported):
    """From task units to task units, with the same draws."""
    policy = load_policy(imported / "run")
    assert policy.config["stage"] == "pretrain" and policy.iteration == 0
    obs = np.array([[0.1, 2.2, 150.0, 3.0], [1.0, 2.8, 250.0, -4.0]], np.float32)
    obs = obs[:, None] * np.array([[1.0], [1.01]], np.float32)  # To = 2
    keys = jax.random.split(jax.random.key(0), 2)
    chunk, _ = policy.act(
        policy.params,
        keys,
        {"state": jnp.asarray(normalized(obs), jnp.float32)},
        deterministic=True,
    )
    assert chunk.shape == (2, 4, 2)  # [B, Ta, Da]
    config = lerobot.make_config()
    shape = (6, 4, 2)
    draws = np.asarray(jax.vmap(lambda key: jax.random.normal(key, shape))(keys))
    wanted = lerobot.sample(
        config,
        lerobot.make_weights(config),
        normalized(obs).reshape(2, -1),
        np.roll(np.moveaxis(draws, 0, 1), 1, axis=2),
    )
    np.testing.assert_allclose(chunk[:, :2], wanted, rtol=1e-3, atol=1e-3)
    assert policy.config["env"]["executed"] == 2


def normalized(obs):
    parts = [
        lerobot.normalize(obs[..., cut], "MIN_MAX", lerobot.STATS[name], pipelines=True)
        for name, cut in (
            ("observation.state", slice(0, 3)),
            ("observation.environment_state", slice(3, 4)),
        )
    ]
    return np.concatenate(parts, axis=-1)


def test_the_told_settings_are_those_of_later_stages(imported, settings):
    assert settings[0] == "model.network.kind=unet"
    config = make_config(*settings, policy=str(imported / "run"))
    run = load_policy(imported / "run")
    found = directories.differences(run.config, directories.as_json(config))
    assert found.keys() <= {"policy", "imported_from", "stage"}
    assert inputs.find_policy(config, "pretrain").iteration == 0
    with pytest.raises(ValueError, match="trained with env.history=2, but the config"):
        inputs.find_policy(make_config(policy=str(imported / "run")), "pretrain")


@pytest.mark.slow
def test_an_imported_policy_is_scored_and_fine_tuned(imported, settings, tmp_path):
    changes = {
        "policy": str(imported / "run"),
        "run_dir": str(tmp_path / "tuned"),
        "loop.finetune.num_iterations": 2,  # The first one trains the critic only.
    }
    config = make_config(*settings, **changes)
    (run_dir,) = finetune.main(config)
    before, after = (
        jax.tree.leaves(load_policy(run).params.tuned)
        for run in (imported / "run", run_dir)
    )
    assert any((one != other).any() for one, other in zip(before, after))
    changes = {"policy": run_dir, "run_dir": str(tmp_path / "score")}
    assert "episode_return" in evaluate.main(make_config(*settings, **changes))


def test_past_actions_are_not_executed(imported, settings, tmp_path):
    """Four actions, of which the first belongs to the observation before."""
    config = make_config(*settings, "env.executed=4", policy=str(imported / "run"))
    with pytest.raises(ValueError, match="env.executed=4 must lie between 1 and the 3"):
        evaluate.main(config)


def test_stages_that_cannot_use_the_policy_refuse_it(imported, settings, tmp_path):
    with pytest.raises(ValueError, match="past_actions=1, and the published code"):
        export_reference.main(str(imported / "run"), str(tmp_path / "state.pt"))
    config = make_config(*settings, data=str(tmp_path))
    with pytest.raises(ValueError, match="past_actions=1 is for imported policies"):
        pretrain.main(config)


def test_the_default_configuration_is_enough_to_act(imported, tmp_path, capsys):
    run_dir = str(tmp_path / "run")
    import_lerobot.main(str(imported / "lerobot"), run_dir, default_config())
    one, other = load_policy(run_dir), load_policy(imported / "run")
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert one.act is not None
    assert "4 observed numbers, 4 actions of 2 numbers" in capsys.readouterr().out


def test_few_steps_of_ddpm_are_explained(tmp_path, capsys):
    config = lerobot.make_config(num_inference_steps=2, n_groups=8)
    path = lerobot.save_policy(tmp_path / "lerobot", config)
    run_dir = import_lerobot.main(path, str(tmp_path / "run"), make_config())
    assert "deterministic=False" in capsys.readouterr().out
    sampling = load_policy(run_dir).config["model"]["sampling"]
    assert sampling["ddim_steps"] == 2 and sampling["num_tuned_steps"] == 2


def test_a_directory_a_task_and_a_network_that_do_not_fit_are_refused(
    imported, tmp_path
):
    path = str(imported / "lerobot")
    with pytest.raises(ValueError, match="run is not empty; name another"):
        import_lerobot.main(path, str(imported / "run"), make_config())
    run_dir = str(tmp_path / "run")
    other = {"env.task": "hopper", "env.options": {}}
    with pytest.raises(ValueError, match="observation size 4, but .* has 11"):
        import_lerobot.main(path, run_dir, make_config(**other))
    own = make_config(**{"model.network.kind": "my_networks:make"})
    with pytest.raises(ValueError, match="is a network of your own"):
        import_lerobot.main(path, run_dir, own)
    weights = lerobot.make_weights(lerobot.make_config(down_dims=[8, 8]))
    path = lerobot.save_policy(tmp_path / "lerobot", weights=weights)
    with pytest.raises(ValueError, match="the policy of .*lerobot.* shape"):
        import_lerobot.main(path, run_dir, make_config())
    assert not (tmp_path / "run").exists()
