"""The entries of a comparison: their configurations, and what they share."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dppo_jax.algorithms import find_algorithm
from dppo_jax.demonstrations import load_demonstrations
from dppo_jax.demonstrations.dataset import Episodes, thin_episodes
from dppo_jax.demonstrations.formats.dppo_npz import NORMALIZER_FILE
from dppo_jax.envs import randomize
from dppo_jax.envs.action_noise import check_noise
from dppo_jax.errors import SettingsError
from dppo_jax.training.config_file import write_atomically
from dppo_jax.training.old_settings import flatten, updated
from dppo_jax.training.run_directory import check_folder
from experiments import directories, inputs
from experiments.seeds import check_seed, wandb_options
from experiments.settings import as_flag, load_config, override, settings_of

# The file that marks the folder of a comparison; it holds the settings of its entries.
RECORD = "compare.json"
# The prefix of settings of all entries; a label prefixes those of one entry.
ALL = "config"
_LABEL = r"[A-Za-z0-9][\w+-]{,63}"
# Entries must agree in these sections or settings, or their scores mean other things.
_SAME = ("env.task", "env.options", "env.max_steps", "evaluate.")
# Settings that the comparison itself chooses, and by which argument.
_OWN = {"run_dir": "--output", "num_seeds": "--seeds"}
# Settings that may change when a comparison is resumed.
_MAY_CHANGE = ("loop.finetune.", "mesh.", "wandb.", *_OWN)
# Settings that neither a demonstrator nor the parameters of a cloned policy depend on.
_NOT_READ = {
    "collect": ("env.history", "env.executed", "env.randomization."),
    "pretrain": (
        *("env.executed", "env.randomization."),
        *("model.sampling.", "model.noise."),
    ),
}


class Entry(NamedTuple):
    """One configuration of a comparison.

    label: also the name of its folder.
    words: the arguments that give a stage this configuration.
    config: with the folder as `run_dir` and the number of seeds as `num_seeds`.
    data: path of the demonstrations; empty if it needs none.
    policy: the run that clones its policy; empty if `config.policy` names one or none.
    """

    label: str
    words: tuple[str, ...]
    config: ConfigDict
    data: str = ""
    policy: str = ""


def read_entries(
    words: Sequence[str],
    settings: Sequence[tuple[str, str]],
    *,
    output: str,
    num_seeds: int,
) -> list[Entry]:
    """The entries that the command line names; writes nothing.

    Args:
        words: LABEL=FILE.py:VARIANT.
        settings: pairs of a label, or `ALL`, and KEY=VALUE.

    Raises:
        SettingsError: no entry, a wrong or repeated label, a wrong configuration or
            setting, or entries of different tasks.
    """
    specs: dict[str, str] = {}
    for word in words:
        label, equals, spec = word.partition("=")
        if not equals or not spec:
            raise SettingsError(
                f"{word!r} names no configuration; write LABEL=FILE.py:VARIANT."
            )
        if not re.fullmatch(_LABEL, label) or label == ALL:
            raise SettingsError(
                f"{label!r:.80} cannot be a label, because it names a folder and the "
                f"flags --LABEL.KEY; use at most 64 letters, digits, _, + and -, and "
                f"not {ALL!r}."
            )
        if label in specs:
            raise SettingsError(f"the label {label!r} is given twice; rename one.")
        specs[label] = spec
    if not specs:
        raise SettingsError(
            "no entries; write LABEL=FILE.py:VARIANT for each, such as "
            "dppo=experiments/configs/avoid.py:m2."
        )
    for label, setting in settings:
        if label not in (ALL, *specs):
            raise SettingsError(
                f"--{label}.{setting}: no entry has this label; use --{ALL} for all "
                f"entries, or one of --{', --'.join(specs)}."
            )
    entries = [
        _read(label, spec, settings, Path(output) / label, num_seeds)
        for label, spec in specs.items()
    ]
    _check_same(entries)
    return entries


def _read(
    label: str,
    spec: str,
    settings: Sequence[tuple[str, str]],
    folder: Path,
    num_seeds: int,
) -> Entry:
    # Those of all entries first, because the last one of a key counts.
    chosen = [x for name in (ALL, label) for owner, x in settings if owner == name]
    for setting in chosen:
        key = setting.partition("=")[0]
        if key in _OWN:
            raise SettingsError(
                f"{label}: a comparison chooses {key} itself; use {_OWN[key]}."
            )
    try:
        config = load_config(spec)
        override(config, chosen, "--config.")
    except SettingsError as error:
        raise SettingsError(f"{label}: {error}") from None
    inputs.check_task(config, "compare")
    try:
        _check_early(config)
    except SettingsError as error:
        raise SettingsError(f"{label}: {error}") from None
    if config.mesh.distributed:
        raise SettingsError(
            f"{label}: mesh.distributed=True, but a comparison starts its runs on one "
            "host; leave it out."
        )
    config.update(run_dir=str(folder), num_seeds=num_seeds)
    flags = (f"--config.{setting}" for setting in chosen)
    return Entry(label, (f"--config={spec}", *flags), config)


def _check_early(config: ConfigDict) -> None:
    """Refuse what would otherwise end a run after hours of those before it.

    Raises:
        SettingsError: a policy, noise or randomisation that cannot be, or metrics that
            cannot be sent.
    """
    wandb_options(config, "finetune")
    if config.model.chunk < 1:
        raise SettingsError(f"model.chunk={config.model.chunk} must be at least 1.")
    if ":" not in config.model.network.kind:
        # No setting of a policy of this package depends on the size of its actions.
        inputs.build_policy(config, action_dim=1)
    rollout = config.rollout
    check_noise(
        rollout.action_noise, rollout.action_noise_start, rollout.action_noise_ramp
    )
    randomize.check_config(config.env.randomization)


def _check_same(entries: Sequence[Entry]) -> None:
    first, *others = entries
    base = flatten(directories.as_json(first.config))
    for entry in others:
        own = flatten(directories.as_json(entry.config))
        names = [x for x in sorted(base | own) if base.get(x) != own.get(x)]
        for name in (x for prefix in _SAME for x in names if x.startswith(prefix)):
            cure = "compare entries of one task."
            if name != "env.task":
                cure = f"pass the same to both, as {as_flag(name, base.get(name))}."
            raise SettingsError(
                f"the entries {first.label} and {entry.label} have {name}="
                f"{base.get(name)!r} and {own.get(name)!r}, so their scores cannot be "
                f"compared; {cure}"
            )
        if "env.wrappers" in names:
            print(
                f"note: {first.label} and {entry.label} differ in env.wrappers, which "
                "may change what their returns mean"
            )


def seed_configs(entry: Entry) -> list[ConfigDict]:
    """The configuration of every seed, which has its directory in that of the entry."""
    first, count = entry.config.seed, entry.config.num_seeds
    check_seed(f"{entry.label}: seed", first, last=first + count - 1)
    configs = []
    for seed in range(first, first + count):
        own = entry.config.copy_and_resolve_references()
        run_dir = str(Path(entry.config.run_dir) / f"seed_{seed}")
        own.update(seed=seed, num_seeds=1, run_dir=run_dir)
        configs.append(own.lock())
    return configs


def prepare(
    output: str, entries: Sequence[Entry], *, write: bool = True
) -> list[Entry]:
    """Mark the folder as that of this comparison, and find what its entries start from.

    Entries whose settings of cloning agree share one cloned policy, in the folder of
    the first of them. So do demonstrations, if none are named or in `data/<name>`.

    Args:
        write: False: only find out, and leave the folder as it is.

    Raises:
        SettingsError: the folder holds something else, or an entry with other
            settings; or an entry that has not begun names what does not exist, or
            clones from more demonstrations than there are.
    """
    check_folder(output, flag="--output")
    record = Path(output) / RECORD
    if record.is_file():
        saved = _saved(record)
    elif Path(output).exists() and any(Path(output).iterdir()):
        raise SettingsError(
            f"{output} holds something else than a comparison (no {RECORD}); pass "
            "another --output."
        )
    else:
        saved = {}
    for entry in entries:
        if entry.label in saved:
            _check_unchanged(entry, saved[entry.label], output)
        _check_paths(entry, output)
    # Recorded entries come first, so that a new one changes nothing for them.
    known = saved | {entry.label: entry.config for entry in entries}
    data = {label: _find_data(label, known, output) for label in known}
    policies = _find_policies(known, data, output)
    found = [
        entry._replace(data=data[entry.label], policy=policies.get(entry.label, ""))
        for entry in entries
    ]
    _check_episodes(found)
    plain = {label: directories.as_json(config) for label, config in known.items()}
    if write:
        write_atomically(record, json.dumps({"entries": plain}, indent=2) + "\n")
    return found


def _check_episodes(entries: Sequence[Entry]) -> None:
    """Refuse to clone from more demonstrations than the data have."""
    known: dict[str, Episodes] = {}
    for label, _, config, data, policy in entries:
        num = config.pretrain.num_episodes
        needs_none = not policy or Path(policy).exists()
        if num is None or needs_none or not Path(data).exists():
            continue
        if data not in known:
            known[data] = load_demonstrations(data)
        try:
            thin_episodes(known[data], num)
        except SettingsError as error:
            raise SettingsError(f"{label}, {data}: {error}") from error


def about_output(message: Exception | str) -> str:
    """A message about the directory of a run, for a user who gave only --output."""
    return str(message).replace("--config.run_dir", "--output")


def _saved(record: Path) -> dict[str, ConfigDict]:
    try:
        entries = json.loads(record.read_text())["entries"]
        return {
            label: settings_of(updated(settings), str(record))
            for label, settings in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(
            f"{record} is damaged ({error}); restore it, or pass another --output."
        ) from None


def _has_begun(entry: Entry, output: str) -> bool:
    return any((Path(output) / entry.label).glob("**/checkpoints"))


def _check_paths(entry: Entry, output: str) -> None:
    """Refuse data or a policy that are named but missing, unless runs may have ended.

    Those of a finished comparison may have been moved since.
    """
    for name in ("data", "policy"):
        path = entry.config[name]
        missing = path and path != inputs.NO_POLICY and not Path(path).exists()
        if missing and not _has_begun(entry, output):
            raise SettingsError(
                f"{entry.label}: {name}={path} does not exist; check the path."
            )


def _check_unchanged(entry: Entry, saved: ConfigDict, output: str) -> None:
    if not _has_begun(entry, output):
        return  # Nothing was trained with these settings, so they may be corrected.
    before, now = (directories.as_json(x) for x in (saved, entry.config))
    for name, values in sorted(directories.differences(before, now).items()):
        if not name.startswith(_MAY_CHANGE):
            raise SettingsError(
                f"{output} holds the entry {entry.label} with {name}={values[0]!r}, "
                f"not {values[1]!r}; restore it to resume the comparison, rename the "
                "entry, or pass another --output."
            )


def _reads(config: ConfigDict, stage: str) -> dict[str, Any]:
    return {
        name: value
        for name, value in directories.settings_read(config, stage).items()
        if not name.startswith(_NOT_READ[stage])
    }


def _find_data(label: str, known: Mapping[str, ConfigDict], output: str) -> str:
    """The path of the demonstrations of an entry; empty if it needs none."""

    def needs_data(config: ConfigDict) -> bool:
        return not config.policy or find_algorithm(config.algorithm.name).uses_data

    own = known[label]
    if own.data or not needs_data(own):
        return own.data
    sharing = {
        name: config
        for name, config in known.items()
        if needs_data(config)
        and not config.data
        and _reads(config, "collect") == _reads(own, "collect")
    }
    collected = Path(output) / next(iter(sharing)) / "data"
    if (collected / NORMALIZER_FILE).exists():
        return str(collected)
    defaults = [inputs.data_path(config) for config in sharing.values() if config.name]
    found = [path for path in defaults if Path(path).exists()]
    return found[0] if found else str(collected)


def _find_policies(
    known: Mapping[str, ConfigDict], data: Mapping[str, str], output: str
) -> dict[str, str]:
    """The run that clones the policy of every entry that names none."""
    owners: dict[str, tuple[dict[str, Any], str]] = {}
    found = {}
    for label in (label for label, config in known.items() if not config.policy):
        key = (_reads(known[label], "pretrain"), data[label])
        same = [owner for owner, other in owners.items() if other == key]
        # Runs of an older comparison may have started from a clone of their own.
        has_own = (Path(output) / label / "pretrain").exists()
        owner = same[0] if same and not has_own else label
        owners.setdefault(owner, key)
        found[label] = str(Path(output) / owner / "pretrain")
    return found
