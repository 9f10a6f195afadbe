"""SIGINT and SIGTERM end a run after the iteration that is running."""

import os
import signal
import threading

import jax
import jax.numpy as jnp
import pytest

from dppo_jax.training.checkpoint import read_policy
from dppo_jax.training.signals import Interrupted
from tests.counting import count, counter, iterations, watch


def signal_in(iteration, *numbers):
    """A counter during whose given iteration the process gets signals."""

    def send(i):
        for number in numbers if i == iteration else ():
            os.kill(os.getpid(), number)
        return i

    def step(state):
        shape = jax.ShapeDtypeStruct((), jnp.int32)
        state = state | {"iteration": state["iteration"] + 1, "x": 2 * state["x"]}
        sent = jax.pure_callback(send, shape, state["iteration"])
        return state | {"iteration": sent}, {"x": state["x"], "loss": jnp.ones(())}

    return counter()._replace(step=step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "settings, rows",
    [
        (dict(), [1, 2, 3]),
        (dict(log_every=10), [1, 3]),
        (dict(checkpoint_every=3), [1, 2, 3]),
    ],
)
def test_a_signal_ends_a_run_after_its_iteration_with_a_checkpoint(
    tmp_path, capsys, number, settings, rows
):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop:
        count(tmp_path, 9, signal_in(3, number), **settings)
    assert (stop.value.iteration, stop.value.number) == (3, number)
    assert signal.getsignal(number) is before
    assert f"{number.name}: saving after this iteration" in capsys.readouterr().out
    assert iterations(tmp_path) == rows
    assert read_policy(tmp_path).iteration == 3
    assert count(tmp_path, 9)["x"] == 2.0**9
    assert iterations(tmp_path) == sorted({*rows, *range(4, 10)})


def test_a_row_that_waits_is_saved_after_a_signal(tmp_path, monkeypatch):
    """On an accelerator the row of iteration 3 is not yet written then."""
    events = watch(monkeypatch)
    with pytest.raises(Interrupted):
        count(tmp_path, 9, signal_in(3, signal.SIGTERM))
    assert events == ["step 1", "step 2", "row 1", "step 3", "row 2", "row 3"]
    assert read_policy(tmp_path).iteration == 3


def test_the_second_interrupt_ends_a_run_at_once(tmp_path):
    def ask(params, run_dir, iteration):
        for _ in range(2 if iteration == 2 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return {"score": 1.0}

    with pytest.raises(KeyboardInterrupt) as stop:
        count(tmp_path, 9, evaluate=ask, evaluate_every=1, checkpoint_every=1)
    assert not isinstance(stop.value, Interrupted)
    assert iterations(tmp_path) == [0, 1]
    assert read_policy(tmp_path).iteration == 1


def test_a_signal_in_the_last_iteration_changes_nothing(tmp_path):
    assert count(tmp_path, 3, signal_in(3, signal.SIGTERM))["x"] == 8.0


def test_a_run_outside_the_main_thread_leaves_signals_alone(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(count(tmp_path, 3)["x"]))
    thread.start()
    thread.join()
    assert results == [8.0]
