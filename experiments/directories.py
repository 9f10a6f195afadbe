"""Chooses the directory of a run, and checks whether a run may resume in it."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dppo_jax.errors import SettingsError
from dppo_jax.objects import file_digest
from dppo_jax.training import parallel
from dppo_jax.training.config_file import load_config, save_config
from dppo_jax.training.old_settings import flatten
from experiments.defaults import default_config
from experiments.settings import as_flag, settings_of

# Settings that a user may change when resuming a run.
_MAY_CHANGE = (
    *("run_dir", "num_seeds", "evaluate.", "loop.", "mesh."),
    *("collect.target_return", "collect.num_control_steps"),
)
# Paths of what a run started from. `_check_origin` compares the contents instead.
_SOURCES = ("policy", "data")
# Settings that may name a file of the user. If its path changed, contents are compared.
_CODE = ("env.task", "env.wrappers", "network.kind")
# Settings that a stage does not read, so they may change too.
_UNREAD = {
    "collect": (
        *("pretrain.", "algorithm.", "rollout.", "critic.", "model."),
        *("data", "policy"),
    ),
    "pretrain": (
        *("algorithm.", "rollout.", "critic.", "collect.", "model.sampling."),
        "policy",
    ),
    "finetune": ("pretrain.", "collect.", "data"),
}


def run_path(config: ConfigDict, stage: str) -> str:
    """The directory that a run writes to."""
    return config.run_dir or str(Path("runs") / config.name / stage)


def config_of_run(run_dir: str) -> ConfigDict:
    """The locked configuration of a run, with the run itself as `config.policy`.

    Raises:
        SettingsError: no run there, or a run without a configuration of `experiments`.
    """
    saved = load_config(run_dir)
    if saved is None or "model" not in saved:
        raise SettingsError(
            f"{run_dir} holds no run of experiments.pretrain, experiments.finetune, or "
            "dppo_jax.train with a configuration; name a directory that does."
        )
    config = settings_of(saved)
    config.update(policy=run_dir, run_dir="", num_seeds=1)
    config.mesh = default_config().mesh  # One device reads a run.
    return config


def prepare_run(
    config: ConfigDict, stage: str, origin: Mapping[str, str] | None = None
) -> str:
    """Create the run directory and write `config.json`; returns its path.

    Args:
        origin: digests of what the run starts from, "policy" or "data".

    Raises:
        SettingsError: the directory belongs to a run with other settings.
    """
    return prepare_runs([config], stage, origin)[0]


def prepare_runs(
    configs: Sequence[ConfigDict],
    stage: str,
    origin: Mapping[str, str] | None = None,
) -> list[str]:
    """As `prepare_run`, for several runs; if one is refused, nothing is written."""
    code = _digests_of_code(configs[0])
    about = {"stage": stage, "origin": {**(origin or {}), **code}}
    new = {run_path(config, stage): about | as_json(config) for config in configs}
    for run_dir, settings in new.items():
        _check_run(run_dir, settings, stage)
    for run_dir, settings in new.items():
        if parallel.is_first_process():
            save_config(run_dir, settings)
    return list(new)


def _check_run(run_dir: str, new: dict[str, Any], stage: str) -> None:
    old = load_config(run_dir)
    if old is None:
        return
    if old.get("imported_from"):
        raise SettingsError(
            f"{run_dir} was imported from {old['imported_from']} and holds no "
            "training state; pass it as --config.policy, and another "
            "--config.run_dir."
        )
    if old.get("stage") != stage:
        raise SettingsError(
            f"{run_dir} holds a run of experiments.{old.get('stage')}; pass "
            "another --config.run_dir."
        )
    _check_origin(run_dir, old, new, stage)
    free = (*_MAY_CHANGE, *_UNREAD[stage], *_SOURCES, "origin.")
    for name, (before, now) in sorted(differences(old, new).items()):
        if not any(name.startswith(p) or name.endswith(p) for p in free):
            raise SettingsError(
                f"{run_dir} holds a run with {name}={before!r}, not {now!r}; "
                f"pass {as_flag(name, before)} to resume it, or another "
                "--config.run_dir to start a new run."
            )


def _check_origin(
    run_dir: str, old: dict[str, Any], new: dict[str, Any], stage: str
) -> None:
    """Refuse to resume with another policy or other data than the run started from.

    Compares digests, so files may have moved. For old runs without digests it compares
    paths.
    """
    for name in _SOURCES:
        before, now = (x.get("origin", {}).get(name) for x in (old, new))
        if before and now:
            same = before == now
        elif name in _UNREAD[stage] and not (before or now):
            same = True
        else:
            same = os.path.realpath(old[name]) == os.path.realpath(new[name])
        if not same:
            raise SettingsError(
                f"{run_dir} holds a run that started from another {name}: "
                f"{old[name] or 'the default path'!r} at that time, now "
                f"{name}={new[name]!r}; to resume it, pass {as_flag(name, old[name])} "
                "or the path to which that was moved; to start a new run, pass another "
                "--config.run_dir."
            )


def digest(tree: Any) -> str:
    """A digest of the arrays in a tree, whatever their order and names."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    each = sorted(
        hashlib.sha256(f"{x.shape} {x.dtype} ".encode() + x.tobytes()).digest()
        for x in leaves
    )
    return hashlib.sha256(b"".join(each)).hexdigest()[:16]


def as_json(config: ConfigDict) -> dict[str, Any]:
    """The config as read back from JSON, with settings of the chosen algorithm only."""
    settings = json.loads(config.to_json_best_effort())
    algorithm = settings["algorithm"]
    kept = ("name", algorithm["name"])
    return settings | {"algorithm": {k: algorithm[k] for k in kept if k in algorithm}}


def differences(old: dict, new: dict) -> dict[str, tuple[Any, Any]]:
    digests = dict(old.get("origin", {}).get("code", []))
    old, new = (
        {name: x for name, x in flatten(tree).items() if x != {}} for tree in (old, new)
    )
    return {
        name: (old.get(name), new.get(name))
        for name in old.keys() | new.keys()
        if old.get(name) != new.get(name)
        and not (
            name.endswith(_CODE) and _is_moved(old.get(name), new.get(name), digests)
        )
    }


def _digests_of_code(config: ConfigDict) -> dict[str, list[list[str]]]:
    """`code`: references to the user's files in the configuration, with digests."""
    named = [x for k, x in flatten(as_json(config)).items() if k.endswith(_CODE)]
    references = [x for names in named for x in _as_list(names)]
    digests = {x: file_digest(x) for x in references}
    code = [[x, digest] for x, digest in digests.items() if digest]
    return {"code": code} if code else {}


def _is_moved(old: Any, new: Any, digests: Mapping[str, str]) -> bool:
    """Whether references name the same objects, possibly in files that moved."""

    def is_same(before: Any, now: Any) -> bool:
        if before == now:
            return True
        names = [str(x).rpartition(":")[2] for x in (before, now)]
        digest = file_digest(now)
        found = digest is not None and digest == digests.get(before)
        return names[0] == names[1] and found

    old, new = _as_list(old), _as_list(new)
    return len(old) == len(new) and all(map(is_same, old, new))


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
