"""Read and write the `config.json` of a run directory."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dppo_jax.errors import SettingsError
from dppo_jax.training.old_settings import updated

CONFIG_FILE = "config.json"


def load_config(run_dir: str | os.PathLike) -> dict[str, Any] | None:
    """Read a run's configuration with today's setting names; None if there is none."""
    path = Path(run_dir) / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise SettingsError(
            f"{path} is not valid JSON ({error}); restore the file."
        ) from None
    if not isinstance(config, dict):
        raise SettingsError(f"{path} holds no settings; restore the file.")
    return updated(config)


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
    path = Path(run_dir) / CONFIG_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n")
    temporary.replace(path)
