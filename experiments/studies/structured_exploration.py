"""Show how policies explore before fine-tuning:

python -m experiments.studies.structured_exploration --output=FOLDER LABEL=RUN,RUN ...

Lets every policy explore as in the first iteration of fine-tuning, compares its
trajectories with the demonstrations that it was cloned from, and draws both: a row of
panels for each label and a column for each data set (DPPO paper, Sec. 6). An example:

  python -m experiments.studies.structured_exploration --output=runs/exploration \\
      DPPO=runs/avoid_m1/pretrain,runs/avoid_m2/pretrain \\
      Gaussian=runs/avoid_m1_gaussian/pretrain,runs/avoid_m2_gaussian/pretrain

A RUN is a cloned policy, or a run of fine-tuning, which then counts as the policy that
it started from. The data are where they were for cloning, or in --data: the folder of
that name in FOLDER, or FOLDER itself. --episodes=N lets each policy explore N episodes
(default: 50). --dims=I,J chooses the two entries of an observation to look at, which
only `avoid` has by itself. --config.KEY=VALUE changes a setting of all policies, such
as model.sampling.min_std.

It writes FOLDER/table.md, numbers.csv and trajectories.png; docs/studies.md says what
each number means.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from dppo_jax import runtime
from dppo_jax.demonstrations.dataset import thin_episodes, unnormalize_episodes
from dppo_jax.demonstrations.formats import load_demonstrations
from dppo_jax.envs.adapters import is_host
from dppo_jax.errors import SettingsError
from dppo_jax.training.checkpoint import read_policy
from dppo_jax.training.config_file import load_config, write_atomically
from dppo_jax.training.metric_names import SCORES
from dppo_jax.training.run_directory import check_folder, make_folder
from experiments import finetune, inputs, processes
from experiments.command_line import Parser, split_changes
from experiments.directories import config_of_run, read_groups
from experiments.evaluate import make_score
from experiments.settings import override
from experiments.studies import observed
from experiments.studies.exploration import measure, measure_demonstrations
from experiments.studies.exploration_results import (
    DEMONSTRATIONS,
    Explored,
    draw,
    make_tables,
    rows_of,
)
from experiments.studies.planes import (
    Plane,
    as_trajectories,
    find_plane,
    in_units,
    project,
)

# More of them, evenly spaced, would only take longer.
_MOST_DEMONSTRATIONS = 100


class Source(NamedTuple):
    """A policy to look at.

    label: of its method.
    run: its directory.
    checkpoint: of the policy `config.policy`.
    data: path of its demonstrations.
    """

    label: str
    run: str
    config: ConfigDict
    checkpoint: int | str
    data: str


def main(
    groups: Mapping[str, Sequence[str]],
    output: str,
    *,
    data: str = "",
    dims: str = "",
    num_episodes: int = 50,
    changes: Sequence[str] = (),
) -> list[Explored]:
    """Run the program.

    Args:
        groups: label -> run directories.
        data: where the demonstrations are; empty: where they were for cloning.
        dims: two entries of an observation, such as "0,1"; empty: those of the task.
        num_episodes: of each policy.
        changes: KEY=VALUE of all policies.

    Raises:
        SettingsError: a wrong argument or setting; all are checked before a policy
            explores.
    """
    if not output:
        raise SettingsError("no folder to write to; pass --output=runs/exploration.")
    if num_episodes < 2:
        raise SettingsError(
            f"--episodes={num_episodes} must be at least 2, to compare trajectories."
        )
    check_folder(output, flag="--output")
    sources = [
        find_source(label, run, data, changes)
        for label, runs in groups.items()
        for run in runs
    ]
    task = _check_tasks(sources)
    demonstrations = {source.data: _demonstrations(source) for source in sources}
    num_entries = next(iter(demonstrations.values()))[0].shape[-1]
    plane = find_plane(task, dims, num_entries)
    make_folder(output, flag="--output")
    found: list[Explored] = []
    names = _names(list(demonstrations))
    for path, episodes in demonstrations.items():
        known = _known(plane, path, names[path], project(plane, episodes))
        found.append(known)
        for source in (x for x in sources if x.data == path):
            trajectories, score = explore(source, num_episodes)
            found.append(
                _measured(plane, source, known, project(plane, trajectories), score)
            )
            print(f"{source.label} {source.run}: {_in_words(found[-1])}", flush=True)
    folder = Path(output)
    write_atomically(folder / "numbers.csv", rows_of(found))
    text = make_tables(found, plane, task)
    write_atomically(folder / "table.md", text)
    print(f"\n{text}", flush=True)
    draw(folder / "trajectories.png", found, plane, task, sources[0].config)
    print(f"wrote {folder / 'table.md'} and numbers.csv")
    return found


def find_source(label: str, run: str, data: str, changes: Sequence[str]) -> Source:
    """The policy that a run directory stands for.

    Raises:
        SettingsError: no run, a wrong setting, or no demonstrations.
    """
    config = config_of_run(run)
    inputs.check_task(config, "studies.structured_exploration")
    about = read_policy(run).about
    checkpoint: int | str = "latest"
    if (load_config(run) or {}).get("stage") == "finetune":
        start = about.get("policy")
        if not start:
            raise SettingsError(
                f"{run} does not say which policy it started from; name that policy."
            )
        config.policy, checkpoint = start["path"], start["checkpoint"]
    override(config, changes, "--config.")
    known = (about.get("data") or {}).get("path") or inputs.data_path(config)
    return Source(label, run, config, checkpoint, _find_data(run, known, data))


def _find_data(run: str, known: str, data: str) -> str:
    if not data and Path(known).exists():
        return known
    inside = Path(data) / Path(known).name
    if data and (inside.exists() or Path(data).exists()):
        return str(inside if inside.exists() else data)
    raise SettingsError(
        f"{run} was cloned from {known}, which is not there"
        f"{f', nor is {data}' if data else ''}; pass --data=FOLDER, the demonstrations "
        "or a folder with them."
    )


def _check_tasks(sources: Sequence[Source]) -> str:
    tasks = list(dict.fromkeys(x.config.env.task for x in sources))
    if len(tasks) > 1:
        raise SettingsError(
            f"the runs are of the tasks {', '.join(sorted(tasks))}; look at one task "
            "at a time."
        )
    if is_host(tasks[0]):
        raise SettingsError(
            f"{tasks[0]} runs in host processes, which do not report the observations "
            "of every control step; use a task of this project."
        )
    return tasks[0]


def _demonstrations(source: Source) -> list[np.ndarray]:
    episodes = unnormalize_episodes(load_demonstrations(source.data))
    most = min(len(episodes.episode_lengths), _MOST_DEMONSTRATIONS)
    return as_trajectories(thin_episodes(episodes, most))


def explore(source: Source, num_episodes: int) -> tuple[list[np.ndarray], float]:
    """Let a policy explore; its observations [L, Do] in task units, and its score."""
    config = source.config.copy_and_resolve_references().lock()
    act, params, normalizer = finetune.first_policy(config, source.checkpoint)
    config.env.wrappers = (*config.env.wrappers, observed.NAME)
    config.evaluate.update(deterministic=False, num_episodes=num_episodes)
    score = make_score(config, act, normalizer, traces=(observed.TRACE,))
    result = score(params)
    lengths = np.asarray(result.metrics["episode_length"]).astype(int)
    states = np.asarray(result.traces[observed.TRACE])
    name = next(x for x in SCORES if x in result.metrics)
    return (
        [x[:length] for x, length in zip(states, lengths)],
        float(np.mean(result.metrics[name])),
    )


def _names(paths: Sequence[str]) -> dict[str, str]:
    """Path -> its last parts, as many as make the names of all paths different."""
    parts = [Path(path).absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return dict(zip(paths, names))
    return dict(zip(paths, paths))  # The same folder, written in two ways.


def _known(plane: Plane, path: str, name: str, paths: list[np.ndarray]) -> Explored:
    numbers = measure_demonstrations(in_units(plane, paths, paths), cell=plane.cell)
    routes = plane.routes(paths) if plane.routes else None
    return Explored(DEMONSTRATIONS, path, name, paths, numbers, routes, None)


def _measured(
    plane: Plane, source: Source, known: Explored, paths: list[np.ndarray], score: float
) -> Explored:
    numbers = measure(
        in_units(plane, paths, known.paths),
        in_units(plane, known.paths, known.paths),
        cell=plane.cell,
    )
    routes = plane.routes(paths) if plane.routes else None
    return Explored(source.label, source.run, known.data, paths, numbers, routes, score)


def _in_words(x: Explored) -> str:
    said = f"distance {x.numbers.distance:.3g}, structure {x.numbers.structure:.3g}"
    return said if x.score is None else f"score {x.score:.3g}, {said}"


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    """The arguments of `main` on the command line."""
    changes, words = split_changes(arguments)
    parser = Parser("experiments.studies.structured_exploration", __doc__)
    add = parser.add_argument
    add("runs", metavar="LABEL=RUN,RUN", nargs="*", help="policies to look at")
    add("--output", default="", metavar="FOLDER", help="where to write (required)")
    add("--data", default="", metavar="FOLDER", help="where the demonstrations are")
    add("--dims", default="", metavar="I,J", help="entries of an observation")
    episodes = "episodes of each policy (default: 50)"
    add("--episodes", type=int, default=50, metavar="N", help=episodes)
    options = parser.parse_intermixed_args(words)
    return dict(
        groups=read_groups(options.runs),
        output=options.output,
        data=options.data,
        dims=options.dims,
        num_episodes=options.episodes,
        changes=changes,
    )


if __name__ == "__main__":
    with processes.leaving_at_once(), processes.errors_in_one_line():
        given = _parse(sys.argv[1:])
        runtime.configure()
        main(**given)
