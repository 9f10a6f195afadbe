"""What happens where an optional package is absent."""

import importlib.util


def require(package: str, *, task: str, extra: str) -> None:
    """Raise ValueError, naming the cure, unless `package` is installed."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"The task {task!r} needs the package {package}, which is not installed; "
            f'pip install -e ".[{extra}]" -c constraints.txt'
        )
