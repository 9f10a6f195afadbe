"""The command line of a stage: flags and what they must be."""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from dppo_jax import runtime
from dppo_jax.errors import SettingsError
from experiments import processes
from experiments.directories import config_of_run
from experiments.settings import load_config as load_config_file
from experiments.settings import override

_CONFIG = flags.DEFINE_string(
    "config", "", "experiments/configs/FILE.py[:VARIANT], then --config.KEY=VALUE."
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "latest", "of a policy that is read: an iteration, latest or best."
)


def run_stage(
    stage: Callable[..., Any],
    words: Sequence[str] = (),
    *,
    takes_run: bool = False,
    takes_checkpoint: bool = False,
) -> None:
    """Parse the flags and run a stage; a wrong setting ends in one line, status 2.

    With DPPO_JAX_TRACEBACK=1 in the environment the whole traceback is printed.

    Args:
        stage: called with one string for each of `words`, then the configuration.
        words: what the command line must name besides flags.
        takes_run: whether it may name a run directory instead of a configuration; then
            the configuration is that of the run, whose policy it names.
        takes_checkpoint: whether it reads a policy, and so takes --checkpoint; then it
            is called with `checkpoint` as well.
    """
    with processes.leaving_at_once(), processes.errors_in_one_line():
        arguments = _parse(sys.argv, words, takes_run=takes_run)
        if takes_checkpoint:
            stage(*arguments, checkpoint=CHECKPOINT.value)
            return
        if CHECKPOINT.present:
            raise SettingsError(
                f"--checkpoint={CHECKPOINT.value}: this program reads no policy of an "
                "earlier run; leave the flag out."
            )
        stage(*arguments)


def _parse(
    argv: list[str], words: Sequence[str], *, takes_run: bool = False
) -> list[Any]:
    """What a command line gives for `words`, and its locked configuration.

    Raises:
        SettingsError: no configuration, an unknown key, a value of the wrong type,
            words that are no flags, or others than `words`.
    """
    flag = re.compile(r"--?config\.(.*)", re.DOTALL)
    changes = [match[1] for arg in argv[1:] if (match := flag.fullmatch(arg))]
    try:
        _, *given = flags.FLAGS([arg for arg in argv if not flag.fullmatch(arg)])
    except flags.Error as error:
        raise SettingsError(str(error)) from None
    if takes_run and len(given) == 1 and not _CONFIG.value:
        config = config_of_run(given.pop())
        override(config, changes, "--config.")
        runtime.configure()
        return [config]
    if given and not words:
        raise SettingsError(f"{given[0]!r} is no flag; write --config.KEY=VALUE.")
    if len(given) != len(words):
        raise SettingsError(f"{given} given; write {' '.join(words)} --config=FILE.")
    if not _CONFIG.value:
        raise SettingsError(
            "no configuration; pass --config=experiments/configs/avoid.py:m1"
            + (", or the directory of a run." if takes_run else "")
        )
    config = load_config_file(_CONFIG.value)
    override(config, changes, "--config.")
    runtime.configure()
    return [*given, config]
