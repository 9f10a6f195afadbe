"""Tasks of other libraries are found by name, and missing ones are named."""

import importlib.util
import subprocess
import sys

import pytest

from dppo_jax.envs import adapters, build, make_host_task, make_task
from dppo_jax.envs.adapters import packages
from dppo_jax.errors import SettingsError

NAMES = ["brax:fast", "playground:CartpoleBalance", "gymnasium:A-v0", "robosuite:Lift"]


def make(name, **options):
    return (make_host_task if adapters.is_host(name) else make_task)(name, **options)


@pytest.mark.parametrize(
    "name, message",
    [
        (":Ant", "Unknown library ''"),
        ("isaac:Ant-v1", "Unknown library 'isaac'"),  # Ant-v1 cannot be a function
        ("isaac:Ant", "no module 'isaac'"),
        ("mujoco:ant", "mujoco has no 'ant'"),
    ],
)
def test_an_unknown_library_is_named_with_those_known(name, message):
    with pytest.raises(ValueError, match=f"{message}.*brax:, playground:"):
        make_task(name)


def test_an_unknown_task_hints_at_the_libraries():
    with pytest.raises(ValueError, match="Unknown task 'ant'.*brax:NAME"):
        make_task("ant")


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_is_refused(name):
    with pytest.raises(ValueError, match="env.engine='mjx'.*own physics"):
        make(name, engine="mjx")


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_named_with_its_cure(name, monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=f"{name}.*not installed; pip install"):
        make(name)


@pytest.mark.parametrize("name", NAMES[2:])
def test_a_host_task_is_not_a_single_environment(name):
    with pytest.raises(ValueError, match="runs in host processes.*make_env"):
        make_task(name)


def test_a_pure_task_needs_no_host():
    with pytest.raises(ValueError, match="pure task"):
        make_host_task("brax:fast")


def test_the_libraries_are_not_imported_before_they_are_needed():
    source = "import sys, dppo_jax, experiments.finetune\nprint(*sys.modules)"
    run = [sys.executable, "-c", source]
    loaded = set(subprocess.check_output(run, text=True).split())
    libraries = {"brax", "mujoco_playground", "gymnasium", "robosuite"}
    libraries |= {"mujoco.mjx"}
    assert importlib.util.find_spec("gymnasium") and not loaded & libraries


@pytest.mark.parametrize(
    "task, option, message",
    [
        ("hopper", "engine", "env.options.engine='x'.*set env.engine='x'"),
        ("gymnasium:Hopper-v5", "engine", "set env.engine='x'"),
        ("hopper", "name", "env.options.name .* hopper; it has version, margins"),
        ("brax:inverted_pendulum", "name", "cannot be made .*'name'"),
        ("gymnasium:Pendulum-v1", "source", "Pendulum-v1 cannot be made.*'source'"),
        ("tests.tiny:point_task", "name", r"point_task\(lengths.* argument 'name'"),
        ("tests.tiny:point_task", "reference", "unexpected .* argument 'reference'"),
    ],
)
def test_an_option_that_is_called_like_an_argument_is_refused(task, option, message):
    config = build.default_config()
    config.task, config.options[option] = task, "x"
    with pytest.raises(SettingsError, match=message):
        build.make_env(config, normalizer=None, chunk=1, num_envs=1)
