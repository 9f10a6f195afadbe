"""Chooses the directory of a run, and checks whether a run may resume in it."""

import contextlib
import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dppo_jax.errors import SettingsError
from dppo_jax.objects import file_digest
from dppo_jax.training import parallel
from dppo_jax.training.config_file import load_config, runs_inside, save_config
from dppo_jax.training.old_settings import flatten, nested
from dppo_jax.training.run_directory import check_run_dir
from experiments import latest
from experiments.defaults import default_config
from experiments.settings import FREE, as_flag, override, settings_of

# Settings that a user may change when resuming a run.
_MAY_CHANGE = (
    *("run_dir", "num_seeds", "evaluate.", "loop.", "mesh.", "wandb."),
    *("collect.target_return", "collect.num_control_steps"),
    ".replay.in_checkpoints",
)
# Paths of what a run started from. `_check_origin` compares the contents instead.
_SOURCES = ("policy", "data")
# Settings that may name a file of the user. If its path changed, contents are compared.
_CODE = ("env.task", "env.wrappers", "network.kind")
# Settings that a stage does not read. They may change too, but `config.json` keeps
# those of the first start.
_UNREAD = {
    "collect": (
        *("pretrain.", "algorithm.", "rollout.", "critic.", "model."),
        *("data", "policy"),
    ),
    "pretrain": (
        *("algorithm.", "rollout.", "critic.", "collect.", "model.noise."),
        *("env.limit_terminates", "policy"),
    ),
    "finetune": ("pretrain.", "collect.", "data"),
}


def default_path(config: ConfigDict, root: str, *stage: str, flag: str) -> str:
    """root/<name>/<stage>, which is used if the setting `flag` names no path.

    Raises:
        SettingsError: the configuration has no name.
    """
    if not config.name:
        raise SettingsError(
            f"config.name is empty, and {flag} too, so there is no path to use; pass "
            f"--config.name=NAME or --config.{flag}=PATH."
        )
    return str(Path(root, config.name, *stage))


def run_path(config: ConfigDict, stage: str) -> str:
    """The directory that a run writes to."""
    return config.run_dir or default_path(config, "runs", stage, flag="run_dir")


def config_of_run(run_dir: str) -> ConfigDict:
    """The locked configuration of a run, with the run itself as `config.policy`.

    Raises:
        SettingsError: no run there, or a run without a configuration of `experiments`.
    """
    saved = load_config(run_dir)
    if saved is None or "model" not in saved:
        runs = ", ".join(runs_inside(run_dir))
        raise SettingsError(
            f"{run_dir} holds no run of experiments.pretrain, experiments.finetune, or "
            "dppo_jax.train with a configuration; name a directory that does"
            f"{runs and f': one of {runs}'}."
        )
    config = settings_of(saved, run_dir)
    config.update(policy=run_dir, run_dir="", num_seeds=1)
    config.mesh = default_config().mesh  # One device reads a run.
    return config


def read_groups(words: Sequence[str]) -> dict[str, list[str]]:
    """Label -> run directories of words LABEL=DIR,DIR, or DIR, which is its own label.

    Raises:
        SettingsError: no word, a label without directories, or a label given twice.
    """
    if not words:
        raise SettingsError("no runs given; write RUN ..., or LABEL=DIR,DIR ...")
    groups: dict[str, list[str]] = {}
    for word in words:
        label, equals, dirs = word.partition("=")
        if not equals:
            label, dirs = word.rstrip("/"), word
        if not label or not dirs:
            raise SettingsError(f"{word!r} names no runs; write LABEL=DIR,DIR ...")
        if label in groups:
            raise SettingsError(f"the label {label!r} is given twice; join its runs.")
        paths = dirs.split(",") if equals else [dirs]
        groups[label] = [latest.followed(path) for path in paths]
    return groups


def is_read(name: str, stage: str) -> bool:
    """Whether a stage reads a setting."""
    if name.startswith("loop.") and not name.startswith(f"loop.{stage}."):
        return False
    return not f"{name}.".startswith(_UNREAD.get(stage, ()))


def settings_read(config: ConfigDict, stage: str) -> dict[str, Any]:
    """The settings that the result of a stage depends on, by their dotted names."""
    free = ("name", "run_dir", "num_seeds", "evaluate.", "mesh.", "wandb.")
    return {
        name: value
        for name, value in flatten(as_json(config)).items()
        if is_read(name, stage) and not name.startswith(free)
    }


def prepare_run(
    config: ConfigDict, stage: str, origin: Mapping[str, Any] | None = None
) -> str:
    """Create the run directory and write `config.json`; returns its path.

    Args:
        origin: digests of what the run starts from, "policy" or "data", and the
            iteration "checkpoint" of the policy.

    Raises:
        SettingsError: the directory belongs to a run with other settings.
    """
    return prepare_runs([config], stage, origin)[0]


def prepare_runs(
    configs: Sequence[ConfigDict],
    stage: str,
    origin: Mapping[str, Any] | None = None,
) -> list[str]:
    """As `prepare_run`, for several runs; if one is refused, nothing is written."""
    code = _digests_of_code(configs[0])
    about = {"stage": stage, "origin": {**(origin or {}), **code}}
    new = {run_path(config, stage): about | as_json(config) for config in configs}
    written = {
        run_dir: _check_run(run_dir, settings, stage)
        for run_dir, settings in new.items()
    }
    changed: dict[str, None] = {}  # Those of several seeds are the same.
    for run_dir, settings in written.items():
        if parallel.is_first_process():
            changed |= dict.fromkeys(_changes(load_config(run_dir) or {}, settings))
            save_config(run_dir, settings)
    for change in changed:
        print(f"resumed: {change}", flush=True)
    return list(written)


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between the settings of a run and those that it resumes with."""
    # A run may have moved, and `origin` is of what it read.
    found = differences(old, new) if old else {}
    return [
        f"{name} {_in_words(before)} -> {_in_words(now)}"
        for name, (before, now) in sorted(found.items())
        if not name.startswith(("run_dir", "origin."))
    ]


def _in_words(value: Any) -> str:
    return repr(value) if value == "" else str(value)


def _check_run(run_dir: str, new: dict[str, Any], stage: str) -> dict[str, Any]:
    """The settings to write, after a check that the run may start or resume."""
    check_run_dir(run_dir)
    seeds = [x for x in runs_inside(run_dir) if Path(x).name.startswith("seed_")]
    if seeds:
        raise SettingsError(
            f"{run_dir} is the folder of several seeds ({', '.join(seeds)}); pass "
            f"--config.num_seeds={len(seeds)} to resume them, or another "
            "--config.run_dir."
        )
    old = load_config(run_dir)
    if old is None:
        return new
    if old.get("imported_from"):
        also = "pass it as --config.policy, and" if stage == "finetune" else "pass"
        raise SettingsError(
            f"{run_dir} was imported from {old['imported_from']} and holds no "
            f"training state; {also} another --config.run_dir."
        )
    if old.get("stage") != stage:
        raise SettingsError(
            f"{run_dir} holds a run of {_program(old)}; pass another --config.run_dir."
        )
    settings_of(old, run_dir)  # Refuses a damaged file.
    _check_origin(run_dir, old, new, stage)
    free = (*_MAY_CHANGE, *_UNREAD[stage], *_SOURCES, "origin.")
    for name, (before, now) in sorted(differences(old, new).items()):
        if not any(name.startswith(p) or name.endswith(p) for p in free):
            resume = _how_to_resume(run_dir, old, name)
            raise SettingsError(
                f"{run_dir} holds a run with {name}={before!r}, not {now!r}; {resume}"
                "pass another --config.run_dir to start a new run."
            )
    return _resumed(old, new, stage)


def _program(old: dict[str, Any]) -> str:
    """The program that wrote a `config.json`."""
    stage = old.get("stage")
    if stage == "train":
        return "dppo_jax.train"
    known = stage in list(_UNREAD)
    return f"experiments.{stage}" if known else "a program that is not known here"


def _how_to_resume(run_dir: str, old: dict[str, Any], name: str) -> str:
    """The advice to restore a setting of a run, if the command line can do that."""
    if name == "seed" and Path(run_dir).name.startswith("seed_"):
        return ""  # Among several seeds, another seed has another directory.
    if name in flatten(old):
        flag = as_flag(name, flatten(old)[name])
        (setting,) = shlex.split(flag)
        with contextlib.suppress(SettingsError):
            override(settings_of(old), [setting.removeprefix("--config.")])
            return f"pass {flag} to resume it, or "
    elif name.startswith(FREE):
        return f"leave {name} out to resume it, or "
    return ""


def _resumed(old: dict[str, Any], new: dict[str, Any], stage: str) -> dict[str, Any]:
    """What to write when a run resumes: `new`, except what did not take effect."""

    def is_read(name: str) -> bool:
        return not f"{name}.".startswith((*_UNREAD[stage], "origin."))

    kept = {name: x for name, x in flatten(old).items() if not is_read(name)}
    settings = {name: x for name, x in flatten(new).items() if is_read(name)}
    origin = {"code": new["origin"].get("code")}
    origin = old.get("origin", {}) | {k: x for k, x in origin.items() if x}
    return nested(kept | settings) | {"origin": origin}


def _check_origin(
    run_dir: str, old: dict[str, Any], new: dict[str, Any], stage: str
) -> None:
    """Refuse to resume with another policy or other data than the run started from.

    Compares digests, so files may have moved. For old runs without digests it compares
    paths.
    """
    old = {"name": "", "policy": "", "data": "", "origin": {}} | old
    for name in _SOURCES:
        before, now = (x.get("origin", {}).get(name) for x in (old, new))
        if before and now:
            same = before == now
        elif name in _UNREAD[stage] and not (before or now):
            same = True
        else:
            same = os.path.realpath(old[name]) == os.path.realpath(new[name])
        if not same:
            before, now = _source(old, name), _source(new, name)
            resume = f"pass {_source_flags(old, name)}"
            if before == now:
                resume = f"restore {before}, which has changed since,"
            raise SettingsError(
                f"{run_dir} holds a run that started from another {name}: {before}, "
                f"not {now}; {resume} to resume it, or pass another --config.run_dir "
                "to start a new run."
            )


def _source(settings: dict[str, Any], name: str) -> str:
    """What a run started from, in words."""
    default = {
        "policy": Path("runs", settings["name"], "pretrain"),
        "data": Path("data", settings["name"]),
    }
    if settings[name] == "none":
        return "new networks"
    words = str(settings[name] or default[name])
    checkpoint = settings["origin"].get("checkpoint")
    if name == "policy" and checkpoint is not None:
        return f"checkpoint {checkpoint} of {words}"
    return words


def _source_flags(old: dict[str, Any], name: str) -> str:
    """The flags that choose what a run started from."""
    flags = as_flag(name, old[name])
    checkpoint = old["origin"].get("checkpoint")
    if name == "policy" and checkpoint is not None:
        flags += f" --checkpoint={checkpoint}"
    if old[name] == "none":
        return flags
    return f"{flags}, or the path to which it was moved,"


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
    found = {
        name: (old.get(name), new.get(name))
        for name in old.keys() | new.keys()
        if old.get(name) != new.get(name)
        and not (
            name.endswith(_CODE) and _is_moved(old.get(name), new.get(name), digests)
        )
    }
    # Kinds of networks differ in their settings too; the kind says it all.
    kinds = [name for name in found if name.endswith("network.kind")]
    sections = tuple(name.removesuffix("kind") for name in kinds)
    return {
        name: values
        for name, values in found.items()
        if name in kinds or not name.startswith(sections)
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
