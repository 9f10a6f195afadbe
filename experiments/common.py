"""What all stages share: flags, run directories, errors in one line."""

import contextlib
import hashlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from dppo_jax import runtime
from dppo_jax.demonstrations.dataset import Episodes
from dppo_jax.demonstrations.formats import load_demonstrations
from dppo_jax.demonstrations.recorder import random_bounds
from dppo_jax.deploy import LoadedPolicy, load_policy
from dppo_jax.envs import time_limit, vectorize
from dppo_jax.envs.adapters import is_host
from dppo_jax.envs.build import make_env, make_single
from dppo_jax.evaluate import Evaluation, make_evaluate
from dppo_jax.normalize import Normalizer
from dppo_jax.objects import file_digest
from dppo_jax.policies import make_policy
from dppo_jax.training import parallel
from dppo_jax.training.checkpoint import (
    has_checkpoint,
    load_config,
    read_policy,
    save_config,
)
from dppo_jax.training.old_settings import flatten
from dppo_jax.types import Act, PyTree, VecEnv
from experiments import plots, processes
from experiments.defaults import default_config
from experiments.settings import as_flag
from experiments.settings import load_config as load_config_file
from experiments.settings import override, settings_of

# Changing these between a run and its resumption is what a user may want to do.
_MAY_CHANGE = (
    *("run_dir", "num_seeds", "evaluate.", "loop.", "mesh."),
    *("collect.target_return", "collect.num_steps"),
)
# What fine-tuning and evaluation must find as pre-training left it.
_MUST_MATCH: tuple[str, ...] = ("model.", "env.task", "env.history")
# Of these, what parameters do not depend on.
_MAY_DIFFER = ("model.network.compute_dtype", "model.sampling.")
# Of a fine-tuned policy the frozen and the tuned network differ, and these say which
# one makes which move.
_TUNED_MUST_MATCH = ("model.sampling.num_tuned_steps", "model.sampling.ddim_steps")
# Instead of a policy to start from.
NO_POLICY = "none"
# Where what a run started from is stored; it is compared by what it holds.
_SOURCES = ("policy", "data")
# What may name a file of the user's own; it is compared by what it holds if it moved.
_CODE = ("env.task", "env.wrappers", "network.kind")
# What also decides how a policy scores; a difference is legitimate, but worth a line.
_WORTH_A_LINE = (
    *("env.", "model.network.compute_dtype"),
    *(
        f"model.sampling.{x}"
        for x in ("ddim_steps", "eta", "draw_clip", "final_clip", "noise_clip")
    ),
)
# Settings that a stage does not read: they may differ from its last run.
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

_CONFIG = flags.DEFINE_string(
    "config", "", "experiments/configs/FILE.py[:VARIANT], then --config.KEY=VALUE."
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "latest", "of a policy that is read: an iteration, latest or best."
)


def run_stage(
    stage: Callable[..., Any], words: Sequence[str] = (), *, takes_run: bool = False
) -> None:
    """Parse the flags and run a stage; a wrong setting ends in one line, status 2.

    With DPPO_JAX_TRACEBACK=1 in the environment the whole traceback is printed.

    Args:
        stage: called with one string for each of `words`, then the configuration.
        words: what the command line must name besides flags.
        takes_run: whether it may name a run directory instead of a configuration; then
            the configuration is that of the run, whose policy it names.
    """
    with processes.leaving_at_once(), errors_in_one_line():
        stage(*_parse(sys.argv, words, takes_run=takes_run))


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the program in one line, with status 2, for what a user did wrong."""
    # Libraries report their routine here; what matters raises.
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what was saved")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # What was opened is closed by now. XLA may still be computing: tearing down
        # the interpreter below one of its callbacks would end in a crash.
        os._exit(130)
    except (
        *(ValueError, OSError, FloatingPointError, ImportError),
        jax.errors.JaxRuntimeError,
    ) as error:
        if os.environ.get("DPPO_JAX_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)


def _parse(
    argv: list[str], words: Sequence[str], *, takes_run: bool = False
) -> list[Any]:
    """What a command line gives for `words`, and its locked configuration.

    Raises:
        ValueError: no configuration, an unknown key, a value of the wrong type,
            words that are no flags, or others than `words`.
    """
    flag = re.compile(r"--?config\.(.*)", re.DOTALL)
    changes = [match[1] for arg in argv[1:] if (match := flag.fullmatch(arg))]
    try:
        _, *given = flags.FLAGS([arg for arg in argv if not flag.fullmatch(arg)])
    except flags.Error as error:
        raise ValueError(str(error)) from None
    if takes_run and len(given) == 1 and not _CONFIG.value:
        config = config_of_run(given.pop())
        override(config, changes, "--config.")
        runtime.configure()
        return [config]
    if given and not words:
        raise ValueError(f"{given[0]!r} is no flag; write --config.KEY=VALUE.")
    if len(given) != len(words):
        raise ValueError(f"{given} given; write {' '.join(words)} --config=FILE.")
    if not _CONFIG.value:
        raise ValueError(
            "no configuration; pass --config=experiments/configs/avoid.py:m1"
            + (", or the directory of a run." if takes_run else "")
        )
    config = load_config_file(_CONFIG.value)
    override(config, changes, "--config.")
    runtime.configure()
    return [*given, config]


def config_of_run(run_dir: str) -> ConfigDict:
    """The configuration of a run, locked, with its policy as the policy.

    Raises:
        ValueError: no run there, or one without a configuration of `experiments`.
    """
    saved = load_config(run_dir)
    if saved is None or "model" not in saved:
        raise ValueError(
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
        ValueError: the directory belongs to a run with other settings.
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
        raise ValueError(
            f"{run_dir} was imported from {old['imported_from']} and holds no "
            "training state; pass it as --config.policy, and another "
            "--config.run_dir."
        )
    if old.get("stage") != stage:
        raise ValueError(
            f"{run_dir} holds a run of experiments.{old.get('stage')}; pass "
            "another --config.run_dir."
        )
    _check_origin(run_dir, old, new, stage)
    free = (*_MAY_CHANGE, *_UNREAD[stage], *_SOURCES, "origin.")
    for name, (before, now) in sorted(_differences(old, new).items()):
        if not any(name.startswith(p) or name.endswith(p) for p in free):
            raise ValueError(
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
            raise ValueError(
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


def run_path(config: ConfigDict, stage: str) -> str:
    """Where a run writes to."""
    return config.run_dir or str(Path("runs") / config.name / stage)


def data_path(config: ConfigDict) -> str:
    """Where demonstrations are."""
    return config.data or str(Path("data") / config.name)


def load_data(config: ConfigDict) -> Episodes:
    """Demonstrations, normalised.

    Raises:
        ValueError: there are none, or they cannot be read.
    """
    data = data_path(config)
    if not config.data and not Path(data).exists():
        raise ValueError(
            f"no demonstrations at {data}; run experiments.collect first, or pass "
            "--config.data=<file or folder>, see docs/data.md."
        )
    return load_demonstrations(data)


def make_raw_env(config: ConfigDict) -> VecEnv:
    """The environments of `config.rollout` in task units, one action a step."""
    env = time_limit(make_single(config.env), config.env.max_steps)
    return vectorize(env, config.rollout.num_envs)


def find_bounds(config: ConfigDict, run_dir: str) -> tuple[Normalizer, dict[str, str]]:
    """Bounds for a policy that starts from nothing, and the digest of their origin.

    Those of a run that goes on, or of the data if there are any, or of random actions
    in [-1, 1].

    Raises:
        ValueError: no data, for a task in host processes.
    """
    data, origin = None, {}
    if config.data or Path(data_path(config)).exists():
        data = load_data(config)
        origin["data"] = digest(data)
    if has_checkpoint(run_dir):
        return read_policy(run_dir).normalizer, origin
    if data is not None and data.normalizer is not None:
        print(f"bounds of observations and actions: those of {data_path(config)}")
        return data.normalizer, origin
    if is_host(config.env.task):
        raise ValueError(
            f"policy={NO_POLICY}: bounds of {config.env.task} can only be those of "
            "demonstrations; pass --config.data=<file or folder>."
        )
    steps = config.rollout.random_steps
    print(f"bounds of observations and actions: those of {steps} random steps in +-1")
    # The same for every seed, so that many seeds in one program are what each is alone.
    key = jax.random.key(0)
    return random_bounds(make_raw_env(config), key, num_steps=steps), origin


def check_task(config: ConfigDict, stage: str) -> None:
    """Refuse a stage that needs a simulator where none is named."""
    if not config.env.task:
        raise ValueError(
            f"env.task is empty, and experiments.{stage} needs a simulator; pass "
            "--config.env.task=NAME, see docs/environments.md."
        )


def policy_path(config: ConfigDict, stage: str) -> str:
    """Where the policy is that the config names, or that of an earlier stage."""
    return config.policy or str(Path("runs") / config.name / stage)


def find_policy(
    config: ConfigDict, stage: str, checkpoint: int | str = "latest"
) -> LoadedPolicy:
    """Load the policy that the config names, or that of an earlier stage.

    Args:
        checkpoint: an iteration, "latest" or "best".

    Raises:
        ValueError: none there, or a policy other than the configured one.
    """
    run_dir = policy_path(config, stage)
    if not config.policy and load_config(run_dir) is None:
        raise ValueError(
            f"no policy at {run_dir}; run experiments.{stage} first, or pass "
            "--config.policy=<run directory>."
        )
    trained = load_config(run_dir) or {}
    if "model" not in trained:
        read_policy(run_dir, checkpoint)  # Refuses what is no run.
        raise ValueError(
            f"{run_dir} was written without a configuration; read it by "
            "dppo_jax.load_policy, or pass one to dppo_jax.train when it is trained."
        )
    is_tuned = trained.get("stage") == "finetune"
    differences = _differences(trained, as_json(config))
    for name, (saved, now) in sorted(differences.items()):
        must_match = name.startswith(_MUST_MATCH) and not name.startswith(_MAY_DIFFER)
        if name == "env.task" and not saved:
            continue  # Cloned without a simulator.
        if must_match or (is_tuned and name in _TUNED_MUST_MATCH):
            raise ValueError(
                f"{run_dir} was trained with {name}={saved!r}, but the config says "
                f"{now!r}; pass {as_flag(name, saved)}, or train a policy that "
                "matches."
            )
        if name.startswith(_WORTH_A_LINE):
            print(f"note: the policy was trained with {name}={saved!r}, not {now!r}")
    # As the configuration says now, of which no weight depends on the differences.
    return load_policy(run_dir, checkpoint, model=config.model)


def build_policy(config: ConfigDict, action_dim: int) -> Any:
    """The policy that all stages share."""
    return make_policy(config.model, action_dim=action_dim)


def make_score(
    config: ConfigDict, act: Act, normalizer: Normalizer
) -> Callable[[PyTree], Evaluation]:
    """The evaluation that `config.evaluate` describes, always on the same draws."""
    settings = config.evaluate
    for name in ("num_envs", "num_episodes"):
        if settings[name] < 1:
            raise ValueError(f"evaluate.{name}={settings[name]} must be at least 1.")
    env = make_env(
        config.env,
        normalizer=normalizer,
        chunk=config.model.chunk,
        num_envs=min(settings.num_envs, settings.num_episodes),
        trace=plots.traced_metrics(config.env.task),
    )
    evaluate = make_evaluate(
        env,
        act,
        num_episodes=settings.num_episodes,
        deterministic=settings.deterministic,
    )

    def score(params: PyTree) -> Evaluation:
        local = parallel.on_one_device(params)
        return evaluate(local, jax.random.key(settings.seed))

    return score


def as_json(config: ConfigDict) -> dict[str, Any]:
    """The config as it reads back from a JSON file, with the chosen algorithm only."""
    settings = json.loads(config.to_json_best_effort())
    algorithm = settings["algorithm"]
    kept = ("name", algorithm["name"])
    return settings | {"algorithm": {k: algorithm[k] for k in kept if k in algorithm}}


def _differences(old: dict, new: dict) -> dict[str, tuple[Any, Any]]:
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
