"""A dry run says what would be done, and does nothing."""

import json

import jax
import pytest
from absl import flags

from dppo_jax.training.checkpoint import read_policy, read_state
from experiments import command_line, console, dry_run, evaluate, finetune, pretrain
from experiments.dry_run import Planned
from tests.stages import make_config


@pytest.fixture(autouse=True)
def unparsed():
    yield
    flags.FLAGS.unparse_flags()


@pytest.fixture
def dry():
    console.use(console.Shown(dry_run=True))
    yield
    console.use(console.Shown())


def plan_of(stage, config):
    with pytest.raises(Planned) as planned:
        stage.main(config)
    return planned.value.plan


def test_fine_tuning_says_its_sizes(world, compiled_once, dry, tmp_path, capsys):
    """Those of the run of `world`; 4 environments, 2 chunks of 4 actions."""
    run_dir = tmp_path / "world" / "new"
    plan = plan_of(finetune, make_config(world, "finetune", run_dir=str(run_dir)))
    assert list(tmp_path.iterdir()) == []
    saved = read_policy(world / "finetune").params
    for name in ("base", "tuned"):
        leaves = jax.tree.leaves(saved[name])
        assert plan["parameters"][name] == sum(x.size for x in leaves)
    state = jax.tree.leaves(read_state(world / "finetune"))
    # Some numbers are stored in another type.
    assert plan["state_bytes"] == pytest.approx(sum(x.nbytes for x in state), abs=8)
    assert (plan["starts_at"], plan["num_iterations"]) == (0, 2)
    assert plan["env_steps"] == 2 * plan["env_steps_per_iteration"] == 2 * 4 * 2 * 4
    assert "seconds" not in plan
    dry_run.tell("finetune", plan)
    said = capsys.readouterr().out
    assert "environment steps      64, 32 in an iteration" in said
    assert "unknown: no run with these settings is here" in said


def test_the_state_of_several_seeds_is_that_of_all(capsys):
    plan = dict(run_dirs=["a/seed_0", "a/seed_1"], num_seeds=2, starts_at=0)
    plan |= dict(num_iterations=3, parameters={}, state_bytes=2**20, state_parts={})
    plan |= dict(checkpoint_bytes=2**20, env_steps=30, env_steps_per_iteration=10)
    dry_run.tell("finetune", plan)
    said = capsys.readouterr().out
    assert "seeds                  2 in one program" in said
    assert "30, 10 in an iteration for each seed" in said
    assert "training state         2.1 MB, 1.0 MB for each seed" in said
    assert "at most 1.0 MB for each seed" in said
    dry_run.tell("finetune", plan | dict(run_dirs=["a"], num_seeds=1))
    assert "seed" not in capsys.readouterr().out


def test_a_run_with_the_same_settings_says_how_long_it_takes(world, compiled_once, dry):
    """Another seed and more iterations do not change the time of one."""
    changes = dict(seed=5, run_dir=str(world / "more" / "seed_5"))
    changes["loop__finetune__num_iterations"] = 50
    plan = plan_of(finetune, make_config(world, "finetune", **changes))
    assert plan["measured_in"] == str(world / "finetune")
    assert plan["seconds"] == pytest.approx(50 * plan["seconds_per_iteration"])
    assert not (world / "more").exists()


def test_cloning_and_evaluation_say_what_they_would_do(world, dry, tmp_path):
    changes = dict(run_dir=str(tmp_path / "new"))
    plan = plan_of(pretrain, make_config(world, "pretrain", **changes))
    assert plan["num_iterations"] == 3 and "env_steps" not in plan
    plan = plan_of(evaluate, make_config(world, "evaluate", **changes))
    assert plan["control_steps_at_most"] == 6 * 8 and plan["checkpoint"] == 2
    assert list(tmp_path.iterdir()) == []


def test_programs_without_a_plan_refuse_the_flag(monkeypatch, capsys):
    words = ["stage", "--dry-run", "--json"]
    monkeypatch.setattr(command_line.sys, "argv", words)
    with pytest.raises(SystemExit, match="2"):
        command_line.run_stage(lambda config: None, needs_config=False)
    printed = capsys.readouterr()
    assert "--dry-run: this program cannot say beforehand" in printed.err
    # Another program reads the last line.
    summary = json.loads(printed.out.splitlines()[-1])
    assert (summary["status"], summary["exit_status"]) == ("failed", 2)


def test_an_error_of_the_program_itself_has_a_summary_too(monkeypatch, capsys):
    def stage(config):
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(command_line.sys, "argv", ["stage", "--json"])
    with pytest.raises(ZeroDivisionError):
        command_line.run_stage(stage, needs_config=False, summarize=lambda *_: {})
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["status"], summary["exit_status"]) == ("failed", 1)


def test_a_plan_ends_well_and_can_be_read_by_programs(monkeypatch, capsys):
    def stage(config):
        assert console.is_dry_run()
        raise Planned({"episodes": 1200, "time": float("nan")})

    words = ["stage", "--dry-run", "--json"]
    monkeypatch.setattr(command_line.sys, "argv", words)
    command_line.run_stage(
        stage, needs_config=False, plans=True, summarize=lambda *_: {}
    )
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("nothing is written") and "1,200" in lines[1]
    summary = json.loads(last)
    assert summary["status"] == "planned" and summary["time"] is None
    assert not console.is_dry_run()
