"""Returns-to-go of stored transitions, beside each of them in the replay buffer.

A return is known only when its episode has ended. Until then it is -infinity in the
buffer, which is a lower bound of every value. When the episode ends, its transitions in
the buffer get their returns, also those of earlier iterations. A return is stored in
the item of its own transition, so resets and rings that overwrite their oldest items
cannot assign it to another transition.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dppo_jax.learning.off_policy import OffPolicyState
from dppo_jax.replay import Replay, episode_ends
from dppo_jax.types import Algorithm, Array, Metrics, PyTree


def returns_to_go(reward: Array, ended: Array, *, discount: float) -> Array:
    """Discounted sums of rewards up to the end of the episode.

    G_t = r_t + discount G_(t+1), and G_t = r_t where an episode ended. Time limits end
    episodes too: nothing is bootstrapped, so a return sums only received rewards.

    Args:
        reward: [T, B] summed over the executed chunk.
        ended: [T, B] 1 where an episode ended, for whatever reason.
        discount: per chunk.

    Returns:
        [T, B]; -infinity where no end follows.
    """

    def backward(after: tuple[Array, Array], now: tuple[Array, Array]):
        value, is_known = after
        reward, ended = now
        value = reward + discount * jnp.where(ended > 0, 0.0, value)
        is_known = is_known | (ended > 0)
        return (value, is_known), jnp.where(is_known, value, -jnp.inf)

    start = jnp.zeros_like(reward[0]), jnp.zeros(reward.shape[1:], bool)
    return jax.lax.scan(backward, start, (reward, ended), reverse=True)[1]


def fill_in_returns(
    replay: Replay, *, discount: float, num_new: int, max_steps: int | None
) -> Replay:
    """Compute the returns of all transitions that the newest ones may complete.

    Args:
        replay: of Transitions whose extras are `{"return_to_go": [B, L]}`.
        discount: per chunk.
        num_new: newest items of every ring whose returns were not computed yet.
        max_steps: length of the longest episode in chunks; None: there is no bound, and
            whole rings are computed.
    """
    items = replay.items
    length = items.reward.shape[1]
    window = length if max_steps is None else min(length, num_new + max_steps)
    # The oldest first. Slots of a ring that was never full hold zeros; nothing draws
    # them.
    slot = (replay.head - window + jnp.arange(window)) % length
    values = returns_to_go(
        items.reward[:, slot].T, episode_ends(items)[:, slot].T, discount=discount
    )
    stored = items.extras["return_to_go"]
    stored = stored.at[:, slot].set(
        values.T, mode="promise_in_bounds", unique_indices=True
    )
    return _with_extras(replay, {"return_to_go": stored})


def with_returns(
    algorithm: Algorithm, *, discount: float, num_new: int, max_steps: int | None
) -> Algorithm:
    """Make an off-policy Algorithm store the returns of what it collects.

    Batches then have extras `{"return_to_go": [..., N]}`, and `offline` data need them.

    Args:
        algorithm: of `off_policy`.
        discount, num_new, max_steps: see `fill_in_returns`.
    """
    collect, update = algorithm.phases

    def init(key: Array, *args: Any) -> OffPolicyState:
        state = algorithm.init(key, *args)
        unknown = jnp.full_like(state.replay.items.reward, -jnp.inf)
        extras = {"return_to_go": unknown}
        return state._replace(replay=_with_extras(state.replay, extras))

    def collect_with_returns(state: OffPolicyState) -> tuple[OffPolicyState, Metrics]:
        extras = state.replay.items.extras
        # What is collected has no returns yet.
        state, episodes = collect(state._replace(replay=_with_extras(state.replay, ())))
        replay = fill_in_returns(
            _with_extras(state.replay, extras),
            discount=discount,
            num_new=num_new,
            max_steps=max_steps,
        )
        return state._replace(replay=replay), episodes

    def step(state: OffPolicyState) -> tuple[OffPolicyState, Metrics]:
        return update(*collect_with_returns(state))

    return algorithm._replace(
        init=init, step=step, phases=(collect_with_returns, update)
    )


def _with_extras(replay: Replay, extras: PyTree) -> Replay:
    return replay._replace(items=replay.items._replace(extras=extras))
