"""Signals that ask a run to end: it saves its state first."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

# Schedulers such as SLURM and machines that are taken back send SIGTERM.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal has ended a run after it saved its state.

    iteration: the last one, of which there is a checkpoint.
    number: of the signal.
    """

    def __init__(self, iteration: int, number: int | None) -> None:
        super().__init__(f"saved iteration {iteration}")
        self.iteration, self.number = iteration, number or signal.SIGINT


class StopRequest:
    """Notes SIGINT and SIGTERM while it is entered, instead of ending the program.

    The second SIGINT raises KeyboardInterrupt at once, for iterations that take long.
    Outside of the main thread, which alone may handle signals, it notes nothing. Of
    several processes it changes no handler, because JAX's own one for SIGTERM makes
    them agree on the last iteration; a SIGINT ends a process at once.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and jax.process_count() == 1:
            self._before = {x: signal.signal(x, self._note) for x in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def is_due(self, iteration: int) -> bool:
        """Whether to end after this iteration; all processes get the same answer.

        Several processes must ask after every iteration.
        """
        if jax.process_count() > 1:
            if not multihost_utils.reached_preemption_sync_point(iteration):
                return False
            self.number = signal.SIGTERM
        return self.number is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        again = "; press Ctrl-C again to end at once" * (number == signal.SIGINT)
        name = signal.Signals(number).name
        print(f"\n{name}: saving after this iteration{again}", flush=True)
