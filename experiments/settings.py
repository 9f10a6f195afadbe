"""Configuration files, and the settings that a command line changes in them.

A configuration is locked: only what its defaults declare can be set, in a file and on
the command line. `env.options` and `model.network.options` are open, since every task
and every network from outside has options of its own, and so is `config.collect` in a
file, until a demonstrator's own settings take its place.
"""

import ast
import difflib
import importlib.util
import re
import shlex
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from dppo_jax.errors import SettingsError
from dppo_jax.networks import build as networks
from dppo_jax.training.old_settings import flatten, new_name
from experiments.defaults import default_config

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
# Sections whose keys no defaults can know.
_OPEN = ("env.options", "model.network.options")
# Sections that a file fills; no setting of theirs is known to be optional or not.
_FREE = (*_OPEN, "collect")


def load_config(spec: str) -> ConfigDict:
    """The configuration of FILE.py:VARIANT.

    Raises:
        SettingsError: no such file, no `get_config` in it, or what it sets is refused.
    """
    path, _, variant = spec.partition(":")
    if not Path(path).is_file():
        raise SettingsError(f"--config={path}: there is no such file.")
    module_spec = importlib.util.spec_from_file_location("experiment_config", path)
    if module_spec is None or module_spec.loader is None:
        raise SettingsError(f"--config={path} is no Python file.")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(*([variant] if variant else []))
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        raise SettingsError(_mistake(error, path)) from error
    config.lock()
    _check_given(config)
    return config


def override(config: ConfigDict, settings: Sequence[str], flag: str = "") -> None:
    """Set every KEY=VALUE in a configuration, the last one of a key last.

    A value reads as the type of what it replaces; None is written None, and a tuple as
    Python writes one, or as a single entry.

    Args:
        flag: what stands before KEY on the command line, for messages.

    Raises:
        SettingsError: no such key, no value, or one of the wrong type.
    """
    for setting in settings:
        name, sign, text = setting.partition("=")
        if not sign:
            raise SettingsError(f"{flag}{name} has no value; write {flag}{name}=VALUE.")
        *sections, key = name.split(".")
        node = config
        for section in sections:
            if section not in node:
                _refuse(config, name, flag)
            node = node[section]
            if not isinstance(node, ConfigDict):
                raise SettingsError(
                    f"{flag}{name}: a setting is given a key of its own, but "
                    f"{section} holds a plain value; {_WHERE}"
                )
        if key not in node and ".".join(sections) in _OPEN:
            with node.unlocked():
                node[key] = _literal(text)
            continue
        if key not in node:
            _refuse(config, name, flag)
        if name == "model.network.kind":
            use_network(config, text)
            node = config.model.network
        if isinstance(node[key], ConfigDict):
            raise SettingsError(
                f"{flag}{name} is a section; set one of {', '.join(node[key])}."
            )
        node[key] = _parse(node, key, text, f"{flag}{name}")


def settings_of(saved: dict[str, Any]) -> ConfigDict:
    """The configuration that a run wrote to its `config.json`, locked.

    Settings that it did not have yet have their defaults, and what is no setting, such
    as its stage, is left out.
    """
    config = default_config()
    network = flatten(saved).get("model.network.kind", config.model.network.kind)
    use_network(config, network)
    for name, value in flatten(saved).items():
        *sections, key = name.split(".")
        node = config
        for section in sections:
            known = isinstance(node.get(section), ConfigDict)
            if name.startswith(_FREE) and not known:
                node[section] = ConfigDict()
            elif not known:
                break
            node = node[section]
        else:
            is_free = name.startswith(_FREE) and value != {}
            if is_free or (key in node and not isinstance(node[key], ConfigDict)):
                node[key] = _frozen(value)
    return config.lock()


def use_network(config: ConfigDict, kind: str) -> None:
    """Give a configuration the settings of a kind of network, with their defaults.

    Nothing changes if it has that kind, or if one of the two is from outside the
    package, since such a network takes whatever settings there are.
    """
    before = config.model.network.kind
    if kind != before and {kind, before} <= networks.NETWORKS.keys():
        config.model.network = networks.default_config(kind).lock()
        config.model.network.options.unlock()


def as_flag(name: str, value: Any) -> str:
    """How to set a value on the command line of a shell."""
    return f"--config.{name}={shlex.quote(_text(value))}"


_WHERE = "experiments/defaults.py and the config.json of any run list what there is."


def _refuse(config: ConfigDict, name: str, flag: str) -> None:
    """Raise SettingsError for an unknown setting, and suggest a known one."""
    raise SettingsError(f"unknown setting {flag}{name}; {_hint(name, config)}{_WHERE}")


def _hint(name: str, config: ConfigDict) -> str:
    """Today's name of an old setting, or what looks like an unknown one."""
    known = list(flatten(config.to_dict()))
    known += {x.rpartition(".")[0] for x in known} - {""}
    if new_name(name) != name and new_name(name) in known:
        return f"it is called {new_name(name)} now; "
    keys = {x.rpartition(".")[2]: x for x in reversed(known)}
    alike = difflib.get_close_matches(name, known, n=1) or [
        keys[key]
        for key in difflib.get_close_matches(name.rpartition(".")[2], keys, n=1)
    ]
    return f"did you mean {alike[0]}? " if alike else ""


def _parse(node: ConfigDict, key: str, text: str, name: str) -> Any:
    """The value of a setting, as the type of what it replaces."""
    field = dict(node.items(preserve_field_references=True))[key]
    if isinstance(field, FieldReference):  # What defaults declare as optional.
        if text == "None":
            return None
        kind = field.get_type()
    elif field is None:
        return _literal(text)
    else:
        kind = type(field)
    try:
        return _PARSERS[kind](text)
    except (ValueError, SyntaxError, KeyError):
        optional = isinstance(field, FieldReference)
        wanted = f"{kind.__name__}{' or None' if optional else ''}"
        raise SettingsError(
            f"{name}={text}: the value must be of type {wanted}."
        ) from None


def _literal(text: str) -> Any:
    """A value as Python writes it, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _tuple(text: str) -> tuple:
    value = _literal(text)
    if value is None:
        raise SettingsError("None is no tuple")
    if isinstance(value, str) and "," in value:
        return tuple(x.strip() for x in value.split(","))
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _list(text: str) -> list:
    return list(_tuple(text))


_PARSERS: dict[type, Callable[[str], Any]] = {
    bool: lambda text: _BOOLEANS[text.lower()],
    int: int,
    float: float,
    str: str,
    tuple: _tuple,
    list: _list,
}


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _text(value: Any) -> str:
    value = _frozen(value)
    return repr(value).replace(" ", "") if isinstance(value, tuple) else str(value)


def _check_given(config: ConfigDict) -> None:
    """Refuse None where no setting is optional; ml_collections lets it pass."""
    for name in _missing(config):
        if not name.startswith(_FREE):
            raise SettingsError(f"{name}=None: this setting needs a value.")


def _missing(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for key, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict):
            yield from _missing(value, f"{prefix}{key}.")
        elif value is None:
            yield f"{prefix}{key}"


def _mistake(error: Exception, path: str) -> str:
    """What is wrong with a configuration file, and where, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    here = [f for f in frames if Path(f.filename).resolve() == Path(path).resolve()]
    place = f"{path}, line {here[-1].lineno}" if here else path
    # All that ml_collections says of a key that is not there is its name, in layers of
    # quotes, and one that looks alike if there is any.
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    unknown = re.match(r"""(?:Key )?["'](\w+)["']""", text)
    if not (isinstance(error, (AttributeError, KeyError)) and unknown):
        return f"{place}: {type(error).__name__}: {text}"
    line = (here[-1].line or "") if here else ""
    dotted = re.search(rf"\w\.((?:\w+\.)*{unknown[1]}\b(?:\.\w+)*)", line)
    name = dotted[1] if dotted else unknown[1]
    return f"{place}: unknown setting {name}; {_hint(name, default_config())}{_WHERE}"
