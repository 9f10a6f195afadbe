"""A wrong command or setting ends a program in one line."""

import os
import re
import sys

import jax
import numpy as np
import pytest
from jax.experimental import io_callback

from dppo_jax.errors import SettingsError
from experiments import command_line, evaluate, processes
from tests import commands
from tests.conftest import REPOSITORY


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
        (["--config.model.sampling.eta=nan"], "eta=nan: the value must be finite"),
        (["--checkpoint=best"], "reads no policy"),
    ],
)
def test_a_wrong_command_ends_in_one_line_and_writes_nothing(
    tmp_path, monkeypatch, arguments, message
):
    """`test_wheel.py` starts a process for one more."""
    monkeypatch.chdir(tmp_path)
    config = f"--config={REPOSITORY}/experiments/configs/avoid.py:m1"
    status, errors = commands.end("experiments.collect", [config, *arguments])
    assert status == 2 and errors.startswith("error: ")
    assert message in errors and errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_tells_what_a_program_does(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--help"])
    command_line.run_stage(evaluate.main, takes_run=True, takes_checkpoint=True)
    told = capsys.readouterr().out
    assert told.startswith("Score a saved policy: python -m experiments.evaluate RUN")
    assert "--config.KEY=VALUE sets a setting" in told


def test_paths_may_begin_with_the_home_directory(monkeypatch):
    """A shell passes --config.data=~/data as it is."""
    home = os.path.expanduser("~")
    paths = {"data": "~/d.npz", "policy": "runs/~p", "run_dir": "~"}
    words = [f"--config.{name}={path}" for name, path in paths.items()]
    monkeypatch.setattr(sys, "argv", ["stage", *words])
    found = []
    command_line.run_stage(
        lambda config: found.append([config[name] for name in paths]),
        needs_config=False,
    )
    assert found == [[f"{home}/d.npz", "runs/~p", home]]


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


@pytest.mark.parametrize(("is_gone", "status"), [(True, 141), (False, 2)])
def test_a_reader_that_has_read_enough_is_no_error(
    is_gone, status, monkeypatch, capsys
):
    """As `| head`. A pipe to another process may break too, which is an error."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as waiting, os.fdopen(writer, "w") as stream:
        if is_gone:
            waiting.close()
        stream.write("a line")
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as ended, processes.errors_in_one_line():
            raise BrokenPipeError
        assert ended.value.code == status
        stream.write("another line")  # It goes nowhere.
    assert capsys.readouterr().err == ("" if is_gone else "error: \n")


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


@pytest.mark.parametrize("program", ["deploy", "export_reference"])
def test_programs_with_two_paths_explain_themselves(program, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "What it does.")
    with pytest.raises(SystemExit) as ended:
        command_line.parse_flags([program, "--help"])
    assert not ended.value.code and capsys.readouterr().out == "What it does.\n"
