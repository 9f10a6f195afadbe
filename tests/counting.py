"""An algorithm that counts, and what `train` does with it."""

import jax
import jax.numpy as jnp

from dppo_jax.training.config_file import save_config
from dppo_jax.training.loop import train
from dppo_jax.training.metrics import MetricsWriter, read_metrics
from dppo_jax.types import Algorithm
from tests import tiny


def counter(*, fails_at=None) -> Algorithm:
    """Its state is a number that doubles; its loss may become NaN."""

    def init(key):
        return {"x": jnp.ones(()), "iteration": jnp.zeros((), jnp.int32)}

    def step(state):
        iteration = state["iteration"] + 1
        loss = jnp.where(iteration == fails_at, jnp.nan, 1.0) if fails_at else 1.0
        new = {"x": 2 * state["x"], "iteration": iteration}
        return new, {"loss": jnp.asarray(loss), "x": new["x"]}

    return tiny.silent(init, step, params=lambda state: {"w": state["x"]})


def count(run_dir, num_iterations, algorithm=None, **settings):
    algorithm = counter() if algorithm is None else algorithm
    save_config(run_dir, {})
    return train(
        algorithm,
        algorithm.init(None),
        run_dir=run_dir,
        num_iterations=num_iterations,
        normalizer=tiny.NORMALIZER,
        **settings,
    )


def iterations(run_dir, name="iteration"):
    return [row["iteration"] for row in read_metrics(run_dir) if name in row]


def watch(monkeypatch, *, backend="gpu", interrupt_at=None) -> list[str]:
    """Events of `train` in order: "step 1" is a dispatch, "row 1" a written row."""
    events, jit, write = [], jax.jit, MetricsWriter.write

    def watched_jit(function, **options):
        compiled = jit(function, **options)
        if "donate_argnums" not in options:
            return compiled
        calls = iter(range(1, 100))

        def step(state):
            call = next(calls)
            if call == interrupt_at:
                raise KeyboardInterrupt
            events.append(f"step {call}")
            return compiled(state)

        return step

    def watched_write(self, iteration, metrics):
        events.append(f"row {iteration}")
        write(self, iteration, metrics)

    monkeypatch.setattr(jax, "jit", watched_jit)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(MetricsWriter, "write", watched_write)
    return events
