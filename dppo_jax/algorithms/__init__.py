"""The table of algorithms from which `config.algorithm.name` selects one."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dppo_jax.algorithms import dipo, dql, fpo, idql, ppo, ppo_exact, qsm, sac
from dppo_jax.errors import SettingsError
from dppo_jax.types import Algorithm, VecEnv


class Entry(NamedTuple):
    """One algorithm of the table.

    default_config: () -> the section `config.algorithm.<name>`.
    make: (env, policy, config, data=None) -> Algorithm; config is the whole
        configuration.
    uses_data: whether the algorithm also learns from demonstrations.
    takes_critic: whether `Algorithm.init` accepts, after the policy's parameters, the
        `critic_params` of an earlier run.
    """

    default_config: Callable[[], ConfigDict]
    make: Callable[..., Algorithm]
    uses_data: bool = False
    takes_critic: bool = False


ALGORITHMS = {
    "ppo": Entry(ppo.default_config, ppo.make, takes_critic=True),
    "fpo": Entry(fpo.default_config, fpo.make, takes_critic=True),
    "ppo_exact": Entry(ppo_exact.default_config, ppo_exact.make, takes_critic=True),
    "sac": Entry(sac.default_config, sac.make),
    "idql": Entry(idql.default_config, idql.make),
    "dql": Entry(dql.default_config, dql.make),
    "qsm": Entry(qsm.default_config, qsm.make),
    "dipo": Entry(dipo.default_config, dipo.make),
}


def default_config() -> ConfigDict:
    """`config.algorithm`: a name, and a section for every algorithm."""
    config = ConfigDict()
    config.name = "ppo"
    for name, entry in ALGORITHMS.items():
        config[name] = entry.default_config()
    return config


def find_algorithm(name: str) -> Entry:
    """Return the entry of a name; raise SettingsError if the name is unknown."""
    if name not in ALGORITHMS:
        raise SettingsError(
            f"algorithm.name={name!r} is unknown; use one of {', '.join(ALGORITHMS)}."
        )
    return ALGORITHMS[name]


def make_algorithm(
    env: VecEnv, policy: Any, config: ConfigDict, data: Any = None
) -> Algorithm:
    """Make the algorithm that `config.algorithm.name` selects.

    Args:
        config: the whole configuration; an algorithm reads its own section,
            `config.rollout` and `config.critic`.
        data: demonstrations, for algorithms that learn from them.

    Raises:
        SettingsError: an unknown name, or settings that the algorithm does not accept.
    """
    return find_algorithm(config.algorithm.name).make(env, policy, config, data)
