"""One process trains in a directory, and a crash leaves no lock behind."""

import errno
import fcntl
import functools
import socket
import subprocess
import sys

import pytest

from dppo_jax.errors import SettingsError
from dppo_jax.training import parallel, run_lock
from dppo_jax.training.run_lock import LOCK_FILE, locked
from dppo_jax.training.runs import Runs
from tests import tiny
from tests.counting import count, counter, iterations

# Holds the lock until it is killed; it says when it has it.
HOLDER = """
import sys
from dppo_jax.training.run_lock import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a directory."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_the_second_process_is_refused_until_the_first_is_gone(tmp_path, holder):
    host = socket.gethostname()
    message = f"process {holder.pid} on {host} is training in {tmp_path}; .*run_dir"
    with pytest.raises(SettingsError, match=message):
        count(tmp_path, 2)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", LOCK_FILE}
    holder.kill()  # SIGKILL, as a crash: nothing cleans up.
    holder.wait()
    count(tmp_path, 2)
    count(tmp_path, 3)  # Whoever has ended has released it.
    assert iterations(tmp_path) == [1, 2, 3]


def test_whether_a_directory_is_locked_can_be_asked(tmp_path, holder):
    assert run_lock.is_locked(tmp_path)
    holder.kill()
    holder.wait()
    assert not run_lock.is_locked(tmp_path)
    assert not run_lock.is_locked(tmp_path / "nowhere")


def test_a_refused_process_changes_nothing(tmp_path, holder):
    """Not even the settings of the run, which `prepare` writes."""
    with pytest.raises(SettingsError, match="is training in"):
        count(tmp_path, 2, prepare=lambda: pytest.fail("written"))


def test_a_process_prepares_a_run_while_it_holds_the_lock(tmp_path):
    def prepare():
        with pytest.raises(SettingsError, match="is training in"):
            with locked(tmp_path):
                pass

    count(tmp_path, 2, prepare=prepare)
    assert iterations(tmp_path) == [1, 2]


def test_a_failure_releases_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError):
        count(tmp_path, 2, prepare=lambda: 1 / 0)
    count(tmp_path, 2)


def test_of_several_processes_of_one_run_only_the_first_takes_the_lock(
    tmp_path, monkeypatch
):
    with locked(tmp_path):
        monkeypatch.setattr(parallel, "is_first_process", lambda: False)
        assert count(tmp_path, 2)["x"] == 4.0
    assert iterations(tmp_path) == []


def test_every_seed_has_a_lock_of_its_own(tmp_path):
    folders = [str(tmp_path / f"seed_{i}") for i in range(2)]
    runs = functools.partial(
        Runs,
        folders,
        counter(),
        tiny.NORMALIZER,
        evaluate=None,
        stop=None,
        keep=1,
        keep_best="",
    )
    with locked(folders[1]):
        with pytest.raises(SettingsError, match="is training in .*seed_1"):
            with runs():
                pass
        with locked(folders[0]):  # What was taken is given back.
            pass


def test_a_file_system_without_locks_is_named_once(tmp_path, monkeypatch, capsys):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    run_lock._say_that_nothing_is_locked.cache_clear()
    for _ in range(2):
        with locked(tmp_path):
            pass
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"{tmp_path} has no locks; start no second" in said


def test_another_error_of_a_lock_is_raised(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"):
        with locked(tmp_path):
            pass
