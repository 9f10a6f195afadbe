"""The wheel holds all that its programs need, so they run without the repository."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import REPOSITORY

SMOKE = """
import pathlib, sys
import dppo_jax, experiments, benchmarks
from experiments.settings import load_config
for package in (dppo_jax, experiments, benchmarks):
    assert pathlib.Path(package.__file__).is_relative_to(sys.argv[1]), package
folder = pathlib.Path(experiments.__file__).parent
config = load_config(f"{folder}/configs/avoid.py:demo")
env = dppo_jax.make_task(config.env.task)
print(env.obs_shape["state"], env.action_shape)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds only what the wheel installs."""
    pytest.importorskip("setuptools", reason="building a wheel needs setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", folder, REPOSITORY]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, *map(str, build)], check=True, cwd=folder)
    (wheel,) = folder.glob("dppo_jax-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed, *arguments):
    # This environment can also import the repository, so the folder must come first.
    env = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=installed.parent, env=env, capture_output=True, text=True
    )


def test_a_wheel_makes_a_task_from_a_configuration_that_it_holds(installed):
    done = run(installed, "-c", SMOKE, str(installed))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(4,) (2,)"


def test_a_program_of_the_wheel_reports_a_wrong_setting(installed):
    done = run(installed, "-m", "experiments.pretrain", "--config=none.py")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and "none.py" in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_the_command_of_the_wheel_works_in_another_folder(installed):
    """As the script that pip makes of the entry point."""
    (entry,) = installed.glob("dppo_jax-*.dist-info/entry_points.txt")
    assert "dppo-jax = experiments.cli:main" in entry.read_text()
    script = "from experiments.cli import main; main()"
    done = run(installed, "-c", script, "pretrain", "--help")
    assert done.returncode == 0 and done.stdout.startswith("Clone a policy")
    config = ["--config=experiments/configs/avoid.py:m1", "--config.sed=1"]
    done = run(installed, "-c", script, "pretrain", *config)
    assert done.returncode == 2 and "did you mean seed?" in done.stderr


def test_a_wheel_holds_no_tests(installed):
    found = {path.name for path in installed.iterdir()}
    assert {"dppo_jax", "experiments", "benchmarks"} <= found and "tests" not in found
