"""Named departures of the reference implementation from the papers it implements."""

from collections.abc import Collection, Iterable

from dppo_jax.errors import SettingsError


def check_quirks(given: Iterable[str], known: Collection[str], *, name: str) -> None:
    """Raise SettingsError for a quirk that algorithm `name` does not know."""
    for quirk in given:
        if quirk not in known:
            raise SettingsError(
                f"algorithm.{name}.reference_quirks has {quirk!r}, which is unknown; "
                f"use any of {', '.join(known)}, or () for none."
            )
