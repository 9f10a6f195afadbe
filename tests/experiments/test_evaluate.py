"""Scores of saved policies, and reports that compare runs."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags

from dppo_jax.errors import SettingsError
from experiments import command_line, directories, evaluate, finetune, plots, report
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


def test_a_report_draws_and_tabulates_groups_of_runs(world, tmp_path, capsys):
    picture = tmp_path / "report.png"
    flags.FLAGS(["report", f"--output={picture}", "--metrics=eval/episode_return"])
    run_dir = world / "finetune"
    report.main(["report", f"tiny={run_dir},{run_dir}"])
    assert picture.stat().st_size > 1000
    first, last = (evaluations(run_dir)[i] for i in (0, 2))
    row = f"| tiny | 2 | eval/episode_return | {first:.3f} | {last:.3f} |"
    assert row in capsys.readouterr().out


def test_a_report_shows_what_all_runs_have(world, tmp_path, monkeypatch, capsys):
    """Cloning has no success in roll-outs, and a task may have none at all."""
    monkeypatch.setattr(report, "_METRICS", SimpleNamespace(value=None))
    monkeypatch.setattr(report, "_OUTPUT", SimpleNamespace(value=tmp_path / "out.png"))
    report.main(["report", f"a={world / 'finetune'}", f"b={world / 'pretrain'}"])
    said = capsys.readouterr().out
    assert said.count("| eval/success |") == 2 and "| success |" not in said
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.csv").write_text("iteration,episode_return\n1,2.5\n2,3\n")
    report.main(["report", f"a={run_dir}"])
    assert "| a | 1 | episode_return | 2.500 | 3.000 |" in capsys.readouterr().out


def test_the_curve_of_a_run_shows_the_returns_of_evaluations(tmp_path, monkeypatch):
    """A task without success has no other score of its evaluations."""
    (tmp_path / "metrics.csv").write_text(
        "iteration,episode_return,eval/episode_return,approx_kl\n1,2,3,0\n"
    )
    drawn = []
    monkeypatch.setattr(plots, "plot_curves", lambda *given: drawn.append(given[1:]))
    plots.save_curve(str(tmp_path))
    assert drawn == [
        ({"exploring": [str(tmp_path)]}, "episode_return"),
        ({"evaluation": [str(tmp_path)]}, "eval/episode_return"),
    ]


@pytest.mark.parametrize(
    ("over", "wanted"),
    [
        ("iteration", [[0, 2, 4], [1.5, 3, 5]]),
        ("env_steps", [[0, 200, 400], [1.5, 3, 5]]),
        ("seconds", [[0, 13, 25], [1.5, 3, 5]]),  # means of (10, 16), (20, 30)
    ],
)
def test_curves_are_drawn_over_steps_and_over_time(over, wanted, tmp_path):
    """`seconds` is the mean time of the iterations since the row before."""
    head = "iteration,eval/episode_return,env_steps,seconds"
    texts = {
        "a": "0,1,,\n2,3,200,5\n3,,300,5\n4,5,400,5",
        "b": "0,2,,\n2,3,200,8\n4,5,400,7",
    }
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(f"{head}\n{text}\n")
    runs = [str(tmp_path / name) for name in texts]
    figure, ax = plots.plt.subplots()
    plots.plot_curves(ax, {"both": runs}, "eval/episode_return", over)
    (line,) = ax.get_lines()
    np.testing.assert_allclose(np.array(line.get_data()), wanted)
    assert ax.get_xlabel() == plots.AXES[over]
    plots.plt.close(figure)


def test_a_report_over_several_axes(world, tmp_path, monkeypatch):
    shapes = []
    monkeypatch.setattr(
        plots, "plot_curves", lambda ax, groups, metric, over: shapes.append(over)
    )
    monkeypatch.setattr(report, "_OUTPUT", SimpleNamespace(value=tmp_path / "out.png"))
    monkeypatch.setattr(report, "_METRICS", SimpleNamespace(value=["success"]))
    monkeypatch.setattr(
        report, "_OVER", SimpleNamespace(value=["env_steps", "seconds"])
    )
    report.main(["report", f"a={world / 'finetune'}"])
    assert shapes == ["env_steps", "seconds"]


def test_an_unknown_axis_of_a_report_is_refused(world, monkeypatch, capsys):
    monkeypatch.setattr(report, "_OVER", SimpleNamespace(value=["steps"]))
    with pytest.raises(SystemExit, match="2"):
        report.main(["report", f"a={world / 'finetune'}"])
    said = capsys.readouterr().err
    assert "--over=steps is unknown; use one of iteration, env_steps, seconds" in said


@pytest.mark.parametrize("argument", ["tiny=/nowhere", "tiny", None])
def test_a_report_of_nothing_is_refused(argument, capsys):
    with pytest.raises(SystemExit, match="2"):
        report.main(["report"] + ([argument] if argument else []))
    assert "error: " in capsys.readouterr().err
