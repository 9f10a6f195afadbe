"""The host loop of all algorithms: step, log, evaluate, save, resume."""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from dppo_jax.normalize import Normalizer
from dppo_jax.training.metric_names import ROLLOUT_SECONDS
from dppo_jax.training.progress import MakesProgress, Progress
from dppo_jax.training.runs import Evaluate, Numbers, Row, Runs, Stop
from dppo_jax.training.signals import Interrupted, StopRequest
from dppo_jax.types import Algorithm


def train(
    algorithm: Algorithm,
    state: Any,
    *,
    run_dir: str | os.PathLike | Sequence[str],
    num_iterations: int,
    normalizer: Normalizer,
    config: Mapping[str, Any] | None = None,
    evaluate: Evaluate | None = None,
    stop: Stop | None = None,
    evaluate_every: int = 0,
    evaluate_if: Callable[[Numbers], bool] | None = None,
    checkpoint_every: int = 0,
    log_every: int = 1,
    show: Sequence[str] = (),
    progress: MakesProgress | None = None,
    keep: int | None = 3,
    keep_best: str = "",
    prepare: Callable[[], object] | None = None,
    about: Mapping[str, Any] | None = None,
    max_skipped: int = 3,
    wandb: Mapping[str, Any] | None = None,
) -> Any:
    """Run `algorithm.step` until `num_iterations`, from the newest checkpoint if any.

    With several processes (`parallel`), every process must make the same call. The
    first one writes rows, all take part in checkpoints, and each runs the evaluations.

    On an accelerator, the rows and checkpoints of an iteration are written while the
    device computes the next one. The loop waits for the metrics of an iteration only at
    the end, if `stop` is given, and if `evaluate_if` needs them. On the CPU backend it
    always waits: there a program that calls C MuJoCo runs while it is dispatched, and
    two such programs could wait for each other's threads forever.

    SIGINT (Ctrl-C) and SIGTERM end the loop after the running iteration, with a row and
    a checkpoint of it. A second SIGINT ends it at once. With several processes only
    SIGTERM does this; a SIGINT ends its process at once.

    Args:
        state: the state to start from; a resumed state must have its shapes.
        run_dir: of the run; or one per seed, if `algorithm` and `state` are those of
            `seeds.many`. Every seed is logged and saved like a single run.
        normalizer: saved with the policy.
        config: settings to write into the `config.json` of a directory that has none,
            which `load_policy` needs. With those of `experiments.defaults`, as plain
            dictionaries, it can also rebuild the policy. None: write only that `train`
            made the run.
        evaluate: (parameters that act, run directory, iteration) -> metrics, or -> a
            function that waits for the metrics and returns them; in the second case,
            dispatched computations may overlap with the next iteration. Called before
            the first iteration, every `evaluate_every` iterations and at the end.
        stop: rows of metrics, the newest last -> whether to stop after that iteration.
            Called for every row, after the evaluation if one is due, and before a run
            is resumed, so that a stopped run stays stopped. With many seeds it stops
            one, and the others continue.
        evaluate_every: iterations between evaluations; 0: only first and last.
        evaluate_if: metrics of an iteration -> whether an evaluation that is due after
            it is made; with many seeds True for one of them suffices. With
            `evaluate_if` the evaluation at the end is always made, and the one before
            the first iteration never. Iterations after which an evaluation is due wait
            for their metrics.
        checkpoint_every: iterations between checkpoints; 0: only at the end.
        log_every: iterations between rows of metrics; an evaluation or a checkpoint
            also writes a row.
        show: names of the metrics in the progress bar; means over the seeds.
        progress: (iterations done before, all) -> what shows the progress instead of
            the bar, see `training.progress.Shows`.
        keep: how many checkpoints to keep; None: all.
        keep_best: name of a metric of `evaluate`; the parameters that acted when it was
            highest are kept as the checkpoint `best`. Empty: none.
        prepare: called when the run directories are locked, before anything else is
            read from them or written to them.
        about: what every checkpoint records of the run, values that JSON can hold,
            beside versions and device (`provenance`) and its last evaluation, `score`.
            An entry `evaluate`, the settings of the evaluation, becomes part of the
            score.
        max_skipped: the run ends after this many consecutive rows in which every update
            was skipped, because its gradients were not finite; 0: it never ends so.
        wandb: arguments of `wandb.init`, such as `project`, to send every row to
            Weights & Biases too; None: that is not used.

    Returns:
        The final state; for many seeds a list of the final state of each.
        `metrics.csv` holds the metrics of `algorithm.step`, those of `evaluate`, and
        `seconds`, the mean time of an iteration (of all seeds) since the last row. On
        the CPU backend `rollout_seconds` is the part of it before the updates.
        `evaluation_seconds` and `checkpoint_seconds` are how long the loop waited for
        the evaluation of this row and for the checkpoints since the row before.

    Raises:
        FloatingPointError: a metric in `algorithm.finite` is not finite, or
            `max_skipped` is reached; the newest checkpoint is kept.
        Interrupted: a signal has ended the loop; its state is saved.
        SettingsError: another process trains in a directory, or the checkpoints of the
            seeds have no iteration in common, or have other bounds than `normalizer`.
            Or `wandb` is given, but its package is missing.
    """
    on_cpu = jax.default_backend() == "cpu"
    runs = Runs(
        run_dir,
        algorithm,
        normalizer,
        evaluate=evaluate,
        stop=stop,
        keep=keep,
        keep_best=keep_best,
        prepare=prepare,
        about=about,
        max_skipped=max_skipped,
        wandb=wandb,
    )
    with runs, StopRequest() as request:
        runs.describe({"stage": "train", **(config or {})})
        start, state = runs.resume(state, num_iterations=num_iterations)
        rollout = (
            functools.partial(runs.clock.spent, ROLLOUT_SECONDS) if on_cpu else None
        )
        step = compiled_step(algorithm, rollout)
        make = functools.partial(Progress, show=show, may_stop=stop is not None)
        shown = (progress or make)(start, num_iterations)
        pending: Row | None = None

        def finish(row: Row) -> None:
            shown.see(runs.finish(row))
            shown.reach(row.iteration)

        try:
            if evaluate and evaluate_if is None and not start:
                due = dict(evaluate=True, save=False, wait=True)
                shown.see(runs.finish(runs.row(0, {}, state, **due)))
            runs.clock.restart()
            for iteration in range(start + 1, num_iterations + 1):
                if not runs.going:
                    break
                state, metrics = step(state)
                if pending is not None:
                    finish(pending)
                    pending = None
                last = iteration == num_iterations
                save_now = last or _due(iteration, checkpoint_every)
                evaluate_now = bool(evaluate) and (
                    last
                    or _due(iteration, evaluate_every)
                    and (evaluate_if is None or runs.any(evaluate_if, metrics))
                )
                # A checkpoint also needs a row, because metrics are checked to be
                # finite only when a row is written.
                log_now = iteration == start + 1 or _due(iteration, log_every)
                wait = last or bool(stop) or on_cpu
                if log_now or save_now or evaluate_now:
                    due = dict(evaluate=evaluate_now, save=save_now, wait=wait)
                    row = runs.row(iteration, metrics, state, **due)
                    if wait:
                        finish(row)
                        runs.clock.restart()
                    else:
                        pending = row
                else:
                    shown.reach(iteration)
                if runs.going and not last and request.is_due(iteration):
                    due = dict(evaluate=False, save=True, wait=True)
                    row = pending or runs.row(iteration, metrics, state, **due)
                    pending = None
                    finish(row._replace(save=True))
                    raise Interrupted(iteration, request.number)
        except BaseException:
            # Write the row of a completed iteration, unless writing it failed.
            if pending is not None:
                with contextlib.suppress(Exception):
                    finish(pending)
            raise
        finally:
            shown.close()
        return runs.final(state)


def compiled_step(
    algorithm: Algorithm, rollout: Callable[[float], object] | None = None
) -> Callable[[Any], tuple[Any, Any]]:
    """Compile `algorithm.step`, on CPU phase by phase; the argument is donated.

    Args:
        rollout: called with the seconds of the first of several phases; each step
            then waits for the one before and for this phase.
    """
    phases: tuple[Callable[..., tuple], ...] = (algorithm.step,)
    if algorithm.phases and jax.default_backend() == "cpu":
        phases = algorithm.phases
    programs = [jax.jit(phase, donate_argnums=0) for phase in phases]

    def step(state: Any) -> tuple[Any, Any]:
        result: tuple = (state,)
        for program in programs:
            result = program(*result)
        state, metrics = result
        return state, metrics

    def timed_step(state: Any) -> tuple[Any, Any]:
        assert rollout is not None
        jax.block_until_ready(state)  # The updates of the last iteration may still run.
        began = time.perf_counter()
        result = jax.block_until_ready(programs[0](state))
        rollout(time.perf_counter() - began)
        for program in programs[1:]:
            result = program(*result)
        return result

    return step if rollout is None or len(programs) < 2 else timed_step


def _due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
