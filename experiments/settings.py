"""List all settings: python -m experiments.settings [--config=FILE.py:VARIANT]

`settings_table` makes the list. This module loads configuration files and applies
settings of the command line to them. A configuration is locked: a file and the command
line can set only what the defaults declare. `env.options` and `model.network.options`
are open, because each task and each outside network has its own options. In a file
`config.collect` is open too, until the settings of a demonstrator replace it.
"""

import ast
import difflib
import importlib.util
import math
import re
import shlex
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from dppo_jax.errors import SettingsError
from dppo_jax.networks import build as networks
from dppo_jax.training.config_file import check_types
from dppo_jax.training.old_settings import flatten, new_name
from experiments.defaults import default_config

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
# Sections that accept any key.
_OPEN = ("env.options", "model.network.options")
# Sections that a file fills; any of their settings may be None.
FREE = (*_OPEN, "collect")
_KIND = "model.network.kind="
_CONFIGS = Path(__file__).resolve().parent / "configs"


def load_config(spec: str) -> ConfigDict:
    """The configuration of FILE.py:VARIANT.

    Raises:
        SettingsError: no such file, no `get_config` in it, a wrong setting in it, or
            any other error in it; the message names the line.
    """
    path, _, variant = spec.partition(":")
    path = _find_file(path)
    module_spec = importlib.util.spec_from_file_location("experiment_config", path)
    if module_spec is None or module_spec.loader is None:
        raise SettingsError(f"--config={path} is not a Python file.")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(*([variant] if variant else []))
    except SettingsError:
        raise  # It names the setting and the cure.
    except Exception as error:
        raise SettingsError(_mistake(error, path)) from error
    if not isinstance(config, ConfigDict):
        raise SettingsError(
            f"{path}: get_config returns a {type(config).__name__}; it must return a "
            "configuration, such as experiments.defaults.default_config()."
        )
    config.lock()
    _check_given(config)
    return config


def _find_file(path: str) -> str:
    """The file of a configuration: this path, or one of experiments/configs.

    So `avoid`, `avoid.py` and `experiments/configs/avoid.py` work in every folder.

    Raises:
        SettingsError: there is no such file; the message names a similar one.
    """
    if Path(path).is_file():
        return path
    name = path.removeprefix("experiments/configs/").removesuffix(".py")
    known = {x.stem: x for x in _CONFIGS.glob("[a-z]*.py")}
    if name in known:
        return str(known[name])
    alike = difflib.get_close_matches(Path(name).name, known, n=1)
    hint = f" Did you mean experiments/configs/{alike[0]}.py?" if alike else ""
    raise SettingsError(f"--config={path}: there is no such file.{hint}")


def override(config: ConfigDict, settings: Sequence[str], flag: str = "") -> None:
    """Apply KEY=VALUE settings in their order, so that the last one of a key counts.

    A value is parsed as the type of the value it replaces. Write None as None, and a
    tuple as in Python or as a single entry.

    Args:
        flag: the prefix of KEY on the command line, for messages.

    Raises:
        SettingsError: no such key, no value, or a value of the wrong type.
    """
    # The kind of a network first, since it brings the settings of its section.
    for setting in sorted(settings, key=lambda x: not x.startswith(_KIND)):
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
                    f"{flag}{name}: {section} holds a plain value, so it has no keys; "
                    f"{_WHERE}"
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


def settings_of(saved: dict[str, Any], run_dir: str = "") -> ConfigDict:
    """The configuration that a run wrote to its `config.json`, locked.

    Settings that the file lacks get their defaults. Entries that are not settings, such
    as the stage, are left out.

    Raises:
        SettingsError: a setting of another type than its default.
    """
    config = default_config()
    network = flatten(saved).get("model.network.kind")
    use_network(config, network if isinstance(network, str) else "mlp")
    check_types(run_dir, saved, config)
    check_types(run_dir, saved, ConfigDict(dict(origin=dict(code=[]))))
    for name, value in flatten(saved).items():
        *sections, key = name.split(".")
        node = config
        for section in sections:
            known = isinstance(node.get(section), ConfigDict)
            if name.startswith(FREE) and not known:
                node[section] = ConfigDict()
            elif not known:
                break
            node = node[section]
        else:
            is_free = name.startswith(FREE) and value != {}
            if is_free or (key in node and not isinstance(node[key], ConfigDict)):
                node[key] = _frozen(value)
    return config.lock()


def use_network(config: ConfigDict, kind: str) -> None:
    """Give a configuration the settings of a kind of network, with their defaults.

    Nothing changes if it has that kind, or if one of the two is from outside the
    package, since such a network takes whatever settings there are. The settings of the
    encoder stay, because all kinds have the same.
    """
    before = config.model.network.kind
    if kind != before and {kind, before} <= networks.NETWORKS.keys():
        network = networks.default_config(kind)
        network.encoder = config.model.network.encoder
        config.model.network = network.lock()
        config.model.network.options.unlock()


def as_flag(name: str, value: Any) -> str:
    """The flag that sets a value on the command line of a shell."""
    return f"--config.{name}={shlex.quote(_text(value))}"


_WHERE = "`python -m experiments.settings --config=FILE.py:VARIANT` lists all settings."


def _refuse(config: ConfigDict, name: str, flag: str) -> None:
    """Raise SettingsError for an unknown setting, and suggest a known one."""
    raise SettingsError(f"unknown setting {flag}{name}; {_hint(name, config)}{_WHERE}")


def _hint(name: str, config: ConfigDict) -> str:
    """The present name of an old setting, or the known name most similar to `name`."""
    known = list(flatten(config.to_dict()))
    known += {x.rpartition(".")[0] for x in known} - {""}
    if new_name(name) != name and new_name(name) in known:
        return f"it is called {new_name(name)} now; "
    section, _, key = name.rpartition(".")
    if section == "model.network":
        owners = [
            kind
            for kind in networks.NETWORKS
            if key in flatten(networks.default_config(kind).to_dict())
        ]
        if owners:
            own = config.model.network.kind
            return f"kind={' and '.join(owners)} has it, and kind={own} has not; "
    keys = {x.rpartition(".")[2]: x for x in reversed(known)}
    alike = difflib.get_close_matches(name, known, n=1) or [
        keys[key]
        for key in difflib.get_close_matches(name.rpartition(".")[2], keys, n=1)
    ]
    return f"did you mean {alike[0]}? " if alike else ""


def _parse(node: ConfigDict, key: str, text: str, name: str) -> Any:
    """The value of a setting, parsed as the type of the value it replaces."""
    field = dict(node.items(preserve_field_references=True))[key]
    if isinstance(field, FieldReference):  # The defaults declare it as optional.
        if text == "None":
            return None
        kind = field.get_type()
    elif field is None:
        return _literal(text)
    else:
        kind = type(field)
    try:
        value = _PARSERS[kind](text)
    except (ValueError, SyntaxError, KeyError):
        optional = isinstance(field, FieldReference)
        wanted = f"{kind.__name__}{' or None' if optional else ''}"
        raise SettingsError(
            f"{name}={text}: the value must be of type {wanted}."
        ) from None
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{name}={text}: the value must be finite.")
    return value


def _literal(text: str) -> Any:
    """The value of a Python literal, or else the text itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of odd literals.
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


def _tuple(text: str) -> tuple:
    value = _literal(text)
    if value is None:
        raise SettingsError("None is not a tuple")
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
    """Refuse NaN, infinity, and None for settings that are not optional."""
    for name in _missing(config):
        if not name.startswith(FREE):
            raise SettingsError(f"{name}=None: this setting needs a value.")
    for name, value in flatten(config.to_dict()).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"{name}={value}: this setting must be finite.")


def _missing(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for key, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict):
            yield from _missing(value, f"{prefix}{key}.")
        elif value is None:
            yield f"{prefix}{key}"


def _mistake(error: Exception, path: str) -> str:
    """One line that says what is wrong in a configuration file, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    here = [f for f in frames if Path(f.filename).resolve() == Path(path).resolve()]
    place = f"{path}, line {here[-1].lineno}" if here else path
    # For a missing key ml_collections raises an error, possibly nested, that holds only
    # the quoted name and perhaps a similar one.
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


def main(config: ConfigDict) -> None:
    """Run the program."""
    # It imports this module.
    from experiments import settings_table

    settings_table.main(config)


if __name__ == "__main__":
    from experiments import command_line

    command_line.run_stage(main, takes_run=True, needs_config=False)
