"""Labels and meanings of the columns of `metrics.csv`, for tables, plots and reports.

Algorithms and tasks may log other names too; these keep their own name.
"""

import math
from typing import NamedTuple

EVALUATION = "eval/"
# What a policy is judged by: the first of these that its task has.
SCORES = ("success", "episode_return")
# Seconds of an iteration, as `train` logs them.
ITERATION_SECONDS, ROLLOUT_SECONDS = "seconds", "rollout_seconds"
EVALUATION_SECONDS, CHECKPOINT_SECONDS = "evaluation_seconds", "checkpoint_seconds"
# A smaller estimate of a divergence is mostly rounding in float32, and may be negative.
_LEAST_KL = 1e-7


class Metric(NamedTuple):
    """One column.

    label: what an axis or a table calls it.
    unit: "%" for shares, whose values are between 0 and 1; empty for plain numbers.
    meaning: what it is, for a reader who does not know the code.
    group: of its tag in TensorBoard, `rollout`, `train` or `time`.
    """

    label: str
    unit: str
    meaning: str
    group: str


_ROLLOUT = {
    "success": ("success", "%", "episodes of the roll-outs that succeeded"),
    "solved": ("solved", "%", "episodes that are solved, as the task defines it"),
    "collision": ("collision", "%", "episodes with a collision"),
    "outside": ("outside", "%", "episodes that left the workspace"),
    "episode_return": ("return", "", "mean sum of the rewards of an episode"),
    "episode_return_stderr": ("error of return", "", "standard error of the return"),
    "episode_length": ("episode length", "control steps", "mean length of an episode"),
    "action_noise": ("noise on actions", "", "standard deviation in the roll-outs"),
    "num_episodes": ("episodes", "", "episodes that ended in an iteration"),
    "reward": ("reward of a chunk", "", "mean over the chunks of an iteration"),
    "reward_std": ("spread of rewards", "", "standard deviation over chunks"),
    "diverged": ("broken steps", "", "control steps in which the simulation broke"),
    "contacts_full": (
        "too little space for contacts",
        "",
        "of a simulation of MuJoCo Warp, where some were left out; 0: enough",
    ),
    "constraints_full": (
        "too little space for constraints",
        "",
        "of a simulation of MuJoCo Warp, where some were left out; 0: enough",
    ),
    "obs_outside": ("entries outside", "%", "observations outside of [-2, 2]"),
    "obs_magnitude": ("observations", "", "mean size of a normalised entry"),
}
_TRAIN = {
    "approx_kl": (
        "KL estimate",
        "nats",
        "how far the updates of an iteration moved the policy; for chunks it is a mean "
        "over their entries, so 1e-6 to 1e-3 is usual",
    ),
    "approx_kl_last": ("KL of last update", "nats", "the same, of the last update"),
    "chain_kl": ("KL of chains", "nats", "divergence of whole denoising chains"),
    "gated_fraction": ("gated chains", "%", "chains at the limit of their divergence"),
    "clip_fraction": ("clip fraction", "%", "probability ratios that were clipped"),
    "ratio": ("mean ratio", "", "mean probability ratio; it should stay near 1"),
    "first_ratio": ("first ratio", "", "ratio of the first update; it should be 1"),
    "explained_variance": (
        "explained variance",
        "",
        "share of the variance of the returns that the critic predicts; 1 is perfect, "
        "below 0 it is worse than their mean",
    ),
    "value_loss": ("critic loss", "", "half the mean squared error of the critic"),
    "policy_loss": ("policy loss", "", "surrogate objective of PPO, negative"),
    "critic_loss": (
        "critic loss",
        "",
        "half the mean squared error, sum of all critics",
    ),
    "actor_loss": ("actor loss", "", "what the updates of the actor minimise"),
    "value": ("mean value", "", "mean of the critic over the batch"),
    "entropy": ("entropy", "nats", "how random the policy acts"),
    "min_std": ("least std", "", "floor of the exploration noise"),
    "temperature": ("temperature", "", "weight of the entropy"),
    "params_change": ("change of policy", "", "norm of the change of its parameters"),
    "num_updates": ("updates", "", "optimizer steps of an iteration"),
    "skipped_updates": ("skipped updates", "", "updates without finite gradients"),
    "actor_lr": ("learning rate, actor", "", "of the policy"),
    "critic_lr": ("learning rate, critic", "", "of the critic"),
    "learning_rate": ("learning rate", "", "of the network"),
    "loss": ("loss", "", "cloning loss of the trained network, mean of an epoch"),
    "average_loss": (
        "loss of average",
        "",
        "cloning loss of the averaged network, which is the policy, on one minibatch",
    ),
    "flow_loss": ("flow loss", "", "flow-matching loss of the policy"),
    "replay_size": ("replay buffer", "chunks", "chunks in the replay buffer"),
}
_TIME = {
    "env_steps": ("environment steps", "", "control steps of all environments so far"),
    ITERATION_SECONDS: (
        "time of iteration",
        "s",
        "roll-out and updates, without evaluations and checkpoints",
    ),
    ROLLOUT_SECONDS: ("time of roll-out", "s", "the part of an iteration that acts"),
    EVALUATION_SECONDS: ("time of evaluation", "s", "how long training waited for it"),
    CHECKPOINT_SECONDS: (
        "time of checkpoints",
        "s",
        "how long training waited for those since the row before",
    ),
}
_GROUPS = {"rollout": _ROLLOUT, "train": _TRAIN, "time": _TIME}
METRICS = {
    name: Metric(*about, group)
    for group, names in _GROUPS.items()
    for name, about in names.items()
}
TIMES = tuple(name for name in _TIME if name.endswith("seconds"))


def about(name: str) -> Metric:
    """The label and meaning of a column; an unknown one is labelled by its name."""
    plain = name.removeprefix(EVALUATION)
    known = METRICS.get(plain)
    if known is None:
        return Metric(plain.replace("_", " "), "", "", "rollout")
    return known


def tag(name: str) -> str:
    """The tag in TensorBoard, whose first part is the group."""
    if name.startswith(EVALUATION):
        return name
    return f"{about(name).group}/{name}"


def in_words(name: str, value: float) -> str:
    """A value for a line of text. A tiny divergence is not more exact than rounding."""
    if "kl" in name.split("_") and math.isfinite(value):
        return f"{value:.1e}" if abs(value) >= _LEAST_KL else "<1e-7"
    return f"{value:.4g}"


def in_time(seconds: float) -> str:
    """A duration, such as "45 s", "12 min" and "2 h 6 min"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 100 else f"{hours} h"


def in_bytes(size: int) -> str:
    """A size, such as "45.0 kB" and "1,200.0 MB"."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
