"""Ranges of domain randomisation that the variants `fast_randomized` share."""

from ml_collections import ConfigDict


def use_randomization(config: ConfigDict, *, damping: bool = True) -> None:
    """Vary what a robot may differ in from its model.

    No paper has ranges for these tasks; these are of the size that Peng et al. 2018
    (arXiv 1710.06537) vary in simulation, and a delay of up to one control step.

    Args:
        damping: whether joints have damping.
    """
    config.env.randomization.update(
        mass=(0.7, 1.3),
        friction=(0.5, 1.5),
        gain=(0.8, 1.2),
        shared=False,
        delay=(0, 1),
        action_noise=0.05,
        obs_noise=0.01,
    )
    if damping:
        config.env.randomization.damping = (0.7, 1.3)
