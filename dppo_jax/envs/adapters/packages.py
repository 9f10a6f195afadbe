"""A check for optional packages."""

import importlib.util

from dppo_jax.errors import SettingsError


def require(package: str, *, task: str, extra: str) -> None:
    """Raise SettingsError, with the command to install it, if `package` is missing."""
    if importlib.util.find_spec(package) is None:
        raise SettingsError(
            f"The task {task!r} needs the package {package}, which is not installed; "
            f'pip install -e ".[{extra}]" -c constraints.txt'
        )
