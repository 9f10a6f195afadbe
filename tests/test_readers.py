"""Readers of generated files end in data or in one clear error, and do nothing else.

`INPUTS=1000 make test-slow` reads as many files of each kind; 10,000 is the default.
"""

import collections
import importlib.util
import logging
import os
import traceback
import warnings
from pathlib import Path

import hypothesis
import pytest

from dppo_jax import expansion
from tests import damage
from tests.readers import READERS

INPUTS = int(os.environ.get("INPUTS", "10000"))
# Of each kind in the fast tests.
FEW = 30
# A case may be large itself, and libraries keep caches.
MOST_MEMORY = 400e6
# Bytes for each input: Orbax keeps 0.17 MB of every checkpoint that it has read, and
# two items are read.
KEPT = {"checkpoint": 0.4e6}


@pytest.fixture(autouse=True)
def no_logging():
    """Orbax logs what is in a damaged file, and pytest keeps what is logged."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def check(name: str, folder: Path, case: damage.Folder, outcomes: collections.Counter):
    """Read a case; whatever is wrong becomes an entry of `outcomes`."""
    reader = READERS[name]
    damage.write(folder, case)
    canary = folder / damage.CANARY
    try:
        with damage.Watch() as watch, warnings.catch_warnings():
            warnings.simplefilter("error")
            # Of instructions that damaged strings hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            reader.read(folder)
        outcomes["read"] += 1
    except reader.errors as error:
        outcomes["refused"] += 1
        if "\n" in str(error).strip():
            outcomes["lines"] += 1
    except (Exception, damage.Hang) as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [x for x in frames if "site-packages" not in x.filename]
        places = [f"{Path(x.filename).name}:{x.lineno}" for x in (ours[-1], frames[-1])]
        kind = f"{type(error).__name__} in {' by '.join(places)}"
        outcomes[f"unexpected {kind}: {error!s:.200}"] += 1
    for event in watch.seen:
        outcomes[f"unexpected event {event:.80}"] += 1
    if canary.exists() or Path(damage.CANARY).exists():
        outcomes["unexpected execution"] += 1
    damage.remove(folder)


def generate(name: str, tmp_path: Path, num: int, **settings) -> collections.Counter:
    """Outcomes of `num` generated cases, by what happened."""
    outcomes: collections.Counter = collections.Counter()

    @hypothesis.settings(
        max_examples=num,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
        **settings,
    )
    @hypothesis.given(READERS[name].cases())
    def run(case):
        check(name, tmp_path / "case", case, outcomes)

    run()
    return outcomes


@pytest.fixture(autouse=True)
def little_memory(monkeypatch, tmp_path):
    """So little that a file of some kilobytes can ask for too much."""
    monkeypatch.setattr(expansion, "ALWAYS", 2**20)
    monkeypatch.chdir(tmp_path)


def needed(name: str) -> None:
    package = READERS[name].package
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")


@pytest.mark.parametrize("name", READERS)
def test_a_sound_file_is_read(name, tmp_path):
    needed(name)
    outcomes: collections.Counter = collections.Counter()
    check(name, tmp_path / "sound", READERS[name].sound(), outcomes)
    assert outcomes == {"read": 1}


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name, tmp_path):
    needed(name)
    outcomes = generate(name, tmp_path, FEW)
    assert not [text for text in outcomes if text.startswith("unexpected")], outcomes
    assert outcomes["refused"] >= FEW / 10


# Where Orbax stops at a damaged file, it leaves coroutines that nothing awaits.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_are_read_or_refused(name, tmp_path):
    needed(name)
    check(name, tmp_path / "sound", READERS[name].sound(), collections.Counter())
    before = damage.reset_peak()
    outcomes = generate(name, tmp_path, INPUTS, derandomize=False)
    grown = damage.peak() - before
    print(f"{name}: {dict(outcomes)}, {grown / 1e6:.0f} MB at the peak")
    assert not [text for text in outcomes if text.startswith("unexpected")], outcomes
    assert grown < MOST_MEMORY + INPUTS * KEPT.get(name, 0)
