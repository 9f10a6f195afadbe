"""Convert demonstrations: python -m experiments.convert IN OUT [--format=...]

Reads all formats of dppo_jax and writes those that --format lists.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dppo_jax.demonstrations.dataset import summary
from dppo_jax.demonstrations.formats import (
    FORMATS,
    load_demonstrations,
    save_demonstrations,
)
from dppo_jax.errors import SettingsError
from experiments import processes
from experiments.command_line import Parser

_WRITABLE = [name for name, entry in FORMATS.items() if entry.save is not None]


def main(arguments: Sequence[str]) -> None:
    """Convert the data that the command line names; never overwrite anything.

    Raises:
        SettingsError: a wrong argument, data that cannot be read, a target that exists.
    """
    options = _parse(arguments)
    if Path(options.target).exists():
        # Check this before reading, which may take hours.
        raise SettingsError(
            f"{options.target} exists; remove it, or give another name."
        )
    episodes = load_demonstrations(
        options.source,
        format=options.source_format,
        max_episodes=options.max_episodes,
        obs_keys=options.obs_keys,
        filter_key=options.filter_key,
        task=options.task,
    )
    print(f"{options.source}: {summary(episodes)}", flush=True)
    written = save_demonstrations(options.target, episodes, format=options.format)
    print(f"wrote {options.target} ({written})")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    description = (__doc__ or "").splitlines()[-1]
    parser = Parser("experiments.convert", description=description)
    add = parser.add_argument
    add("source", metavar="IN", help="file or folder to read")
    add("target", metavar="OUT", help="file or folder to write; must not exist")
    written = "format of OUT (default: d4rl for .hdf5 and .h5, dppo_npz otherwise)"
    add("--format", choices=_WRITABLE, help=written)
    read = "format of IN (default: recognised by its content)"
    add("--source_format", choices=list(FORMATS), help=read)
    add("--max_episodes", type=int, metavar="N", help="only the first N episodes")
    keys = "entries to concatenate to the state, if the format has several"
    add("--obs_keys", nargs="+", metavar="KEY", help=keys)
    add("--filter_key", metavar="NAME", help="only this mask (robomimic) or split")
    task = "make the observations of this task (lift, can, ...) of robosuite's"
    add("--task", metavar="TASK", help=task)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with processes.errors_in_one_line():
        main(sys.argv[1:])
