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

from dppo_jax import runtime
from dppo_jax.checkpoint import PolicyCheckpoint, load_config, load_policy, save_config
from dppo_jax.envs.build import make_env
from dppo_jax.evaluate import Evaluation, make_evaluate
from dppo_jax.normalize import Normalizer
from dppo_jax.types import Policy, PolicyParams
from experiments import plots

# Changing these between a run and its resumption is what a user may want to do.
_MAY_CHANGE = ("run_dir", "evaluate.", "loop.", "num_iterations", "num_epochs")
# What fine-tuning and evaluation must find as pre-training left it.
_MUST_MATCH: tuple[str, ...] = ("model.", "env.task", "env.history")

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
    with errors_in_one_line():
        stage(*_parse(sys.argv, words))


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the program in one line, with status 2, for what a user did wrong."""
    # Libraries report their routine here; what matters raises.
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
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
    try:
        _, *given = flags.FLAGS(argv)
        config = _CONFIG.value
    except flags.Error as error:
        # A config file that raises arrives as the text of its whole traceback.
        raise ValueError(str(error).strip().splitlines()[-1]) from None
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
    run_dir = config.run_dir or str(Path("runs") / config.name / stage)
    new = {"stage": stage} | as_json(config)
    old = load_config(run_dir)
    if old is not None:
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
        for name, (before, now) in sorted(_differences(old, new).items()):
            if not any(name.startswith(p) or name.endswith(p) for p in _MAY_CHANGE):
                raise ValueError(
                    f"{run_dir} holds a run with {name}={before!r}, not {now!r}; "
                    f"pass --config.{name}={before} to resume it, or another "
                    "--config.run_dir to start afresh."
                )
    save_config(run_dir, new)
    return run_dir


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
    must_match = _MUST_MATCH
    if checkpoint.config.get("stage") == "finetune":
        # Its frozen and its tuned network differ, and K' says which one moves when.
        must_match += ("finetune.num_tuned_steps",)
    for name, (saved, now) in _differences(checkpoint.config, as_json(config)).items():
        if name.startswith(must_match):
            raise ValueError(
                f"{run_dir} was trained with {name}={saved!r}, but the config says "
                f"{now!r}; pass --config.{name}={saved}, or train a policy that "
                "matches."
            )
    return checkpoint


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
    return lambda params: evaluate(params, jax.random.key(settings.seed))


def as_json(config: ConfigDict) -> dict[str, Any]:
    """The config as it reads back from a JSON file."""
    return json.loads(config.to_json_best_effort())


def _differences(old: dict, new: dict) -> dict[str, tuple[Any, Any]]:
    old, new = _flatten(old), _flatten(new)
    return {
        name: (old.get(name), new.get(name))
        for name in old.keys() | new.keys()
        if old.get(name) != new.get(name)
    }


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
