"""List the programs and the configurations: python -m experiments"""

import ast
import importlib
import os
import sys
import textwrap
from collections.abc import Iterator

from experiments import help as helps

# In the order in which they are used; others follow by name.
_FIRST = ("demo", "collect", "pretrain", "finetune", "evaluate", "compare", "report")
# Started by other programs only.
_INNER = ("__main__", "render", "studies.play_exported")
_WIDTH = 88


def main() -> None:
    """Print both lists."""
    print(
        "Programs; python -m experiments.NAME --help, or dppo-jax NAME --help, tells "
        "more:\n"
    )
    for name, purpose in programs():
        print(_entry(name, purpose))
    print("\nConfigurations, --config=experiments/configs/FILE.py:VARIANT:\n")
    for name, purpose, variants in configurations():
        print(_entry(f"{name}.py", purpose))
        lines = textwrap.wrap(", ".join(variants), _WIDTH - 21, break_on_hyphens=False)
        print(*(f"{'':21s}{line}" for line in lines), sep="\n", end="\n" * bool(lines))
    print(
        "\n--config.KEY=VALUE sets a setting; python -m experiments.settings lists "
        "them."
    )
    # An installed package has no such file.
    if (helps.FOLDER.parent / "README.md").is_file():
        print("README.md begins with the first steps.")


def _entry(name: str, purpose: str) -> str:
    """Name and purpose in two columns; below each other if the name is too long."""
    gap = " " if len(name) <= 18 else f"\n{'':21s}"
    return f"  {name:18s}{gap}{purpose}"


def programs() -> Iterator[tuple[str, str]]:
    """Name and purpose of every program, without importing it."""
    found = {}
    for name in helps.names():
        source = helps.source_of(name)
        if source is not None and name not in _INNER:
            found[name] = _purpose(source)
    for name in (*(x for x in _FIRST if x in found), *found):
        if name in found:
            yield name, found.pop(name)


def configurations() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name, purpose and variants of every configuration file."""
    for path in sorted((helps.FOLDER / "configs").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "def get_config" in text:
            module = importlib.import_module(f"experiments.configs.{path.stem}")
            yield path.stem, _purpose(text), tuple(getattr(module, "VARIANTS", ()))


def _purpose(text: str) -> str:
    """The beginning of a module's docstring, up to a full stop or colon."""
    first = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
    first = " ".join(first.split())
    for mark in (": ", "; ", ". "):
        first = first.partition(mark)[0]
    return first.rstrip(".:")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] not in ("--help", "-h"):
        print(
            f"error: {sys.argv[1]!r}: this program only lists the others; start one of "
            "them, as python -m experiments.finetune.",
            file=sys.stderr,
        )
        sys.exit(2)
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # As by `| head`; Python would complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
