"""A checkpoint that an older version wrote loads, and scores what it states."""

import shutil

import pytest

from dppo_jax.errors import SettingsError
from dppo_jax.training.checkpoint import read_policy
from experiments import directories, inspect, stated, verify
from tests import commands
from tests.conftest import REPOSITORY

STORED = REPOSITORY / "tests" / "data" / "format_1"
SCORE = 12.467697143554688  # As the checkpoint states; `episode_return_stderr` is 1.68.


@pytest.fixture
def config():
    return directories.config_of_run(str(STORED))


def test_a_stored_checkpoint_scores_what_it_states(config, monkeypatch, capsys):
    """And a policy that scores something else does not pass."""
    scores = []
    make = verify.summarize
    monkeypatch.setattr(
        verify, "summarize", lambda result: scores.append(make(result)) or scores[0]
    )
    assert verify.main(config)
    assert scores[0]["episode_return"] == pytest.approx(SCORE, rel=1e-2)
    said = capsys.readouterr().out
    assert "16 episodes, deterministic mode, seed 0" in said
    assert said.count(f"episode_return {SCORE:.4g} 95 % in [8.892, 16.04]") == 2
    monkeypatch.setattr(verify, "make_score", lambda *_: lambda params: None)
    monkeypatch.setattr(verify, "summarize", lambda _: {"episode_return": 16.1})
    assert not verify.main(config)
    assert "episode_return: outside of the stated interval" in capsys.readouterr().out


def test_a_stored_checkpoint_says_what_it_is(capsys):
    inspect.main(str(STORED), None)
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        *("stage finetune, checkpoint 2", "format 1 jax 0.10.2", "1 x cpu (cpu)"),
        *("started from: new networks", "iteration 2, 16 episodes, deterministic"),
        *("diffusion with network mlp", "11 numbers in observations"),
        *("tuned: 1,500 in", "none: a run cannot resume", "checkpoints/2: 2"),
        *("--config.env.task=hopper", "--config.model.network.hidden_sizes='(8,)'"),
    ):
        assert words in said
    for name in ("seed", "env.history", "collect", "loop.pretrain"):
        assert f"--config.{name}" not in said
    assert "not known to this version" not in said


def stated_by(about, run_dir=STORED):
    policy = read_policy(STORED)._replace(about=about)
    return stated.stated_score(policy, run_dir, directories.config_of_run(str(STORED)))


def test_an_older_checkpoint_states_the_row_of_its_iteration(tmp_path):
    """It has the settings of the evaluation of its run."""
    old = stated_by({})
    assert (old.iteration, old.num_episodes, old.seed) == (2, 16, 0)
    assert old.metrics["episode_return"] == pytest.approx(SCORE, rel=1e-5)
    assert stated_by({}, tmp_path) is None
    assert stated_by({"format": 1, "score": None}) is None


def test_a_run_of_train_states_metrics_of_any_name_without_an_interval():
    policy = read_policy(STORED)
    score = {"iteration": 2, "metrics": {"eval/hits": 3.0}}
    found = stated.stated_score(policy._replace(about={"score": score}), STORED, None)
    assert found.intervals == {} and found.lines() == ["hits 3"]
    assert "not described" in found.how()


def test_a_score_of_other_parameters_is_not_verified(tmp_path, config, monkeypatch):
    """Such as after an interrupt between two evaluations."""
    policy = verify.inputs.find_policy(config, "finetune")
    about = {**policy.about, "score": {**policy.about["score"], "iteration": 1}}
    for about, message in (
        (about, "states the score of iteration 1; pass --checkpoint=1 if"),
        ({**about, "score": None}, "states no score .*experiments.evaluate"),
    ):
        found = policy._replace(about=about)
        monkeypatch.setattr(verify.inputs, "find_policy", lambda *_, x=found: x)
        with pytest.raises(SettingsError, match=message):
            verify.main(config)


def test_what_is_not_recorded_is_said(tmp_path, capsys):
    run_dir = shutil.copytree(STORED, tmp_path / "run")
    file = run_dir / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    text = file.read_text()
    file.write_text(text[: text.index('"custom_metadata"')] + '"custom_metadata": {}}')
    inspect.main(str(run_dir), None, 2)
    said = capsys.readouterr().out
    assert said.count("not recorded (written by an older version)") == 2
    assert f"episode_return {SCORE:.4g}" in said


def test_a_wrong_path_ends_in_one_line(tmp_path):
    for program in ("inspect", "verify"):
        status, said = commands.end(f"experiments.{program}", [str(tmp_path)])
        assert status == 2 and said.count("\n") == 1 and str(tmp_path) in said
