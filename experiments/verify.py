"""Measure the score that a checkpoint states again: python -m experiments.verify RUN

Scores the policy of RUN, or of one of its checkpoints (--checkpoint=best), with the
episodes, the mode and the seed of the evaluation that its checkpoint states. Prints
what was stated and what is measured, and exits with status 1 if the measured success or
return lies outside of the stated 95 % interval. On the machine that wrote the
checkpoint both are the same numbers; other devices round differently.
"""

import math
import sys

from ml_collections import ConfigDict

from dppo_jax.errors import SettingsError
from dppo_jax.evaluate import summarize
from experiments import command_line, inputs, processes
from experiments.evaluate import make_score
from experiments.stated import Stated, stated_score

# Rounding may move the mean of episodes that all have the same return.
_ROUNDING = 1e-4


def main(config: ConfigDict, checkpoint: int | str = "latest") -> bool:
    """Run the program; returns whether the policy scores as its checkpoint states.

    Raises:
        SettingsError: no such policy, or its checkpoint states no score of it.
    """
    processes.stay_on_one_device(config, "verify")
    inputs.check_task(config, "verify")
    run_dir = inputs.policy_path(config, "finetune")
    policy = inputs.find_policy(config, "finetune", checkpoint)
    stated = stated_score(policy, run_dir, config)
    if stated is None or not stated.intervals:
        raise SettingsError(
            f"checkpoint {policy.iteration} of {run_dir} states no score with an "
            "interval, for lack of an evaluation of several episodes; use "
            "experiments.evaluate."
        )
    if stated.iteration != policy.iteration:
        raise SettingsError(
            f"checkpoint {policy.iteration} of {run_dir} states the score of "
            f"iteration {stated.iteration}; pass --checkpoint={stated.iteration} if "
            "there is such a checkpoint, or use experiments.evaluate."
        )
    own = config.copy_and_resolve_references()
    how = ("num_episodes", "deterministic", "seed")
    own.evaluate.update({name: getattr(stated, name) for name in how})
    assert policy.act is not None  # Its run has a configuration.
    score = make_score(own.lock(), policy.act, policy.normalizer)
    measured = stated._replace(metrics=summarize(score(policy.params)))
    print(f"{run_dir}, checkpoint {policy.iteration}: {stated.how()}")
    for title, found in (("stated", stated), ("measured", measured)):
        print(f"  {title + ':':10s}{'; '.join(found.lines())}")
    outside = _outside(stated, measured)
    if outside:
        print(f"{', '.join(outside)}: outside of the stated interval")
    else:
        print("the policy scores as its checkpoint states")
    return not outside


def _outside(stated: Stated, measured: Stated) -> list[str]:
    """Names of the metrics that are outside of their stated interval, or missing."""
    found = []
    for name, (low, high) in stated.intervals.items():
        value = measured.metrics.get(name, math.nan)
        slack = _ROUNDING * abs(value)
        if not low - slack <= value <= high + slack:
            found.append(name)
    return found


def _program(config: ConfigDict, checkpoint: int | str) -> None:
    if not main(config, checkpoint):
        sys.exit(1)


if __name__ == "__main__":
    command_line.run_stage(_program, takes_run=True, takes_checkpoint=True)
