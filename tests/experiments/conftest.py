"""A folder with runs of all stages, for the tests of several files."""

import fcntl
import functools
import json
import os
import shutil

import pytest

from dppo_jax.training import seeds
from experiments import collect, directories, evaluate, finetune, plots, pretrain
from experiments.reports import run_page
from tests.stages import make_config

# Sections that neither an algorithm nor an evaluation depends on.
NOT_THESE = ("run_dir", "policy", "data", "name", "seed", "loop", "collect", "pretrain")
NOT_THESE += ("wandb",)
MADE: dict[tuple[str, ...], object] = {}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder in which all stages have run. Tests must not write to it.

    The stages compile for most of their time, so the first test process that needs the
    folder makes it for all, and the others wait.
    """
    parent = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        parent = parent.parent  # Each process has its own folder below it.
    folder, complete = parent / "world", parent / "world_is_complete"
    with open(parent / "world.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # Another process failed there.
            with pytest.MonkeyPatch.context() as monkeypatch:
                share_programs(monkeypatch)
                for stage in (collect, pretrain, finetune):
                    stage.main(make_config(folder, stage.__name__.split(".")[1]))
            complete.touch()
    return folder


def settings(config):
    """What an algorithm and an evaluation depend on, as text."""
    values = json.loads(config.to_json_best_effort())
    return json.dumps({x: values[x] for x in values if x not in NOT_THESE})


@pytest.fixture
def compiled_once(monkeypatch):
    """Fine-tuning twice with the same settings, those of `world` too, compiles once."""
    share_programs(monkeypatch)


@pytest.fixture
def scored_once(monkeypatch):
    """Checkpoints of one run that are scored with the same settings share a program."""
    made = {}

    def make_score(config, act, normalizer, traces=(), make=evaluate.make_score):
        key = settings(config), directories.digest(normalizer), traces
        if key not in made:
            made[key] = make(config, act, normalizer, traces=traces)
        return made[key]

    monkeypatch.setattr(evaluate, "make_score", make_score)


def share_programs(monkeypatch):
    """The algorithm and the evaluation of the first time serve again.

    JAX then finds the programs that it compiled of them. Both are pure functions.
    """

    def make_algorithm(config, normalizer, data=None, make=finetune._make_algorithm):
        key = settings(config), directories.digest((normalizer, data))
        if key not in MADE:
            MADE[key] = make(config, normalizer, data)
        return MADE[key]

    def make_score(config, act, normalizer, make=finetune.make_score):
        key = settings(config), directories.digest(normalizer), act
        if key not in MADE:
            MADE[key] = make(config, act, normalizer)
        return MADE[key]

    monkeypatch.setattr(finetune, "_make_algorithm", make_algorithm)
    monkeypatch.setattr(finetune, "make_score", make_score)
    monkeypatch.setattr(seeds, "many", functools.cache(seeds.many))


@pytest.fixture
def drawn_once(monkeypatch):
    """Only the first run of a test draws its pictures, each of which takes a moment."""

    def first(draw):
        drawn = []

        def once(*args, **settings):
            if not drawn:
                drawn.append(args)
                draw(*args, **settings)

        return once

    for name in ("save_trajectories", "save_curve"):
        monkeypatch.setattr(plots, name, first(getattr(plots, name)))
    monkeypatch.setattr(run_page, "finish", first(run_page.finish))
