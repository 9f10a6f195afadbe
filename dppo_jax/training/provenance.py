"""The record in a checkpoint: its format, and the versions and device that wrote it.

Orbax keeps it as `custom_metadata` of a checkpoint, beside the time of saving.
"""

import functools
import importlib.metadata
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from dppo_jax.errors import SettingsError

# Raise it when this package could no longer be read by the version before. Checkpoints
# without a format are older than the first one, and have the same items.
FORMAT = 1
# Packages that a result may depend on; those that are installed are named.
_PACKAGES = (
    *("dppo_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("mujoco", "mujoco-mjx", "brax", "gymnasium", "playground", "robosuite"),
)


def provenance() -> dict[str, Any]:
    """The format, package versions, device, precision and git revision of now.

    Returns:
        Values that JSON can hold. `git` is None where this package is in no checkout.
    """
    device = jax.local_devices()[0]
    return {
        "format": FORMAT,
        "versions": dict(_versions()),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        # None: that of JAX, which differs between devices.
        "matmul_precision": jax.config.values["jax_default_matmul_precision"],
        "git": _git_revision(),
    }


def check_format(about: Mapping[str, Any], where: str) -> None:
    """Refuse a checkpoint of a later version of this package.

    Raises:
        SettingsError: its format is newer, or is no number.
    """
    found = about.get("format", 0)
    if not isinstance(found, int) or found > FORMAT:
        by = about.get("versions")
        name = by.get("dppo_jax") if isinstance(by, Mapping) else None
        raise SettingsError(
            f"{where} has format {found}, written by dppo_jax {name or 'unknown'}; "
            f"this dppo_jax reads formats up to {FORMAT}. Install a newer one."
        )


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def _git_revision() -> str | None:
    """The commit of the checkout that holds this package, with "+" if files differ."""
    package = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                # Without a lock of the index, which a full disk would leave behind.
                ["git", "--no-optional-locks", "-C", str(package), *words],
                capture_output=True,
                text=True,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return None if done.returncode else done.stdout.strip()

    # A copy in the site-packages of another project's checkout is not tracked there.
    if not git("ls-files", "__init__.py"):
        return None
    revision = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return revision and revision + "+" * bool(changed)
