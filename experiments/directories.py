"""Run directories: where a run is written, and whether a run may go on in one."""

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

# Changing these between a run and its resumption is what a user may want to do.
_MAY_CHANGE = (
    *("run_dir", "num_seeds", "evaluate.", "loop.", "mesh."),
    *("collect.target_return", "collect.num_control_steps"),
)
# Where what a run started from is stored; it is compared by what it holds.
_SOURCES = ("policy", "data")
# What may name a file of the user's own; it is compared by what it holds if it moved.
_CODE = ("env.task", "env.wrappers", "network.kind")
# Settings that a stage does not read: they may differ from its last run.
_UNREAD = {
    "collect": (
        *("pretrain.", "algorithm.", "rollout.", "critic.", "model."),
        *("data", "policy"),
    ),
    "pretrain": (
        *("algorithm.", "rollout.", "critic.", "collect.", "model.sampling."),
        *("model.noise.", "policy"),
    ),
    "finetune": ("pretrain.", "collect.", "data"),
}


def run_path(config: ConfigDict, stage: str) -> str:
    """Where a run writes to."""
    return config.run_dir or str(Path("runs") / config.name / stage)


def config_of_run(run_dir: str) -> ConfigDict:
    """The configuration of a run, locked, with its policy as the policy.

    Raises:
        SettingsError: no run there, or one without a configuration of `experiments`.
    """
    saved = load_config(run_dir)
    if saved is None or "model" not in saved:
        raise SettingsError(
            f"{run_dir} is no directory of experiments.pretrain or "
            "experiments.finetune, nor of dppo_jax.train with a configuration; name "
            "one that is."
        )
    config = settings_of(saved)
    config.update(policy=run_dir, run_dir="", num_seeds=1)
    config.mesh = default_config().mesh  # Whoever reads a run need not be many.
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
    """As `prepare_run`, of several runs; nothing is written if one is refused."""
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
                "--config.run_dir to start afresh."
            )


def _check_origin(
    run_dir: str, old: dict[str, Any], new: dict[str, Any], stage: str
) -> None:
    """Refuse another policy or other data than those that a run started from.

    Digests tell, wherever the files are now; runs from before there were any are
    compared by the places that they name.
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
                f"{run_dir} holds a run that started from another {name}, "
                f"{old[name] or 'the one of its name'!r} where it was trained, with "
                f"{name}={new[name]!r} now; pass {as_flag(name, old[name])}, or where "
                "that has gone to, to resume it, or another --config.run_dir to start "
                "afresh."
            )


def digest(tree: Any) -> str:
    """What tells arrays from others, wherever and in what order they are stored."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    each = sorted(
        hashlib.sha256(f"{x.shape} {x.dtype} ".encode() + x.tobytes()).digest()
        for x in leaves
    )
    return hashlib.sha256(b"".join(each)).hexdigest()[:16]


def as_json(config: ConfigDict) -> dict[str, Any]:
    """The config as it reads back from a JSON file, with the chosen algorithm only."""
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
    """`code`: how the configuration names files of code, and their digests, if any."""
    named = [x for k, x in flatten(as_json(config)).items() if k.endswith(_CODE)]
    references = [x for names in named for x in _as_list(names)]
    digests = {x: file_digest(x) for x in references}
    code = [[x, digest] for x, digest in digests.items() if digest]
    return {"code": code} if code else {}


def _is_moved(old: Any, new: Any, digests: Mapping[str, str]) -> bool:
    """Whether references name the same objects, of files that have other places now."""

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
