"""Score a saved policy: python -m experiments.evaluate RUN_DIR [--checkpoint=best]

All settings come from the run; --config.KEY=VALUE changes one. With --config=FILE
instead of RUN_DIR it scores the policy that the configuration names. It writes
`evaluation.json` to RUN_DIR or --config.run_dir: which policy was scored, how, the mean
of every metric, and where the expected success and return lie (95 % intervals).
--config.evaluate.until_width=0.05 scores episodes until the interval of the success is
so narrow. With --video or --video=N it draws N of the episodes, by default 4, half of
them successes if there are any: videos/*.gif, where there is ffmpeg also *.mp4, and
plots/episodes.png.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dppo_jax.envs.adapters import is_host
from dppo_jax.envs.build import make_env, make_single
from dppo_jax.errors import SettingsError
from dppo_jax.evaluate import Evaluation, make_evaluate, summarize
from dppo_jax.normalize import Normalizer
from dppo_jax.policies import num_executable, sampling_note
from dppo_jax.training import parallel
from dppo_jax.training.config_file import write_atomically
from dppo_jax.training.run_directory import check_folder
from dppo_jax.types import Act, Metrics, PyTree, View
from experiments import (
    command_line,
    console,
    dry_run,
    inputs,
    intervals,
    plots,
    processes,
    summaries,
    videos,
)
from experiments.reports import run_page
from experiments.seeds import check_seed

# At a success of one half, an interval of this width takes a million episodes.
_LEAST_WIDTH = 0.002
# Higher than the number of an episode.
_LATER_PARTS = 2**31


def main(
    config: ConfigDict, checkpoint: int | str = "latest", video: int = 0
) -> dict[str, float]:
    """Run the stage; returns and prints the mean of every metric.

    Raises:
        SettingsError: no such policy, or a wrong setting.
        Planned: of a dry run.
    """
    processes.stay_on_one_device(config, "evaluate")
    inputs.check_task(config, "evaluate")
    run_dir, path = inputs.policy_path(config, "finetune"), score_file(config)
    check_folder(path.parent)
    view = find_view(config, video)
    policy = inputs.find_policy(config, "finetune", checkpoint)
    settings = config.evaluate
    mode = "deterministic" if settings.deterministic else "exploring"
    print(
        f"{run_dir}, checkpoint {policy.iteration}: {settings.num_episodes} episodes, "
        f"{mode} mode, seed {settings.seed}",
        flush=True,
    )
    if console.is_dry_run():
        steps = settings.num_episodes * (config.env.max_steps or 0)
        plan = {"policy": run_dir, "checkpoint": policy.iteration, "file": str(path)}
        plan |= {"episodes": settings.num_episodes, "control_steps_at_most": steps}
        raise dry_run.Planned(plan)
    assert policy.act is not None  # Its run has a configuration.
    traces = (videos.TRACE,) if view else ()
    score = make_score(config, policy.act, policy.normalizer, traces=traces)
    first = score(policy.params)
    result, num_episodes = _score_until(
        lambda part: score(policy.params, part) if part else first, config
    )
    ends = intervals.of_score(result, num_episodes)
    for name, value in sorted(result.items()):
        print(
            f"  {name:24s} {value:10.4f}  {intervals.in_words(ends.get(name))}".rstrip()
        )
    about = {
        "policy": str(Path(run_dir).absolute()),
        "checkpoint": policy.iteration,
        "num_episodes": num_episodes,
        "mode": mode,
        "seed": settings.seed,
    }
    text = json.dumps(about | {"metrics": result, "intervals": ends}, indent=2)
    write_atomically(path, text + "\n")
    print(f"wrote {path}")
    if view:
        videos.save(first, view, video, path.parent)
    run_page.refresh(path.parent)
    return result


def score_file(config: ConfigDict) -> Path:
    """The file that the stage writes."""
    run_dir = config.run_dir or inputs.policy_path(config, "finetune")
    return Path(run_dir) / "evaluation.json"


def find_view(config: ConfigDict, video: int) -> View | None:
    """What is needed to draw `video` episodes; None for none.

    Raises:
        SettingsError: a negative number, or a task that cannot be drawn.
    """
    if video < 0:
        raise SettingsError(f"--video={video} must not be negative.")
    if not video:
        return None
    if is_host(config.env.task):
        raise SettingsError(
            f"--video: {config.env.task} runs in host processes, which do not report "
            "positions; leave out --video."
        )
    return videos.check(make_single(config.env), config.env.task)


def _score_until(
    score: Callable[[int], Evaluation], config: ConfigDict
) -> tuple[dict[str, float], int]:
    """Score episodes, more of them for `evaluate.until_width`; means and their number.

    Raises:
        SettingsError: a width below `_LEAST_WIDTH`, which would take millions of
            episodes, or a task without a success.
    """
    settings = config.evaluate
    width, each = settings.until_width, settings.num_episodes
    if width and width < _LEAST_WIDTH:
        raise SettingsError(
            f"evaluate.until_width={width} must be 0 or at least {_LEAST_WIDTH}."
        )
    parts: list[Metrics] = []
    while True:
        parts.append(score(len(parts)).metrics)
        joined: Metrics = {
            name: jnp.concatenate([x[name] for x in parts]) for name in parts[0]
        }
        means, count = summarize(Evaluation(joined, {})), each * len(parts)
        if not width:
            return means, count
        ends = intervals.of_score(means, count).get("success")
        if ends is None:
            raise SettingsError(
                f"evaluate.until_width={width} is the width of the interval of the "
                f"success, and {config.env.task} has none; use evaluate.num_episodes."
            )
        if ends[1] - ends[0] <= width:
            return means, count
        print(f"{count} episodes: {intervals.in_words(ends)}", flush=True)


def make_score(
    config: ConfigDict,
    act: Act,
    normalizer: Normalizer,
    *,
    traces: Sequence[str] = (),
) -> Callable[..., Evaluation]:
    """The evaluation that `config.evaluate` describes, always from the same key.

    Args:
        traces: names of traces to keep, beside those that the task's plot needs.

    Returns:
        (parameters, part) -> Evaluation. Part 0, the default, has the episodes of the
        seed, every other part as many others.
    """
    settings = config.evaluate
    check_seed("evaluate.seed", settings.seed)
    for name in ("num_envs", "num_episodes"):
        if settings[name] < 1:
            raise SettingsError(f"evaluate.{name}={settings[name]} must be at least 1.")
    env = make_env(
        config.env,
        normalizer=normalizer,
        chunk=num_executable(config.model),
        num_envs=min(settings.num_envs, settings.num_episodes),
        trace=(*plots.traced_metrics(config.env.task), *traces),
    )
    for note in (*env.notes, *filter(None, [sampling_note(config.model)])):
        print(f"warning: {note}.", flush=True)
    evaluate = make_evaluate(
        env,
        act,
        num_episodes=settings.num_episodes,
        deterministic=settings.deterministic,
    )

    def score(params: PyTree, part: int = 0) -> Evaluation:
        local, key = parallel.on_one_device(params), jax.random.key(settings.seed)
        # Small numbers would give the keys of single episodes of part 0.
        later = jax.random.fold_in(key, _LATER_PARTS + part)
        return evaluate(local, later if part else key)

    return score


if __name__ == "__main__":
    command_line.run_stage(
        main,
        takes_run=True,
        takes_checkpoint=True,
        takes_video=True,
        plans=True,
        summarize=lambda _, config: summaries.of_evaluation(str(score_file(config))),
    )
