"""Scores of saved policies."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags

from dppo_jax.errors import SettingsError
from experiments import command_line, directories, evaluate, finetune
from tests.stages import evaluations, make_config


def test_evaluation_alone_agrees_with_evaluation_in_training(world, tmp_path, capsys):
    result = evaluate.main(make_config(world, "evaluate", run_dir=str(tmp_path)))
    last = evaluations(world / "finetune")[2]
    assert result["episode_return"] == pytest.approx(last, rel=1e-4)
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved.pop("metrics") == result
    low, high = saved.pop("intervals")["success"]
    assert 0 <= low <= result["success"] <= high <= 1 and high - low > 0.3
    run_dir = str(world / "finetune")
    assert saved == {
        "policy": run_dir,
        "checkpoint": 2,
        "num_episodes": 6,
        "mode": "deterministic",
        "seed": 0,
    }
    said = capsys.readouterr().out
    assert f"{run_dir}, checkpoint 2: 6 episodes, deterministic mode, seed 0" in said
    assert "episode_return" in said and f"95 % in [{low:.4g}, {high:.4g}]" in said


def episodes(part):
    """Ten episodes of a part, of which 3 + part succeed."""
    success = (np.arange(10) < 3 + part).astype(float)
    return evaluate.Evaluation({"success": success, "episode_return": success}, {})


def test_episodes_are_scored_until_the_interval_is_narrow(tmp_path, capsys):
    """At 3 of 10 it is 0.50 wide, at 7 of 20 0.39, at 12 of 30 0.33."""
    config = make_config(tmp_path, "evaluate", evaluate__num_episodes=10)
    means, count = evaluate._score_until(episodes, config)
    assert (means["success"], count) == (pytest.approx(0.3), 10)
    assert capsys.readouterr().out == ""
    changes = dict(evaluate__num_episodes=10, evaluate__until_width=0.35)
    config = make_config(tmp_path, "evaluate", **changes)
    means, count = evaluate._score_until(episodes, config)
    assert (means["success"], count) == (pytest.approx(0.4), 30)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["10 episodes", "20 episodes"]


def test_a_width_that_cannot_be_reached_is_refused(tmp_path):
    def returns(part):
        return evaluate.Evaluation({"episode_return": np.ones(10)}, {})

    refusals = {-0.1: "must be 0 or at", 1e-4: "at least 0.002", 0.1: "avoid has none"}
    for width, message in refusals.items():
        config = make_config(tmp_path, "evaluate", evaluate__until_width=width)
        with pytest.raises(SettingsError, match=f"until_width={width}.*{message}"):
            evaluate._score_until(returns, config)


def test_further_episodes_are_others(monkeypatch):
    """Those of part 0 are the ones that training scores."""
    config = make_config(Path(""), "evaluate", evaluate__seed=3)
    env = SimpleNamespace(notes=())
    monkeypatch.setattr(evaluate, "make_env", lambda *_, **__: env)
    monkeypatch.setattr(
        evaluate, "make_evaluate", lambda *_, **__: lambda params, key: key
    )
    score = evaluate.make_score(config, None, None)
    keys = [score({}), score({}, 0), score({}, 1), score({}, 2)]
    assert keys[0] == keys[1] == jax.random.key(3)
    assert keys[1] != keys[2] and keys[2] != keys[3]


def parse(*arguments, **settings):
    """The configuration of a command line; resets the flags afterwards."""
    try:
        return command_line._parse(["program", *arguments], (), **settings)[0]
    finally:
        flags.FLAGS.unparse_flags()


def test_a_run_directory_is_all_that_evaluation_needs(
    world, scored_once, tmp_path, capsys
):
    """It gives the same score as the configuration, and writes it to the run."""
    run_dir = str(shutil.copytree(world / "finetune", tmp_path / "finetune"))
    score = make_config(world, "evaluate", run_dir=str(tmp_path / "score"))
    by_config = evaluate.main(score)
    config = parse(run_dir, takes_run=True)
    assert evaluate.main(config) == by_config
    filed = json.loads((tmp_path / "finetune" / "evaluation.json").read_text())
    assert filed["metrics"] == by_config and filed["policy"] == run_dir
    config = parse(run_dir, "--config.evaluate.num_episodes=3", takes_run=True)
    evaluate.main(config)
    assert "3 episodes" in capsys.readouterr().out
    with pytest.raises(ValueError, match="nowhere holds no run of experiments"):
        parse("nowhere", takes_run=True)
    with pytest.raises(ValueError, match="is not a flag"):
        parse(run_dir)


def test_an_evaluation_takes_one_run_directory():
    with pytest.raises(SettingsError, match=r"2 run directories given \(a, b\).*once"):
        parse("a", "b", takes_run=True)
    with pytest.raises(SettingsError, match="leave out one .* --config.policy=a"):
        parse("a", "--config=mine.py", takes_run=True)
    with pytest.raises(SettingsError, match="'config.seed=1' is not a flag"):
        parse("a", "config.seed=1", takes_run=True)


def test_checkpoints_are_chosen_by_iteration_or_score(
    world, compiled_once, scored_once, tmp_path
):
    """The iteration with the best evaluation is kept as `best`."""
    run_dir = str(tmp_path / "kept")
    changes = dict(
        run_dir=run_dir,
        loop__finetune__evaluate_every=1,
        loop__finetune__checkpoint_every=1,
        algorithm__ppo__actor__learning_rate=0.3,
    )
    finetune.main(make_config(world, "finetune", **changes))
    scores = evaluations(run_dir)
    best = max(scores, key=scores.get)
    config = directories.config_of_run(run_dir)
    for checkpoint, iteration in (("best", best), (1, 1), ("latest", 2)):
        result = evaluate.main(config, checkpoint)
        assert result["episode_return"] == pytest.approx(scores[iteration], rel=1e-4)
        filed = json.loads((tmp_path / "kept" / "evaluation.json").read_text())
        assert filed["checkpoint"] == iteration
    with pytest.raises(ValueError, match="no checkpoint 7; it has .*1, 2"):
        evaluate.main(config, 7)


def test_an_evaluation_without_episodes_is_refused(world):
    for name in ("num_envs", "num_episodes"):
        config = make_config(world, "evaluate", **{f"evaluate.{name}": 0})
        with pytest.raises(ValueError, match=f"evaluate.{name}=0 must be at least 1"):
            evaluate.main(config)
