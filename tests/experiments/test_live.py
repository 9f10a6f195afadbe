"""The table of a run on a terminal."""

import io
import math
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from dppo_jax.training.progress import Silent
from experiments import console, live


def table(start=0, total=100, **settings):
    """A table that is drawn into memory as on a terminal, and the memory."""
    file = io.StringIO()
    drawn = Console(file=file, force_terminal=True, width=100)
    return live.LiveTable(start, total, console=drawn, **settings), file


def text_of(shown):
    file = io.StringIO()
    Console(file=file, width=100).print(shown.table())
    return file.getvalue()


def test_scores_have_their_interval_and_their_trend():
    """Half of 100 evaluated episodes; 20 of 40 exploring ones, after none of 40."""
    shown, _ = table(num_episodes=100)
    shown.see({"eval/success": 0.5})
    for i in range(1, 5):
        success = 0.5 if i > 2 else 0.0
        row = {"success": success, "num_episodes": 40.0, "env_steps": 50.0 * i}
        shown.see(row | {"seconds": 0.5, "approx_kl": -1e-9, "loss": math.nan})
        shown.reach(i)
    shown.close()
    said = text_of(shown)
    cells = (re.split(r"\s{2,}", line.strip()) for line in said.splitlines())
    lines = {first: others for first, *others in cells}
    assert lines["success, evaluation"] == ["50.0 %", "[40.4, 59.6]", "50.0 %"]
    assert lines["success, exploring"] == ["50.0 %", "[35.2, 64.8]", "↑", "0.0 %"]
    assert "<1e-7" in lines["KL estimate"]
    assert "loss" not in said and "iteration 4 of 100" in said and "100 steps/s" in said


@pytest.mark.parametrize("may_stop", [False, True])
def test_the_time_left_is_a_bound_if_the_run_may_stop(may_stop, monkeypatch):
    """Two iterations take 10 s after the first one, which compiles."""
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    shown, _ = table(may_stop=may_stop)
    assert shown.time_left() == "compiling"
    for i, now[0] in ((1, 60.0), (3, 70.0)):
        shown.reach(i)
    expected = "8 min left"  # 97 times 5 s
    assert shown.time_left() == ("at most " if may_stop else "") + expected
    shown.reach(100)
    assert shown.time_left() == "done in 70 s"
    shown.close()


def test_lines_of_the_program_stay_on_standard_output_if_that_is_a_file(capsys):
    shown, file = table()
    print("warning (code): look")
    shown.close()
    assert capsys.readouterr().out == "warning (code): look\n"
    assert "look" not in file.getvalue()


def test_without_a_terminal_there_are_lines_and_quiet_runs_show_nothing(monkeypatch):
    assert not live.is_possible() and console.progress(total=1) is None
    console.use(console.Shown(quiet=True))
    assert console.progress(total=1) is Silent
    console.use(console.Shown())
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(live.sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    assert not live.is_possible()
    monkeypatch.setenv("TERM", "xterm")
    assert live.is_possible()


def test_no_color_is_respected(monkeypatch):
    def drawn():
        shown, file = table(0, 2)
        for i in range(1, 5):
            shown.see({"success": float(i > 2)})
        shown.reach(2)
        shown.close()
        return file.getvalue()

    # The codes of colours are between 30 and 99; others make bold and move the cursor.
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in drawn()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in drawn()
