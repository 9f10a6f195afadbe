"""Load objects outside the package by name, so that settings can refer to them.

`my_module:make_task` is the object `make_task` of an importable module;
`path/to/file.py:make_task` is that of a file, which need not be on PYTHONPATH.
"""

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from dppo_jax.errors import SettingsError

_CALLED = r"[^\W\d]\w*"
_REFERENCE = re.compile(rf"(.+\.py|{_CALLED}(?:\.{_CALLED})*):({_CALLED})")


def is_reference(name: Any) -> bool:
    """Whether `name` has the form `module:object` or `file.py:object`.

    Only the form is checked, and "brax:ant" has it too. Callers that give such names
    another meaning must check for that first.
    """
    return isinstance(name, str) and _REFERENCE.fullmatch(name) is not None


def load_object(reference: str, *, hint: str = "") -> Any:
    """Load the object that `module:object` or `path/to/file.py:object` names.

    A module is imported as usual. A relative path starts at the current directory. A
    file is executed once, and again only after it changed; its module gets a unique
    name, so that it hides no other module.

    Args:
        hint: a sentence to append to error messages, on what else the name could mean.

    Raises:
        SettingsError: another form, no such file, module or object, or code that fails
            when it is imported.
    """
    hint = hint and f" {hint}"
    match = _REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
    if match is None:
        raise SettingsError(
            f"{reference!r} names no object; write 'module:object' or "
            f"'path/to/file.py:object'.{hint}"
        )
    place, name = match.groups()
    if place.endswith(".py"):
        module = _file(place, hint)
    else:
        module = _module(place, reference, hint)
    if not hasattr(module, name):
        raise SettingsError(
            f"{place} has no {name!r}, {_alternatives(module, name)}.{hint}"
        )
    return getattr(module, name)


def file_digest(reference: Any) -> str | None:
    """Digest of the file that a reference names; None if it names no existing file."""
    place = str(reference).rpartition(":")[0]
    path = Path(place).expanduser()
    if not (is_reference(reference) and place.endswith(".py") and path.is_file()):
        return None
    return content_digest(path)


def content_digest(path: Path) -> str:
    """A digest of the bytes of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def call(
    name: str,
    function: Any,
    *inputs: Any,
    options: Mapping[str, Any] = MappingProxyType({}),
    offered: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Call a function that a user named.

    Args:
        name: its name, for error messages.
        *inputs: positional arguments.
        options: keyword arguments; all are passed.
        offered: keyword arguments; those that its signature names are passed, unless
            `options` sets them.

    Raises:
        SettingsError: `function` is not callable, does not take one of the arguments,
            or requires one that is missing.
    """
    if not callable(function):
        raise SettingsError(f"{name} is a {type(function).__name__}, not a function.")
    taken = {key: value for key, value in offered.items() if takes(function, key)}
    arguments = {**taken, **options}
    try:
        inspect.signature(function).bind(*inputs, **arguments)
    except TypeError as error:
        given = [type(value).__name__ for value in inputs] + sorted(arguments)
        raise SettingsError(
            f"{name}{inspect.signature(function)} cannot be called with the arguments "
            f"({', '.join(given)}): {error}."
        ) from None
    return function(*inputs, **arguments)


def takes(function: Any, argument: str) -> bool:
    """Whether the signature of `function` names `argument`; `**kwargs` does not."""
    if not callable(function):
        return False
    parameter = inspect.signature(function).parameters.get(argument)
    return parameter is not None and parameter.kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )


def accepts(function: Any, argument: str) -> bool:
    """Whether `function` can be called with the keyword `argument`."""
    if not callable(function):
        return False
    parameters = inspect.signature(function).parameters.values()
    return takes(function, argument) or any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters
    )


def _module(name: str, reference: str, hint: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failure(name, error) from error
        raise SettingsError(
            f"{reference!r} names the module {name!r}, but there is no module "
            f"{error.name!r}; put its folder on PYTHONPATH, or name a file instead, "
            f"path/to/{name.split('.')[-1]}.py:{reference.split(':')[-1]}.{hint}"
        ) from None
    except (Exception, SystemExit) as error:
        raise _failure(name, error) from error


def _file(place: str, hint: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise SettingsError(
            f"There is no file {place}, looked for at {path}; a relative path starts "
            "at the current directory, so change to the right directory or correct "
            f"the path.{hint}"
        )
    status = path.stat()
    return _executed(path, (status.st_mtime_ns, status.st_size))


@functools.cache
def _executed(path: Path, version: tuple[int, int]) -> ModuleType:
    """Execute a file as a module; a changed `version` executes it again."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    name = f"_dppo_jax_file_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Data classes and type hints look up their module while it is executed.
    previous, sys.modules[name] = sys.modules.get(name), module
    try:
        # Do not use the loader: its cached byte code may be older than the file.
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if previous is not None:
            sys.modules[name] = previous
        raise _failure(str(path), error) from error
    return module


def _failure(what: str, error: BaseException) -> SettingsError:
    return SettingsError(
        f"{what} fails when it is imported: {type(error).__name__}: {error}. Correct "
        "it; if a module is missing, install it or put its folder on PYTHONPATH."
    )


def _alternatives(module: ModuleType, name: str) -> str:
    public = sorted(n for n in vars(module) if not n.startswith("_"))
    here = [n for n in public if _is_defined_in(module, getattr(module, n))]
    close = difflib.get_close_matches(name, public, n=3)
    shown = close or here[:10]
    if not shown:
        return "nor any other function"
    more = "" if close or len(here) <= 10 else " and more"
    return f"but {', '.join(shown)}{more}"


def _is_defined_in(module: ModuleType, member: Any) -> bool:
    return callable(member) and getattr(member, "__module__", None) == module.__name__
