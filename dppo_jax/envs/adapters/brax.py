"""Brax environments as an `Env`: `brax:ant`, `brax:inverted_pendulum`, ...

Brax (Freeman et al. 2021, arXiv 2106.13281) is written in JAX, so its environments
run inside the compiled program.
"""

from typing import Any

from dppo_jax.envs.adapters.functional import from_functional
from dppo_jax.envs.adapters.packages import require
from dppo_jax.errors import SettingsError
from dppo_jax.types import Env

BACKENDS = ("generalized", "mjx", "positional", "spring")


def make_brax(
    name: str,
    /,
    *,
    backend: str = "generalized",
    obs_key: str = "state",
    **options: Any,
) -> Env:
    """Make a registered Brax environment; its usual limit is `time_limit(env, 1000)`.

    Action [Da] in [-1, 1]. Observation `{"state": [Do]}`. Metrics: those of the
    environment. `done` is a termination.

    Args:
        name: in Brax's registry, e.g. "ant" or one that the user registered.
        backend: Brax's physics pipeline, one of `BACKENDS`. "mjx" is that of MuJoCo,
            "spring" is the fastest.
        obs_key: the entry to use if observations are dictionaries.
        **options: further arguments of the environment, e.g.
            `terminate_when_unhealthy=False`.

    Raises:
        SettingsError: a missing package, an unknown environment or backend, or options
            that the environment does not take.
    """
    require("brax", task=f"brax:{name}", extra="dev")
    from brax import envs

    if backend not in BACKENDS:
        raise SettingsError(
            f"env.options.backend={backend!r} is unknown; choose one of "
            f"{', '.join(BACKENDS)}."
        )
    if name not in envs._envs:
        raise SettingsError(
            f"Brax has no environment {name!r}; it has {', '.join(sorted(envs._envs))}."
        )
    try:
        env = envs.get_environment(name, backend=backend, **options)
    except (TypeError, AttributeError, KeyError) as error:
        # Options pass through several constructors, and not every backend supports
        # every model, so the errors are of several types.
        raise SettingsError(
            f"brax:{name} cannot be made with backend={backend!r} and {options}: "
            f"{error}."
        ) from error
    return from_functional(env, task=f"brax:{name}", obs_key=obs_key)
