"""Gymnasium environments as host tasks: `gymnasium:Hopper-v5`, ...

Any environment with a box of actions and vectors to observe will do, those of other
packages too: `gymnasium:gymnasium_robotics:FetchReach-v4` imports the package first.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from dppo_jax.envs.adapters.host import HostTask
from dppo_jax.envs.adapters.packages import require


def make_gymnasium(
    source: str | Callable[[], Any],
    *,
    obs_keys: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
    processes: int | None = None,
    **options: Any,
) -> HostTask:
    """A registered Gymnasium environment, or what a function makes.

    Action [Da] and observation `{"state": [Do]}` in the units of the environment;
    nothing is clipped. Its `terminated` and `truncated` are ours, an own time limit
    included. Metrics: numbers in `info`.

    Args:
        source: an id, or `() -> gymnasium.Env`. Environments with a batch of their
            own (`gymnasium.vector`) are not taken: they cannot hold still where one
            of them ends inside an action chunk.
        obs_keys: entries of a dictionary observation, side by side; empty: all.
        metrics: entries of `info` to report; None: the numbers in that of a first
            step.
        processes: how many share the environments; None: one per core, 0: none.
        **options: further arguments of `gymnasium.make`.

    Raises:
        SettingsError: Gymnasium is missing. What cannot be made is refused by
            `host_vec_env`, which makes one.
    """
    name = source if isinstance(source, str) else getattr(source, "__name__", "factory")
    require("gymnasium", task=f"gymnasium:{name}", extra="dev")
    import gymnasium

    if isinstance(source, str):
        make = functools.partial(
            gymnasium.make, source, disable_env_checker=True, **options
        )
    else:
        make = functools.partial(source, **options)
    return HostTask(
        name=f"gymnasium:{name}",
        make=make,
        obs_keys=tuple(obs_keys),
        metrics=None if metrics is None else tuple(metrics),
        processes=processes,
    )
