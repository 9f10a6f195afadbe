"""Says what a stage would do (--dry-run): its sizes and how long it may take."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from dppo_jax.policies import num_executable
from dppo_jax.training.checkpoint import newest_checkpoint
from dppo_jax.training.config_file import CONFIG_FILE, load_config
from dppo_jax.training.left_out import num_bytes
from dppo_jax.training.metric_names import ITERATION_SECONDS, in_bytes, in_time
from dppo_jax.training.metrics import read_metrics
from dppo_jax.training.trees import storable
from dppo_jax.types import Algorithm, PyTree
from experiments import directories
from experiments.settings import settings_of

# Runs that are looked through for one with the same settings.
_MOST_RUNS = 200
# Settings that change how long a run takes in all, but not one iteration of it.
_SAME_TIME = ("seed", "policy", "data", "loop.", "origin", "env.options.")


class Planned(Exception):
    """Ends a dry run. plan: what would be done, values that JSON can hold."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        super().__init__("nothing was done")
        self.plan = dict(plan)


def training(
    config: ConfigDict,
    stage: str,
    algorithm: Algorithm,
    run_dirs: Sequence[str],
    num_iterations: int,
    *args: Any,
) -> dict[str, Any]:
    """What `pretrain` or `finetune` would do.

    It traces an iteration, so that wrong shapes are found, and compiles nothing. Sizes
    and numbers of steps are those of one seed.

    Args:
        algorithm: on one device.
        *args: arguments of `algorithm.init` after the key.
    """
    key = jax.random.key(config.seed)
    state = jax.eval_shape(algorithm.init, key, *args)
    jax.eval_shape(algorithm.step, state)
    params = jax.eval_shape(algorithm.params, state)
    start = min(newest_checkpoint(run_dir) or 0 for run_dir in run_dirs)
    left = max(num_iterations - start, 0)
    plan: dict[str, Any] = {
        "run_dirs": list(run_dirs),
        "num_seeds": len(run_dirs),
        "starts_at": start,
        "num_iterations": num_iterations,
        "parameters": {name: _count(tree) for name, tree in _parts(params)},
        "state_bytes": _bytes(state),
        "state_parts": dict(_largest(state)),
        "checkpoint_bytes": _bytes(state) + _bytes(params),
    }
    if stage == "finetune":
        steps = env_steps(config)
        plan |= {"env_steps_per_iteration": steps, "env_steps": steps * left}
    found = comparable(config, stage, run_dirs[0])
    if found is not None:
        run_dir, seconds = found
        plan |= {"seconds_per_iteration": seconds, "seconds": seconds * left}
        plan["measured_in"] = run_dir
    return plan


def tell(stage: str, plan: Mapping[str, Any]) -> None:
    """Print a plan."""
    print(f"dry run of {stage}: nothing is written")
    lines = _lines_of_training(plan) if "run_dirs" in plan else _lines(plan)
    for name, text in lines:
        print(f"  {name:22s} {text}")


def _lines(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in plan.items():
        text = f"{value:,}" if isinstance(value, int) else str(value)
        yield name.replace("_", " "), text


def _lines_of_training(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for run_dir in plan["run_dirs"]:
        yield "would write to", run_dir
    seeds = plan["num_seeds"]
    each_seed = " for each seed" if seeds > 1 else ""
    if seeds > 1:
        yield "seeds", f"{seeds} in one program"
    total, start = plan["num_iterations"], plan["starts_at"]
    left = max(total - start, 0)
    if start:
        yield "would resume", f"at iteration {start} of {total}, {left} are left"
    else:
        yield "iterations", f"{total}"
    if "env_steps" in plan:
        each = plan["env_steps_per_iteration"]
        steps = f"{plan['env_steps']:,}, {each:,} in an iteration{each_seed}"
        yield "environment steps", steps
    for name, count in plan["parameters"].items():
        yield f"parameters, {name}", f"{count:,}"
    parts = ", ".join(f"{k} {in_bytes(x)}" for k, x in plan["state_parts"].items())
    state = plan["state_bytes"]
    whole = f"{in_bytes(seeds * state)}, " if seeds > 1 else ""
    yield "training state", f"{whole}{in_bytes(state)}{each_seed} ({parts})"
    checkpoint = in_bytes(plan["checkpoint_bytes"])
    yield "a checkpoint", f"at most {checkpoint}{each_seed}"
    if "seconds" in plan:
        each = in_time(plan["seconds_per_iteration"])
        yield (
            "time",
            f"about {in_time(plan['seconds'])}, {each} for an iteration as in "
            f"{plan['measured_in']}; compiling and evaluations come on top"
            + ("; another number of seeds takes another time" if seeds > 1 else ""),
        )
    else:
        yield "time", "unknown: no run with these settings is here"


def _parts(params: PyTree) -> Iterator[tuple[str, PyTree]]:
    """The parts of parameters by name, without single numbers."""
    named = params._asdict() if hasattr(params, "_asdict") else {"policy": params}
    for name, tree in named.items():
        if _count(tree) > 1:
            yield name, tree


def _largest(state: Any, count: int = 3) -> list[tuple[str, int]]:
    named = state._asdict() if hasattr(state, "_asdict") else {"state": state}
    sizes = {name: _bytes(tree) for name, tree in named.items()}
    return sorted(sizes.items(), key=lambda item: -item[1])[:count]


def _count(tree: PyTree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _bytes(tree: PyTree) -> int:
    return num_bytes(jax.eval_shape(storable, tree))


def executed(config: ConfigDict) -> int:
    """Control steps of a chunk."""
    return config.env.executed or num_executable(config.model)


def env_steps(config: ConfigDict) -> int:
    """Control steps of an iteration of fine-tuning, of all environments together."""
    return config.rollout.num_envs * config.rollout.num_chunks * executed(config)


def comparable(
    config: ConfigDict, stage: str, run_dir: str
) -> tuple[str, float] | None:
    """A run with the same settings, and the seconds of its last iteration.

    The run itself comes first, then the newest of those in the folder two above it.
    """
    wanted = _settings(config, stage)
    for folder in (Path(run_dir), *_others(Path(run_dir))):
        try:
            saved = load_config(folder)
            if saved is None or saved.get("stage") != stage:
                continue
            if _settings(settings_of(saved), stage) != wanted:
                continue
            rows = [x for x in read_metrics(folder) if ITERATION_SECONDS in x]
        except Exception:
            continue  # A damaged run says nothing, whatever is wrong with it.
        if len(rows) > 1:  # The first one includes compilation.
            return str(folder), rows[-1][ITERATION_SECONDS]
    return None


def _others(run_dir: Path) -> list[Path]:
    above = run_dir.absolute().parent.parent
    files = [
        path for depth in ("*", "*/*") for path in above.glob(f"{depth}/{CONFIG_FILE}")
    ]
    newest = sorted(files, key=lambda path: -path.stat().st_mtime)[:_MOST_RUNS]
    return [path.parent for path in newest]


def _settings(config: ConfigDict, stage: str) -> dict[str, Any]:
    return {
        name: value
        for name, value in directories.settings_read(config, stage).items()
        if not name.startswith(_SAME_TIME)
    }
