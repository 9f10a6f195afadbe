"""The command `dppo-jax`, and help that imports nothing."""

import configparser
import os
import subprocess
import sys

import pytest

from dppo_jax.errors import SettingsError
from experiments import cli, help
from experiments.settings import load_config
from tests.conftest import REPOSITORY


def test_the_command_is_declared():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    declared = setup["options.entry_points"]["console_scripts"].split()
    assert declared == ["dppo-jax", "=", f"{cli.__name__}:{cli.main.__name__}"]


def test_a_program_runs_with_its_arguments_as_by_python_m(monkeypatch, tmp_path):
    """`test_wheel.py` starts it."""
    monkeypatch.chdir(tmp_path)
    started = []

    def run_module(name, **settings):
        started.append((name, settings["run_name"], sys.argv[1:], sys.path[0]))

    monkeypatch.setattr(cli.runpy, "run_module", run_module)
    monkeypatch.setattr(sys, "argv", ["dppo-jax", "export-reference", "a", "b"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    cli.main()
    module = "experiments.export_reference"
    assert started == [(module, "__main__", ["a", "b"], str(tmp_path))]


def test_an_unknown_program_suggests_another(monkeypatch, capsys):
    for word, said in (
        ("finetun", "did you mean finetune?"),
        ("__main__", "no program"),
    ):
        monkeypatch.setattr(sys, "argv", ["dppo-jax", word])
        with pytest.raises(SystemExit, match="2"):
            cli.main()
        errors = capsys.readouterr().err
        assert said in errors and errors.count("\n") == 1


def test_help_imports_neither_jax_nor_numpy():
    """The imports of a program take seconds."""
    words = ["-X", "importtime", "-m", "experiments.finetune", "--help"]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, *words], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("Fine-tune a policy")
    assert "--dry-run" in done.stdout and "--checkpoint" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "experiments.help" in imported and imported.isdisjoint({"jax", "numpy"})


@pytest.mark.parametrize(
    ("words", "answered"),
    [
        ("python -m experiments.finetune --help", True),
        ("python -m experiments.report -h", True),
        ("python -m experiments.compare --help", False),  # It has help of its own.
        ("python --help -m experiments.finetune", False),
        ("python -m experiments.absent --help", False),
        ("python -m experiments --help", False),
        ("pytest --help", False),
    ],
)
def test_only_programs_of_this_package_answer(words, answered, capsys):
    ended = False
    try:
        help.answer(words.split())
    except SystemExit as error:
        ended = not error.code
    assert ended == answered == bool(capsys.readouterr().out)


@pytest.mark.parametrize("spec", ["avoid:m1", "experiments/configs/avoid.py:m1"])
def test_configurations_of_the_package_are_found_in_any_folder(
    spec, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert load_config(spec).env.task == "avoid"
    with pytest.raises(SettingsError, match="no such file. Did you mean .*avoid.py?"):
        load_config("avoidd.py")
