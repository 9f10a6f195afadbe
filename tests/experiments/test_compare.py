"""Comparisons: their runs, what these share, how they resume, and their results."""

import csv
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from dppo_jax.demonstrations import save_dppo_npz
from dppo_jax.errors import SettingsError
from dppo_jax.training import wandb_run
from dppo_jax.training.metrics import read_metrics
from experiments import compare, entries, scores
from experiments.settings import load_config, override
from tests.conftest import REPOSITORY
from tests.demonstrations.raw import RAW

pytestmark = pytest.mark.usefixtures("drawn_once")

AVOID = f"{REPOSITORY}/experiments/configs/avoid.py"
HOPPER = f"{REPOSITORY}/experiments/configs/hopper.py"
TINY = """
from experiments.configs import avoid
from tests.stages import TINY
def get_config(variant="m1"):
    config = avoid.get_config(variant)
    config.update_from_flattened_dict(TINY)
    return config
"""


class Programs:
    """Replaces the processes of a comparison; `words` are those of every start."""

    def __init__(self):
        self.words, self.fails = [], lambda words: False

    @property
    def stages(self):
        """Which stages have run, and in which directories."""
        runs = [[x for x in words if "run_dir" in x][-1] for words in self.words]
        return [
            (words[0].split(".")[1], run.partition("=")[2])
            for words, run in zip(self.words, runs)
        ]

    def __call__(self, words):
        self.words.append(words)
        if self.fails(words):
            return 2, "a line\nerror: --config.run_dir is wrong\n"
        return self.work(*words)

    def work(self, stage, spec, *settings):
        config = load_config(spec.removeprefix("--config="))
        override(config, [x.removeprefix("--config.") for x in settings])
        self.run(stage, config)
        return 0, ""

    def run(self, stage, config):
        importlib.import_module(stage).main(config)


class QuickPrograms(Programs):
    """Writes what the programs would; evaluations score seed + clip + iteration."""

    def run(self, stage, config):
        if stage == "experiments.collect":
            (Path(config.data)).mkdir(parents=True)
            return (Path(config.data) / "normalization.npz").touch()
        last = config.loop.finetune.num_iterations
        if stage == "experiments.pretrain":
            last = config.loop.pretrain.num_epochs
        (Path(config.run_dir) / "checkpoints" / str(last)).mkdir(parents=True)
        score = config.seed + config.algorithm.ppo.clip_top
        rows = [f"0,,,{score},{-score}"]
        rows += [f"{i},{100 * i},{0.5 * i},{score + i},{-score}" for i in (1, last)]
        names = "iteration,env_steps,seconds,eval/success,eval/episode_return"
        text = "\n".join([names, *rows]) + "\n"
        (Path(config.run_dir) / "metrics.csv").write_text(text)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Quick programs, in an empty folder with a quick configuration `tiny.py`."""
    monkeypatch.setattr(scores, "save_curves", lambda path, *_: path.touch())
    return prepare(tmp_path, monkeypatch, QuickPrograms())


def prepare(folder, monkeypatch, programs):
    monkeypatch.chdir(folder)
    Path("tiny.py").write_text(TINY)
    monkeypatch.setattr(compare, "run_program", programs)
    return programs


def rows_of_scores():
    with open("out/scores.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_two_entries_run_two_seeds_each_and_resume(
    compiled_once, tmp_path, monkeypatch, capsys
):
    """The programs themselves, from demonstrations to the table."""
    programs = prepare(tmp_path, monkeypatch, Programs())
    words = ["--output=out", "--seeds=2", "a=tiny.py", "b=tiny.py"]
    words += ["--", "--b.algorithm.ppo.clip_top=0.3", "--config.evaluate.num_envs=2"]
    assert compare.main(words) == 0
    assert programs.stages == [
        ("collect", "out/a/collect"),
        ("pretrain", "out/a/pretrain"),
        *(("finetune", f"out/{x}/seed_{seed}") for x in "ab" for seed in (0, 1)),
    ]
    clips = [
        json.loads(Path(f"out/{x}/seed_1/config.json").read_text())["algorithm"]
        for x in "ab"
    ]
    assert [x["ppo"]["clip_top"] for x in clips] == [0.1, 0.3]
    rows = rows_of_scores()
    assert [(x["label"], x["seed"], x["iteration"]) for x in rows] == [
        (label, seed, i) for label in "ab" for seed in "01" for i in "02"
    ]
    for row in rows:
        run = read_metrics(f"out/{row['label']}/seed_{row['seed']}")
        at = {int(x["iteration"]): x for x in run}[int(row["iteration"])]
        assert row["metric"] == "eval/success" and row["num_episodes"] == "6"
        assert float(row["score"]) == at["eval/success"]
        assert float(row["env_steps"]) == at.get("env_steps", 0)
    assert Path("out/curves.png").stat().st_size > 1000
    table = Path("out/table.md").read_text()
    assert "| a | 2 |" in table and "P(better than a)" in table
    assert table in capsys.readouterr().out

    programs.words.clear()
    assert compare.main(words) == 0
    assert programs.words == [] and Path("out/table.md").read_text() == table
    said = capsys.readouterr().out
    assert said.count("finished, not run again") == 4 and table in said


def test_the_table_has_the_statistics_of_the_last_scores(programs):
    """Scores are 20 + seed + clip; iterations take 0.5 s and 10 s."""
    words = ["--output=out", "--seeds=3", "a=tiny.py", "b=tiny.py"]
    words += ["--config.loop.finetune.num_iterations=20"]
    assert compare.main([*words, "--b.algorithm.ppo.clip_top=0.6"]) == 0
    header, _, a, b = Path("out/table.md").read_text().splitlines()[:4]
    assert header.startswith("| entry | seeds | final eval/success: IQM [95 % interval")
    # Of nine pairs, b has the higher score in six. The bootstrap of three scores that
    # differ by one reaches the lowest and the highest: 1/27 of its draws, above 2.5 %.
    assert a == "| a | 3 | 21.1 [20.1, 22.1] | 21.1 | 2000 | 5.25 | - |"
    assert b.startswith("| b | 3 | 21.6 [20.6, 22.6] | 21.6 | 2000 | 5.25 | 0.6667 [")
    last = [x["score"] for x in rows_of_scores() if x["iteration"] == "20"]
    assert last == ["20.1", "21.1", "22.1", "20.6", "21.6", "22.6"]
    words = ["--output=out", "--seeds=3", "--metric=eval/episode_return", "a=tiny.py"]
    assert compare.main([*words, "--config.loop.finetune.num_iterations=20"]) == 0
    assert "| a | 3 | -1.1 [-2.1, -0.1] |" in Path("out/table.md").read_text()


def test_a_failed_run_is_named_and_the_others_go_on(programs, capsys):
    programs.fails = lambda words: "--config.run_dir=out/b/seed_0" in words
    words = ["--output=out", "--seeds=2", "a=tiny.py", "b=tiny.py:m2"]
    assert compare.main(words) == 1
    assert programs.stages[-1] == ("finetune", "out/b/seed_1")
    table = Path("out/table.md").read_text()
    assert "| a | 2 |" in table and "| b | 1 of 2 | 3.1 |" in table
    # The user gave no --config.run_dir.
    assert "- failed: b, seed 0: exit status 2: --output is wrong\n" in table
    assert {(x["label"], x["seed"]) for x in rows_of_scores()} == {
        *(("a", "0"), ("a", "1"), ("b", "1"))
    }
    programs.words.clear()
    programs.fails = lambda words: False
    assert compare.main(words) == 0
    assert programs.stages == [("finetune", "out/b/seed_0")]
    assert "failed" not in Path("out/table.md").read_text()


def test_without_a_cloned_policy_an_entry_fails_but_no_other(programs):
    programs.fails = lambda words: "--config.run_dir=out/b/pretrain" in words
    words = ["--output=out", "--seeds=2", "a=tiny.py", "b=tiny.py:m1_gaussian"]
    assert compare.main(words) == 1
    ran = [run for stage, run in programs.stages if stage != "collect"]
    assert ran == ["out/a/pretrain", "out/a/seed_0", "out/a/seed_1", "out/b/pretrain"]
    table = Path("out/table.md").read_text()
    assert "| b | 0 of 2 | - | - | - | - |" in table
    for seed in (0, 1):
        assert f"failed: b, seed {seed}: cloned policy out/b/pretrain: exit" in table


def test_demonstrations_that_cannot_be_collected_are_tried_once(programs):
    programs.fails = lambda words: True
    words = ["--output=out", "--seeds=1", "a=tiny.py", "b=tiny.py:m1_gaussian"]
    assert compare.main(words) == 1 and not Path("out/curves.png").exists()
    assert programs.stages == [("collect", "out/a/collect")]
    failed = "cloned policy out/b/pretrain: demonstrations out/a/data: exit status 2"
    assert f"- failed: b, seed 0: {failed}" in Path("out/table.md").read_text()


def test_a_clone_of_another_length_is_another(programs):
    shared = found("a=tiny.py", "b=tiny.py", "--b.loop.pretrain.num_epochs=4")
    assert [policy for _, policy in shared] == ["out/a/pretrain", "out/b/pretrain"]


def test_an_interrupt_ends_the_comparison(programs):
    programs.work = lambda *words: (130, "interrupted")
    with pytest.raises(KeyboardInterrupt):
        compare.main(["--output=out", "a=tiny.py"])
    assert len(programs.words) == 1


def test_seeds_iterations_and_entries_may_be_added(programs):
    """The new entry comes first, and shares the clone that exists."""
    assert compare.main(["--output=out", "--seeds=1", "b=tiny.py"]) == 0
    programs.words.clear()
    words = ["--output=out", "--seeds=2", "a=tiny.py:m1_exact", "b=tiny.py"]
    assert compare.main(words) == 0
    assert [run for _, run in programs.stages] == [
        *("out/a/seed_0", "out/a/seed_1", "out/b/seed_1")
    ]
    assert all("--config.policy=out/b/pretrain" in words for words in programs.words)
    programs.words.clear()
    assert compare.main([*words, "--config.loop.finetune.num_iterations=3"]) == 0
    assert [stage for stage, _ in programs.stages] == ["finetune"] * 4


def found(*words):
    """Where every entry gets its demonstrations and its policy from."""
    comparison = compare.parse(["--output=out", *words])
    return [x[-2:] for x in entries.prepare("out", comparison.entries)]


def test_entries_share_what_their_settings_agree_in(programs):
    """Steps of sampling change no weight, chunks and data do."""
    words = (f"a={AVOID}:m1", f"b={AVOID}:m1_ddim", f"c={AVOID}:m1_flow1")
    words += (f"d={AVOID}:m1_flow", f"e={AVOID}:m2", f"f={AVOID}:m1")
    own, data = "out/{}/pretrain".format, "out/a/data"
    changes = ("--f.model.chunk=2", "--b.loop.finetune.num_iterations=7")
    assert found(*words, *changes) == [
        *((data, own("a")), (data, own("a")), (data, own("c")), (data, own("c"))),
        *(("out/e/data", own("e")), (data, own("f"))),
    ]
    Path("data/avoid_m2").mkdir(parents=True)
    assert found(*words[4:5]) == [("data/avoid_m2", own("e"))]
    for path in ("some/data", "runs/x"):
        Path(path).mkdir(parents=True)
    assert found("g=tiny.py:m2", "--g.data=some/data")[0][0] == "some/data"
    given = found("h=tiny.py", "i=tiny.py", "--h.policy=runs/x", "--i.policy=none")
    assert given == [("", ""), ("", "")]


@pytest.mark.parametrize(
    "words, data",
    [
        (
            ("a=tiny.py", "b=tiny.py", "--b.env.randomization.initial_state=0.1"),
            "out/a/data",
        ),
        ((f"a={AVOID}:m2", f"b={AVOID}:m2_idql", "--config.data=demos"), "demos"),
    ],
)
def test_what_only_fine_tuning_reads_changes_neither_data_nor_clones(
    programs, words, data
):
    """Unless a clone is there: runs of the entry may have started from it."""
    Path("demos").mkdir()
    assert found(*words) == [(data, "out/a/pretrain")] * 2
    Path("out/b/pretrain").mkdir(parents=True)
    assert found(*words)[1] == (data, "out/b/pretrain")


@pytest.mark.parametrize(
    "spec", [f"{HOPPER}:sac", f"{HOPPER}:fast", f"{AVOID}:m3_gmm", "tiny.py:m1_flow"]
)
def test_recorded_settings_are_those_of_the_configuration(programs, spec):
    assert found(f"a={spec}") == found(f"a={spec}")


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "no entries; write LABEL=FILE.py:VARIANT for each"),
        (["tiny.py"], "'tiny.py' names no configuration; write LABEL="),
        (["--config=tiny.py"], "an entry needs a label; write LABEL=tiny.py"),
        (["a=tiny.py", "a=tiny.py:m2"], "label 'a' is given twice"),
        (["../a=tiny.py"], "'../a' cannot be a label"),
        (["config=tiny.py"], "'config' cannot be a label"),
        (["a=none.py"], "a: --config=none.py: there is no such file"),
        (["a=tiny.py:m9"], "a: avoid.py:m9 is unknown"),
        (["a=tiny.py", "--a.sed=1"], "a: unknown setting --config.sed; did you mean"),
        (["a=tiny.py", "--b.seed=1"], "--b.seed=1: no entry has this label"),
        (["a=tiny.py", "--config.num_seeds=2"], "chooses num_seeds itself; use --see"),
        (["a=tiny.py", "--a.run_dir=x"], "chooses run_dir itself; use --output"),
        (["a=tiny.py", "--config.mesh.distributed=1"], "a: mesh.distributed=True"),
        (["a=tiny.py", "--seeds=0"], "--seeds=0 must be at least 1"),
        (["a=tiny.py", "--seeds=x"], "invalid int value"),
        (["a=tiny.py", "--colour=red"], "unrecognized arguments: --colour=red"),
        (["a=tiny.py", "--a.seed=-1"], "a: seed=-1 must be between"),
        (["a=tiny.py", "--a.data=gone"], "a: data=gone does not exist"),
        (["a=tiny.py", "--a.policy=gone"], "a: policy=gone does not exist"),
        (["a=tiny.py", "--a.model.chunk=0"], "a: model.chunk=0 must be at least 1"),
        (["a=tiny.py", "--a.rollout.action_noise=-1"], "a: rollout.action_noise=-1.0"),
        (
            ["a=tiny.py", "--config.loop.finetune.num_iterations=0"],
            "num_iterations=0 must be at least 1",
        ),
        (
            ["a=tiny.py", f"b={HOPPER}:fast"],
            "a and b have env.task='avoid' and 'hopper', .* entries of one task",
        ),
        (
            ["a=tiny.py", "b=tiny.py", "--b.evaluate.num_episodes=7"],
            "evaluate.num_episodes=6 and 7, .*--config.evaluate.num_episodes=6",
        ),
    ],
)
def test_wrong_commands_are_refused_before_anything_is_written(
    programs, words, message
):
    with pytest.raises(SettingsError, match=message):
        compare.main(["--output=out", *words])
    assert programs.words == [] and not Path("out").exists()


def test_an_output_folder_is_needed_and_must_be_of_the_same_comparison(programs):
    with pytest.raises(SettingsError, match="pass --output=runs/compare/NAME"):
        compare.main(["a=tiny.py"])
    with pytest.raises(SettingsError, match="tiny.py is a file; pass another --output"):
        compare.main(["--output=tiny.py", "a=tiny.py"])
    with pytest.raises(SettingsError, match="something else than a comparison"):
        compare.main(["--output=.", "a=tiny.py"])
    assert found("a=tiny.py") == found(
        "a=tiny.py", "--config.loop.finetune.log_every=2"
    )
    record = Path("out/compare.json")
    before = record.read_text()
    Path("out/a/seed_0/checkpoints").mkdir(parents=True)
    for setting, message in (
        ("algorithm.ppo.epochs=7", "the entry a with algorithm.ppo.epochs=1, not 7"),
        ("loop.pretrain.num_epochs=4", "with loop.pretrain.num_epochs=3, not 4"),
        ("evaluate.num_envs=2", "with evaluate.num_envs=4, not 2; restore it to"),
    ):
        with pytest.raises(SettingsError, match=message):
            compare.main(["--output=out", "a=tiny.py", f"--a.{setting}"])
    assert record.read_text() == before and programs.words == []
    record.write_text(before[:100])
    with pytest.raises(SettingsError, match="compare.json is damaged"):
        compare.main(["--output=out", "a=tiny.py"])


def test_a_comparison_resumes_after_settings_were_added(programs):
    """Also those of a demonstrator, whose sections have no defaults of their own."""
    hopper = Path(__file__).parents[2] / "experiments/configs/hopper.py"
    Path("demos").mkdir()
    words = (f"a={hopper}:cpu", "--config.data=demos")
    before = found(*words)
    record = Path("out/compare.json")
    saved = json.loads(record.read_text())
    for section in (saved["entries"]["a"], saved["entries"]["a"]["collect"]):
        del section["model"]["sampling"]["ddim_spacing"]
    record.write_text(json.dumps(saved))
    assert found(*words) == before


def test_a_comparison_resumes_with_metrics_sent_elsewhere(programs, monkeypatch):
    monkeypatch.setattr(wandb_run, "check_installed", lambda: None)
    assert compare.main(["--output=out", "--seeds=1", "a=tiny.py"]) == 0
    sent = found("a=tiny.py", "--config.wandb.project=dppo")
    assert sent == [("out/a/data", "out/a/pretrain")]


def test_more_demonstrations_than_there_are_are_refused_before_anything_runs(programs):
    save_dppo_npz("demos", RAW)
    words = ("a=tiny.py", "--config.data=demos", "--config.pretrain.num_episodes=3")
    with pytest.raises(SettingsError, match="a, demos: .*=3 .* the 2 episodes"):
        found(*words)
    assert not Path("out").exists()
    found(*words, "--config.pretrain.num_episodes=2")
    # Once cloned, the data may have changed.
    Path("out/a/pretrain").mkdir(parents=True)
    found(*words)


def test_a_finished_comparison_needs_no_data_any_more(programs):
    Path("demos").mkdir()
    words = ["--output=out", "--seeds=1", "a=tiny.py", "--config.data=demos"]
    assert compare.main(words) == 0
    Path("demos").rmdir()
    assert compare.main(words) == 0


def test_a_metric_that_no_run_logged_is_refused(programs):
    with pytest.raises(SettingsError, match="no 'x'; pass --metric=NAME, one of env_s"):
        compare.main(["--output=out", "--seeds=2", "a=tiny.py", "--metric=x"])
    # It is found after the first run, not after all of them.
    assert [stage for stage, _ in programs.stages].count("finetune") == 1


def test_a_run_counts_up_to_the_configured_iteration(programs):
    """A lower number of iterations cuts longer runs off."""
    words = ["--output=out", "--seeds=1", "a=tiny.py"]
    assert compare.main([*words, "--config.loop.finetune.num_iterations=20"]) == 0
    assert compare.main([*words, "--config.loop.finetune.num_iterations=5"]) == 0
    assert [row["iteration"] for row in rows_of_scores()] == ["0", "1"]


def test_a_stopped_run_is_finished(programs):
    words = ["--output=out", "--seeds=1", "a=tiny.py"]
    words += ["--config.loop.finetune.evaluate_every=1"]
    assert compare.main(words) == 0
    programs.words.clear()
    words += ["--config.loop.finetune.num_iterations=9"]
    stop = "--config.loop.finetune.stop_at_return={}".format
    assert compare.main([*words, stop(-0.2)]) == 0 and programs.words == []
    assert compare.main([*words, stop(5)]) == 0 and len(programs.words) == 1


def test_the_end_of_what_a_program_says_is_kept(capfd):
    status, said = compare.run_program(["json.tool", "missing.json"])
    assert status == 2 and "missing.json" in said
    assert said == capfd.readouterr().err


def test_help_shows_an_example_that_works(programs, capsys):
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    said = capsys.readouterr().out
    assert "--output FOLDER" in said and "--LABEL.KEY=VALUE that of one" in said
    example = said.partition("python -m experiments.compare --output")[2]
    example = f"--output{example}".partition("\n\n")[0]
    words = example.replace("\\\n", " ").replace("experiments/configs", "").split()
    words = [x.replace("=/avoid.py", f"={AVOID}") for x in words]
    labels = [x.label for x in compare.parse(words).entries]
    assert labels == ["dppo", "fpo"]


def test_one_score_has_no_interval_and_no_time_no_median():
    final = scores.Final(np.float64(0.5), np.float64(0.75), np.nan, [])
    assert scores._cells([final], [final]) == ["0.5", "0.75", "nan", "nan", "0.5"]


@pytest.mark.parametrize(
    "lines, message",
    [
        (2, "ends at iteration 0, but the newest checkpoint is 10; restore the file"),
        (0, "is missing or empty, but the newest checkpoint is 10"),
    ],
)
def test_a_finished_run_with_a_cut_history_fails_and_others_are_compared(
    programs, capsys, lines, message
):
    words = ["--output=out", "--seeds=1", "a=tiny.py", "b=tiny.py"]
    words += ["--config.loop.finetune.num_iterations=10"]
    assert compare.main(words) == 0
    file = Path("out/a/seed_0/metrics.csv")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:lines]))
    ran = len(programs.words)
    capsys.readouterr()
    assert compare.main(words) == 1 and len(programs.words) == ran
    said = capsys.readouterr().out
    assert message in said and "failed: a, seed 0" in said and "| b | 1 |" in said


def test_settings_of_an_entry_that_was_never_trained_may_be_corrected(programs):
    wrong, right = (f"a.algorithm.ppo.epochs={x}" for x in (7, 8))
    assert found("a=tiny.py", f"--{wrong}") == found("a=tiny.py", f"--{right}")
    assert compare.main(["--output=out", "--seeds=1", "a=tiny.py", f"--{right}"]) == 0
    with pytest.raises(SettingsError, match="with algorithm.ppo.epochs=8, not 7"):
        compare.main(["--output=out", "--seeds=1", "a=tiny.py", f"--{wrong}"])


def test_a_label_that_is_too_long_writes_nothing(programs):
    with pytest.raises(SettingsError, match="at most 64 letters"):
        compare.main(["--output=out", f"{'x' * 65}=tiny.py"])
    assert not Path("out").exists()


def test_runs_that_are_left_out_of_the_table_are_named(programs, capsys):
    words = ["--output=out", "a=tiny.py", "b=tiny.py"]
    compare.main([*words, "--seeds=2"])
    assert "not in the table" not in capsys.readouterr().out
    compare.main([*words[:2], "--seeds=1"])
    said = capsys.readouterr().out
    assert "not in the table: a/seed_1, b/seed_0, b/seed_1; name" in said
