"""The ablations of the DPPO paper (arXiv 2409.00588, Sec. 6 and App.) by name.

`experiments.studies.ablations --preset=TASK` runs those of a task that vary one
configuration, and --preset=TASK:AXIS one of all. The configurations are those that a
CPU can run; --config=FILE.py:VARIANT replaces them, such as
--config=experiments/configs/hopper.py:v0_8 for the paper's own.

From the paper are K' = 10, 15 and 20 on avoid, the clip ranges, the denoising discounts
0.5 and 0.8, the floor of 0.1 in sampling, and when noise on actions begins, with K' =
4, 10 and 20; the values between them and the sizes of noise are ours. None is what a
setting is without a value: DDPM instead of DDIM, and all demonstrations.
"""

from typing import NamedTuple


class Preset(NamedTuple):
    """One ablation.

    values: of the axis.
    tuned_steps: further values of K' with which each value is run.
    others: suffixes of variants of the configuration that are varied too, such as
        `_gaussian`.
    """

    values: tuple[str, ...]
    tuned_steps: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def is_alone(self) -> bool:
        """Whether it varies one configuration."""
        return not (self.tuned_steps or self.others)


class Task(NamedTuple):
    """The ablations of a task.

    config: FILE.py:VARIANT.
    target: a score, for the time until it is reached.
    presets: axis -> its ablation.
    """

    config: str
    target: float
    presets: dict[str, Preset]


_CLIPS = Preset(("0.001", "0.01", "0.1"))
_STDS = Preset(("0.01", "0.05", "0.1", "0.2"))
_LOG_PROB_STDS = Preset(("0.05", "0.1", "0.2"))
_NOISES = ("0", "0.1", "0.2")
_HEADS = ("_gaussian", "_gmm")
_DISCOUNTS = Preset(("0.5", "0.8", "0.9", "0.95", "0.99", "1.0"))

TASKS = {
    "avoid": Task(
        "experiments/configs/avoid.py:m2",
        0.9,
        {
            "tuned_steps": Preset(("5", "10", "15", "20")),
            "min_std": _STDS,
            "min_log_prob_std": _LOG_PROB_STDS,
            "denoising_discount": Preset(("0.5", "0.8", "0.95", "1.0")),
            "clip": _CLIPS,
            "clip_base": Preset(("0.01", "0.1")),
            "chunk": Preset(("1", "2", "4", "8")),
            "num_envs": Preset(("10", "25", "50", "100")),
            "ddim_steps": Preset(("5", "10", "None")),
            "num_demonstrations": Preset(("2", "4", "None")),
            "action_noise": Preset(_NOISES, ("4", "20"), _HEADS),
            "initial_state": Preset(("0", "0.01", "0.02"), ("4", "20"), _HEADS),
        },
    ),
    "hopper": Task(
        "experiments/configs/hopper.py:fast",
        2500.0,
        {
            "tuned_steps": Preset(("3", "5", "10", "20")),
            "min_std": _STDS,
            "min_log_prob_std": _LOG_PROB_STDS,
            "denoising_discount": _DISCOUNTS,
            "clip": _CLIPS,
            "clip_base": Preset(("0.001", "0.01")),
            "chunk": Preset(("1", "2", "4", "8")),
            "num_envs": Preset(("10", "20", "40", "80")),
            "ddim_steps": Preset(("5", "10", "None")),
            "action_noise": Preset(_NOISES, ("4", "20"), _HEADS),
            "initial_state": Preset(("0", "0.02", "0.05"), ("4", "20"), _HEADS),
        },
    ),
    "can": Task(
        "experiments/configs/can.py:fast",
        0.9,
        {
            "tuned_steps": Preset(("3", "5", "10", "20")),
            "min_std": _STDS,
            "min_log_prob_std": _LOG_PROB_STDS,
            "denoising_discount": _DISCOUNTS,
            "clip": _CLIPS,
            "clip_base": Preset(("0.001", "0.01", "0.02")),
            "chunk": Preset(("2", "4", "8")),
            "num_envs": Preset(("25", "50", "100")),
            "ddim_steps": Preset(("5", "10", "None")),
            "num_demonstrations": Preset(("25", "50", "None")),
            "action_noise": Preset(_NOISES, ("10", "20"), _HEADS[:1]),
            "initial_state": Preset(("0", "0.05", "0.1"), ("10", "20"), _HEADS[:1]),
        },
    ),
}
