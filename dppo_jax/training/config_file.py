"""Read and write the `config.json` of a run directory."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dppo_jax.errors import SettingsError
from dppo_jax.training.old_settings import updated

CONFIG_FILE = "config.json"
# Type of a setting -> types of its value in JSON.
_IN_JSON: dict[type, Any] = {
    bool: bool,
    int: int,
    float: (int, float),
    str: str,
    tuple: list,
    list: list,
}


def load_config(run_dir: str | os.PathLike) -> dict[str, Any] | None:
    """Read a run's configuration with today's setting names; None if there is none.

    Raises:
        SettingsError: the file is damaged.
    """
    path = Path(run_dir) / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise SettingsError(
            f"{path} is not valid JSON ({error}); restore the file."
        ) from None
    if not isinstance(config, dict):
        raise SettingsError(f"{path} holds no settings; restore the file.")
    try:
        return updated(config)
    except TypeError as error:
        raise SettingsError(f"{path}: {error}; restore the file.") from None


def check_types(
    run_dir: str | os.PathLike,
    saved: Mapping[str, Any],
    defaults: Any,
    section: str = "",
) -> None:
    """Refuse settings of a `config.json` whose type is not that of the default.

    Args:
        saved: the settings, or those of a section.
        defaults: a ConfigDict; settings that it lacks may have any type.
        section: its name and a dot.

    Raises:
        SettingsError: a wrong type; the message names the file and the setting.
    """
    for key, default in defaults.items(preserve_field_references=True):
        if key not in saved:
            continue
        value = saved[key]
        if hasattr(default, "items"):
            wanted, fits = "a section", isinstance(value, dict)
        else:
            optional = hasattr(default, "get_type")
            kind = default.get_type() if optional else type(default)
            wanted = f"of type {kind.__name__}{' or null' if optional else ''}"
            # In Python a truth value is an integer too.
            is_kind = isinstance(value, _IN_JSON[kind]) and (
                isinstance(value, bool) == (kind is bool)
            )
            if is_kind and kind is float and isinstance(value, int):
                is_kind = abs(value) <= sys.float_info.max  # JSON knows no limit.
            fits = is_kind or (optional and value is None)
        if not fits:
            raise SettingsError(
                f"{Path(run_dir) / CONFIG_FILE}: {section}{key}={value!r:.80} must be "
                f"{wanted}; restore the file."
            )
        if isinstance(value, dict):
            check_types(run_dir, value, default, f"{section}{key}.")


def runs_inside(folder: str | os.PathLike) -> list[str]:
    """The run directories directly in a folder, such as those of several seeds."""
    return sorted(str(path.parent) for path in Path(folder).glob(f"*/{CONFIG_FILE}"))


def save_config(run_dir: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Write `config.json`, atomically.

    Raises:
        SettingsError: settings that JSON cannot represent.
    """
    try:
        text = json.dumps(config, indent=2, sort_keys=True)
    except TypeError as error:
        raise SettingsError(
            f"the configuration of {run_dir} cannot be written as JSON ({error}); pass "
            "plain dictionaries, such as config.to_dict()."
        ) from None
    write_atomically(Path(run_dir) / CONFIG_FILE, text + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file, and the folders above it; an interrupt leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)
