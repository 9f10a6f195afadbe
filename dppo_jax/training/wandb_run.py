"""Send the metrics of a run to Weights & Biases, if its user asks for that.

It may fail, for example without a network or an account: then it says so once, and
training goes on. The files of a run directory hold all that it would have got.
"""

import importlib.util
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dppo_jax.errors import SettingsError
from dppo_jax.training.config_file import load_config, write_atomically
from dppo_jax.training.metric_names import tag

# Holds the id of the run, so that a resumed run goes on in the same curves.
ID_FILE = "wandb.json"
# Seconds in which a user at a terminal may answer where to log in.
_LOGIN_TIMEOUT = 30


def check_installed() -> None:
    """Raise SettingsError if the package is missing."""
    if importlib.util.find_spec("wandb") is None:
        raise SettingsError(
            "config.wandb.project sends metrics to Weights & Biases, whose package is "
            'not installed; run: pip install -e ".[wandb]" -c constraints.txt, or '
            "leave the setting out."
        )


class WandbRun:
    """The run of Weights & Biases that belongs to a run directory.

    Its methods raise nothing. Metrics have the names that TensorBoard shows, over
    `iteration`. An iteration that is repeated after an interruption appears twice, with
    the same numbers.

    Args:
        run_dir: holds the id in `wandb.json`, and what the package writes in `wandb`.
        options: arguments of `wandb.init` that replace those below, such as `project`.
    """

    def __init__(self, run_dir: str | os.PathLike, options: Mapping[str, Any]) -> None:
        self._run: Any = None
        try:
            import wandb

            settings = wandb.Settings(console="off", login_timeout=_LOGIN_TIMEOUT)
            usual = dict(
                name=str(run_dir),
                dir=str(run_dir),
                id=_id_of(Path(run_dir) / ID_FILE),
                resume="allow",
                reinit="create_new",  # Several seeds have a run each.
                config=load_config(run_dir),
                settings=settings,
            )
            self._run = wandb.init(**{**usual, **options})
            self._run.define_metric("*", step_metric="iteration")
        except Exception as error:  # Whatever it is, the run has its own files.
            self._give_up(error)

    def write(self, iteration: int, row: Mapping[str, float]) -> None:
        """Send the finite numbers of a row."""
        values = {
            tag(name): value
            for name, value in row.items()
            if name != "iteration" and math.isfinite(value)
        }
        if self._run is not None:
            try:
                self._run.log({"iteration": iteration, **values})
            except Exception as error:
                self._give_up(error)

    def close(self) -> None:
        """Wait until everything is sent, or written if the mode is offline."""
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:
                self._give_up(error)
        self._run = None

    def _give_up(self, error: Exception) -> None:
        self._run = None
        print(
            f"warning: Weights & Biases failed ({type(error).__name__}: {error}); the "
            "run goes on without it",
            flush=True,
        )


def _id_of(path: Path) -> str:
    """The id that a file holds, or else a new one, which is written to it."""
    try:
        found = json.loads(path.read_text())["id"]
        if isinstance(found, str) and found:
            return found
    except (OSError, ValueError, LookupError, TypeError):
        pass
    new = secrets.token_hex(4)
    write_atomically(path, json.dumps({"id": new}) + "\n")
    return new
