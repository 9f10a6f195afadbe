"""The algorithms that `config.algorithm.name` may name; they do not know each other."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dppo_jax.algorithms import ppo, sac
from dppo_jax.errors import SettingsError
from dppo_jax.types import Algorithm, VecEnv


class Entry(NamedTuple):
    """default_config: () -> the section `config.algorithm.<name>`.

    make: (env, policy, config, data=None) -> Algorithm, from the whole configuration.
    uses_data: whether it learns from demonstrations as well.
    takes_critic: whether `Algorithm.init` takes, after what acts, the `critic_params`
        of an earlier run.
    """

    default_config: Callable[[], ConfigDict]
    make: Callable[..., Algorithm]
    uses_data: bool = False
    takes_critic: bool = False


ALGORITHMS = {
    "ppo": Entry(ppo.default_config, ppo.make, takes_critic=True),
    "sac": Entry(sac.default_config, sac.make),
}


def default_config() -> ConfigDict:
    """`config.algorithm`: a name, and a section for every algorithm."""
    config = ConfigDict()
    config.name = "ppo"
    for name, entry in ALGORITHMS.items():
        config[name] = entry.default_config()
    return config


def find_algorithm(name: str) -> Entry:
    """The entry of a name; raises SettingsError if there is none."""
    if name not in ALGORITHMS:
        raise SettingsError(
            f"algorithm.name={name!r} is unknown; use one of {', '.join(ALGORITHMS)}."
        )
    return ALGORITHMS[name]


def make_algorithm(
    env: VecEnv, policy: Any, config: ConfigDict, data: Any = None
) -> Algorithm:
    """The algorithm that `config.algorithm.name` names.

    Args:
        config: the whole configuration; an algorithm reads its own section,
            `config.rollout` and `config.critic`.
        data: demonstrations, for algorithms that learn from them.

    Raises:
        SettingsError: an unknown name, or settings that the algorithm refuses.
    """
    return find_algorithm(config.algorithm.name).make(env, policy, config, data)
