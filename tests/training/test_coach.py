"""Warnings about runs that will not learn."""

import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.envs.physics.build import split_engine
from dppo_jax.errors import SettingsError
from dppo_jax.training.coach import CODES, Coach, advise, check_updates
from dppo_jax.training.config_file import save_config
from dppo_jax.training.metrics import read_metrics
from dppo_jax.training.old_settings import flatten
from experiments.defaults import default_config
from experiments.settings import override
from tests import tiny
from tests.conftest import REPOSITORY
from tests.counting import count, counter

# A run that learns.
WELL = {
    "success": 0.3,
    "reward": 1.0,
    "reward_std": 0.5,
    "clip_fraction": 0.1,
    "first_ratio": 1.0,
    "explained_variance": 0.4,
    "num_updates": 20.0,
    "skipped_updates": 0.0,
    "approx_kl": 1e-3,
    "approx_kl_last": 1e-3,
    "obs_outside": 0.0,
    "num_episodes": 7.0,
    "diverged": 0.0,
    "contacts_full": 0.0,
    "constraints_full": 0.0,
    "average_loss": 0.1,
    "loss": 0.1,
    "episode_length": 80.0,
    "params_change": 0.1,
}
ILL = {
    "no_success": {"success": 0.0},
    "equal_rewards": {"reward_std": 1e-8},
    "clips_much": {"clip_fraction": 0.5},
    "clips_little": {"clip_fraction": 1e-4, "approx_kl": -1e-7},
    "first_ratio": {"first_ratio": 1.05},
    "critic": {"explained_variance": -0.2},
    "kl_stop": {"num_updates": 1.0, "approx_kl_last": 5.0},
    "obs_outside": {"obs_outside": 0.2},
    "no_episode": {"num_episodes": 0.0},
    "diverged": {"diverged": 3.0},
    "full": {"contacts_full": 48.0},
    "skipped": {"skipped_updates": 2.0},
    "average_lags": {"average_loss": 0.5},
    "short_episodes": {"episode_length": 3.0},
}


def settings(name="ppo"):
    config = default_config().unlock()
    config.algorithm.name = name
    config.algorithm[name].target_kl = 1.0
    config.model.network.compute_dtype = "bfloat16"
    config.pretrain.ema_warmup = False
    return config.to_dict()


def codes(rows, config=None):
    return [advice.code for advice in advise(rows, config or settings())]


def test_a_run_that_learns_hears_nothing():
    assert codes([WELL] * 40) == [] and advise([]) == []
    assert codes([WELL | {"clip_fraction": 0.0}] * 40) == []


def test_every_warning_has_a_case_and_a_place_in_the_docs():
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
    assert set(ILL) == set(CODES)
    assert not [code for code in CODES if f"`{code}`" not in page]


@pytest.mark.parametrize("code", CODES)
def test_each_sign_gives_its_warning_and_no_other(code):
    bad = WELL | ILL[code]
    assert codes([WELL] * 5 + [bad] * 10) == [code]
    # One bad iteration after good ones alarms only where nothing good can come of it.
    at_once = ("first_ratio", "diverged", "full", "skipped")
    assert codes([WELL] * 10 + [bad]) == [code] * (code in at_once)


@pytest.mark.parametrize("name", ["ppo", "fpo", "ppo_exact"])
def test_a_shell_and_the_configuration_take_every_advised_flag(name):
    now = flatten(settings(name))
    for code in CODES:
        text = {x.code: x.text for x in advise([WELL | ILL[code]] * 10, settings(name))}
        words = shlex.split(re.sub(r",(?= )|\.$", "", text[code].replace("'", "")))
        flags = [word for word in words if word.startswith("--config.")]
        assert len(flags) == text[code].count("--config."), text[code]
        config = default_config()
        override(config, [flag.removeprefix("--config.") for flag in flags])
        for flag in flags:
            setting, _, value = flag.removeprefix("--config.").partition("=")
            assert value and value != str(now[setting]), flag


@pytest.mark.parametrize(
    "engine, row, cure",
    [
        ("mjx-warp", {"contacts_full": 48.0}, "mjx-warp:contacts=96"),
        (
            "mjx-warp:contacts=99,constraints=64",
            {"constraints_full": 64.0},
            "mjx-warp:contacts=99,constraints=128",
        ),
        (
            "mjx-warp",
            {"contacts_full": 8.0, "constraints_full": 5.0},
            "mjx-warp:contacts=16,constraints=10",
        ),
    ],
)
def test_too_little_space_for_contacts_gets_a_number_to_raise(engine, row, cure):
    [advice] = advise([WELL | row], {"env": {"engine": engine}})
    assert advice.code == "full"
    assert advice.text.endswith(f"Try --config.env.engine={cure}")
    assert split_engine(cure)[1]


def test_critic_warm_up_is_not_taken_for_a_policy_that_hardly_changes():
    rows = [WELL | {"clip_fraction": 0.0, "params_change": 0.0}] * 20
    assert codes(rows) == []


def test_each_warning_is_printed_once_and_names_its_run(tmp_path, capsys):
    save_config(tmp_path, settings())
    coach = Coach(str(tmp_path), names_run=True)
    for num in range(1, 4):
        coach.see([WELL | {"diverged": 1.0 * num}] * num)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1
    assert printed[0].startswith(
        f"warning (diverged): {tmp_path}: the simulation broke"
    )


def test_rows_without_a_single_update_end_the_run():
    none = WELL | {"skipped_updates": 20.0}
    check_updates([none, none, WELL, none, none], 3)
    check_updates([none] * 9, 0)
    with pytest.raises(FloatingPointError, match="^in every update of the last 3 rows"):
        check_updates([WELL, none, none, none], 3)
    # An algorithm of another library may count only what it skips.
    with pytest.raises(FloatingPointError, match="^run/seed1: in every update"):
        Coach("run/seed1", names_run=True, max_skipped=1).see([{"skipped_updates": 1}])
    with pytest.raises(SettingsError, match="max_skipped=-1 must not be negative"):
        Coach("run", max_skipped=-1)


@pytest.mark.parametrize("reward", [{}, {"reward": float("nan")}])
def test_equal_rewards_without_a_mean_are_no_sign(reward):
    assert codes([{"reward_std": 0.0, **reward}] * 9) == []


def test_noise_is_advised_only_to_policies_that_have_the_setting():
    config = settings()
    for kind, num_flags in (("diffusion", 1), ("gaussian", 0), ("flow", 0)):
        config["model"]["kind"] = kind
        (advice,) = advise([WELL | ILL["no_success"]] * 5, config)
        assert advice.text.count("model.sampling.min_std") == num_flags


def test_an_average_with_warm_up_is_advised_to_follow_faster():
    config = settings()
    config["pretrain"]["ema_warmup"] = True
    (advice,) = advise([WELL | ILL["average_lags"]] * 3, config)
    assert "--config.pretrain.ema_decay=0.98," in advice.text


def test_a_run_that_makes_no_updates_stops_and_keeps_its_checkpoint(tmp_path, capsys):
    plain = counter()

    def step(state):
        state, metrics = plain.step(state)
        skipped = jnp.where(state["iteration"] > 2, 4, 0)
        return state, metrics | {
            "num_updates": jnp.int32(4),
            "skipped_updates": skipped,
        }

    with pytest.raises(FloatingPointError, match="newest checkpoint is sound"):
        count(tmp_path, 9, plain._replace(step=step), checkpoint_every=1)
    assert len(read_metrics(tmp_path)) == 5
    assert (tmp_path / "checkpoints" / "4").is_dir()
    assert capsys.readouterr().out.count("warning (skipped)") == 1


def test_an_update_without_finite_gradients_changes_nothing_and_is_counted():
    """The loss of the first minibatch is NaN: its data hold a NaN."""
    algorithm = tiny.make_tiny_ppo()
    state = algorithm.init(jax.random.key(0))
    collect, learn = tiny.compiled(algorithm)
    state, steps, metrics = collect(state)
    whole, row = learn(state, steps, metrics)
    assert row["skipped_updates"] == 0 and abs(row["first_ratio"] - 1) < 1e-5
    broken = steps._replace(target=steps.target.at[0].set(jnp.nan))
    after, row = learn(state, broken, metrics)
    # Two epochs of two minibatches, each of which holds the row in one or both.
    assert 2 <= row["skipped_updates"] <= row["num_updates"] == 4
    assert np.isfinite([float(row[name]) for name in algorithm.finite]).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.critic_params))
    assert not tiny.same(after.params, whole.params)
    assert not tiny.same(after.critic_params, whole.critic_params)
