"""The commands of a page of the documentation, and what is wrong with a command.

Bash itself expands variables, loops and continued lines. Programs of this repository
run up to the point where their work would start.
"""

import ast
import contextlib
import importlib
import io
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from absl import app, flags

from benchmarks import timing
from dppo_jax.errors import SettingsError
from experiments import command_line, compare, convert, replay, report
from experiments.configs import avoid
from experiments.studies import ablations
from tests.conftest import REPOSITORY

MAKEFILE = (REPOSITORY / "Makefile").read_text()
PROGRAM = re.compile(r"(?:experiments(?:\.studies)?|benchmarks)\.\w+")

# A fenced block with its language, or a command in the text.
_PIECE = re.compile(
    r"^```(?P<language>\w*)\n(?P<block>.*?)^```$"
    r"|`(?P<command>(?:python -m|make)\s[^`]+)`",
    re.MULTILINE | re.DOTALL,
)
# Blocks without such a line hold no commands of this repository. A launcher such as
# srun may stand before one, or a line of the block before it.
_COMMAND_LINE = re.compile(r"^[^#\n]*\b(?:python -m|make|dppo-jax) ", re.MULTILINE)

# Writes the words of every command that this repository has, and does nothing else: a
# restricted shell (set -r) starts no program by its path and writes no file.
_RECORDER = r"""
set -u
PATH=/nonexistent
record() { printf '%s\037' "$@"; printf '\036'; }
python() { record python "$@"; }
make() { record make "$@"; }
dppo-jax() { record python -m "experiments.$1" "${@:2}"; }
launch() { until [ "$1" = python ]; do shift; done; "$@"; }
srun() { launch "$@"; }
taskset() { launch "$@"; }
gcloud() {
  local word
  for word in "$@"; do
    case $word in --command=*) eval "${word#--command=}" ;; esac
  done
}
cd() { :; }
command_not_found_handle() { :; }
set -r
"""


def commands_of(page: str) -> list[list[str]]:
    """The words of every command of a page, in their order.

    A variable keeps its value to the end of the page, as for a reader who goes on in
    the same shell.

    Raises:
        ValueError: bash does not understand the commands, or a variable has no value.
    """
    lines = []
    for piece in _PIECE.finditer(page):
        if piece["command"]:
            lines.append(" ".join(piece["command"].split()))
        elif piece["language"] in ("", "bash"):
            # Of a sketch such as `[--format=a|b]`, bash would make a pipe.
            block = piece["block"].replace("|", "\\|")
            if _COMMAND_LINE.search(block):
                lines.append(block)
    done = subprocess.run(
        ["bash", "-c", "\n".join([_RECORDER, *lines, "exit 0"])],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode:
        raise ValueError(done.stderr)
    return [record.split("\037")[:-1] for record in done.stdout.split("\036")[:-1]]


def is_sketch(words: list[str]) -> bool:
    """Whether a command is a pattern, not something to type.

    It is one if it has a word such as `[--format=...]` or `...`, if it leaves the
    program open as `benchmarks.NAME`, or its configuration as `FILE.py:VARIANT`.
    Placeholders of paths (`--config.data=PATH`) may stay: any path is accepted.
    """
    return any(
        word.startswith("[") or "..." in word or "FILE.py" in word for word in words
    ) or words[:3] == ["python", "-m", "benchmarks.NAME"]


def mistake(words: list[str]) -> str:
    """What is wrong with a command; empty if nothing is, or if it is not checked.

    Run it where the paths of the command hold, except those of data and runs.
    """
    if words[0] == "make":
        return _mistake_of_make(words[1:])
    if words[1] != "-m" or not PROGRAM.fullmatch(words[2]):
        return ""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            _start(words[2], words[3:])
    except (SystemExit, ImportError, SettingsError) as error:
        return said.getvalue().strip() or str(error)
    return ""


def end(name: str, arguments: list[str]) -> tuple[Any, str]:
    """Exit status and errors of `python -m name arguments`, run in this process."""
    module, said = importlib.import_module(name), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [str(module.__file__), *arguments]),
        mock.patch.object(command_line.runtime, "configure"),
        contextlib.redirect_stderr(said),
    ):
        try:
            exec(_main_block(module), vars(module))
        except SystemExit as error:
            return error.code, said.getvalue()
        finally:
            flags.FLAGS.unparse_flags()
    return 0, said.getvalue()


def _mistake_of_make(words: list[str]) -> str:
    targets = re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE)
    for word in words:
        name, equals, _ = word.partition("=")
        if not equals and name not in targets:
            return f"make has no target {name}"
        if equals and f"$({name})" not in MAKEFILE:
            return f"the Makefile does not use {name}"
    return ""


class _Started(Exception):
    """The work of a program would start here."""


def _start(name: str, arguments: list[str]) -> None:
    """Run a program up to its work, as `python -m` does."""
    module = importlib.import_module(name)
    program = _main_block(module)
    argv = [str(module.__file__), *arguments]
    try:
        with contextlib.ExitStack() as stack, contextlib.suppress(_Started):
            stack.enter_context(mock.patch.object(sys, "argv", argv))
            for patch in _patches(module):
                stack.enter_context(patch)
            exec(program, vars(module))
        _refuse_flags_of_others(name)
    finally:
        flags.FLAGS.unparse_flags()


def _patches(module: ModuleType) -> list[Any]:
    """Replace the work of a program, and what would need its data or change JAX."""

    def start(*args: Any, **settings: Any) -> Any:
        raise _Started

    if module.__name__.startswith("benchmarks."):
        # `benchmarks.report` measures nothing; its work is to rewrite a page.
        patches = [mock.patch.object(timing, "start", start)]
        if hasattr(module, "update"):
            patches.append(mock.patch.object(module, "update", start))
        return patches
    main: Any = start
    if module is report:
        main = lambda *words, **chosen: start(  # noqa: E731
            report.parse(*words, **chosen)
        )
    if module in (convert, replay):
        main = module._parse
    if module in (compare, ablations):
        main = lambda argv: start(module.parse(argv))  # noqa: E731
    config = avoid.get_config().lock()
    return [
        mock.patch.object(module, "main", main),
        mock.patch.object(app, "run", lambda main: main(flags.FLAGS(sys.argv))),
        mock.patch.object(command_line.runtime, "configure"),
        # A run directory on the command line need not exist.
        mock.patch.object(command_line, "config_of_run", lambda run_dir: config),
    ]


def _main_block(module: ModuleType) -> Any:
    """What a module does if it is run as a program."""
    tree = ast.parse(Path(str(module.__file__)).read_text())
    for node in tree.body:
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test):
            return compile(ast.Module(node.body, []), str(module.__file__), "exec")
    raise ImportError(f"{module.__name__} is no program")


def _refuse_flags_of_others(name: str) -> None:
    """Refuse flags that are known only because another program was imported too."""
    values = flags.FLAGS
    for flag in values:
        owner = values.find_module_defining_flag(flag)
        ours = (name, command_line.__name__)
        if values[flag].present and owner not in ours and PROGRAM.fullmatch(owner):
            raise SystemExit(f"--{flag} is a flag of {owner}")
