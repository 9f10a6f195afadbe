"""The study of exploration: its inputs, its table, and once the program itself."""

import csv
import shutil

import numpy as np
import pytest

from dppo_jax.errors import SettingsError
from experiments.studies import exploration_results as results
from experiments.studies import structured_exploration as study
from experiments.studies.exploration import Exploration
from experiments.studies.planes import PLANES, Routes
from tests import commands

LINE = np.stack([np.full(12, 0.3), np.linspace(-0.25, 0.45, 12)], axis=1)


@pytest.fixture
def still(monkeypatch):
    """Policies that all go straight up beside each other; nothing is compiled."""
    states = [np.concatenate([LINE, LINE + x], axis=1) for x in (0.0, 0.02)]
    monkeypatch.setattr(study, "explore", lambda source, num: (states, 0.5))


def test_a_policy_is_compared_with_its_demonstrations(still, world, tmp_path):
    run = str(world / "pretrain")
    known, found = study.main({"dppo": [run]}, str(tmp_path / "out"))
    assert known.label == "demonstrations" and len(known.paths) == 2
    # 1 cm to the left and to the right of the mean.
    assert found.numbers.between == pytest.approx(np.sqrt(2), rel=1e-3)
    assert found.routes.mode == ["5", "5"] and found.data == "data"
    with open(tmp_path / "out" / "numbers.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["demonstrations", "dppo"]
    assert float(rows[1]["between"]) == pytest.approx(found.numbers.between, rel=1e-5)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| dppo | 1 | 2 | 0.5 | 0 [0, 0.66] | 5: 1 | 0.00 |" in table
    assert (tmp_path / "out" / "trajectories.png").stat().st_size > 1000


def test_a_run_of_fine_tuning_counts_as_what_it_started_from(world):
    own = study.find_source("a", str(world / "finetune"), "", [])
    assert own.config.policy == str(world / "pretrain") and own.checkpoint == 3
    cloned = study.find_source("a", str(world / "pretrain"), "", ["seed=3"])
    assert cloned.config.policy == str(world / "pretrain") and cloned.config.seed == 3
    assert own.data == cloned.data == str(world / "data")


def test_data_that_moved_are_found_by_their_name(world, tmp_path):
    run, copy = str(world / "pretrain"), tmp_path / "demos" / "data"
    shutil.copytree(world / "data", copy)
    for folder in (copy, copy.parent):
        assert study.find_source("a", run, str(folder), []).data == str(copy)
    with pytest.raises(SettingsError, match="nor is nowhere; pass --data=FOLDER"):
        study.find_source("a", run, "nowhere", [])


def test_data_sets_of_folders_with_the_same_name_are_apart(
    still, world, tmp_path, monkeypatch
):
    copy, run = tmp_path / "other" / "data", tmp_path / "run"
    shutil.copytree(world / "data", copy)
    shutil.copytree(world / "pretrain", run)
    find_source = study.find_source

    def find(label, path, data, changes):
        found = find_source(label, str(world / "pretrain"), data, changes)
        return found._replace(data=str(copy)) if path == str(run) else found

    monkeypatch.setattr(study, "find_source", find)
    groups = {"a": [str(world / "pretrain"), str(run)]}
    found = study.main(groups, str(tmp_path / "out"))
    assert {x.data for x in found} == {f"{world.name}/data", "other/data"}
    assert study._names(["a/b", "/c"]) == {"a/b": "b", "/c": "c"}


def test_the_table_has_means_over_runs_and_shares_over_episodes():
    def explored(number, hits):
        routes = Routes(np.array(hits), ["5"] * len(hits), ["1-3-5"] * len(hits))
        numbers = Exploration(*[number] * 8)
        paths = [LINE] * len(hits)
        return results.Explored("a", "run", "m1", paths, numbers, routes, number)

    text = results.make_tables(
        [explored(1.0, [True, False]), explored(3.0, [True] * 2)], PLANES["avoid"], "x"
    )
    large = results.make_tables([explored(1234.5, [True])], PLANES["avoid"], "x")
    assert "| 1234 | 1234 |" in large
    assert "| a | 2 | 4 | 2 | 0.75 [0.3, 0.95] | 5: 1 | 0.00 | 2 | 2 |" in text


def test_the_entropy_of_routes_is_that_of_episodes_that_have_one():
    assert results.entropy_of_routes(["1-3-5", "none", "0-2-5", "none"]) == 1.0
    assert results.entropy_of_routes(["none"]) == 0.0


@pytest.mark.parametrize(
    "words, message",
    [
        (["a=runs/none"], "no folder to write to"),
        (["--output=out"], "no runs given"),
        (["--output=out", "a=runs/none"], "holds no run"),
        (["--output=out", "--episodes=1", "a=runs/none"], "must be at least 2"),
        (["--output=out", "--dim=1", "a=runs/none"], "unrecognized arguments"),
    ],
)
def test_wrong_commands_end_in_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said = commands.end("experiments.studies.structured_exploration", words)
    assert status == 2 and message in said and said.count("\n") == 1, said


@pytest.mark.slow
def test_a_cloned_policy_explores(compiled_once, world, tmp_path):
    """Its observations are those of every control step, in metres."""
    source = study.find_source("a", str(world / "pretrain"), "", [])
    trajectories, score = study.explore(source, 3)
    assert [x.shape for x in trajectories] == [(8, 4)] * 3 and 0 <= score <= 1
    steps = np.diff(trajectories[0][:, :2], axis=0)
    assert 0 < np.abs(steps).max() < 0.013
    assert not np.allclose(trajectories[0], trajectories[1])
    study.main({"a": [source.run]}, str(tmp_path), num_episodes=3)
    assert (tmp_path / "table.md").exists()
