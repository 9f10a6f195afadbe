"""Say what a run directory holds: python -m experiments.inspect RUN [--checkpoint=best]

Prints which program and versions wrote the checkpoint, on which device, from which
policy and data, its score with the 95 % interval, the numbers of parameters, the sizes
of all checkpoints on disk, and the settings of its stage that differ from the defaults.
It changes nothing.
"""

import datetime
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dppo_jax.training.checkpoint import (
    BEST,
    CHECKPOINTS,
    SavedPolicy,
    read_policy,
    saved_shapes,
)
from dppo_jax.training.config_file import CONFIG_FILE
from dppo_jax.training.metric_names import in_bytes
from dppo_jax.training.old_settings import flatten
from experiments import command_line, directories
from experiments.defaults import default_config
from experiments.settings import as_flag, settings_of
from experiments.stated import stated_score

_UNKNOWN = "not recorded (written by an older version)"
# Parts of the training state that are named.
_SHOWN = 5
# Entries of `config.json` that are no settings, or that only name paths.
_NO_SETTINGS = (
    "stage",
    "origin.",
    "imported_from",
    "name",
    "run_dir",
    "policy",
    "data",
)


def main(run_dir: str, config: ConfigDict, checkpoint: int | str = "latest") -> None:
    """Run the program.

    Raises:
        SettingsError: no run there, no such checkpoint, or a damaged one.
    """
    del config
    policy = read_policy(run_dir, checkpoint)
    stored = saved_shapes(run_dir, policy.iteration)
    print(f"{run_dir}: {_program(policy.config)}, checkpoint {policy.iteration}")
    sections = {
        "written by": _written(policy),
        "started from": _sources(policy),
        "score": _score(policy, run_dir),
        "policy": _architecture(policy),
        "parameters": _parameters(policy, stored),
        "training state in memory": _parts(stored, policy.about),
        "on disk": _sizes(run_dir),
        "settings that differ from the defaults": _settings(policy.config, run_dir),
    }
    for title, lines in sections.items():
        print(f"{title}:")
        for line in lines:
            print(f"  {line}")


def _program(config: Mapping[str, Any]) -> str:
    source = config.get("imported_from")
    imported = f", imported from {source}" if source else ""
    return f"stage {config.get('stage', 'unknown')}{imported}"


def _written(policy: SavedPolicy) -> Iterator[str]:
    about = policy.about
    if "format" not in about:
        yield _UNKNOWN
        return
    versions, device = about["versions"], about["device"]
    git = f", git {about['git']}" if about["git"] else ""
    ours = versions.get("dppo_jax", "of an unknown version")
    yield f"dppo_jax {ours}{git}, format {about['format']}"
    others = (f"{name} {x}" for name, x in versions.items() if name != "dppo_jax")
    yield ", ".join(others)
    yield (
        f"{device['count']} x {device['kind']} ({device['platform']}), "
        f"{device['processes']} process{'es' * (device['processes'] > 1)}, "
        f"matmul precision {about['matmul_precision'] or 'of JAX'}"
    )


def _sources(policy: SavedPolicy) -> Iterator[str]:
    origin, data = policy.about.get("policy"), policy.about.get("data")
    if origin:
        yield (
            f"policy {origin['path']}, checkpoint {origin['checkpoint']} "
            f"({origin['digest']})"
        )
    if data:
        yield (
            f"data {data['path']}: {data['episodes']} episodes, {data['steps']} steps "
            f"({data['digest']})"
        )
    for name, of in (
        ("script_success", "the script succeeded in"),
        ("replay_success", "its actions, when replayed, in"),
    ):
        if data and name in data:
            yield f"{of} {100 * data[name]:.3g} %"
    if not (origin or data):
        yield "new networks" if "format" in policy.about else _UNKNOWN


def _score(policy: SavedPolicy, run_dir: str) -> Iterator[str]:
    is_ours = "model" in policy.config
    config = settings_of(policy.config, run_dir) if is_ours else None
    stated = stated_score(policy, run_dir, config)
    if stated is None:
        yield "none: no evaluation before this checkpoint"
        return
    yield f"iteration {stated.iteration}, {stated.how()}"
    yield from stated.lines()


def _architecture(policy: SavedPolicy) -> Iterator[str]:
    config, bounds = policy.config, policy.normalizer
    if "model" in config:
        settings = settings_of(config)
        model, env = settings.model, settings.env
        yield (
            f"{model.kind} with network {model.network.kind}, {env.history} "
            f"observations -> {model.chunk} actions, of which "
            f"{env.executed or model.chunk} are executed"
        )
        yield f"task {env.task or 'none'}, engine {env.engine}"
    for name, low, high in (
        ("observations", bounds.obs_min, bounds.obs_max),
        ("actions", bounds.action_min, bounds.action_max),
    ):
        yield (
            f"{len(low)} numbers in {name}, scaled to [-1, 1] from bounds between "
            f"{np.min(low):.4g} and {np.max(high):.4g}"
        )


def _parameters(policy: SavedPolicy, stored: Mapping[str, Any]) -> Iterator[str]:
    critic = stored.get("critic") or stored.get("state", {}).get("critic_params")
    for name, tree in {**policy.params, "critic": critic}.items():
        leaves = jax.tree.leaves(tree)
        if leaves:
            yield f"{name}: {sum(map(_count, leaves)):,} in {len(leaves)} arrays"


def _parts(stored: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[str]:
    """The largest parts of the training state, among them any replay buffer."""
    sizes = {
        name: sum(_count(x) * x.dtype.itemsize for x in jax.tree.leaves(tree))
        for name, tree in stored.get("state", {}).items()
    }
    if not sizes:
        yield "none: a run cannot resume from here"
        return
    first = [x for x in sorted(sizes, key=lambda name: -sizes[name]) if sizes[x]]
    first = first[:_SHOWN]
    yield ", ".join(f"{name} {in_bytes(sizes[name])}" for name in first)
    for name, size in about.get("left_out", {}).items():
        if size:
            yield f"left out: {name} {in_bytes(size)}, so a resumed run fills it anew"


def _count(leaf: Any) -> int:
    return math.prod(np.shape(leaf))


def _sizes(run_dir: str) -> Iterator[str]:
    for folder in (CHECKPOINTS, BEST):
        found = [x for x in Path(run_dir, folder).glob("*") if x.name.isdigit()]
        for path in sorted(found, key=lambda x: int(x.name)):
            items = [x for x in sorted(path.iterdir()) if x.is_dir()]
            each = ", ".join(f"{x.name} {_bytes(x)}" for x in items)
            saved = datetime.datetime.fromtimestamp(path.stat().st_mtime)
            when = saved.isoformat(" ", "minutes")
            yield f"{folder}/{path.name}: {_bytes(path)} ({each}), {when}"
    yield f"all files: {_bytes(Path(run_dir))}"


def _bytes(folder: Path) -> str:
    return in_bytes(sum(x.stat().st_size for x in folder.rglob("*") if x.is_file()))


def _settings(config: Mapping[str, Any], run_dir: str) -> Iterator[str]:
    if "model" not in config:
        yield f"{CONFIG_FILE} holds none of experiments.defaults"
        return
    own = settings_of(dict(config), run_dir)
    defaults = default_config()
    defaults.algorithm.name = own.algorithm.name
    found = directories.differences(
        directories.as_json(defaults), directories.as_json(own)
    )
    for name, (_, value) in sorted(found.items()):
        is_read = directories.is_read(name, str(config.get("stage")))
        if is_read and not name.startswith(_NO_SETTINGS):
            yield as_flag(name, value)
    known = flatten(directories.as_json(own))
    strange = [
        name
        for name, value in flatten(dict(config)).items()
        if name not in known and value != {} and not name.startswith(_NO_SETTINGS)
    ]
    if strange:
        yield f"not known to this version: {', '.join(sorted(strange))}"


if __name__ == "__main__":
    command_line.run_stage(
        main, words=("RUN",), takes_checkpoint=True, needs_config=False
    )
