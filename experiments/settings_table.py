"""List all settings: python -m experiments.settings [--config=FILE.py:VARIANT]

Or of a run: python -m experiments.settings RUN_DIR. It prints every setting as the flag
that sets it, with its meaning and the place of its default; `*` marks what the
configuration changes. Of the algorithms it lists the selected one;
--config.algorithm.name=sac selects another.
"""

# The meanings are the comments beside the defaults, so that no second list can fall
# behind.

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dppo_jax import algorithms
from dppo_jax.networks import build as networks
from dppo_jax.training.old_settings import flatten
from experiments import defaults
from experiments.settings import as_flag, use_network

_ROOT = Path(__file__).resolve().parent.parent
_WIDTH = 88


class Row(NamedTuple):
    """One setting.

    name: with its sections, such as `algorithm.ppo.clip_top`.
    value, default: what the configuration has, and what it has without a change.
    meaning: what the comment beside the default says; it may be empty.
    source: file and line of the default, relative to the repository; empty if a
        configuration has added the setting.
    """

    name: str
    value: Any
    default: Any
    meaning: str
    source: str

    @property
    def is_changed(self) -> bool:
        """Whether the configuration changes the default."""
        return self.value != self.default


def main(config: ConfigDict) -> None:
    """Run the program."""
    print("\n".join(lines(config)).lstrip("\n"))


def rows(config: ConfigDict, *, all_algorithms: bool = False) -> list[Row]:
    """Every setting of a configuration, in the order of their names.

    Args:
        all_algorithms: False leaves out the sections of algorithms that
            `config.algorithm.name` does not select.
    """
    plain = defaults.default_config()
    usual = plain.model.network.kind
    use_network(plain, config.model.network.kind)
    demonstrator = _demonstrator(config)
    if demonstrator is not None:
        plain.collect = demonstrator()
    values, before = (flatten(x.to_dict()) for x in (config, plain))
    before["model.network.kind"] = usual
    found = _sources(config)
    hidden = {f"algorithm.{x}." for x in algorithms.ALGORITHMS}
    hidden.discard(f"algorithm.{config.algorithm.name}.")
    names = dict.fromkeys([*before, *values])
    return [
        Row(name, values[name], before.get(name), *found.get(name, ("", "")))
        for name in names
        if name in values and (all_algorithms or not name.startswith(tuple(hidden)))
    ]


def lines(config: ConfigDict) -> Iterator[str]:
    """The rows as text; `*` marks those that the configuration changes."""
    section = ""
    for row in said_once(rows(config)):
        if row.name.rpartition(".")[0] != section:
            section = row.name.rpartition(".")[0]
            yield ""
        before = f"   (default: {row.default!r})" if row.is_changed else ""
        if not row.source:
            before = "   (added by the configuration)"
        yield f"{'*' if row.is_changed else ' '} {as_flag(row.name, row.value)}{before}"
        about = " ".join(filter(None, (row.meaning, row.source and f"[{row.source}]")))
        yield from textwrap.wrap(
            about, _WIDTH, initial_indent=6 * " ", subsequent_indent=6 * " "
        )


def said_once(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows; a long meaning of several settings stands at the first of them."""
    first: dict[str, str] = {}
    for row in rows:
        known = first.setdefault(row.meaning, row.name)
        if known != row.name and len(row.meaning) > _WIDTH:
            row = row._replace(meaning=f"see {known}")
        yield row


def _sources(config: ConfigDict) -> dict[str, tuple[str, str]]:
    """Name of a setting -> its meaning, and where its default stands."""
    found: dict[str, tuple[str, str]] = {}
    _read(defaults.default_config, "", found)
    for name, entry in algorithms.ALGORITHMS.items():
        _read(entry.default_config, f"algorithm.{name}.", found)
    demonstrator = _demonstrator(config)
    if demonstrator is not None:
        _read(demonstrator, "collect.", found)
    for prefix, section in (("", config), ("collect.", config.collect)):
        kind = section.model.network.kind if "model" in section else ""
        if kind in networks.NETWORKS:
            settings = networks.NETWORKS[kind].settings
            _read(settings, f"{prefix}model.network.", found)
    return found


def _demonstrator(config: ConfigDict) -> Callable[[], ConfigDict] | None:
    """The function that has made `config.collect`; None for a file's own settings."""
    for makes in (defaults.demonstrator_config, defaults.script_config):
        if set(makes()) == set(config.collect):
            return makes
    return None


def _read(
    function: Callable[..., Any], prefix: str, found: dict[str, tuple[str, str]]
) -> None:
    """Add the settings that a function makes, and those of functions that it calls.

    What stands in a calling function replaces what stands in the called one, except its
    meaning if the caller has no comment.
    """
    code, first = inspect.getsourcelines(function)
    path = Path(inspect.getsourcefile(function) or "").resolve()
    file = path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path.name
    text = textwrap.dedent("".join(code))
    comments = _Comments(text)
    sections: dict[str, str] = {}
    scope = inspect.unwrap(function).__globals__

    def add(name: str, node: Any) -> None:
        called, section = _callee(node.value, scope), _section(node.value)
        parent, _, key = name.rpartition(".")
        said = comments.about(node, key)
        if called is not None:
            _read(called, f"{prefix}{name}." if name else prefix, found)
        elif section is not None:
            sections[name] = comments.beginning(node) or sections.get(parent, "")
            for keyword in section:
                add(f"{name}.{keyword.arg}".lstrip("."), keyword)
        if called is None and not section and name:
            old, _ = found.get(prefix + name, ("", ""))
            said = said or old or sections.get(parent, "")
            found[prefix + name] = said, f"{file}:{first + node.lineno - 1}"

    def visit(statements: list[ast.stmt], words: Mapping[str, str]) -> None:
        for node in statements:
            if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
                for word in _literals(node):
                    visit(node.body, {**words, **word})
            elif isinstance(node, ast.Assign):
                name = _name_of(node.targets[0], words)
                if name is not None:
                    add(name, node)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                call = node.value
                if isinstance(call.func, ast.Attribute) and call.func.attr == "update":
                    name = _name_of(call.func.value, words)
                    for keyword in call.keywords if name is not None else ():
                        add(f"{name}.{keyword.arg}".lstrip("."), keyword)
            elif isinstance(node, ast.Return):
                add("", node)

    (definition,) = ast.parse(text).body
    visit(definition.body, {})  # type: ignore[attr-defined]


def _section(node: Any) -> list[ast.keyword] | None:
    """The keywords of `ConfigDict(dict(...))` or `dict(...)`; None for all else."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return None
    if node.func.id == "ConfigDict":
        return _section(node.args[0]) if node.args else []
    return node.keywords if node.func.id == "dict" else None


def _callee(node: Any, scope: Mapping[str, Any]) -> Callable[..., Any] | None:
    """The function in `x = module.default_config(...)`, if it makes settings."""
    if not isinstance(node, ast.Call):
        return None
    parts = ast.unparse(node.func).split(".")
    if not parts[-1].endswith(("_config", "_settings")) or parts[0] not in scope:
        return None
    value = scope[parts[0]]
    for part in parts[1:]:
        value = getattr(value, part, None)
    return value if inspect.isfunction(value) else None


def _name_of(node: ast.expr, words: Mapping[str, str]) -> str | None:
    """`loop.pretrain` for `config.loop["pretrain"]`; None for other variables."""
    if isinstance(node, ast.Name):
        return "" if node.id == "config" else None
    if isinstance(node, ast.Attribute):
        parent, key = _name_of(node.value, words), node.attr
    elif isinstance(node, ast.Subscript):
        parent, index = _name_of(node.value, words), node.slice
        if isinstance(index, ast.Constant):
            key = str(index.value)
        elif isinstance(index, ast.Name) and index.id in words:
            key = words[index.id]
        else:
            return None
    else:
        return None
    return None if parent is None else f"{parent}.{key}".lstrip(".")


def _literals(loop: ast.For) -> Iterator[dict[str, str]]:
    """What the variables of `for name, rate in (("actor", 1), ...)` stand for."""
    assert isinstance(loop.iter, ast.Tuple)
    for item in loop.iter.elts:
        pairs: list[tuple[Any, Any]] = [(loop.target, item)]
        if isinstance(loop.target, ast.Tuple) and isinstance(item, ast.Tuple):
            pairs = list(zip(loop.target.elts, item.elts))
        yield {
            target.id: value.value
            for target, value in pairs
            if isinstance(target, ast.Name)
            and isinstance(value, ast.Constant)
            and isinstance(value.value, str)
        }


class _Comments:
    """The comments of a source: those beside code, and blocks of lines on their own."""

    def __init__(self, text: str) -> None:
        self.beside: dict[int, str] = {}
        self.alone: dict[int, str] = {}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                own_line = not token.line[: token.start[1]].strip()
                where = self.alone if own_line else self.beside
                where[token.start[0]] = token.string.lstrip("# ").rstrip()
        self.code = {
            number
            for number, line in enumerate(text.splitlines(), start=1)
            if line.strip() and number not in self.alone
        }

    def about(self, node: Any, key: str) -> str:
        """The comment beside a setting, or above it, or that of its neighbours.

        The latter counts only if it names the setting.
        """
        for number in range(node.lineno, node.end_lineno + 1):
            if number in self.beside:
                return self.beside[number]
        above = self._block(node.lineno - 1)
        if above:
            return above
        number = node.lineno - 1
        while number in self.code:
            if self._names(self.beside.get(number, ""), key):
                return self.beside[number]
            number -= 1
        block = self._block(number)
        return block if self._names(block, key) else ""

    def beginning(self, node: Any) -> str:
        """The comment above a section, or beside its first line."""
        return self.beside.get(node.lineno) or self._block(node.lineno - 1)

    @staticmethod
    def _names(comment: str, key: str) -> bool:
        return re.search(rf"\b{key}\b", comment) is not None

    def _block(self, last: int) -> str:
        """The block of comments that ends at a line; empty if there is none."""
        first = last
        while first in self.alone:
            first -= 1
        return " ".join(self.alone[i] for i in range(first + 1, last + 1))
