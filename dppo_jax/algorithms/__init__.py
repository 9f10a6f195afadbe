"""The table of algorithms from which `config.algorithm.name` selects one."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dppo_jax.algorithms import (
    calql,
    dawr,
    dipo,
    dql,
    drwr,
    dsrl,
    fpo,
    ibrl,
    idql,
    ogpo,
    ppo,
    ppo_exact,
    qsm,
    rlpd,
    sac,
)
from dppo_jax.errors import SettingsError
from dppo_jax.policies import (
    BestOfParams,
    CandidateParams,
    ProposalParams,
    SteeredParams,
)
from dppo_jax.types import Algorithm, PyTree, VecEnv


class Acting(NamedTuple):
    """What acts in place of the configured policy, for example with a critic.

    fields: names of the parts of its parameters, by which saved ones are recognised.
    make: (policy, whole configuration, *, action_dim) -> what acts, with `init` and
        `act` as a policy has them.
    alone: its parameters -> those of the policy alone, from which any algorithm can
        start. None: it has no such policy.
    restarts: whether `Algorithm.init` of the same algorithm starts from its parameters.
    """

    fields: tuple[str, ...]
    make: Callable[..., Any]
    alone: Callable[[Any], PyTree] | None = None
    restarts: bool = False


class Entry(NamedTuple):
    """One algorithm of the table.

    default_config: () -> the section `config.algorithm.<name>`.
    make: (env, policy, config, data=None) -> Algorithm; config is the whole
        configuration.
    uses_data: whether the algorithm also learns from demonstrations.
    takes_critic: whether `Algorithm.init` accepts, after the policy's parameters, the
        `critic_params` of an earlier run.
    acting: what acts; None: the configured policy.
    """

    default_config: Callable[[], ConfigDict]
    make: Callable[..., Algorithm]
    uses_data: bool = False
    takes_critic: bool = False
    acting: Acting | None = None


ALGORITHMS = {
    "ppo": Entry(ppo.default_config, ppo.make, takes_critic=True),
    "fpo": Entry(fpo.default_config, fpo.make, takes_critic=True),
    "ppo_exact": Entry(ppo_exact.default_config, ppo_exact.make, takes_critic=True),
    "sac": Entry(sac.default_config, sac.make),
    "idql": Entry(
        idql.default_config,
        idql.make,
        acting=Acting(
            CandidateParams._fields, idql.make_acting, alone=lambda x: x.policy
        ),
    ),
    "dql": Entry(dql.default_config, dql.make),
    "qsm": Entry(qsm.default_config, qsm.make),
    "dipo": Entry(dipo.default_config, dipo.make),
    "ogpo": Entry(
        ogpo.default_config,
        ogpo.make,
        acting=Acting(BestOfParams._fields, ogpo.make_acting, alone=lambda x: x.policy),
    ),
    "rlpd": Entry(rlpd.default_config, rlpd.make, uses_data=True),
    "calql": Entry(calql.default_config, calql.make, uses_data=True),
    "ibrl": Entry(
        ibrl.default_config,
        ibrl.make,
        uses_data=True,
        acting=Acting(ProposalParams._fields, ibrl.make_acting),
    ),
    "drwr": Entry(drwr.default_config, drwr.make),
    "dawr": Entry(dawr.default_config, dawr.make),
    "dsrl": Entry(
        dsrl.default_config,
        dsrl.make,
        acting=Acting(SteeredParams._fields, dsrl.make_acting, restarts=True),
    ),
}


def default_config() -> ConfigDict:
    """`config.algorithm`: a name, and a section for every algorithm."""
    config = ConfigDict()
    config.name = "ppo"  # which section is used
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


def find_acting(params: Any) -> tuple[str, Acting] | None:
    """The algorithm of saved parameters and what acts with them.

    Args:
        params: a mapping or a named tuple.

    Returns:
        None for the parameters of a policy alone.
    """
    parts = params if isinstance(params, Mapping) else getattr(params, "_fields", ())
    for name, entry in ALGORITHMS.items():
        if entry.acting is not None and set(parts) == set(entry.acting.fields):
            return name, entry.acting
    return None


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
