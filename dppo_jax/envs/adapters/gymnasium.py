"""Gymnasium environments as host tasks: `gymnasium:Hopper-v5`, ...

Any environment works whose action space is a box and whose observations are vectors.
For environments of other packages, name the package to import first, as in
`gymnasium:gymnasium_robotics:FetchReach-v4`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from dppo_jax.envs.adapters.host_task import HostTask
from dppo_jax.envs.adapters.packages import require


def make_gymnasium(
    source: str | Callable[[], Any],
    /,
    *,
    obs_keys: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
    processes: int | None = None,
    **options: Any,
) -> HostTask:
    """Make a task of a registered Gymnasium environment, or of a function.

    Action [Da] and observation `{"state": [Do]}` are in the units of the environment;
    nothing is clipped. `terminated` and `truncated` are those of the environment, so
    its own time limit truncates. Metrics: numbers in `info`.

    Args:
        source: an id, or `() -> gymnasium.Env`. Vector environments
            (`gymnasium.vector`) do not work, because they cannot pause one environment
            whose episode ends inside an action chunk.
        obs_keys: entries of a dictionary observation to concatenate; empty: all.
        metrics: entries of `info` to report; None: the numbers in `info` of the first
            step.
        processes: how many processes share the environments; None: one per core, 0: run
            in the calling process.
        **options: further arguments of `gymnasium.make`, or of the function.

    Raises:
        SettingsError: Gymnasium is missing. Other errors are raised by `host_vec_env`,
            which makes the environment.
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
