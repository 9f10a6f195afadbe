"""What --help prints: the docstring of a program, read without importing it."""

import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# At the beginning of a line, as this file is no program.
_MAIN = re.compile(r'^if __name__ == "__main__":', re.MULTILINE)
# Programs that read a configuration.
_STAGE = "command_line.run_stage("
# The others that do not print their own help.
_PLAIN = "command_line.parse_flags("
_SETTINGS = """
--config=FILE.py[:VARIANT] names a configuration, such as those of experiments/configs.
--config.KEY=VALUE sets a setting; `python -m experiments.settings` lists them all, and
docs/stages.md has examples."""
# What stages accept; docs/reports.md says more.
_FLAGS = {
    "takes_checkpoint=True": "--checkpoint=best, =latest or an iteration chooses what "
    "is read.",
    "plans=True": "--dry-run builds everything, says what would be done, and writes "
    "nothing.",
    "summarize=": "--json prints a summary as the last line.",
    _STAGE: "--quiet shows no progress.",
}


def of(source: str) -> str:
    """The help of a program with this source."""
    text = (ast.get_docstring(ast.parse(source)) or "").strip()
    if _STAGE not in source:
        return text
    flags = "\n".join(line for sign, line in _FLAGS.items() if sign in source)
    return f"{text}\n{_SETTINGS}\n{flags}"


def names() -> list[str]:
    """All programs, such as "finetune" and "studies.ablations"."""
    found = [
        ".".join(path.relative_to(FOLDER).with_suffix("").parts)
        for folder in (FOLDER, FOLDER / "studies")
        for path in sorted(folder.glob("*.py"))
    ]
    return [name for name in found if source_of(name) is not None]


def source_of(name: str) -> str | None:
    """The source of a program, such as "finetune"; None if there is no such one."""
    parts = name.split(".")
    path = FOLDER.joinpath(*parts).with_suffix(".py")
    if not all(part.isidentifier() for part in parts) or not path.is_file():
        return None
    source = path.read_text(encoding="utf-8")
    return source if _MAIN.search(source) else None


def answer(arguments: Sequence[str]) -> None:
    """Print the help that `python -m experiments.NAME --help` asks for, and exit.

    Other commands, and programs with help of their own, are left alone.
    """
    if "-m" not in arguments[:-1]:
        return
    place = list(arguments).index("-m") + 1
    package, _, name = arguments[place].partition(".")
    asks = not {"--help", "-h"}.isdisjoint(arguments[place + 1 :])
    if package != "experiments" or not asks or not print_help(name):
        return
    sys.exit(0)


def print_help(name: str) -> bool:
    """Print the help of a program; False if it has to do that itself."""
    source = source_of(name)
    if source is None or (_STAGE not in source and _PLAIN not in source):
        return False
    print(of(source), flush=True)
    return True
