"""What follows an axis of an ablation, and the variants that presets make."""

import math

import pytest

from dppo_jax.errors import SettingsError
from experiments.settings import load_config, override
from experiments.studies import ablations, presets
from experiments.studies.axes import AXES, settings_for
from experiments.studies.variants import Base, make_variants
from tests.conftest import REPOSITORY

CONFIGS = f"{REPOSITORY}/experiments/configs"


def avoid(*changes):
    config = load_config(f"{CONFIGS}/avoid.py:m2")
    override(config, changes)
    return config


def test_a_minibatch_stays_the_same_share_of_the_pairs():
    """Half of 50 x 25 x K' pairs, as the paper's settings for avoid say."""
    assert settings_for(avoid(), "tuned_steps", "20") == {
        "model.sampling.num_tuned_steps": "20",
        "algorithm.ppo.batch_size": "12500",
    }
    assert settings_for(avoid(), "num_envs", "10") == {
        "rollout.num_envs": "10",
        "algorithm.ppo.batch_size": "1250",
    }


def test_a_minibatch_of_chains_holds_all_their_moves():
    found = settings_for(
        avoid("algorithm.ppo.minibatch=chain", "rollout.num_chunks=13"),
        "tuned_steps",
        "3",
    )
    # 50 x 13 chains of 3 of 10 moves: 1875 of 6250 pairs.
    assert found["algorithm.ppo.batch_size"] == "1875"
    # Half of 7 x 25 chains of 10 moves are 875 pairs, which are no whole chains.
    for minibatch, pairs in (("pair", "875"), ("chain", "880")):
        config = avoid(f"algorithm.ppo.minibatch={minibatch}")
        found = settings_for(config, "num_envs", "7")
        assert found["algorithm.ppo.batch_size"] == pairs


@pytest.mark.parametrize("chunk, chunks", [("1", 100), ("2", 50), ("8", 13)])
def test_an_iteration_keeps_its_control_steps_with_other_chunks(chunk, chunks):
    found = settings_for(avoid(), "chunk", chunk)
    assert found["rollout.num_chunks"] == str(chunks)
    assert found["algorithm.ppo.batch_size"] == str(50 * chunks * 10 // 2)


def test_longer_chunks_of_which_as_many_actions_are_executed_need_no_other_number():
    found = settings_for(avoid("env.executed=4"), "chunk", "8")
    assert found == {"model.chunk": "8"}


def test_all_steps_of_ddim_are_tuned_if_there_are_fewer():
    assert settings_for(avoid(), "ddim_steps", "5") == {
        "model.sampling.ddim_steps": "5",
        "model.sampling.num_tuned_steps": "5",
        "algorithm.ppo.batch_size": "3125",
    }
    assert settings_for(avoid(), "ddim_steps", "15") == {
        "model.sampling.ddim_steps": "15"
    }


def test_the_clip_range_of_the_first_step_keeps_its_ratio():
    config = avoid("algorithm.ppo.clip_base=0.01")
    found = settings_for(config, "clip", "0.01")
    assert math.isclose(float(found["algorithm.ppo.clip_base"]), 0.001)
    assert settings_for(avoid(), "clip_base", "0.01") == {
        "algorithm.ppo.clip_base": "0.01"
    }


def test_what_a_value_leaves_as_it_is_changes_nothing():
    for axis, value in (("tuned_steps", "10"), ("clip", "0.1"), ("std", "0.1")):
        assert settings_for(avoid(), axis, value) == {}
    assert settings_for(avoid(), "num_demonstrations", "None") == {}


def test_any_setting_is_an_axis():
    found = settings_for(avoid(), "algorithm.ppo.epochs", "5")
    assert found == {"algorithm.ppo.epochs": "5"}
    other = load_config(f"{CONFIGS}/avoid.py:m2_idql")
    with pytest.raises(SettingsError, match="also sets the minibatch of ppo"):
        settings_for(other, "tuned_steps", "5")


@pytest.mark.parametrize(
    "axis, value, message",
    [
        ("tuned", "5", "--axis=tuned is unknown; use tuned_steps"),
        ("tuned_steps", "x", "--axis=tuned_steps=x: .* must be of type int"),
        ("algorithm.ppo.epoch", "5", "did you mean"),
    ],
)
def test_wrong_axes_are_refused(axis, value, message):
    with pytest.raises(SettingsError, match=message):
        settings_for(avoid(), axis, value)


def test_a_value_that_is_that_of_the_base_is_the_base():
    base = Base("base", f"{CONFIGS}/avoid.py:m2")
    axes = {"tuned_steps": ["5", "10"], "std": ["0.1"], "clip": ["0.01"]}
    variants, tables = make_variants([base], axes, [])
    assert [x.label for x in variants] == ["base", "tuned_steps-5", "clip-0_01"]
    assert [x.rows for x in tables] == [
        {"10 (base)": "base", "5": "tuned_steps-5"},
        {"0.1 (base)": "base"},
        {"0.1 (base)": "base", "0.01": "clip-0_01"},
    ]


def test_several_bases_share_a_table():
    spec = f"{CONFIGS}/avoid.py:m2"
    bases = [Base("a", spec), Base("b", f"{spec}_gaussian", {"seed": "3"})]
    variants, (table,) = make_variants(bases, {"algorithm.ppo.epochs": ["5"]}, [])
    assert [x.label for x in variants] == [
        *("a", "a-algorithm_ppo_epochs-5", "b", "b-algorithm_ppo_epochs-5")
    ]
    assert list(table.rows) == ["a, 10 (base)", "a, 5", "b, 10 (base)", "b, 5"]
    assert variants[3].settings == {"seed": "3", "algorithm.ppo.epochs": "5"}


def test_a_variant_with_another_clone_does_not_start_from_a_given_policy():
    base = Base("base", f"{CONFIGS}/avoid.py:m2")
    variants, _ = make_variants(
        [base], {"chunk": ["2"], "tuned_steps": ["5"]}, ["policy=runs/x"]
    )
    found = {x.label: x.settings.get("policy") for x in variants}
    assert found == {"base": None, "chunk-2": "", "tuned_steps-5": None}


def test_labels_that_two_values_share_are_refused():
    base = Base("base", f"{CONFIGS}/avoid.py:m2")
    with pytest.raises(SettingsError, match="two values have the label"):
        make_variants([base], {"env.options.x": ["1.5", "1_5"]}, [])


def test_noise_on_actions_begins_as_in_the_paper():
    assert settings_for(avoid(), "action_noise", "0") == {}
    assert settings_for(avoid(), "action_noise", "0.1") == {
        "rollout.action_noise": "0.1",
        "rollout.action_noise_start": "5",
        "rollout.action_noise_ramp": "5",
    }


@pytest.mark.parametrize("name", presets.TASKS)
def test_every_preset_makes_variants(name, monkeypatch):
    """One configuration by default; of several, each with every value."""
    monkeypatch.chdir(REPOSITORY)
    words, axes = ["--output=out"], set()
    for axis, preset in presets.TASKS[name].presets.items():
        found = ablations.parse([*words, f"--preset={name}:{axis}"])
        bases = 1 + len(preset.tuned_steps) + len(preset.others)
        least = bases * len(preset.values)
        (table,) = found.tables
        assert axis in AXES and found.target == presets.TASKS[name].target
        # The value of a base is the base, or else the base is one more.
        assert len(found.variants) == len(set(table.rows.values()))
        assert least <= len(table.rows) <= least + bases
        axes |= {axis} if preset.is_alone else set()
    assert {
        x.axis for x in ablations.parse([*words, f"--preset={name}"]).tables
    } == axes


def test_policies_under_noise_are_diffusion_with_three_k_and_other_heads(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    found = ablations.parse(["--output=out", "--preset=avoid:action_noise"])
    labels = ["base", "tuned_steps-4", "tuned_steps-20", "gaussian", "gmm"]
    assert [x.label for x in found.variants if "noise" not in x.label] == labels
    entries = {x.label: x.config for x in found.comparison.entries}
    noisy = entries["tuned_steps-20-action_noise-0_2"]
    assert noisy.model.sampling.num_tuned_steps == 20
    assert noisy.algorithm.ppo.batch_size == 12500 and noisy.rollout.action_noise == 0.2
    assert entries["gmm-action_noise-0_1"].model.kind == "gmm"
    given = ["--preset=avoid:action_noise", "--config.policy=runs/x"]
    found_given = ablations.parse(["--output=out", *given]).comparison.entries
    policies = {x.label: x.config.policy for x in found_given}
    assert policies["tuned_steps-4"] == policies["base-action_noise-0_1"] == "runs/x"
    assert policies["gaussian"] == policies["gmm-action_noise-0_2"] == ""
    assert list(found.tables[0].rows)[:4] == [
        *("base, 0 (base)", "base, 0.1", "base, 0.2", "tuned_steps-4, 0 (base)")
    ]
