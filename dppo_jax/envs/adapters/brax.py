"""Brax environments as pure tasks: `brax:ant`, `brax:inverted_pendulum`, ...

Brax (Freeman et al. 2021, arXiv 2106.13281) is written in JAX, so its environments
run inside the compiled program like our own.
"""

from typing import Any

from dppo_jax.envs.adapters.functional import from_functional
from dppo_jax.envs.adapters.packages import require
from dppo_jax.errors import SettingsError
from dppo_jax.types import Env

BACKENDS = ("generalized", "mjx", "positional", "spring")


def make_brax(
    name: str, *, backend: str = "generalized", obs_key: str = "state", **options: Any
) -> Env:
    """A registered Brax environment; `time_limit(env, 1000)` is Brax's usual limit.

    Action [Da] in [-1, 1]. Observation `{"state": [Do]}`. Metrics: those of the
    environment. `done` is a termination.

    Args:
        name: in Brax's registry, e.g. "ant"; those that a user registered too.
        backend: Brax's physics pipeline, one of `BACKENDS`. "mjx" is MuJoCo's,
            "spring" the fastest.
        obs_key: which entry is observed, where observations are dictionaries.
        **options: further arguments of the environment, e.g.
            `terminate_when_unhealthy=False`.

    Raises:
        SettingsError: an unknown environment or backend, options that it does not take.
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
        # Options go through several constructors, and a backend may not fit a model.
        raise SettingsError(
            f"brax:{name} cannot be made with backend={backend!r} and {options}: "
            f"{error}."
        ) from error
    return from_functional(env, task=f"brax:{name}", obs_key=obs_key)
