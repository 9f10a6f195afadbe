"""The one host loop: step, log, evaluate, save, resume; knows no algorithm."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from dppo_jax.normalize import Normalizer
from dppo_jax.training.progress import Progress
from dppo_jax.training.runs import Evaluate, Row, Runs, Stop
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
    checkpoint_every: int = 0,
    log_every: int = 1,
    show: Sequence[str] = (),
    keep: int | None = 3,
    keep_best: str = "",
) -> Any:
    """Run `algorithm.step` until `num_iterations`, from the last checkpoint if any.

    Of several processes (`parallel`) each calls this alike; the first one writes rows,
    all take part in checkpoints, and each evaluates for itself.

    On an accelerator rows and checkpoints of an iteration are written while the device
    works on the next; the loop waits for the numbers of an iteration only at the end
    and where there is a `stop`. On the CPU backend it always waits: a program that
    calls the host for its physics runs while it is dispatched there, and two of them
    could wait for each other's threads for ever.

    Args:
        state: the state to start from; its shapes are those of a resumed one.
        run_dir: of the run; or one for each seed, where `algorithm` and `state` are
            those of `seeds.many`. Every seed is logged and saved like a run of its own.
        normalizer: saved beside what acts.
        config: settings to write into the `config.json` of a directory that has none,
            so that `load_policy` can read it; those of `experiments.defaults`, as plain
            dictionaries, let it rebuild the policy too. None: just that this function
            wrote it.
        evaluate: (parameters that act, run directory, iteration) -> numbers, or a
            function that returns them and waits until it is called: what has been
            dispatched before may then overlap with the next iteration. Called before
            the first iteration, every `evaluate_every` iterations and at the end. 0:
            only at the ends.
        stop: rows of numbers, the latest last -> whether that iteration is the end;
            asked wherever there is a row, after the evaluation if one is due. A run
            that it ended stays ended: it is asked again before a resumed run goes on.
            Of many seeds it ends one; the others go on.
        checkpoint_every: iterations between checkpoints; 0: only at the end.
        log_every: iterations between rows of numbers; evaluations and checkpoints
            come with a row of their own.
        show: names of the numbers beside the progress bar; means over the seeds.
        keep: checkpoints that stay; None keeps all.
        keep_best: name of a number of `evaluate`; what acted when it was highest is
            kept as the checkpoint `best`, whatever becomes of the others. Empty: none.

    Returns:
        The final state; of many seeds a list, with the state that each ended in.
        `metrics.csv` holds the numbers of `algorithm.step`, those of `evaluate`, and
        `seconds`, the mean time of an iteration (of all seeds) since the last row.

    Raises:
        FloatingPointError: a number in `algorithm.finite` stopped being finite; the
            last checkpoint stays.
        SettingsError: the checkpoints of the seeds have no iteration in common.
    """
    step = compiled_step(algorithm)
    on_cpu = jax.default_backend() == "cpu"
    with Runs(
        run_dir,
        algorithm,
        normalizer,
        evaluate=evaluate,
        stop=stop,
        keep=keep,
        keep_best=keep_best,
    ) as runs:
        runs.describe({"stage": "train", **(config or {})})
        start, state = runs.resume(state, num_iterations=num_iterations)
        if evaluate and not start:
            due = dict(evaluate=True, save=False, wait=True)
            runs.finish(runs.row(0, {}, state, **due))
        runs.restart_clock()
        progress = Progress(start, num_iterations)
        pending: Row | None = None

        def finish(row: Row) -> None:
            numbers = runs.finish(row)
            progress.show({k: numbers[k] for k in show if k in numbers})
            progress.reach(row.iteration)

        try:
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
                    last or _due(iteration, evaluate_every)
                )
                # A checkpoint needs its row as well: only numbers that were looked
                # at are known to be finite.
                log_now = iteration == start + 1 or _due(iteration, log_every)
                if not (log_now or save_now or evaluate_now):
                    progress.reach(iteration)
                    continue
                wait = last or bool(stop) or on_cpu
                due = dict(evaluate=evaluate_now, save=save_now, wait=wait)
                row = runs.row(iteration, metrics, state, **due)
                if wait:
                    finish(row)
                    runs.restart_clock()
                else:
                    pending = row
        except BaseException:
            # What was computed is worth its row, unless that is what failed.
            if pending is not None:
                with contextlib.suppress(Exception):
                    finish(pending)
            raise
        progress.close()
        return runs.final(state)


def compiled_step(algorithm: Algorithm) -> Callable[[Any], tuple[Any, Any]]:
    """`algorithm.step` as this backend runs it fastest; it overwrites its argument."""
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

    return step


def _due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
