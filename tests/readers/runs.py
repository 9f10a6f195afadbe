"""Readers of run directories and of settings."""

import functools
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from dppo_jax.training.checkpoint import read_policy, read_state
from dppo_jax.training.config_file import load_config
from dppo_jax.training.metrics import read_metrics
from dppo_jax.training.old_settings import flatten
from experiments.defaults import default_config
from experiments.settings import override, settings_of
from tests import damage
from tests.conftest import REPOSITORY
from tests.damage import Folder
from tests.readers.kinds import Reader, damaged, either

STORED = REPOSITORY / "tests" / "data" / "format_1"


@functools.cache
def run() -> Folder:
    return damage.read_folder(STORED)


def run_config() -> Folder:
    return {"config.json": run()["config.json"]}


@st.composite
def config_cases(draw: Any) -> Folder:
    return {"config.json": draw(damage.damaged_json(json.loads(run()["config.json"])))}


def _read_config(folder: Path) -> None:
    saved = load_config(folder)
    if saved is not None:
        settings_of(saved, str(folder))


def metrics() -> Folder:
    return {"metrics.csv": run()["metrics.csv"]}


@st.composite
def metrics_cases(draw: Any) -> Folder:
    lines = run()["metrics.csv"].decode().splitlines()
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.integers(0, len(lines) - 1))
        cells = lines[row].split(",")
        odd = ["", "nan", "-inf", "1e999", "x", '"', '"a', "\x00", "é", "0", "1" * 9999]
        cells[draw(st.integers(0, len(cells) - 1))] = draw(st.sampled_from(odd))
        lines[row] = draw(st.sampled_from([",", ",,", "\n", ", "])).join(cells)
    return {"metrics.csv": "\n".join([*lines, ""]).encode()}


def _read_checkpoint(folder: Path) -> None:
    read_policy(folder)
    read_state(folder)


_SETTINGS = sorted(flatten(default_config().to_dict()))
_VALUES = [
    "",
    "None",
    "nan",
    "-inf",
    "1e999",
    "-1",
    "0",
    "2.5",
    "(1,",
    "(1,2)",
    "[" * 300,
]
_VALUES += [
    "-" * 3000 + "1",
    "9" * 5000,
    "x" * 5000,
    "é",
    "\x00",
    "'",
    "True",
    "mlp",
    "[]",
]
_VALUES += ["1,2,a", "{'a': 1}", "lambda: 0", "__import__('os').system('ls')", "((),)"]


@st.composite
def override_cases(draw: Any) -> Folder:
    """Settings of a command line, one a line."""
    names = st.one_of(
        st.sampled_from(_SETTINGS),
        st.sampled_from(
            [*damage.NAMES, "env", "env.options.x", "seed.x", "model..kind"]
        ),
    )
    settings = [
        draw(names) + draw(st.sampled_from(["=", "=", "=", ""])) + value
        for value in draw(st.lists(st.sampled_from(_VALUES), min_size=1, max_size=3))
    ]
    return {"settings": "\n".join(settings).encode(errors="surrogatepass")}


def _override(folder: Path) -> None:
    text = (folder / "settings").read_text(errors="surrogateescape")
    override(default_config().lock(), text.split("\n"), "--config.")


READERS = {
    "config": Reader(
        either(lambda: damaged(run_config), config_cases), _read_config, run_config
    ),
    "overrides": Reader(
        override_cases, _override, lambda: {"settings": b"seed=3\nenv.max_steps=5"}
    ),
    "metrics": Reader(
        either(lambda: damaged(metrics), metrics_cases), read_metrics, metrics
    ),
    # Orbax waits for a pipe, which nobody puts into a checkpoint.
    "checkpoint": Reader(lambda: damaged(run, pipes=False), _read_checkpoint, run),
}
