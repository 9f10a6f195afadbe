"""The report of a run, and comparisons of runs."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dppo_jax.errors import SettingsError
from dppo_jax.training.run_lock import locked
from experiments import curves, plots, report
from experiments.reports import html, run_page
from tests import commands
from tests.runs_on_paper import ROWS, make_run

# Elements without an end tag.
VOID = ("meta", "img", "input", "br")


class Page(HTMLParser):
    """Refuses tags that do not nest; collects the text, and what is loaded."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.loaded = [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.loaded += [x for name, x in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data + " "


def page_of(run_dir):
    text = run_page.make(run_dir)
    assert "url(" not in text and "@import" not in text and "<script" not in text
    return Page(text)


def test_a_report_says_what_a_run_was_and_what_it_reached(tmp_path):
    run_dir = make_run(tmp_path / "avoid" / "tuned", algorithm__ppo__epochs=7)
    (run_dir / "plots").mkdir()
    Image.new("RGB", (4, 4)).save(run_dir / "plots" / "trajectories.png")
    page = page_of(run_dir)
    for part in (
        *("avoid_m1: finetune", "DPPO of a diffusion policy", "task avoid, seed 0"),
        *("finished after 3 iterations", "30 → 90 %", "1 → 2.5"),
        # Wilson's intervals of 3 and 9 of 10, Student's of the return.
        *("[10.8, 60.3] → [59.6, 98.2]", "[0.774, 1.23] → [2.05, 2.95]"),
        *("10 episodes each", "iteration 0 → 3", "1.2k", "100 steps/s"),
        *("environment steps", "KL estimate (10⁻⁵ nats)", "clip fraction (%)"),
        *("--config.algorithm.ppo.epochs=7", "passes over the data of an iteration"),
        *("git d350f83", "jax 0.10.2", "/home/me/cloned, checkpoint 7, digest abc"),
    ):
        assert part in page.text, part
    for part in ("no checkpoint", "--config.evaluate.deterministic"):  # a default
        assert part not in page.text, part
    (picture,) = page.loaded
    assert picture.startswith("data:image/png;base64,")


def test_scores_of_episodes_that_end_early_are_explained(tmp_path):
    """An iteration has 25 chunks of 4 control steps, and an episode at most 100."""
    whole = dict(rollout__reset_at_iteration=False)
    for name, changes, told in (
        ("reset", dict(env__max_steps=200), False),
        ("whole", whole, False),
        ("parts", whole | dict(env__max_steps=200), True),
    ):
        text = page_of(make_run(tmp_path / name, **changes)).text
        assert ("episodes that ended early" in text) == told, name


def test_on_a_narrow_screen_a_setting_stands_above_its_meaning(tmp_path):
    run_dir = make_run(tmp_path / "run", algorithm__ppo__epochs=7)
    page = run_page.make(run_dir)
    assert '<table class="stacked">\n<tr><th>setting</th>' in page
    assert '<td data-name="meaning">passes over the data of an iteration</td>' in page
    # What comes first in a row needs no name.
    assert 'data-name="setting"' not in page
    # A row without names of columns has none in its cells either.
    assert "<td>directory</td><td>" in page
    assert "data-name" not in html.table(("a", "b"), [("x", "y")])


def test_a_report_says_where_the_time_went(tmp_path):
    """An iteration takes 4 s, 3 of them for its roll-out; the first compiles for 10."""
    text = page_of(make_run(tmp_path)).text
    table = re.search(r"part\s+time\s+share\s+(.*?)\s+Settings", text, re.DOTALL)[1]
    assert (
        table.split()
        == (
            "compiling 10 s 38.5 % roll-outs 9 s 34.6 % updates 3 s 11.5 % "
            "evaluations 4 s 15.4 %"
        ).split()
    )


def test_values_that_a_chart_cannot_show_do_not_spoil_it(tmp_path):
    """A divergence below zero, an infinite loss, a critic far worse than the mean."""
    rows = ROWS.replace("-2e-9", "inf").replace("0.12,", "nan,")
    assert "KL estimate" in page_of(make_run(tmp_path, rows=rows)).text
    drawn = run_page.make(tmp_path)
    assert not re.search(r'[ "LM](nan|inf)\b', drawn)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            dict(checkpoint=2),
            "interrupted at iteration 3 of 3; the same command resumes",
        ),
        (dict(checkpoint=None), "interrupted at iteration 3 of 3, before the first"),
        (
            dict(loop__finetune__num_iterations=9, loop__finetune__stop_at_return=2.4),
            "finished at iteration 3 of 9: a return of 2.4 was reached",
        ),
        (dict(rows="", checkpoint=None), "no iteration can be read"),
        (dict(rows=ROWS + "a,b\n4,1\n"), "metrics.csv is damaged, so there are no cur"),
        (dict(rows=""), "metrics.csv holds no rows yet"),
    ],
)
def test_runs_that_are_not_whole_are_described_in_words(changes, said, tmp_path):
    page = page_of(make_run(tmp_path, **changes))
    assert said in page.text
    assert "--config.env.task=avoid" in page.text  # The rest is there.


def test_a_report_of_a_run_that_goes_on_says_so(tmp_path):
    make_run(tmp_path, checkpoint=2)
    with locked(tmp_path):
        assert "running, iteration 3 of 3" in page_of(tmp_path).text


def test_damaged_files_are_named(tmp_path):
    make_run(tmp_path)
    metadata = tmp_path / "checkpoints/3/_CHECKPOINT_METADATA"
    (tmp_path / "evaluation.json").write_text("[]")
    for text in ("{", '{"commit_timestamp_nsecs": null, "custom_metadata": [1]}'):
        metadata.write_text(text)
        assert "not recorded" in page_of(tmp_path).text
    (tmp_path / "config.json").write_text('{"stage": ')
    assert "config.json is not valid JSON" in page_of(tmp_path).text
    (tmp_path / "metrics.csv").unlink()
    assert "there is no metrics.csv" in page_of(tmp_path).text


def test_cloning_has_losses_over_epochs(tmp_path):
    rows = "iteration,loss,average_loss,seconds\n1,1.0,1.5,3\n10,0.1,0.2,1\n"
    page = page_of(make_run(tmp_path, "pretrain", rows, loop__pretrain__num_epochs=3))
    for part in ("behaviour cloning", "Cloning loss", "1 → 0.1", "epoch", "training"):
        assert part in page.text, part
    assert "environment steps" not in page.text


def test_warnings_of_the_coach_are_repeated_with_their_iterations(tmp_path):
    """In rows 5 to 8 of 8 none of the last five succeeded, and later one did."""
    rows = "".join(f"{i},{int(i == 9)}\n" for i in range(1, 10))
    make_run(tmp_path, rows="iteration,success\n" + rows)
    text = page_of(tmp_path).text
    assert "no_success (iterations 5 to 8, not at the end): none of the epis" in text
    assert text.count("no_success") == 1


def test_an_evaluation_by_itself_is_shown(tmp_path):
    make_run(tmp_path)
    (tmp_path / "evaluation.json").write_text(
        '{"checkpoint": 3, "num_episodes": 200, "seed": 7, "metrics": {"success": '
        '0.975}, "intervals": {"success": [0.942, 0.989]}}'
    )
    text = page_of(tmp_path).text
    assert "97.5 %" in text and "200 episodes, seed 7; 95 % in [94.2, 98.9]" in text


def test_a_report_that_fails_is_a_warning(tmp_path, monkeypatch, capsys):
    """Whatever it is, the run is complete."""

    def fail(run_dir):
        raise ZeroDivisionError("no\nreport")

    monkeypatch.setattr(run_page, "make", fail)
    run_page.finish(make_run(tmp_path))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: ") and "ZeroDivisionError: no report" in line
    monkeypatch.undo()
    run_page.refresh(tmp_path)  # There is no report to write again.
    assert not (tmp_path / "report.html").exists()
    run_page.finish(tmp_path)
    assert "finished after 3" in (tmp_path / "report.html").read_text()


def test_the_program_writes_a_report_into_every_run(tmp_path, capsys):
    runs = [str(make_run(tmp_path / name)) for name in "ab"]
    report.main(runs)
    assert capsys.readouterr().out == "".join(f"wrote {x}/report.html\n" for x in runs)
    for wrong, said in (("nowhere", "does not exist"), ("", "holds no run.*one of")):
        with pytest.raises(SettingsError, match=said):
            report.main([str(tmp_path / wrong)])


def test_a_folder_of_seeds_gets_a_page_for_each_and_one_for_all(tmp_path, capsys):
    for seed in (0, 1):
        make_run(tmp_path / f"seed_{seed}", seed=seed)
    report.main([str(tmp_path)])
    pages = [tmp_path / x / "report.html" for x in ("seed_0", "seed_1", "")]
    assert capsys.readouterr().out.splitlines() == [f"wrote {x}" for x in pages]
    assert "2 seeds of" in Page(pages[-1].read_text()).text


def test_a_comparison_draws_and_tabulates_groups_of_runs(tmp_path, capsys):
    one, other = (make_run(tmp_path / name) for name in "ab")
    output = str(tmp_path / "c.png")
    report.main([f"tiny={one},{other}"], output, ["eval/episode_return"])
    assert (tmp_path / "c.png").stat().st_size > 1000
    row = "| tiny | 2 | eval/episode_return | 1.000 | 2.500 | 2.500, 2.500 |"
    assert row in capsys.readouterr().out


def test_a_comparison_may_be_a_page(tmp_path, capsys):
    """Groups of one run each, without labels; one has another learning rate."""
    rate = dict(algorithm__ppo__actor__learning_rate=0.5)
    rows = ROWS.replace("0.9,2.5", "0.5,2.5")
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", rows=rows, **rate)]
    report.main(list(map(str, runs)), str(tmp_path / "new" / "c.html"))
    page = Page((tmp_path / "new" / "c.html").read_text())
    for part in ("30.0 %", "90.0 %", "50.0 %", "algorithm.ppo.actor.learning_rate"):
        assert part in page.text, part
    assert "algorithm.ppo.epochs" not in page.text  # It is the same in both.
    assert f"wrote {tmp_path}/new/c.html" in capsys.readouterr().out


def test_a_comparison_shows_what_all_runs_have(tmp_path, capsys):
    """Cloning has no success in roll-outs, and a task may have none at all."""
    cloned = "iteration,loss,eval/success\n1,0.5,0.25\n2,0.4,0.5\n"
    runs = make_run(tmp_path / "a"), make_run(tmp_path / "b", "pretrain", cloned)
    output = str(tmp_path / "out.png")
    report.main([f"a={runs[0]}", f"b={runs[1]}"], output)
    said = capsys.readouterr().out
    assert said.count("| eval/success |") == 2 and "| success |" not in said
    (runs[0] / "metrics.csv").write_text("iteration,episode_return\n1,2.5\n2,3\n")
    report.main([f"a={runs[0]}"], output)
    assert "| a | 1 | episode_return | 2.500 | 3.000 |" in capsys.readouterr().out
    (runs[1] / "metrics.csv").write_text("iteration,loss\n1,0.5\n2,0.25\n")
    report.main([f"b={runs[1]}"], output)
    assert "| b | 1 | loss | 0.500 | 0.250 |" in capsys.readouterr().out


def test_a_comparison_over_several_axes(tmp_path, monkeypatch):
    shapes = []
    monkeypatch.setattr(
        plots, "plot_curves", lambda ax, groups, metric, over: shapes.append(over)
    )
    over = ["env_steps", "seconds"]
    run_dir = make_run(tmp_path / "run")
    report.main([f"a={run_dir}"], str(tmp_path / "out.png"), ["success"], over)
    assert shapes == over


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a=/nowhere"], "/nowhere holds no rows"),
        (["a="], "names no runs"),
        (["a=b", "a=c"], "the label 'a' is given twice"),
        ([], "no runs given"),
        (["a=b", "--over=steps"], "--over=steps is unknown; use one of iteration, env"),
        (["/nowhere", "--output=c.txt"], "c.txt is no page or picture; use .html or"),
        (["a", "--metrics=success"], "--metrics=success chooses what a comparison sho"),
        (["a", "--over=seconds"], "--over=seconds chooses what a comparison shows"),
        (["a=b", "--output=c.html", "--over=seconds"], "a page has all axes to choose"),
    ],
)
def test_a_report_of_nothing_is_refused(arguments, said):
    status, errors = commands.end("experiments.report", arguments)
    assert status == 2 and errors.startswith("error: ") and said in errors


def test_the_picture_of_a_run_has_readable_names_and_environment_steps(tmp_path):
    """Exploring and evaluation share a panel."""
    make_run(tmp_path)
    drawn = []

    def keep(ax, *_, draw=plots.draw_panel):
        draw(ax, *_)
        drawn.append(ax)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(plots, "draw_panel", keep)
        plots.save_curve(str(tmp_path))
    labels = [ax.get_ylabel() for ax in drawn]
    assert labels == [
        *("success (%)", "return", "KL estimate (nats)", "clip fraction (%)"),
        "explained variance",
    ]
    assert {ax.get_xlabel() for ax in drawn} == {"environment steps"}
    exploring, evaluation = drawn[0].get_lines()
    np.testing.assert_allclose(exploring.get_ydata(), [20, 50, 60])
    np.testing.assert_allclose(evaluation.get_data(), [[0, 1200], [30, 90]])
    assert (tmp_path / "plots" / "curve.png").stat().st_size > 1000


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
    assert ax.get_xlabel() == curves.AXES[over]
    plots.plt.close(figure)
