"""What all stages share: flags, run directories, errors in one line."""

import contextlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from dppo_jax import parallel, runtime
from dppo_jax.checkpoint import PolicyCheckpoint, load_config, load_policy, save_config
from dppo_jax.envs.build import make_env
from dppo_jax.evaluate import Evaluation, make_evaluate
from dppo_jax.normalize import Normalizer
from dppo_jax.old_settings import flatten
from dppo_jax.policies import make_policy
from dppo_jax.types import Policy, PolicyParams
from experiments import plots, processes

# Changing these between a run and its resumption is what a user may want to do.
_MAY_CHANGE = (
    *("run_dir", "num_seeds", "evaluate.", "loop.", "mesh."),
    *("collect.target_return", "collect.num_steps"),
)
# What fine-tuning and evaluation must find as pre-training left it.
_MUST_MATCH: tuple[str, ...] = ("model.", "env.task", "env.history")
# Of these, what parameters do not depend on.
_MAY_DIFFER = ("model.compute_dtype", "model.sampling.")
# Of a fine-tuned policy the frozen and the tuned network differ, and these say which
# one makes which move.
_TUNED_MUST_MATCH = ("model.sampling.num_tuned_steps", "model.sampling.ddim_steps")
# What also decides how a policy scores; a difference is legitimate, but worth a line.
_WORTH_A_LINE = (
    *("env.", "model.compute_dtype"),
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

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "experiments/configs/FILE.py[:VARIANT], then --config.KEY=VALUE."
)


def run_stage(stage: Callable[..., Any], words: Sequence[str] = ()) -> None:
    """Parse the flags and run a stage; a wrong setting ends in one line, status 2.

    With DPPO_JAX_TRACEBACK=1 in the environment the whole traceback is printed.

    Args:
        stage: called with one string for each of `words`, then the configuration.
        words: what the command line must name besides flags.
    """
    with processes.leaving_at_once(), errors_in_one_line():
        stage(*_parse(sys.argv, words))


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


def _parse(argv: list[str], words: Sequence[str]) -> list[Any]:
    """What a command line gives for `words`, and its locked configuration.

    Raises:
        ValueError: no configuration, an unknown key, a value of the wrong type,
            words that are no flags, or others than `words`.
    """
    for flag in [arg for arg in argv[1:] if arg.startswith("--config=")]:
        path = flag.removeprefix("--config=").partition(":")[0]
        if not Path(path).is_file():
            raise ValueError(f"--config={path}: there is no such file.")
    try:
        _, *given = flags.FLAGS(_last_of_each(argv))
        config = _CONFIG.value
    except flags.Error as error:
        # A config file that raises arrives as the text of its whole traceback.
        raise ValueError(str(error).strip().splitlines()[-1]) from None
    except TypeError:
        raise ValueError(
            "a setting is given a key of its own, but holds a plain value; "
            "experiments/defaults.py lists what there is."
        ) from None
    except (KeyError, AttributeError) as error:
        # All that ml_collections says of a key that is not there is its name, in
        # layers of quotes, and one that looks alike if there is any.
        name = re.search(r"\w+", str(error))
        alike = re.search(r"Did you mean \W*(\w+)", str(error))
        key = name[0] if name else "?"
        flag = next((arg for arg in argv if key in arg.split("=")[0]), key)
        hint = f"did you mean {alike[1]}? " if alike else ""
        raise ValueError(
            f"unknown setting {flag.split('=')[0]}; {hint}experiments/defaults.py and "
            "the config.json of any run list what there is."
        ) from None
    if given and not words:
        raise ValueError(f"{given[0]!r} is no flag; write --config.KEY=VALUE.")
    if len(given) != len(words):
        raise ValueError(f"{given} given; write {' '.join(words)} --config=FILE.")
    if config is None:
        raise ValueError(
            "no configuration; pass --config=experiments/configs/avoid.py:m1"
        )
    runtime.configure()
    return [*given, config.lock()]


def prepare_run(config: ConfigDict, stage: str) -> str:
    """Create the run directory and write `config.json`; returns its path.

    Raises:
        ValueError: the directory belongs to a run with other settings.
    """
    return prepare_runs([config], stage)[0]


def prepare_runs(configs: Sequence[ConfigDict], stage: str) -> list[str]:
    """As `prepare_run`, of several runs; nothing is written if one is refused."""
    new = {
        config.run_dir
        or str(Path("runs") / config.name / stage): {"stage": stage} | as_json(config)
        for config in configs
    }
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
    free = (*_MAY_CHANGE, *_UNREAD[stage])
    for name, (before, now) in sorted(_differences(old, new).items()):
        if not any(name.startswith(p) or name.endswith(p) for p in free):
            raise ValueError(
                f"{run_dir} holds a run with {name}={before!r}, not {now!r}; "
                f"pass {_as_flag(name, before)} to resume it, or another "
                "--config.run_dir to start afresh."
            )


def find_policy(config: ConfigDict, stage: str) -> PolicyCheckpoint:
    """Load the checkpoint that the config names, or the run of an earlier stage.

    Raises:
        ValueError: none there, or a policy other than the configured one.
    """
    run_dir = config.policy or str(Path("runs") / config.name / stage)
    if not config.policy and load_config(run_dir) is None:
        raise ValueError(
            f"no policy at {run_dir}; run experiments.{stage} first, or pass "
            "--config.policy=<run directory>."
        )
    checkpoint = load_policy(run_dir)
    is_tuned = checkpoint.config.get("stage") == "finetune"
    differences = _differences(checkpoint.config, as_json(config))
    for name, (saved, now) in sorted(differences.items()):
        must_match = name.startswith(_MUST_MATCH) and not name.startswith(_MAY_DIFFER)
        if must_match or (is_tuned and name in _TUNED_MUST_MATCH):
            raise ValueError(
                f"{run_dir} was trained with {name}={saved!r}, but the config says "
                f"{now!r}; pass {_as_flag(name, saved)}, or train a policy that "
                "matches."
            )
        if name.startswith(_WORTH_A_LINE):
            print(f"note: the policy was trained with {name}={saved!r}, not {now!r}")
    return checkpoint


def build_policy(config: ConfigDict, action_dim: int) -> Policy:
    """The policy that all stages share."""
    horizon = config.algorithm.ppo.reward_horizon
    return make_policy(
        config.model,
        action_dim=action_dim,
        reward_horizon=config.env.executed if horizon is None else horizon,
    )


def make_score(
    config: ConfigDict, policy: Policy, normalizer: Normalizer
) -> Callable[[PolicyParams], Evaluation]:
    """The evaluation that `config.evaluate` describes, always on the same draws."""
    settings = config.evaluate
    env = make_env(
        config.env,
        normalizer=normalizer,
        chunk=config.model.chunk,
        num_envs=max(1, min(settings.num_envs, settings.num_episodes)),
        trace=plots.traced_metrics(config.env.task),
    )
    evaluate = make_evaluate(
        env,
        policy,
        num_episodes=settings.num_episodes,
        deterministic=settings.deterministic,
    )

    def score(params: PolicyParams) -> Evaluation:
        local = parallel.on_one_device(params)
        return evaluate(local, jax.random.key(settings.seed))

    return score


def as_json(config: ConfigDict) -> dict[str, Any]:
    """The config as it reads back from a JSON file, with the chosen algorithm only."""
    settings = json.loads(config.to_json_best_effort())
    algorithm = settings["algorithm"]
    kept = ("name", algorithm["name"])
    return settings | {"algorithm": {k: algorithm[k] for k in kept if k in algorithm}}


def _as_flag(name: str, value: Any) -> str:
    """How to set a value on the command line of a shell."""
    if isinstance(value, list):
        text = str(tuple(value)).replace(" ", "")
        return f"--config.{name}='{text}'"
    return f"--config.{name}={value}"


def _last_of_each(argv: list[str]) -> list[str]:
    """Of flags given twice the last: ml_collections would join tuples."""
    last = {
        arg.split("=")[0] if arg.startswith("--config.") else i: i
        for i, arg in enumerate(argv)
    }
    return [argv[i] for i in sorted(last.values())]


def _differences(old: dict, new: dict) -> dict[str, tuple[Any, Any]]:
    old, new = flatten(old), flatten(new)
    return {
        name: (old.get(name), new.get(name))
        for name in old.keys() | new.keys()
        if old.get(name) != new.get(name)
    }


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
