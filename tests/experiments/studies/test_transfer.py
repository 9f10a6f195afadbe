"""Exported policies in other simulations: conditions, processes and the table."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dppo_jax.errors import SettingsError
from experiments.conditions import Condition
from experiments.studies import play_exported, transfer
from tests import commands
from tests.stages import make_config


@pytest.fixture
def processes(monkeypatch):
    """Processes that find a return of 100, less 10 for every change; their words."""
    started = []

    def run(words, *, env, **settings):
        assert env["JAX_PLATFORMS"] == "cpu" and "PATH" in env
        started.append(words[1:])
        changed = any("=1.2" in x or "(1.2,1.2)" in x for x in words)
        result = {"episode_return": 90.0 if changed else 100.0}
        text = json.dumps({**result, "episode_return_stderr": 2.0})
        return subprocess.CompletedProcess(words, 0, f"note\n{text}\n", "")

    monkeypatch.setattr(transfer.subprocess, "run", run)

    def deploy(run, out):
        Path(out).mkdir()
        about = {"run": str(Path(run).absolute()), "checkpoint": 2}
        (Path(out) / "policy.json").write_text(json.dumps(about))

    monkeypatch.setattr(transfer.deploy, "main", deploy)
    return started


def scores(folder, world, **settings):
    run = str(world / "finetune")
    (folder / "policies").mkdir(exist_ok=True)
    conditions = transfer.read_conditions(["mass=1.2"])
    groups = {"plain": [run, run], "other": [run]}
    return transfer.main(groups, conditions, str(folder), **settings)


def test_every_policy_is_scored_as_trained_and_with_each_change(
    processes, world, tmp_path
):
    scores(tmp_path, world)
    table = (tmp_path / "table.md").read_text()
    # Of one run the interval, 2.093 standard errors of 20 episodes around the mean.
    assert "| as trained | 100 [100, 100] | 100 [95.81, 104.2] |" in table
    assert "| mass 1.2 | 90 [90, 90] | 90 [85.81, 94.19] |" in table
    first, *rows = (tmp_path / "scores.csv").read_text().splitlines()
    assert first.startswith("label,run,checkpoint,setting,value,metric,score")
    assert len(rows) == 6 and ",2,mass,1.2,episode_return,90," in rows[1]
    # Three policies, two conditions; what the run varied in training is off.
    assert len(processes) == 6
    assert "--config.env.randomization.mass=(1.2,1.2)" in processes[1]
    assert "--config.env.randomization.delay=(0,0)" in processes[1]
    scores(tmp_path, world)
    assert len(processes) == 6  # Results stay.


def test_gymnasium_gets_the_flags_of_the_example(processes, world, tmp_path):
    scores(tmp_path, world, gymnasium="Hopper-v4", num_episodes=7)
    plain, changed = processes[:2]
    assert Path(plain[0]).name == "run_in_gymnasium.py" and Path(plain[0]).is_file()
    assert plain[2:] == ["Hopper-v4", "--episodes=7", "--json"]
    assert changed[2:] == [*plain[2:], "--mass=1.2"]
    flags = Path(plain[0]).read_text()
    assert "--json" in flags and "--delay" in flags and "--action-noise" in flags


def test_settings_of_the_task_may_be_changed(processes, world, tmp_path):
    scores(tmp_path, world, changes=["env.engine=mujoco", "env.max_steps=5"])
    for words in processes:
        given = [x for x in words if x.startswith("--config.")]
        assert given[:2] == ["--config.env.engine=mujoco", "--config.env.max_steps=5"]
    wrong = (
        (["env.history=2"], "", "env.history does not change the task"),
        (["evaluate.seed=2"], "", "evaluate.seed does not change the task"),
        (["env.engin=mujoco"], "", "did you mean env.engine"),
        (["env.engine=mujoco"], "Hopper-v4", "not Hopper-v4; leave out one of them"),
    )
    for changes, gymnasium, said in wrong:
        with pytest.raises(SettingsError, match=said):
            scores(tmp_path, world, changes=changes, gymnasium=gymnasium)


def test_an_exported_policy_of_another_run_is_not_scored(processes, world, tmp_path):
    scores(tmp_path, world)
    path = tmp_path / "policies" / "plain-1" / "policy.json"
    path.write_text(json.dumps({"run": "/elsewhere", "checkpoint": 2}))
    with pytest.raises(SettingsError, match="plain-1 holds checkpoint 2 of /elsewhere"):
        scores(tmp_path, world)
    for text in ("[]", "{", '{"run": "/elsewhere"}'):
        path.write_text(text)
        with pytest.raises(
            SettingsError, match="missing or damaged .*; remove .*plain-1"
        ):
            scores(tmp_path, world)


def test_a_policy_that_is_exported_again_is_scored_again(processes, world, tmp_path):
    scores(tmp_path, world)
    path = tmp_path / "policies" / "plain-1"
    (path / "policy.json").write_text("{")
    with pytest.raises(SettingsError, match="missing or damaged .*; remove .*plain-1"):
        scores(tmp_path, world)
    shutil.rmtree(path)
    scores(tmp_path, world)
    assert len(processes) == 6 + 2  # Two conditions of the one policy.


def test_a_process_that_fails_is_named(processes, world, tmp_path, monkeypatch):
    def fails(words, **settings):
        return subprocess.CompletedProcess(words, 2, "", "a line\nerror: it is wrong\n")

    monkeypatch.setattr(transfer.subprocess, "run", fails)
    with pytest.raises(SettingsError, match="play_exported .* failed: it is wrong"):
        scores(tmp_path, world)


def test_numbers_for_ranges_and_other_kinds_of_changes():
    assert transfer.read_conditions(["mass=0.8,1", "delay=1", "mass=1"]) == [
        *(Condition("mass", "0.8"), Condition("mass", "1"), Condition("delay", "1"))
    ]
    for condition, flag in (
        (Condition("delay", "2"), "delay=(2,2)"),
        (Condition("action_noise", "0.1"), "action_noise=0.1"),
        (Condition("initial_state", "0.1"), "initial_state=0.1"),
    ):
        words = transfer._command("policy", "run", condition, "", 5)
        assert f"--config.env.randomization.{flag}" in words


@pytest.mark.parametrize(
    "words, message",
    [
        (["a=x"], "no folder to write to"),
        (["--output=out"], "no runs given"),
        (["--output=out", "--over=weight=1", "a=x"], "one of action_noise, damping"),
        (["--output=out", "--over=mass=", "a=x"], "one of action_noise, damping"),
        (["--output=out", "--over=delay=0.5", "a=x"], "must be a whole number"),
        (["--output=out", "--over=gain=x", "a=x"], "gain=x must be a number"),
        (["--output=out", "--episodes=0", "a=x"], "must be at least 1"),
        (
            ["--output=out", "--gymnasium=A-v1", "--over=initial_state=1", "a=x"],
            "cannot change it",
        ),
    ],
)
def test_wrong_commands_end_in_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said = commands.end("experiments.studies.transfer", words)
    assert status == 2 and message in said and said.count("\n") == 1, said


class Still:
    """A policy that always goes the same way, and remembers what it has seen."""

    about = {
        "bounds": {
            "obs_min": [-1.0] * 4,
            "obs_max": [1.0] * 4,
            "action_min": [-0.01, -0.01],
            "action_max": [0.01, 0.02],
        }
    }

    def __init__(self):
        self.seen, self.episodes = [], 0

    def reset(self):
        self.episodes += 1

    def __call__(self, obs):
        self.seen.append(obs["state"])
        return np.array([0.0, 0.01])


def test_a_policy_acts_in_task_units_until_episodes_end(tmp_path):
    policy, config = Still(), make_config(tmp_path, "evaluate")
    result = play_exported.play(policy, config.env, 2, 0)
    assert policy.episodes == 2 and len(policy.seen) == 2 * 8
    assert result["episode_length"] == 8 and result["success"] == 0
    # Desired positions rise by 0.01 m in every control step.
    rises = np.diff(np.array(policy.seen)[:8, 1])
    np.testing.assert_allclose(rises, 0.01, atol=1e-5)


@pytest.mark.slow
def test_an_exported_policy_scores_in_a_process_of_its_own(world, tmp_path):
    run = str(world / "finetune")
    conditions = transfer.read_conditions(["gain=0.8"])
    found = transfer.main({"a": [run]}, conditions, str(tmp_path), num_episodes=2)
    assert [str(x.condition) for x in found] == ["as trained", "gain 0.8"]
    assert all(0 <= x.score <= 1 for x in found) and found[0].metric == "success"
