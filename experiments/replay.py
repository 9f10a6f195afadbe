"""Play a recording of robosuite in a task: python -m experiments.replay FILE --task=can

Reads a file with simulator states, such as robosuite's own human demonstrations, sets
the task to the first recorded configuration, and executes the recorded actions; then
once more with the actions that follow the recorded poses of the hand. Prints how far
hand and object are from the recording, and whether the task is solved.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from dppo_jax.demonstrations.formats.robomimic import load_robomimic
from dppo_jax.demonstrations.formats.robosuite_scenes import SOURCES
from dppo_jax.demonstrations.robosuite_replay import (
    WAYS,
    Replay,
    measured_response,
    read_recording,
    replay,
    solved_steps,
)
from dppo_jax.envs.tasks.tabletop import CONTROL_FREQUENCY
from dppo_jax.errors import SettingsError
from experiments import processes
from experiments.command_line import Parser

# Seconds after which the distance of the hand is printed.
_MOMENTS = (1, 2, 5, 10)


def main(arguments: Sequence[str]) -> None:
    """Play the recording that the command line names, in both ways.

    Raises:
        SettingsError: a wrong argument, or a file that cannot be read.
    """
    options = _parse(arguments)
    episodes = load_robomimic(options.file, 1, obs_keys=("states",))
    actions = load_robomimic(options.file, 1, task=options.task).actions
    number = len(episodes.actions)
    last = number if options.last is None else options.last
    if not 0 <= options.first < last - 1 < number:
        raise SettingsError(
            f"first={options.first} and last={last} must be control steps of the "
            f"episode, which has {number}, and at least two apart."
        )
    part = slice(options.first, last)
    recording = read_recording(
        episodes.observations["state"][part],
        actions[part],
        options.task,
        options.file,
    )
    solved = solved_steps(recording, options.task)
    share = measured_response(recording)
    print(
        f"{options.file}: control steps {options.first} to {last - 1} of {number}; the "
        f"recorded scenes are solved in {int(solved.sum())}; in a control step the "
        f"recorded hand covers {share:.2f} of the commanded way",
        flush=True,
    )
    for way in WAYS:
        found = replay(
            recording,
            options.task,
            way=way,
            engine=options.engine,
            response=options.response,
        )
        print(f"{way:8s}: {_described(found)}", flush=True)


def _described(found: Replay) -> str:
    steps = [second * CONTROL_FREQUENCY - 1 for second in _MOMENTS]
    moments = ", ".join(
        f"{1000 * found.hand[step]:.0f} after {second} s"
        for step, second in zip(steps, _MOMENTS)
        if step < len(found.hand)
    )
    solved = np.flatnonzero(found.solved)
    success = f"solved from step {solved[0] + 1}" if len(solved) else "not solved"
    return (
        f"{success}; hand mm from the recorded one: {moments}, "
        f"{1000 * found.hand[-1]:.0f} at the end, {1000 * found.hand.max():.0f} at "
        f"most; degrees: {np.degrees(found.turn.max()):.0f} at most; object mm: "
        f"{1000 * found.body[-1]:.0f} at the end"
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    description = (__doc__ or "").partition("\n\n")[2]
    parser = Parser("experiments.replay", description=description)
    add = parser.add_argument
    add("file", metavar="FILE", help="HDF5 file of robosuite with simulator states")
    one_arm = [name for name, source in SOURCES.items() if source.free_bodies]
    add("--task", choices=one_arm, required=True, help="where to play it")
    add("--first", type=int, default=0, metavar="N", help="first control step (0)")
    add("--last", type=int, metavar="N", help="control step after the last (all)")
    add("--engine", default="auto", help="physics engine (auto)")
    share = "share of the commanded way that the hand covers in a control step (0.3)"
    add("--response", type=float, default=0.3, metavar="X", help=share)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with processes.errors_in_one_line():
        main(sys.argv[1:])
