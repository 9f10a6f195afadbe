"""Scores of policies under other conditions."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from dppo_jax.errors import SettingsError
from experiments import evaluate, robustness
from experiments.conditions import Condition, Scored
from tests import commands
from tests.stages import make_config

NOISE = "env.randomization.action_noise"


def scored(label, value, score, interval=(0.1, 0.3)):
    place = ("run", 7, Condition("env.max_steps", value))
    return Scored(label, *place, "success", score, interval, 50)


def test_runs_are_scored_with_every_value_and_0_is_the_plain_score(world, tmp_path):
    run = str(world / "finetune")
    found = robustness.main(
        {"dppo": [run]},
        robustness.read_conditions([f"{NOISE}=0,2"]),
        str(tmp_path / "out"),
    )
    plain = evaluate.main(make_config(world, "evaluate", run_dir=str(tmp_path)))
    assert [x.score for x in found][0] == pytest.approx(plain["success"])
    ends = json.loads((tmp_path / "evaluation.json").read_text())["intervals"]
    assert found[0].interval == pytest.approx(ends["success"])
    with open(tmp_path / "out" / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows] == ["0", "2"]
    assert [float(row["score"]) for row in rows] == pytest.approx(
        [x.score for x in found], rel=1e-5
    )
    assert {row["checkpoint"] for row in rows} == {"2"}
    assert "| dppo | 1 |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "scores.png").exists()


def test_a_folder_that_cannot_be_made_costs_no_scores(world, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(robustness, "_score", None)
    message = "out cannot be made .No such file or directory.; pass another --output"
    with pytest.raises(SettingsError, match=message):
        robustness.main(
            {"dppo": [str(world / "finetune")]},
            [Condition("env.randomization.mass", "1")],
            str(tmp_path / "out"),
        )


def test_what_a_run_varied_in_training_is_off(world, tmp_path):
    shutil.copytree(world / "finetune", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    saved = json.loads(path.read_text())
    saved["env"]["randomization"]["delay"] = [0, 3]
    path.write_text(json.dumps(saved))
    condition = Condition("env.randomization.mass", "1")
    config = robustness._configs(str(tmp_path / "run"), [condition], [])[condition]
    assert config.env.randomization.delay == (0, 0)


def test_a_number_for_a_range_means_this_number(world):
    condition = Condition("env.randomization.mass", "1.2")
    config = robustness._configs(str(world / "finetune"), [condition], [])[condition]
    assert config.env.randomization.mass == (1.2, 1.2)
    both = Condition("env.randomization.mass", "(0.8,1.2)")
    config = robustness._configs(str(world / "finetune"), [both], [])[both]
    assert config.env.randomization.mass == (0.8, 1.2)


def test_values_with_commas_are_separated_by_semicolons():
    assert robustness.read_conditions(["a.b=1, 2", "c=(0,1);(1,2)"]) == [
        *(Condition("a.b", "1"), Condition("a.b", "2")),
        *(Condition("c", "(0,1)"), Condition("c", "(1,2)")),
    ]


def test_the_table_has_means_and_ranges_of_runs_and_the_interval_of_one():
    text = robustness.make_tables(
        [
            *(scored("a", "1", 0.2), scored("a", "1", 0.6)),
            *(scored("a", "2", 0.5), scored("a", "2", 0.7)),
            *(scored("b", "1", 0.2), scored("b", "2", 0.25)),
        ]
    )
    assert "| success | runs | 1 | 2 |" in text
    assert "| a | 2 | 0.4 [0.2, 0.6] | 0.6 [0.5, 0.7] |" in text
    assert "| b | 1 | 0.2 [0.1, 0.3] | 0.25 [0.1, 0.3] |" in text


@pytest.mark.parametrize(
    "over, message",
    [
        ([], "nothing to vary; pass --over=SETTING"),
        (["env.max_steps"], "--over=env.max_steps names no values"),
        (["env.max_steps=1,,2"], "names no values"),
    ],
)
def test_wrong_conditions_are_refused(over, message):
    with pytest.raises(SettingsError, match=message):
        robustness.read_conditions(over)


@pytest.mark.parametrize(
    "over, message",
    [
        ("env.randomisation.mass=1", "did you mean env.randomization.mass"),
        ("env.randomization.mass=-1", "must be two positive numbers"),
        (
            "env.history=2",
            "env.history does not change the score of a policy .* or would",
        ),
        ("model.sampling.ddim_steps=5", "ddim_steps does not change the score"),
        ("env.limit_terminates=True", "limit_terminates does not change the score"),
        ("env.randomization.obs_noise=x", "the value must be of type float"),
    ],
)
def test_settings_are_checked_before_anything_is_scored(
    world, tmp_path, monkeypatch, over, message
):
    monkeypatch.setattr(robustness, "_score", None)
    conditions = robustness.read_conditions([f"{NOISE}=0", over])
    with pytest.raises(SettingsError, match=message):
        robustness.main(
            {"a": [str(world / "finetune")]}, conditions, str(tmp_path / "o")
        )


def test_runs_of_different_tasks_are_not_compared(world, tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "_score", None)
    shutil.copytree(world / "finetune", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    saved = json.loads(path.read_text())
    saved["env"]["task"], saved["env"]["options"] = "hopper", {}
    path.write_text(json.dumps(saved))
    with pytest.raises(SettingsError, match="tasks avoid, hopper, whose scores"):
        robustness.main(
            {"a": [str(world / "finetune"), str(tmp_path / "run")]},
            [Condition(NOISE, "0")],
            str(tmp_path / "out"),
        )


def test_an_argument_that_is_missing_ends_in_one_line(tmp_path):
    output = f"--output={tmp_path / 'out'}"
    for words, message in (
        ([output, "--over=a=1"], "no runs given"),
        (["a=runs/none", f"--over={NOISE}=1"], "no folder to write to"),
        (["a=runs/none", output, f"--over={NOISE}=1"], "holds no run"),
        (["a=runs/none", output, "--ovr=1"], "unrecognized arguments: --ovr=1"),
    ):
        status, said = commands.end("experiments.robustness", words)
        assert status == 2 and message in said and said.count("\n") == 1, said
