"""Metrics for Weights & Biases, with a stand-in for its package."""

import importlib.util
import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from dppo_jax.errors import SettingsError
from dppo_jax.training import seeds, wandb_run
from dppo_jax.training.config_file import save_config
from dppo_jax.training.loop import train
from dppo_jax.training.metrics import MetricsWriter, read_metrics
from experiments import entries
from experiments import seeds as stage_seeds
from experiments.defaults import default_config
from experiments.seeds import wandb_options
from tests import tiny
from tests.counting import counter


class Run:
    """As the package's, as far as it is used. `fails` names methods that raise."""

    def __init__(self, fails):
        self.rows, self.finished, self.steps, self.fails = [], False, None, fails

    def _fail(self, name):
        if name in self.fails:
            raise ConnectionError(f"no network for {name}")

    def define_metric(self, name, *, step_metric):
        self.steps = (name, step_metric)

    def log(self, row):
        self._fail("log")
        self.rows.append(row)

    def finish(self):
        self._fail("finish")
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """The package; `runs` has (arguments of init, Run) of every run."""
    module = types.ModuleType("wandb")
    module.runs, module.fails = [], set()

    def init(**options):
        if "init" in module.fails:
            raise RuntimeError("no account")
        module.runs.append((options, Run(module.fails)))
        return module.runs[-1][1]

    module.init, module.Settings = init, dict
    module.__spec__ = importlib.util.spec_from_loader("wandb", loader=None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def write(run_dir, rows, **settings):
    with MetricsWriter(run_dir, wandb={"project": "p"}, **settings) as writer:
        for iteration, row in rows:
            writer.write(iteration, row)


def test_rows_have_the_names_of_tensorboard_over_iterations(wandb, tmp_path):
    save_config(tmp_path, {"seed": 3})
    row = {"success": 0.5, "loss": 2.0, "eval/success": 1.0, "ratio": math.nan}
    write(tmp_path, [(7, row)])
    ((options, run),) = wandb.runs
    sent = {"rollout/success": 0.5, "train/loss": 2.0, "eval/success": 1.0}
    assert run.rows == [{"iteration": 7, **sent}]
    assert run.steps == ("*", "iteration") and run.finished
    assert options["project"] == "p" and options["config"] == {"seed": 3}
    assert options["dir"] == options["name"] == str(tmp_path)


def test_a_resumed_run_goes_on_under_its_id(wandb, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    write(tmp_path / "a", [(1, {"loss": 1.0})])
    write(tmp_path / "a", [(2, {"loss": 2.0})], resume_at=2)
    write(tmp_path / "b", [(1, {"loss": 1.0})])
    ids = [options["id"] for options, _ in wandb.runs]
    assert ids[0] == ids[1] != ids[2]
    assert {options["resume"] for options, _ in wandb.runs} == {"allow"}
    assert json.loads((tmp_path / "a" / wandb_run.ID_FILE).read_text())["id"] == ids[0]
    for damaged in ("{", "[]", '{"id": 3}'):
        (tmp_path / "a" / wandb_run.ID_FILE).write_text(damaged)
        write(tmp_path / "a", [], resume_at=3)
        assert len(wandb.runs[-1][0]["id"]) == 8


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_what_fails_is_said_once_and_never_stops_training(
    fails, wandb, tmp_path, capsys
):
    wandb.fails.add(fails)
    write(tmp_path, [(i, {"loss": 1.0}) for i in (1, 2, 3)])
    assert len(read_metrics(tmp_path)) == 3
    said = capsys.readouterr().out
    assert said.count("warning: Weights & Biases failed (") == 1
    assert ("no account" if fails == "init" else f"no network for {fails}") in said


def test_a_package_that_cannot_be_imported_stops_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    write(tmp_path, [(1, {"loss": 1.0})])
    assert "Weights & Biases failed (ModuleNotFoundError" in capsys.readouterr().out


def test_several_seeds_have_a_run_each_and_others_none(wandb, tmp_path):
    go = dict(num_iterations=1, normalizer=tiny.NORMALIZER)
    algorithm = seeds.many(counter(), 2)
    state = algorithm.init(jnp.stack([jax.random.key(i) for i in (0, 1)]))
    dirs = [str(tmp_path / name) for name in ("seed_0", "seed_1")]
    train(algorithm, state, run_dir=dirs, wandb={"project": "p"}, **go)
    assert [options["dir"] for options, _ in wandb.runs] == dirs
    assert all(len(run.rows) == 1 and run.finished for _, run in wandb.runs)
    with MetricsWriter(tmp_path / "seed_0", resume_at=2, writes=False, wandb={}):
        assert len(wandb.runs) == 2


def test_settings_become_arguments(wandb):
    config = default_config()
    assert wandb_options(config, "finetune") is None
    config.name, config.wandb.project = "can", "robots"
    wanted = {"project": "robots", "group": "can", "job_type": "finetune"}
    assert wandb_options(config, "finetune") == wanted
    config.wandb.mode = "offline"
    assert wandb_options(config, "finetune") == {**wanted, "mode": "offline"}
    config.wandb.project = None
    with pytest.raises(SettingsError, match="mode='offline' needs wandb.project"):
        wandb_options(config, "finetune")
    config.wandb.project, config.wandb.mode = "dppo", "ofline"
    with pytest.raises(SettingsError, match="wandb.mode='ofline' must be"):
        wandb_options(config, "finetune")


def test_wrong_settings_are_found_before_anything_is_built():
    config = default_config()
    config.wandb.mode = "offline"
    with pytest.raises(SettingsError, match="needs wandb.project"):
        stage_seeds.check_seeds(config, steps_env=True)
    with pytest.raises(SettingsError, match="needs wandb.project"):
        entries._check_early(config)


def test_a_stage_hands_them_to_training(wandb, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(stage_seeds, "train", lambda *_, **x: given.append(x["wandb"]))
    config = default_config()
    config.run_dir, config.wandb.project = str(tmp_path / "run"), "p"
    stage_seeds.train_seeds(config, "finetune", counter(), origin={})
    assert given == [{"project": "p", "job_type": "finetune"}]


def test_without_the_extra_nothing_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = default_config()
    config.wandb.project = "p"
    with pytest.raises(SettingsError, match=r"not installed; run.*\.\[wandb\]"):
        wandb_options(config, "finetune")
    with pytest.raises(SettingsError, match=r"not installed; run.*\.\[wandb\]"):
        train(
            counter(),
            None,
            run_dir=tmp_path / "run",
            num_iterations=1,
            normalizer=tiny.NORMALIZER,
            wandb={"project": "p"},
        )
    assert list(tmp_path.iterdir()) == []
