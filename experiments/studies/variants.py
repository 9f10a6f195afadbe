"""The variants of an ablation: labels, settings, and the tables that they fill."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dppo_jax.errors import SettingsError
from experiments.inputs import NO_POLICY
from experiments.settings import load_config, override
from experiments.studies.axes import settings_for, value_of

# Labels name folders and flags, so points and signs do not suit them.
_UNSUITED = re.compile(r"[^\w+-]+")
_LONGEST = 64
# Settings that decide what a cloned policy is, see `inputs.find_policy`.
_OF_CLONING = ("model.chunk", "pretrain.")


class Base(NamedTuple):
    """A configuration that is varied.

    settings: KEY -> VALUE that it has besides its file.
    """

    label: str
    spec: str
    settings: Mapping[str, str] = {}


class Variant(NamedTuple):
    """A configuration to run: a base with some settings changed."""

    label: str
    spec: str
    settings: dict[str, str]


class Table(NamedTuple):
    """The rows of an axis: what each is called, and the label of its variant."""

    axis: str
    rows: dict[str, str]


def make_variants(
    bases: Sequence[Base], axes: Mapping[str, Sequence[str]], changes: Sequence[str]
) -> tuple[list[Variant], list[Table]]:
    """One variant for each base, and for each value of an axis that changes it.

    A value that a base has already is the base. Rows of the base come first, so that
    the others are compared with it.

    Args:
        axes: name -> values.
        changes: KEY=VALUE of all variants.

    Raises:
        SettingsError: a wrong configuration, axis, value or setting.
    """
    variants: dict[str, Variant] = {}
    rows: dict[str, dict[str, str]] = {axis: {} for axis in axes}
    for base in bases:
        config = load_config(base.spec)
        override(config, changes, "--config.")
        override(config, [f"{key}={value}" for key, value in base.settings.items()])
        prefix = f"{base.label}-" if len(bases) > 1 else ""
        own = Variant(base.label, base.spec, dict(base.settings))
        known = {frozenset(own.settings.items()): own.label}
        variants[own.label] = own
        for axis, values in axes.items():
            found: dict[str, str] = {}
            for value in values:
                settings = own.settings | settings_for(config, axis, value)
                cloned_so = any(key.startswith(_OF_CLONING) for key in settings)
                if cloned_so and config.policy not in ("", NO_POLICY):
                    # The policy that was given has not been cloned like that.
                    settings.setdefault("policy", "")
                wanted = _label(f"{prefix}{axis}-{value}")
                label = known.setdefault(frozenset(settings.items()), wanted)
                _check_new(variants, Variant(label, base.spec, settings))
                variants.setdefault(label, Variant(label, base.spec, settings))
                found[value] = label
            value = value_of(config, axis)
            rows[axis] |= _rows(base, value, found, several=len(bases) > 1)
    return list(variants.values()), [Table(axis, x) for axis, x in rows.items()]


def _rows(
    base: Base, value: str, found: Mapping[str, str], *, several: bool
) -> dict[str, str]:
    """What the rows of a base are called: the base first, then the other values.

    Args:
        value: what the base has.
        found: value -> label of its variant.
    """
    owner = f"{base.label}, " if several else ""
    same = [x for x, label in found.items() if label == base.label]
    first = f"{owner}{same[0] if same else value} (base)"
    others = {
        f"{owner}{value}": label
        for value, label in found.items()
        if label != base.label
    }
    return {first: base.label} | others


def _label(text: str) -> str:
    return _UNSUITED.sub("_", text)[-_LONGEST:].lstrip("_-+")


def _check_new(variants: Mapping[str, Variant], variant: Variant) -> None:
    """Refuse values that would share a folder, such as 1.5 and 1_5."""
    known = variants.get(variant.label)
    if known is not None and known != variant:
        raise SettingsError(
            f"two values have the label {variant.label!r}; write one of them otherwise."
        )
