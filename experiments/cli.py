"""The command `dppo-jax`: `dppo-jax NAME ...` is `python -m experiments.NAME ...`."""

import difflib
import importlib.metadata
import os
import runpy
import sys

from experiments import help as helps


def main() -> None:
    """Run the program that the first argument names.

    Without arguments and with --help it lists the programs; with --version it prints
    the version. An unknown name ends with exit status 2.
    """
    words = sys.argv[1:]
    if not words or words[0] in ("--help", "-h"):
        from experiments import __main__ as listing

        listing.main()
        return
    if words[0] == "--version":
        print(importlib.metadata.version("dppo_jax"))
        return
    name, rest = words[0].replace("-", "_"), words[1:]
    if helps.source_of(name) is None or name.startswith("_"):
        sys.exit(_unknown(words[0]))
    if not {"--help", "-h"}.isdisjoint(rest) and helps.print_help(name):
        return
    # As `python -m` does, for files that a configuration imports.
    sys.path.insert(0, os.getcwd())
    sys.argv = [f"dppo-jax {words[0]}", *rest]
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)


def _unknown(word: str) -> int:
    """Say that there is no such program, and which is similar; the exit status."""
    known = [name for name in helps.names() if not name.startswith("_")]
    alike = difflib.get_close_matches(word.replace("-", "_"), known, n=1)
    hint = f"did you mean {alike[0]}? " if alike else ""
    print(
        f"error: there is no program {word!r}; {hint}dppo-jax --help lists them.",
        file=sys.stderr,
    )
    return 2
