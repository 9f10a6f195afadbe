"""The loss of Cal-QL against sums that are written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.errors import SettingsError
from dppo_jax.learning import calibrated_q
from dppo_jax.learning.calibrated_q import Sampled, best_target, log_mean_exp_entries
from dppo_jax.types import Transition
from tests import demonstrated

NUM_CRITICS, NUM_ROWS, NUM_RANDOM, SHAPE = 2, 3, 4, (2, 1)
DRAWS = np.random.default_rng(0)


def normal(*shape):
    return DRAWS.normal(size=shape).astype(np.float32)


SAMPLED = Sampled(
    random=np.tanh(normal(NUM_ROWS, NUM_RANDOM, *SHAPE)),
    action=np.tanh(normal(NUM_ROWS, *SHAPE)),
    log_prob=normal(NUM_ROWS),
    next_action=np.tanh(normal(NUM_ROWS, *SHAPE)),
    next_log_prob=normal(NUM_ROWS),
)
RETURNS = np.array([0.3, -np.inf, -0.2], np.float32)
BATCH = Transition(
    obs={"state": normal(NUM_ROWS, 1, 1)},
    action=np.tanh(normal(NUM_ROWS, *SHAPE)),
    reward=normal(NUM_ROWS),
    next_obs={"state": normal(NUM_ROWS, 1, 1)},
    terminated=np.zeros(NUM_ROWS, np.float32),
    truncated=np.zeros(NUM_ROWS, np.float32),
    extras={"return_to_go": RETURNS},
)


def value_of(obs, action):
    """Two critics whose values are simple functions of their inputs, [2, B]."""
    one = obs["state"][:, 0, 0] + action.sum((1, 2))
    return jnp.stack([one, 2 * one - 0.5])


def test_a_row_has_two_entries_more_than_random_actions():
    entries = log_mean_exp_entries(
        normal(NUM_CRITICS, NUM_ROWS, NUM_RANDOM),
        normal(NUM_CRITICS, NUM_ROWS),
        normal(NUM_CRITICS, NUM_ROWS),
        SAMPLED,
        RETURNS,
    )
    assert entries.shape == (NUM_CRITICS, NUM_ROWS, NUM_RANDOM + 2)
    mixed = log_mean_exp_entries(
        normal(NUM_CRITICS, NUM_ROWS, NUM_RANDOM),
        normal(NUM_CRITICS, NUM_ROWS),
        normal(NUM_CRITICS, NUM_ROWS),
        SAMPLED,
        RETURNS,
        quirks=("mixed_rows",),
    )
    assert mixed.shape == (NUM_CRITICS, NUM_ROWS, NUM_RANDOM + 2 * NUM_ROWS)


def expected_loss(target, weight):
    loss = 0.0
    for critic in range(NUM_CRITICS):
        for row in range(NUM_ROWS):

            def q(action, row=row, critic=critic):
                obs = {"state": BATCH.obs["state"][row : row + 1]}
                return float(value_of(obs, action[None])[critic, 0])

            logs = [q(a) - 2 * np.log(0.5) for a in SAMPLED.random[row]]
            logs.append(
                max(q(SAMPLED.action[row]), RETURNS[row]) - SAMPLED.log_prob[row]
            )
            logs.append(
                max(q(SAMPLED.next_action[row]), RETURNS[row])
                - SAMPLED.next_log_prob[row]
            )
            value = q(BATCH.action[row])
            penalty = np.log(np.exp(logs).sum()) - value
            loss += ((value - target[row]) ** 2 + weight * penalty) / NUM_ROWS
    return loss


def test_the_loss_is_that_of_the_paper():
    """Actions that are sampled at the next observation are scored at this one."""
    target = normal(NUM_ROWS)
    loss, metrics = calibrated_q.calibrated_loss(
        value_of, BATCH, target, SAMPLED, weight=5.0
    )
    np.testing.assert_allclose(loss, expected_loss(target, 5.0), rtol=1e-5)
    np.testing.assert_allclose(metrics["known_returns"], 2 / 3, rtol=1e-6)


@pytest.mark.parametrize("quirk", calibrated_q.QUIRKS)
def test_each_quirk_of_the_reference_changes_the_loss(quirk):
    target = normal(NUM_ROWS)
    with_quirk, _ = calibrated_q.calibrated_loss(
        value_of, BATCH, target, SAMPLED, weight=5.0, quirks=(quirk,)
    )
    assert abs(with_quirk - expected_loss(target, 5.0)) > 1e-3


def test_values_of_the_policy_are_not_pushed_below_the_return():
    """Where the return is higher, the penalty does not depend on the value."""
    random = normal(NUM_CRITICS, NUM_ROWS, NUM_RANDOM)
    returns = jnp.array([9.0, -9.0, -jnp.inf])

    def penalty(value, next_value):
        entries = log_mean_exp_entries(random, value, next_value, SAMPLED, returns)
        return jax.nn.logsumexp(entries, axis=-1).sum()

    given = normal(NUM_CRITICS, NUM_ROWS), normal(NUM_CRITICS, NUM_ROWS)
    for gradient in jax.grad(penalty, argnums=(0, 1))(*given):
        np.testing.assert_array_equal(gradient[:, 0], 0.0)
        assert (gradient[:, 1:] > 0).all()


def test_the_target_takes_the_best_action_of_the_least_critic():
    value = jnp.array([[[1.0, 5.0, 3.0]], [[2.0, 0.0, 4.0]]])
    np.testing.assert_allclose(best_target(value), [3.0])


def test_returns_are_scaled_as_rewards_are():
    scaled, _ = calibrated_q.calibrated_loss(
        value_of, BATCH, jnp.zeros(NUM_ROWS), SAMPLED, weight=1.0, reward_scale=0.1
    )
    returns = {"return_to_go": 0.1 * RETURNS}
    same, _ = calibrated_q.calibrated_loss(
        value_of,
        BATCH._replace(extras=returns),
        jnp.zeros(NUM_ROWS),
        SAMPLED,
        weight=1.0,
    )
    np.testing.assert_allclose(scaled, same, rtol=1e-6)


def test_settings_name_their_quirks():
    with pytest.raises(SettingsError, match="use some of mixed_rows, random_density"):
        demonstrated.make("calql", reference_quirks=("same_initialisation",))
