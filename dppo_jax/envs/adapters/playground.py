"""MuJoCo Playground as pure tasks: `playground:CartpoleBalance`, ...

Playground (Zakka et al. 2025, arXiv 2502.08844) runs on MJX. Its ports of the
DeepMind control suite bring their models along; its robots fetch theirs, MuJoCo
Menagerie, from the network when the first of them is made.
"""

import subprocess
from typing import Any

from dppo_jax.envs.adapters.functional import from_functional
from dppo_jax.envs.adapters.packages import require
from dppo_jax.errors import SettingsError
from dppo_jax.types import Env


def make_playground(
    name: str, *, obs_key: str = "state", impl: str = "jax", **overrides: Any
) -> Env:
    """An environment of MuJoCo Playground; its own limit is usually 1000 steps.

    Action [Da] in [-1, 1]. Observation `{"state": [Do]}`: robots observe
    dictionaries, of which `state` is what the robot senses and `privileged_state`
    what only a simulator knows. Metrics: those of the environment. `done` is a
    termination. An `action_repeat` of its configuration is left to action chunks.

    Args:
        name: in Playground's registry.
        obs_key: which entry is observed, where observations are dictionaries.
        impl: of MJX. Playground's own default is "warp", which takes most of a
            minute to build its kernels on a CPU and whose states are not one
            environment's own, so that an auto-reset of a few of a batch may touch
            others; "jax" is the one that is tested here.
        **overrides: entries of the environment's configuration, e.g. `sim_dt=0.005`.

    Raises:
        SettingsError: the package is missing, an unknown environment or entry, or
            models that could not be fetched.
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
    # Not all have a choice of implementation.
    changes = {**({"impl": impl} if "impl" in known else {}), **overrides}
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise SettingsError(
            f"{task} has no setting {', '.join(unknown)}; env.options may hold "
            f"{', '.join(sorted(known))}."
        )
    try:
        env = registry.load(name, config_overrides=changes)
    except (subprocess.CalledProcessError, OSError) as error:
        raise SettingsError(
            f"{task} needs the models of MuJoCo Menagerie, which Playground fetches "
            f"with git ({error}); connect this machine once, or take an environment "
            "of the control suite such as CartpoleBalance."
        ) from error
    return from_functional(env, task=task, obs_key=obs_key)
