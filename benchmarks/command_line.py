"""The command line of the benchmarks that measure one configuration."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from benchmarks import timing
from experiments.settings import load_config, override


def make_parser(program: str, default: str) -> argparse.ArgumentParser:
    """A parser of `--config`, `--set` and `--json`.

    Args:
        program: the name of the module.
        default: the configuration, as FILE.py:VARIANT.
    """
    parser = argparse.ArgumentParser(f"benchmarks.{program}")
    add = parser.add_argument
    add("--config", default=default, help="FILE.py:VARIANT")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change settings")
    timing.add_json(parser)
    return parser


def start(options: argparse.Namespace) -> tuple[ConfigDict, dict[str, Any]]:
    """The configuration with its changes, and the report of `timing.start`."""
    config = load_config(options.config)
    override(config, options.set, "--set ")
    report = timing.start() | {"config": " ".join([options.config, *options.set])}
    return config, report


def measure_iteration(
    program: str,
    default: str,
    measure: Callable[[ConfigDict], Sequence[dict[str, Any]]],
    arguments: Sequence[str] | None = None,
) -> None:
    """Measure one iteration of a configuration; print and, if asked, keep the table.

    Args:
        program, default: as in `make_parser`.
        measure: returns the rows of the table.
        arguments: those of the command line; None: those of this process.
    """
    options = make_parser(program, default).parse_args(arguments)
    config, report = start(options)
    timing.finish(f"{program}-{config.name}", measure(config), report, options.json)
