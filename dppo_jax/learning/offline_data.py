"""Demonstrations in replay buffers, and a phase of updates from them alone."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax import replay as buffers
from dppo_jax.errors import SettingsError
from dppo_jax.learning.off_policy import OffPolicyState
from dppo_jax.replay import Replay
from dppo_jax.types import OF_ENVIRONMENT, Algorithm, Array, Metrics, Transition


class Given(Protocol):
    """N transitions on the host: `demonstrations.Transitions`, which has its shapes."""

    obs: Mapping[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    next_obs: Mapping[str, np.ndarray]
    terminated: np.ndarray
    truncated: np.ndarray
    return_to_go: np.ndarray


def as_items(given: Any, *, with_returns: bool = False) -> Transition:
    """Convert transitions of demonstrations to items of a replay buffer.

    Args:
        given: see `Given`.
        with_returns: keep the returns-to-go as extras, see `returns_to_go.UNKNOWN`.

    Returns:
        A Transition, leaves [N, ...].
    """
    extras = {"return_to_go": given.return_to_go} if with_returns else ()
    return Transition(
        obs=dict(given.obs),
        action=given.action,
        reward=given.reward,
        next_obs=dict(given.next_obs),
        terminated=given.terminated,
        truncated=given.truncated,
        extras=extras,
    )


def offline_replay(items: Transition, *, num_groups: int) -> Replay:
    """Make a buffer that holds given transitions and nothing else.

    Args:
        items: leaves [N, ...].
        num_groups: number of rings, that of `off_policy`.

    Raises:
        SettingsError: fewer transitions than groups.
    """
    num_items = len(items.reward)
    if not 1 <= num_groups <= num_items:
        raise SettingsError(
            f"replay.num_groups={num_groups} must be between 1 and the {num_items} "
            "transitions of the demonstrations; lower it, or use more data."
        )
    capacity = -(-num_items // num_groups) * num_groups
    return buffers.fill(buffers.init(_one(items), num_groups, capacity), items)


def preload(algorithm: Algorithm, items: Transition) -> Algorithm:
    """Make an off-policy Algorithm start with given transitions in its buffer.

    They are the oldest, so they are the first that new transitions overwrite.

    Raises:
        SettingsError (from `init`): they do not fit into the buffer.
    """

    def init(key: Array, *args: Any) -> OffPolicyState:
        state = algorithm.init(key, *args)
        return state._replace(replay=buffers.fill(state.replay, items))

    return algorithm._replace(init=init)


def with_offline_phase(
    algorithm: Algorithm, offline: Algorithm, *, num_iterations: int
) -> Algorithm:
    """Put iterations of updates from the offline data alone before an Algorithm.

    In these iterations no environment is stepped, and metrics of episodes are NaN.
    Both kinds of iterations are branches of one program.

    Args:
        algorithm: of `off_policy`; counts of its settings start after this phase.
        offline: the same with `offline_share=1`, of which only the updates run.
        num_iterations: 0: no such phase.
    """
    if num_iterations == 0:
        return algorithm
    collect, update = algorithm.phases

    def later(state: OffPolicyState, iterations: int) -> OffPolicyState:
        return state._replace(iteration=state.iteration + iterations)

    def collect_online(state: OffPolicyState) -> tuple[OffPolicyState, Metrics]:
        state, episodes = collect(later(state, -num_iterations))
        return later(state, num_iterations), episodes

    def collect_or_wait(state: OffPolicyState) -> tuple[OffPolicyState, Metrics]:
        episodes = jax.eval_shape(collect_online, state)[1]
        nothing = {
            name: jnp.full(x.shape, _without_episodes(name), x.dtype)
            for name, x in episodes.items()
        }
        return jax.lax.cond(
            state.iteration < num_iterations,
            lambda state: (state, nothing),
            collect_online,
            state,
        )

    def update_offline(
        state: OffPolicyState, episodes: Metrics
    ) -> tuple[OffPolicyState, Metrics]:
        state, metrics = offline.phases[1](state, episodes)
        return state, metrics | {"env_steps": jnp.zeros_like(metrics["env_steps"])}

    def update_online(
        state: OffPolicyState, episodes: Metrics
    ) -> tuple[OffPolicyState, Metrics]:
        state, metrics = update(later(state, -num_iterations), episodes)
        return later(state, num_iterations), metrics

    def update_either(
        state: OffPolicyState, episodes: Metrics
    ) -> tuple[OffPolicyState, Metrics]:
        return jax.lax.cond(
            state.iteration < num_iterations,
            update_offline,
            update_online,
            state,
            episodes,
        )

    def step(state: OffPolicyState) -> tuple[OffPolicyState, Metrics]:
        return update_either(*collect_or_wait(state))

    return algorithm._replace(step=step, phases=(collect_or_wait, update_either))


def _without_episodes(name: str) -> float:
    """A metric of the roll-out where there was none."""
    return 0 if name in (*OF_ENVIRONMENT, "num_episodes") else np.nan


def _one(items: Transition) -> Any:
    """Shapes and types of one item."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), items)
