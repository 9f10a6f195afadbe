"""Laws of what the updates of on-policy algorithms have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.learning import on_policy_settings, optimizers
from dppo_jax.learning.on_policy import OnPolicyState
from dppo_jax.learning.on_policy_updates import (
    learning_rates,
    make_optimizers,
    value_gradient,
)
from dppo_jax.policies import PolicyParams
from tests import tiny


class Slope:
    """A critic with one parameter: V(x) = slope x."""

    @staticmethod
    def apply(slope, obs):
        return slope * obs["state"]


X = np.array([1.0, 2.0, -1.0], np.float32)
TARGET = np.array([0.5, 0.0, 3.0], np.float32)
SLOPE = 2.0  # values 2, 4, -2


@pytest.mark.parametrize("row", [[0, 2], [1], [0, 0, 2, 1, 0]])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_value_gradient_is_the_mean_over_the_drawn_rows(row, clip):
    """Rows that are drawn several times count several times.

    With the clip, row 1 has moved from its old value, 0, away from its target, which
    is 0 too: nothing is clipped. Row 2 has moved towards its target and too far from
    its old value, -4: the clipped value, -3, counts, and has no gradient.
    """
    old = np.array([2.0, 0.0, -4.0], np.float32)
    error = SLOPE * X - TARGET
    loss, slope = 0.5 * error**2, error * X
    if clip:
        loss[2], slope[2] = 0.5 * (-3.0 - 3.0) ** 2, 0.0
    gradient, found = value_gradient(
        Slope,
        jnp.float32(SLOPE),
        ({"state": jnp.array(X)}, jnp.array(TARGET), jnp.array(old)),
        jnp.array(row),
        value_coef=0.7,
        value_clip=clip,
    )
    np.testing.assert_allclose(found, loss[row].mean(), rtol=1e-6)
    np.testing.assert_allclose(gradient, 0.7 * slope[row].mean(), rtol=1e-6)


@pytest.mark.parametrize("broken", [None, "actor", "critic"])
def test_actor_and_critic_are_updated_together_or_not_at_all(broken):
    x = {"w": jnp.ones((2, 2))}
    both = make_optimizers(on_policy_settings.default_config())
    states = both.init(x, x)
    unread = dict(env=None, first=None, reward_scale=None, key=None, iteration=0)
    state = OnPolicyState(PolicyParams(x, x), x, *states, **unread)
    grads, critic_grads = (
        jax.tree.map(lambda x: x.at[0, 1].set(jnp.nan) if name == broken else x, x)
        for name in ("actor", "critic")
    )
    after = both.descend(state, grads, critic_grads, (0.5, 0.5))
    for network in (after.params.tuned, after.critic_params):
        assert (network["w"] < 1.0).all() if broken is None else tiny.same(network, x)


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_schedule_of_the_actor_begins_after_the_warm_up_of_the_critic(warmup):
    config = on_policy_settings.default_config()
    config.critic_warmup = warmup
    for name, peak in (("actor", 1e-4), ("critic", 1e-3)):
        config[name].update(learning_rate=peak, min_learning_rate=peak / 10)
        config[name].update(cycle_steps=8, warmup_steps=2)
    schedule = dict(cycle_steps=8, warmup_steps=2)
    for iteration in range(12):
        actor, critic = learning_rates(config, jnp.array(iteration))
        expected = optimizers.cosine_restarts(
            max(iteration - warmup, 0), peak=1e-4, floor=1e-5, **schedule
        )
        np.testing.assert_allclose(actor, expected, rtol=1e-6)
        expected = optimizers.cosine_restarts(
            iteration, peak=1e-3, floor=1e-4, **schedule
        )
        np.testing.assert_allclose(critic, expected, rtol=1e-6)
