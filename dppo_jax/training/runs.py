"""Write and resume the runs of `train`, one or those of many seeds at once."""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer
from dppo_jax.training import left_out, parallel, seeds, wandb_run
from dppo_jax.training.break_files import save_break
from dppo_jax.training.clock import Clock
from dppo_jax.training.coach import Coach
from dppo_jax.training.config_file import load_config, save_config
from dppo_jax.training.finite import check_finite
from dppo_jax.training.metric_names import CHECKPOINT_SECONDS, EVALUATION_SECONDS
from dppo_jax.training.metrics import MetricsWriter, read_metrics
from dppo_jax.training.run_directory import Run, check_run_dir
from dppo_jax.training.run_lock import locked
from dppo_jax.types import BREAK, Algorithm, Metrics, PyTree

Numbers = Mapping[str, float]
Evaluate = Callable[[PyTree, str, int], Numbers | Callable[[], Numbers]]
Stop = Callable[[list[dict[str, float]]], bool]


class Row(NamedTuple):
    """An iteration whose metrics may not have been computed yet.

    metrics: of the step, on the device.
    states: () -> the state of every seed, as copies made in the first call.
    params: () -> the parameters of every seed that act, likewise.
    scores: for each seed a function that waits for the metrics of its evaluation and
        returns them; empty if no evaluation is due.
    save: whether a checkpoint is due.
    """

    iteration: int
    metrics: Metrics
    states: Callable[[], list[Any]]
    params: Callable[[], list[PyTree]]
    scores: Sequence[Callable[[], Numbers]]
    save: bool


class Runs:
    """The rows and checkpoints of `train`; a context manager.

    Args:
        run_dir: one directory, or a sequence of N, for which states and metrics have a
            leading axis [N].
        algorithm, normalizer, evaluate, stop, keep, keep_best, prepare, about,
        max_skipped, wandb: see `train`.

    Attributes:
        clock: its time excludes evaluations and checkpoints if it is restarted then.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike | Sequence[str],
        algorithm: Algorithm,
        normalizer: Normalizer,
        *,
        evaluate: Evaluate | None,
        stop: Stop | None,
        keep: int | None,
        keep_best: str,
        prepare: Callable[[], object] | None = None,
        about: Mapping[str, Any] | None = None,
        max_skipped: int = 0,
        wandb: Mapping[str, Any] | None = None,
    ) -> None:
        if wandb is not None:
            wandb_run.check_installed()
        if isinstance(run_dir, (str, os.PathLike)):
            self._several, self._dirs = False, [str(run_dir)]
        else:
            self._several, self._dirs = True, list(run_dir)
        self._algorithm, self._normalizer = algorithm, normalizer
        self._evaluate, self._stop = evaluate, stop
        self._keep, self._keep_best = keep, keep_best
        self._prepare, self._about = prepare, about or {}
        self._wandb = wandb
        self._coaches = [
            Coach(name, names_run=self._several, max_skipped=max_skipped)
            for name in self._dirs
        ]
        self._closing = contextlib.ExitStack()
        self._start = 0
        self.clock = Clock()

    def __enter__(self) -> "Runs":
        self._runs: list[Run] = []
        for run_dir in self._dirs:
            check_run_dir(run_dir)
        with contextlib.ExitStack() as opened:
            # All processes of a run share its directory; the first one writes.
            for run_dir in self._dirs if parallel.is_first_process() else ():
                opened.enter_context(locked(run_dir))
            if self._prepare is not None:
                self._prepare()
            for run_dir in self._dirs:
                run = Run(run_dir, self._keep, self._keep_best, self._about)
                opened.callback(run.close)
                self._runs.append(run)
            self._closing = opened.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._closing.close()

    @property
    def going(self) -> list[int]:
        """Indices of the seeds that `stop` has not ended."""
        return [i for i, run in enumerate(self._runs) if run.final is None]

    def describe(self, config: Mapping[str, Any]) -> None:
        """Write `config.json` in run directories that have none."""
        for run_dir in self._dirs if parallel.is_first_process() else ():
            if load_config(run_dir) is None:
                save_config(run_dir, config)

    def resume(self, state: Any, *, num_iterations: int) -> tuple[int, Any]:
        """Return the iteration to continue from and its state; in a new run 0, `state`.

        If an interrupt came when only some seeds had saved a checkpoint, all continue
        from the newest checkpoint that all have.

        Raises:
            SettingsError: the seeds have no checkpoint in common, or one of them has
                several newer checkpoints. Or one was trained with other bounds.
        """
        states = self._split(state)
        starts = []
        for run, like in zip(self._runs, states):
            newest = run.checkpoints.latest or 0
            if newest:
                run.check_bounds(newest, self._normalizer)
            rows = [x for x in read_metrics(run.run_dir) if x["iteration"] <= newest]
            ended = bool(newest) and self._stops(rows)
            run.final = self._restore(run, like) if ended else None
            starts.append(newest)
        # If `stop` has ended all seeds, nothing is left to do.
        start = self._shared_start(num_iterations) if self.going else max(starts)
        if start:
            print(f"resuming at iteration {start} of {num_iterations}", flush=True)
        for i, run in enumerate(self._runs):
            if run.final is not None:
                states[i] = run.final
            elif start:
                run.continue_from(start)
                states[i] = self._restore(run, states[i], start)
                starts[i] = start
            if run.best is not None and not starts[i]:
                run.best.clear()  # It is of a run whose checkpoints are gone.
            run.writer = MetricsWriter(
                run.run_dir,
                resume_at=starts[i] + 1,
                writes=parallel.is_first_process(),
                wandb=self._wandb,
            )
        self._start = start
        self.clock.restart(logged=start)
        return start, self._join(states)

    def any(self, condition: Callable[[Numbers], bool], metrics: Metrics) -> bool:
        """Whether the metrics of a seed that goes on fulfil a condition.

        Waits for them. All processes get the result of the first one.
        """
        each = self._numbers(metrics)
        return parallel.agreed(any(condition(each[i]) for i in self.going))

    def row(
        self,
        iteration: int,
        metrics: Metrics,
        state: Any,
        *,
        evaluate: bool,
        save: bool,
        wait: bool,
    ) -> Row:
        """Prepare the row of an iteration for `finish`.

        Args:
            evaluate: whether an evaluation is due.
            save: whether a checkpoint is due.
            wait: whether `finish` is called before the next step overwrites `state`. If
                not, the evaluation is dispatched now, and a state to be saved is
                copied.
        """
        states = functools.cache(lambda: self._split(state))
        params = functools.cache(lambda: self._split(self._params(state)))

        def score(i: int) -> Callable[[], Numbers]:
            return lambda: self._score(i, params()[i], iteration)()

        scores = [score(i) for i in range(len(self._runs))] if evaluate else []
        if evaluate and not wait:
            scores = [
                self._score(i, params()[i], iteration) for i in range(len(self._runs))
            ]
        if save and not wait:
            states()
        return Row(iteration, metrics, states, params, scores, save)

    def finish(self, row: Row) -> dict[str, float]:
        """Wait for the metrics of an iteration, check and write them, save checkpoints.

        Returns:
            Means of the metrics over the seeds that `stop` had not ended before.

        Raises:
            FloatingPointError: a metric that must be finite is not; nothing is written.
        """
        going = self.going
        each = self._numbers(row.metrics)
        self._save_breaks(row, each)
        for i in going:
            where = f"{self._runs[i].run_dir}: " if self._several else ""
            check_finite(
                each[i],
                self._algorithm.finite,
                iteration=row.iteration,
                last_row=self.clock.logged,
                where=where,
            )
        if row.iteration > self._start:
            times = self.clock.read(row.iteration)
            for numbers in each:
                numbers |= times
        for i in going if row.scores else ():
            each[i] |= self._scored(i, row, row.scores[i])
        # The next iteration has been dispatched by now, or will be next.
        self.clock.restart(logged=row.iteration)
        for i in going:
            self._write(self._runs[i], i, row, each[i])
        return _means([each[i] for i in going])

    def final(self, state: Any) -> Any:
        """The final state of every seed: where `stop` ended it, or else `state`."""
        if not self._several:
            return state
        pairs = zip(self._runs, self._split(state))
        return [state if run.final is None else run.final for run, state in pairs]

    def _write(self, run: Run, i: int, row: Row, numbers: dict[str, float]) -> None:
        assert run.writer is not None
        # The row may have been written before an interrupt.
        rows = run.writer.rows
        ends = False
        if not rows or rows[-1]["iteration"] < row.iteration:
            ends = self._stops([*rows, numbers])
            if ends and self._evaluate and not row.scores:
                score = self._score(i, row.params()[i], row.iteration)
                numbers |= self._scored(i, row, score)
            if run.best is not None and row.scores and self._keep_best not in numbers:
                raise SettingsError(
                    f"keep_best={self._keep_best!r} is no metric of an evaluation; use "
                    f"one of {', '.join(sorted(numbers))}."
                )
            run.writer.write(row.iteration, numbers)
            self._coaches[i].see(run.writer.rows)
            self._keep_if_best(run, i, row, numbers)
        if ends or row.save:
            self._save(run, row.iteration, row.states()[i])
        if ends:
            print(f"{run.run_dir} is done after iteration {row.iteration}", flush=True)
            run.final = row.states()[i]

    def _keep_if_best(
        self, run: Run, i: int, row: Row, numbers: Mapping[str, float]
    ) -> None:
        """Save the parameters that acted if their score is the best so far."""
        if run.best is None or self._keep_best not in numbers:
            return
        score = numbers[self._keep_best]
        # All processes take part in saving, so they must agree on whether to save.
        if parallel.agreed(run.best.is_beaten_by(score)):
            with self.clock.timing(CHECKPOINT_SECONDS):
                run.best.save(
                    row.iteration,
                    row.params()[i],
                    self._normalizer,
                    score=score,
                    about=run.about(),
                )

    def _restore(self, run: Run, like: Any, iteration: int | None = None) -> Any:
        fields = self._algorithm.dispensable
        return run.checkpoints.restore(like, iteration, dispensable=fields)

    def _save(self, run: Run, iteration: int, state: Any) -> None:
        params, about = self._algorithm.params(state), run.about()
        if not self._algorithm.saves_dispensable:
            state, sizes = left_out.leave_out(state, self._algorithm.dispensable)
            about |= {"left_out": sizes}
        with self.clock.timing(CHECKPOINT_SECONDS):
            run.checkpoints.save(iteration, state, params, self._normalizer, about)

    def _stops(self, rows: list[dict[str, float]]) -> bool:
        """Return the first process's result of `stop`, so that all processes end in the
        same iteration even if their evaluations round differently."""
        return self._stop is not None and parallel.agreed(self._stop(rows))

    def _score(self, i: int, params: PyTree, iteration: int) -> Callable[[], Numbers]:
        assert self._evaluate is not None
        run_dir = self._runs[i].run_dir
        numbers = self._evaluate(parallel.on_one_device(params), run_dir, iteration)
        return numbers if callable(numbers) else lambda: numbers

    def _scored(self, i: int, row: Row, score: Callable[[], Numbers]) -> Numbers:
        """Wait for a score, which later checkpoints state; returns it and its time."""
        began = time.perf_counter()
        numbers = score()
        self._runs[i].note_score(row.iteration, numbers)
        return {**numbers, EVALUATION_SECONDS: time.perf_counter() - began}

    def _shared_start(self, num_iterations: int) -> int:
        """The newest iteration of which all seeds that continue have a checkpoint."""
        runs = [self._runs[i] for i in self.going]
        saved = {run.run_dir: {s for s in run.checkpoints.all if s} for run in runs}
        if not any(saved.values()):
            return 0
        shared = set.intersection(*saved.values())
        start = max(shared, default=0)
        ahead = {name: sorted(s for s in x if s > start) for name, x in saved.items()}
        ahead = {name: steps for name, steps in ahead.items() if steps}
        if not shared or (ahead and any(len(steps) > 1 for steps in ahead.values())):
            newest = ", ".join(f"{k}: {max(v, default=0)}" for k, v in saved.items())
            raise SettingsError(
                f"the newest checkpoints of these seeds are too far apart to resume "
                f"them together ({newest}); resume each seed that is behind by itself, "
                "with --config.seed, --config.num_seeds=1 and --config.run_dir, or "
                "remove the newer checkpoints of the others."
            )
        if ahead and start < num_iterations:
            print(
                f"the checkpoints of {', '.join(ahead)} are newer than those of the "
                f"other seeds; all resume at iteration {start}, the newest that all "
                "have",
                flush=True,
            )
            for run in runs:
                run.checkpoints.forget(ahead.get(run.run_dir, ()))
        return start

    def _save_breaks(self, row: Row, each: list[dict[str, float]]) -> None:
        """Write what precedes the first broken simulation of an iteration."""
        if BREAK not in row.metrics or not parallel.is_first_process():
            return
        for i in self.going:
            if not each[i].get("diverged"):
                continue
            broken: Any = row.metrics[BREAK]
            if self._several:
                broken = jax.tree.map(lambda x, i=i: x[i], broken)
            broken = jax.device_get(broken)
            run_dir = self._runs[i].run_dir
            try:
                path = save_break(run_dir, row.iteration, broken, self._normalizer)
            except OSError as error:  # Training can go on without the file.
                print(f"warning: a broken step was not written: {error}", flush=True)
                continue
            if path is not None:
                print(f"note: a simulation broke; {path} has the step", flush=True)

    def _numbers(self, metrics: Metrics) -> list[dict[str, float]]:
        numbers = {name: x for name, x in metrics.items() if name != BREAK}
        values = {name: np.asarray(x) for name, x in jax.device_get(numbers).items()}
        if not self._several:
            return [{name: float(x) for name, x in values.items()}]
        return [
            {name: float(x[i]) for name, x in values.items()}
            for i in range(len(self._runs))
        ]

    def _params(self, state: Any) -> PyTree:
        params = self._algorithm.params
        return jax.vmap(params)(state) if self._several else params(state)

    def _split(self, tree: PyTree) -> list[PyTree]:
        """Split a state, or its parameters, into those of every seed, as copies."""
        if self._several:
            return seeds.split(tree, len(self._runs))
        return [seeds.copy(tree)]

    def _join(self, states: list[Any]) -> Any:
        return seeds.stack(states) if self._several else states[0]


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means of the metrics that all rows have."""
    names = set.intersection(*map(set, rows)) if rows else set()
    return {name: float(np.mean([row[name] for row in rows])) for name in names}
