"""The one host loop: step, log, evaluate, save, resume; knows no algorithm."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dppo_jax.checkpoint import Checkpoints
from dppo_jax.metrics import MetricsWriter
from dppo_jax.normalize import Normalizer
from dppo_jax.types import Algorithm, PolicyParams

# Without a terminal a bar is noise; a line this often shows that work goes on.
_SECONDS_BETWEEN_LINES = 10.0


def train(
    algorithm: Algorithm,
    state: Any,
    *,
    run_dir: str,
    num_iterations: int,
    params_of: Callable[[Any], PolicyParams],
    normalizer: Normalizer,
    evaluate: Callable[[Any, int], Mapping[str, float]] | None = None,
    stop: Callable[[list[dict[str, float]]], bool] | None = None,
    evaluate_every: int = 0,
    checkpoint_every: int = 0,
    log_every: int = 1,
    show: Sequence[str] = (),
    keep: int | None = 3,
) -> Any:
    """Run `algorithm.step` until `num_iterations`, from the last checkpoint if any.

    Args:
        state: the state to start from; its shapes are those of a resumed one.
        params_of: state -> policy parameters, what a checkpoint offers to others.
        evaluate: (state, iteration) -> numbers; called before the first iteration,
            every `evaluate_every` iterations and at the end. 0: only at the ends.
        stop: rows of numbers, the latest last -> whether that iteration is the end;
            asked wherever there is a row. A run that it ended stays ended: it is
            asked again before a resumed run goes on.
        checkpoint_every: iterations between checkpoints; 0: only at the end.
        log_every: iterations between rows of numbers; evaluations and checkpoints
            come with a row of their own.
        show: names of the numbers beside the progress bar.
        keep: checkpoints that stay; None keeps all.

    Returns:
        The final state. `metrics.csv` holds the numbers of `algorithm.step`, those of
        `evaluate`, and `seconds`, the mean time of an iteration since the last row.

    Raises:
        FloatingPointError: a loss stopped being finite; the last checkpoint stays.
    """
    step = jax.jit(algorithm.step, donate_argnums=0)
    with Checkpoints(run_dir, keep=keep) as checkpoints:
        start = checkpoints.latest or 0
        if start:
            state = checkpoints.restore(state)
            print(f"resuming at iteration {start} of {num_iterations}", flush=True)
        # Donation takes the buffers; no two leaves may share one.
        state = jax.tree.map(lambda x: x.copy(), state)
        with MetricsWriter(run_dir, resume_at=start + 1) as writer:
            if evaluate and not start:
                writer.write(0, evaluate(state, 0))
            if start and stop and stop(writer.rows):
                num_iterations = start
            progress = Progress(start, num_iterations)
            began, logged = time.perf_counter(), start
            for iteration in range(start + 1, num_iterations + 1):
                state, metrics = step(state)
                last = iteration == num_iterations
                save_now = last or _due(iteration, checkpoint_every)
                evaluate_now = bool(evaluate) and (
                    last or _due(iteration, evaluate_every)
                )
                # A checkpoint needs its row as well: only numbers that were looked
                # at are known to be finite.
                log_now = iteration == start + 1 or _due(iteration, log_every)
                if log_now or save_now or evaluate_now:
                    numbers = {k: float(v) for k, v in jax.device_get(metrics).items()}
                    _check_finite(numbers, iteration)
                    now = time.perf_counter()
                    numbers["seconds"] = (now - began) / (iteration - logged)
                    if stop and stop([*writer.rows, numbers]):
                        last = save_now = True
                        evaluate_now = bool(evaluate)
                    if evaluate and evaluate_now:
                        numbers |= evaluate(state, iteration)
                    writer.write(iteration, numbers)
                    progress.show({k: numbers[k] for k in show if k in numbers})
                    began, logged = time.perf_counter(), iteration
                if save_now:
                    checkpoints.save(iteration, state, params_of(state), normalizer)
                progress.update()
                if last:
                    break
            progress.close()
    return state


class Progress:
    """A bar with the remaining time on a terminal, lines of text elsewhere."""

    def __init__(self, start: int, total: int) -> None:
        self._bar = tqdm(
            initial=start, total=total, disable=not sys.stderr.isatty(), leave=True
        )
        self._total, self._done, self._start = total, start, start
        self._began = self._said = time.monotonic()
        self._text = ""

    def show(self, numbers: Mapping[str, float]) -> None:
        """Numbers to print beside the next update."""
        self._text = "  ".join(f"{k} {v:.4g}" for k, v in numbers.items())
        self._bar.set_postfix_str(self._text, refresh=False)

    def update(self) -> None:
        """One more iteration is done."""
        self._done += 1
        self._bar.update()
        now = time.monotonic()
        if self._done == self._start + 1:
            self._began = now
        due = now - self._said >= _SECONDS_BETWEEN_LINES or self._done in (
            self._start + 1,
            self._total,
        )
        if self._bar.disable and due:
            self._said = now
            pace = (now - self._began) / max(self._done - self._start - 1, 1)
            left = f"{pace * (self._total - self._done):.0f} s left"
            if self._done == self._start + 1 < self._total:
                left = "compiled"  # The first iteration says nothing of the rest.
            print(
                f"{self._done}/{self._total}  {self._text}  {left}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        self._bar.close()


def _due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0


def _check_finite(numbers: Mapping[str, float], iteration: int) -> None:
    for name, value in numbers.items():
        if name.endswith(("loss", "params_change")) and not np.isfinite(value):
            raise FloatingPointError(
                f"{name} became {value} in iteration {iteration}; lower the learning "
                "rate or the clip range. If resuming fails at once, the newest folder "
                "in checkpoints/ is of the diverged policy; remove it."
            )
