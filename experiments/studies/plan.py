"""What an ablation would run: sizes, what is left, and how long that may take."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from dppo_jax.policies import num_executable
from dppo_jax.training.checkpoint import newest_checkpoint
from dppo_jax.training.metric_names import ITERATION_SECONDS, ROLLOUT_SECONDS, in_time
from dppo_jax.training.metrics import read_metrics
from experiments import dry_run, tables
from experiments.directories import run_path
from experiments.entries import Entry, seed_configs
from experiments.inputs import NO_POLICY


class Measured(NamedTuple):
    """Seconds of an iteration of a configuration that has run.

    rollout: the part of them for the roll-out.
    """

    config: ConfigDict
    seconds: float
    rollout: float


def describe(entries: Sequence[Entry], settings: Mapping[str, str]) -> str:
    """The runs of an ablation as a table, and how long they take in all.

    The time of a variant is that of a run with the same settings, if there is one here,
    or else an estimate from another variant.

    Args:
        settings: label -> what its variant changes.
    """
    measured = {x.label: _measure(x.config) for x in entries}
    known = [x for x in measured.values() if x is not None]
    rows, total, missing = [], 0.0, False
    for entry in entries:
        config, own = entry.config, measured[entry.label]
        last = config.loop.finetune.num_iterations
        done = [_iterations_done(x, last) for x in seed_configs(entry)]
        left, time = sum(last - x for x in done), "-"
        if left and not known:
            time, missing = "unknown", True
        elif left:
            seconds = left * (own or estimate(known[0], config)).seconds
            total += seconds
            time = ("" if own else "~") + in_time(seconds)
        steps = env_steps(config)
        sizes = [f"{steps:,}", f"{steps * last:,}", time, _start(entry)]
        state = f"{', '.join(map(str, done))} of {last}"
        rows.append([entry.label, settings[entry.label] or "-", state, *sizes])
    duration = "an unknown time" if missing else in_time(total)
    header = ["variant", "changes", "iterations of each seed"]
    header += ["control steps of an iteration", "of a run", "time left", "starts from"]
    return (
        f"dry run: nothing is written\n\n{tables.markdown(header, rows)}\n\n"
        f"~: estimated from another variant. In all {duration}, without "
        "compiling, evaluations and cloning.\n"
    )


def _iterations_done(config: ConfigDict, last: int) -> int:
    return min(newest_checkpoint(run_path(config, "finetune")) or 0, last)


def _start(entry: Entry) -> str:
    """What a variant starts from, and whether that exists."""
    policy = entry.policy or entry.config.policy
    if policy == NO_POLICY:
        return "new networks"
    exists = newest_checkpoint(policy) is not None
    return policy if exists else f"{policy} (to be cloned)"


def env_steps(config: ConfigDict) -> int:
    """Control steps of an iteration of fine-tuning."""
    chunk = config.env.executed or num_executable(config.model)
    return config.rollout.num_envs * config.rollout.num_chunks * chunk


def estimate(measured: Measured, config: ConfigDict) -> Measured:
    """The time of an iteration from that of another configuration.

    Roll-outs are taken to cost in proportion to control steps, and updates of PPO in
    proportion to pairs of chunks and tuned steps, and to epochs.
    """
    rollout = measured.rollout * env_steps(config) / env_steps(measured.config)
    updates = (measured.seconds - measured.rollout) * (
        _work(config) / _work(measured.config)
    )
    return Measured(config, rollout + updates, rollout)


def _work(config: ConfigDict) -> float:
    chunks = config.rollout.num_envs * config.rollout.num_chunks
    chain = config.model.kind in ("diffusion", "flow")
    moves = config.model.sampling.num_tuned_steps if chain else 1
    return float(chunks * moves * config.algorithm.ppo.epochs)


def _measure(config: ConfigDict) -> Measured | None:
    places = [str(Path(config.run_dir) / f"seed_{config.seed}")]
    if config.name:
        places.append(str(Path("runs", config.name, "finetune")))
    for place in places:
        found = dry_run.comparable(config, "finetune", place)
        if found is not None:
            run_dir, seconds = found
            rows: list[Mapping[str, float]] = list(read_metrics(run_dir))
            rollout = [x[ROLLOUT_SECONDS] for x in rows if ROLLOUT_SECONDS in x]
            assert any(ITERATION_SECONDS in x for x in rows)
            # Accelerators do not tell the parts; half is as good a guess as any.
            return Measured(config, seconds, rollout[-1] if rollout else seconds / 2)
    return None
