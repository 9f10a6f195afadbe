"""What happens where an optional package is absent."""

import importlib.util

from dppo_jax.errors import SettingsError


def require(package: str, *, task: str, extra: str) -> None:
    """Raise SettingsError, naming the cure, unless `package` is installed."""
    if importlib.util.find_spec(package) is None:
        raise SettingsError(
            f"The task {task!r} needs the package {package}, which is not installed; "
            f'pip install -e ".[{extra}]" -c constraints.txt'
        )
