"""Parses the command line of a stage."""

import argparse
import contextlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict

from dppo_jax import runtime
from dppo_jax.errors import SettingsError
from experiments import console, dry_run
from experiments import help as helps
from experiments import latest, processes, summaries
from experiments.defaults import default_config
from experiments.directories import config_of_run
from experiments.settings import load_config as load_config_file
from experiments.settings import override

_CONFIG = flags.DEFINE_string(
    "config", "", "experiments/configs/FILE.py[:VARIANT]; --config.KEY=VALUE sets KEY."
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "latest", "which one to read: an iteration, latest or best."
)
VIDEO = flags.DEFINE_integer(
    "video", 0, "how many of the episodes to draw; 4 if no number is given."
)
FEW_VIDEOS = 4
DRY_RUN = flags.DEFINE_boolean(
    "dry_run", False, "--dry-run: say what would be done, and write nothing."
)
JSON = flags.DEFINE_boolean("json", False, "print a summary as the last line.")
QUIET = flags.DEFINE_boolean("quiet", False, "show no progress.")
_CHANGE = re.compile(r"--?config\.(.*)", re.DOTALL)
# Words on the command line, and the flags that they stand for.
_ALIASES = {"video": f"video={FEW_VIDEOS}", "dry-run": "dry_run"}


class Parser(argparse.ArgumentParser):
    """Reads arguments that no flags can express, such as LABEL=VALUE of any label.

    It raises SettingsError, so that a wrong argument ends in one line as in a stage.

    Args:
        program: such as "experiments.compare".
        description: printed as it is by --help.
    """

    def __init__(self, program: str, description: str | None) -> None:
        super().__init__(
            program,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; --help lists the arguments.")


def run_stage(
    stage: Callable[..., Any],
    words: Sequence[str] = (),
    *,
    takes_run: bool = False,
    takes_checkpoint: bool = False,
    takes_video: bool = False,
    needs_config: bool = True,
    resumes: bool = False,
    plans: bool = False,
    summarize: Callable[[Any, ConfigDict], dict[str, Any]] | None = None,
) -> None:
    """Parse the flags and run a stage; on a wrong setting print one line, exit with 2.

    With DPPO_JAX_TRACEBACK=1 in the environment it prints the traceback too. With
    --help it only prints what the program does, the docstring of its module.

    Args:
        stage: called with one string for each of `words`, then the configuration.
        words: names of the positional arguments.
        takes_run: whether a run directory may replace --config. The configuration is
            then that of the run, and `config.policy` is the run.
        takes_checkpoint: whether the stage accepts --checkpoint. It is then called
            with the keyword argument `checkpoint`.
        takes_video: likewise --video, and the keyword argument `video`.
        needs_config: False: without --config the configuration is the default one.
        resumes: whether the stage goes on from a checkpoint if it starts again.
        plans: whether it accepts --dry-run, and then raises `dry_run.Planned`.
        summarize: (what the stage returns, its configuration) -> the summary of --json;
            None: it has none.
    """
    module = sys.modules[stage.__module__]
    if not {"--help", "-h"}.isdisjoint(sys.argv[1:]):
        print(helps.of(inspect.getsource(module)))
        return
    name = Path(str(module.__file__)).stem
    with _summary_of_failure(name):
        with processes.leaving_at_once(), processes.errors_in_one_line(resumes=resumes):
            arguments = _parse(
                sys.argv, words, takes_run=takes_run, needs_config=needs_config
            )
            keywords = _keywords(
                takes_checkpoint=takes_checkpoint,
                takes_video=takes_video,
                plans=plans,
                summarizes=summarize is not None,
            )
            console.use(console.Shown(quiet=QUIET.value, dry_run=DRY_RUN.value))
            try:
                result = stage(*arguments, **keywords)
            except dry_run.Planned as planned:
                dry_run.tell(name, planned.plan)
                if JSON.value:
                    print(summaries.line(name, "planned", planned.plan))
                return
            finally:
                console.use(console.Shown())
            if JSON.value and summarize is not None:
                told = summarize(result, arguments[-1])
                print(summaries.line(name, "finished", told), flush=True)


def _keywords(
    *, takes_checkpoint: bool, takes_video: bool, plans: bool, summarizes: bool
) -> dict[str, Any]:
    """The keyword arguments of a stage.

    Raises:
        SettingsError: a flag that the stage does not take.
    """
    keywords: dict[str, Any] = {}
    if takes_checkpoint:
        keywords["checkpoint"] = CHECKPOINT.value
    elif CHECKPOINT.present:
        raise SettingsError(
            f"--checkpoint={CHECKPOINT.value}: this program reads no policy of an "
            "earlier run; remove the flag."
        )
    if takes_video:
        keywords["video"] = VIDEO.value
    elif VIDEO.present:
        raise SettingsError(
            f"--video={VIDEO.value}: only experiments.evaluate draws episodes; "
            "remove the flag."
        )
    if DRY_RUN.value and not plans:
        raise SettingsError(
            "--dry-run: this program cannot say beforehand what it does; collect, "
            "pretrain, finetune and evaluate can."
        )
    if JSON.value and not summarizes:
        raise SettingsError("--json: this program has no summary; remove the flag.")
    return keywords


@contextlib.contextmanager
def _summary_of_failure(name: str) -> Iterator[None]:
    """With --json print a last line for a stage that ends with an error, too."""

    def say(status: Any) -> None:
        if status and "--json" in sys.argv[1:]:
            told = {"exit_status": status}
            print(summaries.line(name, "failed", told), flush=True)

    try:
        yield
    except SystemExit as error:
        say(error.code)
        raise
    except Exception:
        say(1)  # With which Python ends after it has printed the traceback.
        raise


def split_changes(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """KEY=VALUE of every --config.KEY=VALUE, and the other words."""
    found = [(_CHANGE.fullmatch(word), word) for word in words]
    return (
        [match[1] for match, _ in found if match],
        [word for match, word in found if not match],
    )


def split_values(text: str) -> list[str]:
    """The values of VALUE,VALUE,... ; a semicolon separates those that have commas."""
    return [x.strip() for x in text.split(";" if ";" in text else ",")]


def parse_flags(argv: Sequence[str]) -> list[str]:
    """The positional arguments; the flags get the values of the command line.

    With --help it prints the docstring of the program and exits.

    Raises:
        SettingsError: an unknown flag, or a value of the wrong type.
    """
    if not {"--help", "-h"}.isdisjoint(argv[1:]):
        print((sys.modules["__main__"].__doc__ or "").strip())
        sys.exit(0)
    try:
        return flags.FLAGS(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise SettingsError(f"{error}; settings are --config.KEY=VALUE.") from None
    except flags.Error as error:
        raise SettingsError(str(error)) from None


def _parse(
    argv: list[str],
    words: Sequence[str],
    *,
    takes_run: bool = False,
    needs_config: bool = True,
) -> list[Any]:
    """The positional arguments that `words` names, and the locked configuration.

    Raises:
        SettingsError: no configuration, an unknown key, a value of the wrong type, or
            not as many positional arguments as `words`, or several run directories.
    """
    changes, words_left = split_changes(argv)
    alone = {
        f"{dash}{x}": f"--{y}" for x, y in _ALIASES.items() for dash in ("-", "--")
    }
    given = parse_flags([alone.get(arg, arg) for arg in words_left])
    stray = [word for word in given if "=" in word]
    if takes_run and len(given) > 1 and not stray:
        raise SettingsError(
            f"{len(given)} run directories given ({', '.join(given)}), but this "
            "program reads one; start it once for each."
        )
    if takes_run and given and not stray and _CONFIG.value:
        raise SettingsError(
            f"{given[0]} and --config={_CONFIG.value} given; leave out one of them, or "
            f"name the policy with --config.policy={given[0]}."
        )
    if takes_run and len(given) == 1 and not _CONFIG.value:
        config = config_of_run(latest.followed(given.pop()))
        override(config, changes, "--config.")
        runtime.configure()
        return [_paths_in_full(config)]
    if given and not words:
        word = (stray or given)[0]
        raise SettingsError(f"{word!r} is not a flag; write --config.KEY=VALUE.")
    if len(given) != len(words):
        raise SettingsError(f"{given} given; write {' '.join(words)} --config=FILE.")
    if not _CONFIG.value and needs_config:
        raise SettingsError(
            "no configuration; pass --config=experiments/configs/avoid.py:m1"
            + (", or a run directory." if takes_run else "")
        )
    config = load_config_file(_CONFIG.value) if _CONFIG.value else default_config()
    override(config, changes, "--config.")
    runtime.configure()
    return [*given, _paths_in_full(config)]


def _paths_in_full(config: ConfigDict) -> ConfigDict:
    """Replace a leading "~" of paths, which shells keep in the middle of a word.

    Also replace `runs/latest` by the run that it leads to.
    """
    for name in ("data", "policy", "run_dir"):
        config[name] = latest.followed(os.path.expanduser(config[name]))
    return config
