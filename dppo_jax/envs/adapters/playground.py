"""Environments of MuJoCo Playground as an `Env`: `playground:CartpoleBalance`, ...

Playground (Zakka et al. 2025, arXiv 2502.08844) runs on MJX. It contains the models of
its ports of the DeepMind control suite. Those of its robots, MuJoCo Menagerie, are
downloaded when the first robot is made.
"""

import subprocess
from typing import Any

from dppo_jax.envs.adapters.functional import from_functional
from dppo_jax.envs.adapters.packages import require
from dppo_jax.errors import SettingsError
from dppo_jax.types import Env


def make_playground(
    name: str, /, *, obs_key: str = "state", impl: str = "jax", **overrides: Any
) -> Env:
    """Make an environment of MuJoCo Playground; its limit is usually 1000 steps.

    Action [Da] in [-1, 1]. Observation `{"state": [Do]}`. Observations of robots are
    dictionaries: `state` is what the robot senses, `privileged_state` what only a
    simulator can measure. Metrics: those of the environment. `done` is a termination.
    `action_repeat` of its configuration has no effect; use action chunks.

    Args:
        name: in Playground's registry.
        obs_key: the entry to use if observations are dictionaries.
        impl: of MJX. Only "jax" is tested here. Playground's own default, "warp", needs
            most of a minute to build its kernels on a CPU. Its environments share parts
            of a state, so an auto-reset of some of a batch may change others.
        **overrides: entries of the environment's configuration, e.g. `sim_dt=0.005`.

    Raises:
        SettingsError: the package is missing, an unknown environment or entry, or a
            failed download of the models.
    """
    task = f"playground:{name}"
    require("mujoco_playground", task=task, extra="playground")
    from mujoco_playground import registry

    if name not in registry.ALL_ENVS:
        raise SettingsError(
            f"MuJoCo Playground has no environment {name!r}; it has "
            f"{', '.join(sorted(registry.ALL_ENVS))}."
        )
    known = registry.get_default_config(name)
    # Not all environments have a setting `impl`.
    changes = {**({"impl": impl} if "impl" in known else {}), **overrides}
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise SettingsError(
            f"{task} has no setting {', '.join(unknown)}; env.options may contain "
            f"{', '.join(sorted(known))}."
        )
    try:
        env = registry.load(name, config_overrides=changes)
    except (subprocess.CalledProcessError, OSError) as error:
        raise SettingsError(
            f"{task} needs the models of MuJoCo Menagerie, which Playground downloads "
            f"with git ({error}); connect this machine to the network once, or use an "
            "environment of the control suite such as CartpoleBalance."
        ) from error
    return from_functional(env, task=task, obs_key=obs_key)
