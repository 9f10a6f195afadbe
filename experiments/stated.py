"""The score that a checkpoint states of itself."""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dppo_jax.deploy import LoadedPolicy
from dppo_jax.training.checkpoint import SavedPolicy
from dppo_jax.training.metrics import read_metrics
from experiments import intervals
from experiments.intervals import Interval

_PREFIX = "eval/"


class Stated(NamedTuple):
    """An evaluation: the iteration that was scored, the means, and how it was made.

    num_episodes, deterministic, seed: as in `config.evaluate`; None if they are not
        known.
    """

    iteration: int
    metrics: dict[str, float]
    num_episodes: int | None
    deterministic: bool | None
    seed: int | None

    @property
    def intervals(self) -> dict[str, Interval]:
        """Where the expected success and return lie, see `intervals.of_score`."""
        if self.num_episodes is None:
            return {}
        return intervals.of_score(self.metrics, self.num_episodes)

    def how(self) -> str:
        """How it was made, in words."""
        if self.num_episodes is None:
            return "by an evaluation that is not described"
        mode = "deterministic" if self.deterministic else "exploring"
        return f"{self.num_episodes} episodes, {mode} mode, seed {self.seed}"

    def lines(self) -> list[str]:
        """The success and the return, in words, or else all metrics."""
        names = [x for x in ("success", "episode_return") if x in self.metrics]
        return [
            f"{name} {self.metrics[name]:.4g} "
            f"{intervals.in_words(self.intervals.get(name))}".rstrip()
            for name in names or self.metrics
        ]


def stated_score(
    policy: SavedPolicy | LoadedPolicy, run_dir: str, config: ConfigDict | None
) -> Stated | None:
    """The score that a checkpoint states, None if it states none.

    For a checkpoint that is older than such statements it is the evaluation of its
    iteration in `metrics.csv`, made with the settings of the run.

    Args:
        config: of the run; None if it has none of `experiments.defaults`.
    """
    score: dict[str, Any] | None = policy.about.get("score")
    if score is None and "format" not in policy.about:
        rows = [x for x in read_metrics(run_dir) if x["iteration"] == policy.iteration]
        score = {"iteration": policy.iteration, "metrics": rows[0] if rows else {}}
    metrics = {
        name.removeprefix(_PREFIX): value
        for name, value in (score or {}).get("metrics", {}).items()
        if name.startswith(_PREFIX)
    }
    if score is None or not metrics:
        return None
    names = ("num_episodes", "deterministic", "seed")
    how = dict.fromkeys(names) if config is None else dict(config.evaluate)
    how = {name: score.get(name, how[name]) for name in names}
    return Stated(iteration=score["iteration"], metrics=metrics, **how)
