"""How programs exit, and on which processes and devices they run (`config.mesh`)."""

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator

import jax
from absl import logging
from ml_collections import ConfigDict

from dppo_jax.envs.adapters import is_host
from dppo_jax.errors import SettingsError
from dppo_jax.training import parallel
from dppo_jax.training.signals import Interrupted

# Settings of the mesh that count and number the processes.
_PROCESSES = ("num_processes", "process_id")
# Characters that are shown of the message of a failed compiled program.
_LONGEST = 600
_WHOLE = "(DPPO_JAX_TRACEBACK=1 shows all)"


@contextlib.contextmanager
def errors_in_one_line(*, resumes: bool = False) -> Iterator[None]:
    """Print an error that a user can correct in one line, and exit with status 2.

    With DPPO_JAX_TRACEBACK=1 in the environment print the traceback too. Errors in the
    program itself pass through with their traceback. After Ctrl-C exit with status
    130, after SIGTERM with 143.

    Args:
        resumes: whether the program goes on from a checkpoint if it starts again.
    """
    # Libraries log here; failures raise exceptions too, and Orbax logs each many times.
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    except KeyboardInterrupt as stop:
        number = int(signal.SIGINT)
        goes_on = "starts again"
        if resumes:
            goes_on = "resumes from the last checkpoint, if there is one"
        if isinstance(stop, Interrupted):
            goes_on, number = f"resumes from iteration {stop.iteration}", stop.number
        print(f"interrupted; the same command {goes_on}")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # Files are closed by now. XLA may still be computing, and to tear down the
        # interpreter during one of its callbacks would crash. Shells, too, add 128 to
        # the number of a signal.
        os._exit(128 + number)
    except (
        *(SettingsError, OSError, FloatingPointError, ImportError),
        jax.errors.JaxRuntimeError,
    ) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            sys.exit(128 + signal.SIGPIPE)
        if os.environ.get("DPPO_JAX_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {_in_one_line(error)}", file=sys.stderr)
        sys.exit(2)


def _reader_is_gone() -> bool:
    """Whether nobody reads standard output any more, as after `| head`.

    Then nothing is written to it from here on, also not when Python exits.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _in_one_line(error: Exception) -> str:
    """The message of an error; of a failed compiled program only what went wrong.

    If a callback failed, JAX puts the traceback into the message: "Traceback ...", one
    line for every frame, and then the original error.
    """
    text = str(error)
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return " ".join(text.split())
    *frames, last = re.split(
        r'^ *File "(.*)", line (\d+).*\n', text, flags=re.MULTILINE
    )
    if frames:
        path, line = frames[-2:]
        text = (
            f"a callback of the compiled program failed in {path}, line {line}: {last}"
        )
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... {_WHOLE}"


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """If this process fails and is one of several, end it at once.

    At a regular exit JAX would wait for the other processes, which wait for this
    process's part of a sum. They end when JAX notices that this process is gone.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        code = error.code if isinstance(error, SystemExit) else 1
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code if isinstance(code, int) else 1)


def join_mesh(config: ConfigDict) -> jax.sharding.Mesh:
    """Wait for the other processes, if any; returns the mesh of all their devices.

    JAX must not have run anything before. From here on only the first process prints.

    Raises:
        SettingsError: settings contradict each other, or devices cannot share the run.
    """
    mesh = config.mesh
    several = mesh.distributed or mesh.devices != 1
    if several and config.num_seeds > 1:
        raise SettingsError(
            f"num_seeds={config.num_seeds} with mesh.devices={mesh.devices}: many "
            "seeds run on one device; train one seed at a time, or leave "
            "--config.mesh out."
        )
    if several and is_host(config.env.task):
        raise SettingsError(
            f"mesh.devices={mesh.devices}: {config.env.task} runs in host processes, "
            "which serve one device; leave --config.mesh out."
        )
    if mesh.coordinator and not re.fullmatch(r".+:\d+", mesh.coordinator):
        raise SettingsError(
            f"mesh.coordinator={mesh.coordinator!r} must be HOST:PORT, the address of "
            "the first process and a free port there, such as localhost:1234."
        )
    if mesh.distributed:
        try:
            jax.distributed.initialize(
                coordinator_address=mesh.coordinator or None,
                **{name: mesh.get(name) for name in _PROCESSES},
            )
        except ValueError as error:
            raise SettingsError(
                f"mesh.distributed=True, but JAX does not know the other processes "
                f"({error}); pass --config.mesh.coordinator=HOST:PORT, num_processes "
                "and process_id, or start them by SLURM, MPI or on a TPU slice."
            ) from None
        if not parallel.is_first_process():
            sys.stdout = open(os.devnull, "w")
    elif mesh.coordinator or {mesh.get(x) for x in _PROCESSES} != {None}:
        raise SettingsError(
            "mesh.coordinator, mesh.num_processes and mesh.process_id need "
            "--config.mesh.distributed=True; add it, or leave them out."
        )
    return parallel.make_mesh(mesh.devices)


def stay_on_one_device(config: ConfigDict, stage: str) -> None:
    """For stages that use one device: print a note, and refuse several processes."""
    if config.num_seeds != 1 and stage in ("collect", "evaluate"):
        raise SettingsError(
            f"num_seeds={config.num_seeds}: experiments.{stage} works on one seed; "
            "leave --config.num_seeds out, and name the run of a seed, such as "
            "--config.policy=runs/NAME/finetune_seeds/seed_0."
        )
    if config.mesh.distributed:
        raise SettingsError(
            f"experiments.{stage} runs in one process; leave "
            "--config.mesh.distributed out, and start it once."
        )
    if config.mesh.devices != 1:
        print(f"note: experiments.{stage} runs on one device; mesh.devices is ignored")
