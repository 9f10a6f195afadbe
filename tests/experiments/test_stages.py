import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from jax.experimental import io_callback
from ml_collections import ConfigDict

from dppo_jax.deploy import load_policy
from dppo_jax.errors import SettingsError
from dppo_jax.normalize import load_normalizer
from dppo_jax.training.checkpoint import load_critic
from dppo_jax.training.metrics import read_metrics
from experiments import (
    collect,
    command_line,
    directories,
    evaluate,
    finetune,
    inputs,
    pretrain,
    processes,
    report,
)
from experiments.configs import avoid
from experiments.seeds import loop_settings
from tests import tiny
from tests.conftest import REPOSITORY

# Stages in seconds: episodes of 8 control steps and networks of 16 units.
TINY = {
    "env.engine": "mujoco",
    "env.max_steps": 8,
    "model.network.hidden_sizes": (16,),
    "model.diffusion.num_denoising_steps": 4,
    "critic.hidden_sizes": (16,),
    "collect.modes": [(1, 3, 5)],
    "collect.episodes_per_mode": 2,
    "loop.pretrain.num_epochs": 3,
    "pretrain.warmup_epochs": 1,
    "loop.finetune.num_iterations": 2,
    "rollout.num_envs": 4,
    "rollout.num_chunks": 2,
    "model.sampling.num_tuned_steps": 2,
    "algorithm.ppo.batch_size": 8,
    "algorithm.ppo.epochs": 1,
    "evaluate.num_episodes": 6,
    "evaluate.num_envs": 4,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder in which all stages have run."""
    folder = tmp_path_factory.mktemp("world")
    collect.main(make_config(folder, "collect"))
    pretrain.main(make_config(folder, "pretrain"))
    finetune.main(make_config(folder, "finetune"))
    return folder


def make_config(folder, stage, **changes):
    """A locked configuration; write dots in names as double underscores."""
    config = avoid.get_config("m1")
    config.update_from_flattened_dict(TINY)
    config.data = str(folder / "data")
    config.run_dir = str(folder / stage)
    if stage == "finetune":
        config.policy = str(folder / "pretrain")
    if stage == "evaluate":
        config.policy = str(folder / "finetune")
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return config.lock()


def evaluations(run_dir):
    rows = [row for row in read_metrics(run_dir) if "eval/episode_return" in row]
    return {int(row["iteration"]): row["eval/episode_return"] for row in rows}


def test_every_stage_writes_its_files(world):
    assert (world / "data" / "train.npz").exists()
    for stage in ("pretrain", "finetune"):
        config = json.loads((world / stage / "config.json").read_text())
        assert config["stage"] == stage and config["env"]["task"] == "avoid"
        assert list((world / stage).glob("events.out.tfevents.*"))
    assert [row["iteration"] for row in read_metrics(world / "finetune")] == [0, 1, 2]
    assert sorted(evaluations(world / "pretrain")) == [0, 3]
    plots = {path.name for path in (world / "finetune" / "plots").iterdir()}
    assert plots == {"trajectories.png", "curve.png"}


def test_fine_tuning_continues_from_a_fine_tuned_policy_and_its_critic(world, tmp_path):
    """One iteration with so small a learning rate that nothing changes."""
    changes = dict(policy=str(world / "finetune"), run_dir=str(tmp_path / "more"))
    still = {
        f"algorithm__ppo__{name}__{rate}": 1e-30
        for name in ("actor", "critic")
        for rate in ("learning_rate", "min_learning_rate")
    }
    finetune.main(
        make_config(
            world, "finetune", loop__finetune__num_iterations=1, **changes, **still
        )
    )
    before, after = (
        (load_policy(run).params, load_critic(run))
        for run in (world / "finetune", tmp_path / "more")
    )
    assert tiny.same(before, after)
    with pytest.raises(ValueError, match="critic of .* --config.critic"):
        finetune.main(
            make_config(world, "finetune", **changes, critic__hidden_sizes=(8,))
        )


def rows_of(run_dir):
    """The logged rows without the column `seconds`."""
    rows = read_metrics(run_dir)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_many_seeds_have_runs_like_single_seeds(world, tmp_path, capsys):
    """Seed 0 equals the run of `world`. Both seeds resume together, or one alone."""
    changes = dict(num_seeds=2, run_dir=str(tmp_path))
    run_dirs = finetune.main(make_config(world, "finetune", **changes))
    assert run_dirs == [str(tmp_path / f"seed_{seed}") for seed in (0, 1)]
    single = json.loads((world / "finetune" / "config.json").read_text())
    for seed, run_dir in enumerate(run_dirs):
        config = json.loads((tmp_path / f"seed_{seed}" / "config.json").read_text())
        assert config == single | {"seed": seed, "run_dir": run_dir}
        pictures = (tmp_path / f"seed_{seed}" / "plots").iterdir()
        assert len(list(pictures)) == 2
    first, second = map(rows_of, run_dirs)
    assert first[0] == second[0] and first[1:] != second[1:]
    for one, other in zip(first, rows_of(world / "finetune"), strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(
            *(list(row.values()) for row in (one, other)), rtol=1e-3, atol=1e-4
        )
    result = evaluate.main(make_config(world, "evaluate", policy=run_dirs[1]))
    last = evaluations(run_dirs[1])[2]
    assert result["episode_return"] == pytest.approx(last, rel=1e-4)

    changes["loop__finetune__num_iterations"] = 3
    finetune.main(make_config(world, "finetune", **changes))
    assert "resuming at iteration 2 of 3" in capsys.readouterr().out
    alone = dict(seed=1, run_dir=run_dirs[1], loop__finetune__num_iterations=4)
    assert finetune.main(make_config(world, "finetune", **alone)) == run_dirs[1:]
    assert sorted(evaluations(run_dirs[1])) == [0, 2, 3, 4]


def test_many_seeds_of_cloning_differ(world, tmp_path):
    changes = dict(num_seeds=2, seed=3, run_dir=str(tmp_path))
    run_dirs = pretrain.main(make_config(world, "pretrain", **changes))
    assert [path[-6:] for path in run_dirs] == ["seed_3", "seed_4"]
    assert rows_of(run_dirs[0]) != rows_of(run_dirs[1])


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_seeds=0), "num_seeds=0 must be at least 1"),
        (
            dict(num_seeds=2, env__task="gymnasium:Hopper-v5"),
            "num_seeds=2: gymnasium:Hopper-v5 runs in host .* --config.seed",
        ),
        (dict(num_seeds=2), "is the directory of a single run"),
    ],
)
def test_seeds_that_cannot_be_trained_together_are_refused(world, changes, message):
    before = sorted((world / "finetune").iterdir())
    with pytest.raises(ValueError, match=message):
        finetune.main(make_config(world, "finetune", **changes))
    assert sorted((world / "finetune").iterdir()) == before


def test_fine_tuning_stops_at_a_return_that_is_good_enough(world, tmp_path):
    """The cloned policy already has the low return; no policy reaches the high one."""

    def go(name, target):
        changes = dict(run_dir=str(tmp_path / name))
        config = make_config(
            world, "finetune", loop__finetune__stop_at_return=target, **changes
        )
        return sorted(evaluations(*finetune.main(config)))

    assert go("low", -100.0) == [0]
    assert load_policy(tmp_path / "low").iteration == 0
    assert go("high", 1e9) == [0, 2]
    with pytest.raises(ValueError, match="stop_at_return=1.0 .* evaluate_every=0"):
        finetune.main(
            make_config(
                world,
                "finetune",
                loop__finetune__stop_at_return=1.0,
                loop__finetune__evaluate_every=0,
            )
        )


def test_fine_tuning_starts_where_cloning_ended(world):
    before = evaluations(world / "finetune")[0]
    assert before == pytest.approx(evaluations(world / "pretrain")[3], rel=1e-4)


def test_evaluation_alone_agrees_with_evaluation_in_training(world, capsys):
    result = evaluate.main(make_config(world, "evaluate"))
    last = evaluations(world / "finetune")[2]
    assert result["episode_return"] == pytest.approx(last, rel=1e-4)
    saved = json.loads((world / "evaluate" / "evaluation.json").read_text())
    assert saved.pop("metrics") == result
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
    assert "episode_return" in said


def parse(*arguments, **settings):
    """The configuration of a command line; resets the flags afterwards."""
    try:
        return command_line._parse(["program", *arguments], (), **settings)[0]
    finally:
        flags.FLAGS.unparse_flags()


def test_a_run_directory_is_all_that_evaluation_needs(world, capsys):
    """It gives the same score as the configuration, and writes it to the run."""
    run_dir = str(world / "finetune")
    by_config = evaluate.main(make_config(world, "evaluate"))
    config = parse(run_dir, takes_run=True)
    assert evaluate.main(config) == by_config
    filed = json.loads((world / "finetune" / "evaluation.json").read_text())
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


def test_checkpoints_are_chosen_by_iteration_or_score(world):
    """The iteration with the best evaluation is kept as `best`."""
    changes = dict(
        run_dir=str(world / "kept"),
        loop__finetune__evaluate_every=1,
        loop__finetune__checkpoint_every=1,
        algorithm__ppo__actor__learning_rate=0.3,
    )
    finetune.main(make_config(world, "finetune", **changes))
    scores = evaluations(world / "kept")
    best = max(scores, key=scores.get)
    config = directories.config_of_run(str(world / "kept"))
    for checkpoint, iteration in (("best", best), (1, 1), ("latest", 2)):
        result = evaluate.main(config, checkpoint)
        assert result["episode_return"] == pytest.approx(scores[iteration], rel=1e-4)
        filed = json.loads((world / "kept" / "evaluation.json").read_text())
        assert filed["checkpoint"] == iteration
    with pytest.raises(ValueError, match="no checkpoint 7; it has .*1, 2"):
        evaluate.main(config, 7)


def test_the_same_command_resumes_a_run(world, tmp_path, capsys):
    shutil.copytree(world / "pretrain", tmp_path / "pretrain")
    changes = dict(loop__pretrain__num_epochs=4, run_dir=str(tmp_path / "pretrain"))
    pretrain.main(make_config(world, "pretrain", **changes))
    assert "resuming at iteration 3 of 4" in capsys.readouterr().out
    rows = read_metrics(tmp_path / "pretrain")
    assert [row["iteration"] for row in rows] == [0, 1, 3, 4]


@pytest.mark.parametrize(
    "name, value",
    [
        ("model.chunk", 2),
        ("model.diffusion.num_denoising_steps", 5),
        ("model.network.hidden_sizes", (16, 16, 16)),
        ("model.network.condition_sizes", (8,)),
        ("env.history", 2),
        ("env.task", "hopper"),
    ],
)
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_policy_other_than_the_configured_one_is_refused_by_name(
    world, stage, name, value
):
    config = make_config(
        world, "evaluate", **{name: value, "policy": str(world / stage)}
    )
    with pytest.raises(ValueError, match=f"was trained with {name}=.*--config.{name}="):
        inputs.find_policy(config, stage)


def test_only_a_fine_tuned_policy_refuses_another_number_of_tuned_steps(world):
    """A fine-tuned chain with another K' would be another policy."""
    changes = dict(model__sampling__num_tuned_steps=3)
    with pytest.raises(ValueError, match="with model.sampling.num_tuned_steps=2"):
        inputs.find_policy(make_config(world, "evaluate", **changes), "finetune")
    inputs.find_policy(make_config(world, "finetune", **changes), "pretrain")


def test_a_fine_tuned_policy_refuses_other_denoising_steps(world):
    """Each of its networks must run the denoising steps that it was trained for."""
    config = make_config(world, "evaluate", model__sampling__ddim_steps=2)
    message = "was trained with model.sampling.ddim_steps=None.*ddim_steps=None"
    with pytest.raises(ValueError, match=message):
        inputs.find_policy(config, "finetune")


def test_a_policy_cloned_with_ddpm_acts_and_is_tuned_with_ddim(world, tmp_path, capsys):
    """Weights do not depend on how chains are sampled; K = 4 becomes 2, all tuned."""
    changes = dict(policy=str(world / "pretrain"), run_dir=str(tmp_path / "ddim"))
    changes |= dict(model__sampling__ddim_steps=2, loop__finetune__num_iterations=1)
    changes |= dict(algorithm__ppo__critic_warmup=0)
    (run_dir,) = finetune.main(make_config(world, "finetune", **changes))
    assert (
        "trained with model.sampling.ddim_steps=None, not 2" in capsys.readouterr().out
    )
    tuned, cloned = (load_policy(x) for x in (run_dir, world / "pretrain"))
    assert tiny.same(tuned.params.base, cloned.params.base)
    assert not tiny.same(tuned.params.tuned, cloned.params.tuned)
    assert tuned.config["model"]["sampling"]["ddim_steps"] == 2
    evaluate.main(make_config(world, "evaluate", **changes | dict(run_dir="")))
    assert "checkpoint 3: 6 episodes, deterministic mode" in capsys.readouterr().out


def test_the_tuned_steps_of_a_cloned_policy_may_be_annealed(world, tmp_path):
    """K' = 2 drops to 1 after the first of two iterations, and 1 is saved."""
    changes = dict(run_dir=str(tmp_path / "annealed"))
    changes |= dict(algorithm__ppo__tuned_steps_drop=1)
    changes |= dict(algorithm__ppo__tuned_steps_every=1)
    (run_dir,) = finetune.main(make_config(world, "finetune", **changes))
    assert int(load_policy(run_dir).params.num_active) == 1
    evaluate.main(directories.config_of_run(run_dir))


def test_a_run_that_was_moved_resumes(world, tmp_path, monkeypatch, capsys):
    """Policies and data are compared by contents, not by path."""
    for name in ("data", "pretrain", "finetune"):
        shutil.copytree(world / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    moved = dict(data="./data", policy="pretrain/", run_dir="finetune")
    finetune.main(make_config(tmp_path, "finetune", **moved))
    assert "resuming at iteration 2 of 2" in capsys.readouterr().out
    config = make_config(tmp_path, "pretrain", **moved | dict(run_dir="pretrain"))
    data = directories.digest(inputs.load_data(config))
    directories.prepare_run(config, "pretrain", {"data": data})
    for stage, source in (("finetune", "policy"), ("pretrain", "data")):
        config = make_config(tmp_path, stage, **moved | dict(run_dir=stage))
        with pytest.raises(ValueError, match=f"started from another {source}: "):
            directories.prepare_run(config, stage, {source: "0123456789abcdef"})


def test_a_digest_depends_only_on_arrays():
    a, b = np.arange(3.0), np.zeros((2, 2))
    assert directories.digest({"x": a, "y": b}) == directories.digest((b.copy(), a))
    for other in ((b, a + 1), (b.ravel(), a), (b, a.astype(np.float32)), (b,)):
        assert directories.digest(other) != directories.digest((b, a))


def test_cloning_needs_no_simulator_but_later_stages_do(world, tmp_path):
    changes = dict(env__task="", run_dir=str(tmp_path / "robot"))
    (run_dir,) = pretrain.main(make_config(world, "pretrain", **changes))
    assert [row["iteration"] for row in read_metrics(run_dir)] == [1, 3]
    assert evaluations(run_dir) == {}
    found = inputs.find_policy(make_config(world, "finetune", policy=run_dir), "")
    assert found.iteration == 3
    for stage in (collect, finetune, evaluate):
        name = stage.__name__.split(".")[1]
        message = f"env.task is empty, and experiments.{name} .*--config.env.task=NAME"
        with pytest.raises(ValueError, match=message):
            stage.main(make_config(world, name, env__task=""))


def test_fine_tuning_may_start_from_new_networks(world, tmp_path, capsys):
    """New networks get the bounds of the data; a resumed run keeps its own bounds."""
    changes = dict(policy="none", run_dir=str(tmp_path / "new"))
    for num_iterations in (1, 2):
        changes["loop__finetune__num_iterations"] = num_iterations
        (run_dir,) = finetune.main(make_config(world, "finetune", **changes))
    said = capsys.readouterr().out
    assert said.count(f"those of {world / 'data'}") == 1
    assert "resuming at iteration 1 of 2" in said
    start, data = load_policy(run_dir), load_normalizer(world / "data")
    assert tiny.same(start.normalizer, data)
    cloned = load_policy(world / "pretrain").params
    assert not tiny.same(start.params.base, cloned.base)


def test_without_data_bounds_are_those_of_random_actions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = dict(data="", env__task="hopper", rollout__random_steps=20)
    config = make_config(tmp_path, "new", **changes, env__options=ConfigDict())
    bounds, origin = inputs.find_bounds(config, "new")
    assert origin == {} and bounds.obs_min.shape == (11,)
    assert (bounds.obs_min <= bounds.obs_max).all()
    np.testing.assert_array_equal(bounds.action_max, np.ones(3))
    assert tiny.same(bounds, inputs.find_bounds(config, "new")[0])
    config = make_config(tmp_path, "new", data="", env__task="gymnasium:Hopper-v5")
    with pytest.raises(
        ValueError, match="bounds of gymnasium:Hopper-v5.*--config.data"
    ):
        inputs.find_bounds(config, "new")


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("loop.finetune.num_iterations", 0, "num_iterations=0 must be at least 1"),
        ("loop.pretrain.num_epochs", 0, "num_epochs=0 must be at least 1"),
        ("loop.finetune.log_every", -1, "log_every=-1 must be at least 0"),
    ],
)
def test_loops_without_iterations_are_refused(world, name, value, message):
    stage = name.split(".")[1]
    with pytest.raises(ValueError, match=f"loop.{stage}.{message}"):
        loop_settings(make_config(world, stage, **{name: value}), stage)


def test_an_evaluation_without_episodes_is_refused(world):
    for name in ("num_envs", "num_episodes"):
        config = make_config(world, "evaluate", **{f"evaluate.{name}": 0})
        with pytest.raises(ValueError, match=f"evaluate.{name}=0 must be at least 1"):
            evaluate.main(config)


def test_an_entropy_bonus_for_a_fixed_entropy_is_refused(world):
    config = make_config(world, "pretrain", pretrain__clone_entropy_coef=0.1)
    with pytest.raises(ValueError, match="clone_entropy_coef=0.1.*'diffusion'"):
        pretrain.main(config)


def test_a_run_directory_belongs_to_its_settings(world):
    """Changed settings are refused by name, except those that may change."""
    before = (world / "finetune" / "config.json").read_bytes()
    origin = json.loads(before)["origin"]
    for name, value in [
        ("seed", 7),
        ("algorithm.ppo.discount", 0.5),
        ("model.network.hidden_sizes", (8,)),
        ("algorithm.ppo.target_kl", None),
        ("env.executed", 2),
    ]:
        with pytest.raises(ValueError, match=f"holds a run with {name}="):
            directories.prepare_run(
                make_config(world, "finetune", **{name: value}), "finetune"
            )
    assert (world / "finetune" / "config.json").read_bytes() == before
    changes = {"loop.finetune.num_iterations": 9, "evaluate.seed": 3}
    changes |= {"loop.finetune.log_every": 2}
    directories.prepare_run(
        make_config(world, "finetune", **changes), "finetune", origin
    )
    directories.prepare_run(make_config(world, "finetune"), "finetune", origin)
    assert (world / "finetune" / "config.json").read_bytes() == before


def test_a_run_directory_belongs_to_its_stage(world):
    config = make_config(world, "finetune", run_dir=str(world / "pretrain"))
    with pytest.raises(ValueError, match="holds a .*pretrain.*--config.run_dir"):
        directories.prepare_run(config, "finetune")


def test_demonstrations_are_not_overwritten(world):
    before = (world / "data" / "train.npz").read_bytes()
    with pytest.raises(ValueError, match="holds demonstrations already"):
        collect.main(make_config(world, "collect"))
    assert (world / "data" / "train.npz").read_bytes() == before


def test_a_stage_names_the_missing_stage_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="run experiments.collect first"):
        pretrain.main(make_config(tmp_path, "pretrain", data=""))
    with pytest.raises(ValueError, match="run experiments.pretrain first"):
        finetune.main(make_config(tmp_path, "finetune", policy=""))
    with pytest.raises(ValueError, match="run experiments.finetune first"):
        evaluate.main(make_config(tmp_path, "evaluate", policy=""))
    with pytest.raises(ValueError, match="no demonstrator for env.task='hopper'"):
        collect.main(make_config(tmp_path, "collect", env__task="hopper"))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="avoid.py:m4 is unknown; use m1, m2, m3"):
        avoid.get_config("m4")


def test_a_report_draws_and_tabulates_groups_of_runs(world, tmp_path, capsys):
    picture = tmp_path / "report.png"
    flags.FLAGS(["report", f"--output={picture}", "--metrics=eval/episode_return"])
    run_dir = world / "finetune"
    report.main(["report", f"tiny={run_dir},{run_dir}"])
    assert picture.stat().st_size > 1000
    first, last = (evaluations(run_dir)[i] for i in (0, 2))
    row = f"| tiny | 2 | eval/episode_return | {first:.3f} | {last:.3f} |"
    assert row in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["tiny=/nowhere", "tiny", None])
def test_a_report_of_nothing_is_refused(argument, capsys):
    with pytest.raises(SystemExit, match="2"):
        report.main(["report"] + ([argument] if argument else []))
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--config.algorithm.ppo.clip_tpo=1"],
            "--config.algorithm.ppo.clip_tpo; did you mean algorithm.ppo.clip_top?",
        ),
        (["config.seed=1"], "'config.seed=1' is not a flag"),
        (["--config.policy.seed=1"], "policy holds a plain value"),
        (["--config.seed=one"], "one"),
        (["--config.model.sampling.eta=nan"], "eta=nan: the value must be of type"),
        (["--checkpoint=best"], "reads no policy"),
    ],
)
def test_a_wrong_command_ends_in_one_line_and_writes_nothing(
    tmp_path, arguments, message
):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.collect"),
            f"--config={REPOSITORY}/experiments/configs/avoid.py:m1",
            *arguments,
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    assert result.returncode == 2, result.stderr
    assert len(errors) == 1 and errors[0].startswith("error: ")
    assert message in errors[0] and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        SettingsError("a setting\nis wrong"),
        *(OSError("no file"), FloatingPointError("nan")),
    ],
)
def test_an_error_ends_in_one_line_and_a_traceback_only_on_request(
    monkeypatch, capsys, error
):
    def fail():
        with pytest.raises(SystemExit, match="2"), processes.errors_in_one_line():
            raise error
        return capsys.readouterr().err

    monkeypatch.delenv("DPPO_JAX_TRACEBACK", raising=False)
    line = f"error: {' '.join(str(error).split())}\n"
    assert fail() == line
    monkeypatch.setenv("DPPO_JAX_TRACEBACK", "1")
    told = fail()
    assert told.startswith("Traceback") and told.endswith(line)


def test_a_callback_that_fails_in_a_compiled_program_tells_its_own_error(capsys):
    """JAX's message is the traceback of some thousand characters."""

    def fail(x):
        raise RuntimeError("the joint 'knee' has no motor\n" + "and so on " * 1000)

    @jax.jit
    def program(x):
        return io_callback(fail, jax.ShapeDtypeStruct((), x.dtype), x, ordered=True)

    with pytest.raises(SystemExit, match="2"), processes.errors_in_one_line():
        jax.block_until_ready(program(np.float32(1)))
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        rf"error: a callback of the compiled program failed in {__file__}, line \d+: "
        "RuntimeError: the joint 'knee' has no motor and so on",
        line,
    )
    assert line.endswith("(DPPO_JAX_TRACEBACK=1 shows all)") and len(line) < 700


def test_an_error_in_the_program_keeps_its_traceback():
    with pytest.raises(ValueError, match="shapes"), processes.errors_in_one_line():
        raise ValueError("incompatible shapes, found by a library")


def test_tasks_are_in_the_units_of_the_simulator(world):
    """The saved data are normalised, and their bounds are in metres on the table."""
    with np.load(world / "data" / "normalization.npz") as bounds:
        assert 0.2 < bounds["obs_min"][0] < bounds["obs_max"][0] < 0.8
    with np.load(world / "data" / "train.npz") as data:
        assert abs(data["states"]).max() <= 1.0 + 1e-5
