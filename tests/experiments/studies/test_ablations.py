"""Ablations: what they run and write, what they list, and how they go on."""

from pathlib import Path

import numpy as np
import pytest

from dppo_jax.errors import SettingsError
from experiments import compare, scores
from experiments.entries import read_entries
from experiments.studies import ablations, plan
from tests import commands
from tests.experiments.test_compare import QuickPrograms, prepare
from tests.runs_on_paper import make_run

WORDS = ["--output=out", "--config=tiny.py", "--seeds=2", "--axis=clip=0.1,0.5"]


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Programs that score seed + clip range + iteration, and take no time."""
    monkeypatch.setattr(scores, "save_curves", lambda path, *_: path.touch())
    return prepare(tmp_path, monkeypatch, QuickPrograms())


def test_variants_share_a_clone_and_fill_tables(programs):
    assert ablations.main([*WORDS, "--target=2.3"]) == 0
    assert programs.stages == [
        ("collect", "out/base/collect"),
        ("pretrain", "out/base/pretrain"),
        *(("finetune", f"out/base/seed_{seed}") for seed in (0, 1)),
        *(("finetune", f"out/clip-0_5/seed_{seed}") for seed in (0, 1)),
    ]
    text = Path("out/table.md").read_text()
    assert text.startswith("`clip`: clip range of the last denoising step")
    # Two iterations; only one seed of the base reaches 2.3, in the second one.
    (base,) = [x for x in text.splitlines() if x.startswith("| 0.1 (base) | 2 | 2.6 ")]
    assert base.endswith("| 200 (1 of 2) | 1.5 (1 of 2) |")
    (other,) = [x for x in text.splitlines() if x.startswith("| 0.5 | 2 | 3 [")]
    assert other.endswith("| 150 | 1 |")
    assert Path("out/clip.png").exists() and Path("out/scores.csv").exists()


def test_finished_runs_are_not_repeated_and_values_may_be_added(programs):
    programs.fails = lambda words: "--config.run_dir=out/clip-0_5/seed_1" in words
    assert ablations.main(WORDS) == 1
    assert "- failed: 0.5, seed 1: exit status 2" in Path("out/table.md").read_text()
    programs.words.clear()
    programs.fails = lambda words: False
    more = [*WORDS, "--axis=chunk=2,4", "--axis=clip=0.01"]
    assert ablations.main(more) == 0
    assert [run for _, run in programs.stages] == [
        *("out/clip-0_5/seed_1", "out/clip-0_01/seed_0", "out/clip-0_01/seed_1"),
        *("out/chunk-2/pretrain", "out/chunk-2/seed_0", "out/chunk-2/seed_1"),
    ]
    assert "`chunk`: actions of a chunk" in Path("out/table.md").read_text()


def test_variants_of_the_initial_state_share_a_clone(programs):
    words = ["--output=out", "--config=tiny.py", "--seeds=1"]
    assert ablations.main([*words, "--axis=initial_state=0,0.01"]) == 0
    cloned = [run for stage, run in programs.stages if stage == "pretrain"]
    assert cloned == ["out/base/pretrain"]


def test_a_dry_run_lists_what_is_left_and_writes_nothing(programs, capsys):
    assert ablations.main([*WORDS, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert programs.words == [] and not Path("out").exists()
    # Four environments with two chunks of four actions, twice.
    line = "| base | - | 0, 0 of 2 | 32 | 64 | unknown | out/base/pretrain (to be "
    assert line in said and "algorithm.ppo.clip_top=0.5" in said
    assert "How long they take is unknown" in said
    ablations.main(WORDS)
    capsys.readouterr()
    assert ablations.main([*WORDS, "--dry-run"]) == 0
    assert "| base | - | 2, 2 of 2 | 32 | 64 | - | out/base/pretrain |" in (
        capsys.readouterr().out
    )


def test_times_are_measured_or_estimated_from_another_variant(tmp_path, monkeypatch):
    """The last iteration of the run took 4 seconds, of which 3 for the roll-out."""
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "avoid_m1" / "finetune")
    (entry,) = read_entries(
        [f"a={compare_spec()}"],
        [("config", "loop.finetune.num_iterations=3")],
        output="out",
        num_seeds=1,
    )
    measured = plan._measure(entry.config)
    assert measured is not None and (measured.seconds, measured.rollout) == (4, 3)
    twice = entry.config.copy_and_resolve_references()
    twice.rollout.num_envs *= 2
    twice.algorithm.ppo.epochs *= 2
    twice.model.sampling.num_tuned_steps *= 2
    # Twice the steps, and eight times as many updates of pairs.
    assert plan.estimate(measured, twice).seconds == pytest.approx(2 * 3 + 8 * 1)
    assert run.exists()


def compare_spec():
    return f"{commands.REPOSITORY}/experiments/configs/avoid.py:m1"


def test_the_first_evaluation_that_reaches_a_score_counts(tmp_path):
    """Evaluations score 0.3 before, and 0.9 after 1200 steps and 14 + 4 + 4 s."""
    config = compare.parse(["--output=o", f"a={compare_spec()}"]).entries[0].config
    config.run_dir = str(make_run(tmp_path / "run"))
    run = scores.Run("a", config)
    assert scores.reached(run, "eval/success", 0.9) == (1200, 22)
    assert scores.reached(run, "eval/success", 0.3) == (0, 0)
    assert scores.reached(run, "eval/success", 0.95) is None
    assert np.isfinite(scores.reached(run, "success", 0.5)).all()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--output=out"], "nothing to vary; pass --preset=TASK"),
        (["--output=out", "--config=tiny.py"], "nothing to vary"),
        (["--config=tiny.py", "--axis=clip=1"], "no folder to write to"),
        (["--output=out", "--preset=ant"], "--preset=ant is unknown"),
        (["--output=out", "--preset=avoid:x"], "avoid has the axes tuned_steps"),
        (["--output=out", "--config=tiny.py", "--axis=clip"], "names no values"),
        (["--output=out", "--config=tiny.py", "--axis=clip=1,,"], "names no values"),
        (["--output=out", "--config=tiny.py", "--axis=clp=1"], "clp is unknown"),
        (
            ["--output=out", "--config=tiny.py", "--axis=tuned_steps=99"],
            "tuned_steps-99: num_tuned_steps=99 must lie between",
        ),
        (
            ["--output=out", "--config=tiny.py", "--axis=initial_state=-1"],
            "env.randomization.initial_state=-1.0 must be 0 or positive",
        ),
        (["--output=out", "--preset=avoid", "--seeds=0"], "--seeds=0 must be"),
        (["--output=out", "--preset=avoid", "--config.sed=1"], "did you mean seed"),
    ],
)
def test_wrong_commands_are_refused_before_anything_is_written(
    programs, words, message
):
    with pytest.raises(SettingsError, match=message):
        ablations.main(words)
    assert programs.words == [] and not Path("out").exists()
