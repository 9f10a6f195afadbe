"""The updates of an iteration, with a policy and a critic that are tables.

There are four environment steps with two moves each. Step n has the observation n; the
entries of its chain are 10 n, 10 n + 1 and 10 n + 2. Every pair of a step and a move
has its own parameter, and so has every value. The parameters therefore show which
sample changed what. All parameters start at 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.algorithms.ppo.gradients import Steps
from dppo_jax.algorithms.ppo.update import make_updates
from dppo_jax.diffusion.chain import Sample
from dppo_jax.learning.on_policy import OnPolicyState
from dppo_jax.learning.returns import init_reward_scale
from dppo_jax.policies import PolicyParams
from tests import tiny

MOVES, ROWS = 2, np.arange(4)
CHAIN = 10.0 * ROWS[:, None] + np.arange(MOVES + 1)
ADVANTAGE = np.array([1.0, -2.0, 3.0, -4.0])
ERROR = np.array([-1.0, 2.0, 1.0, -2.0])  # targets minus values
ACTOR_RATE, CRITIC_RATE = 0.01, 0.02


def scored(x, row, step):
    """Initial log-probability of a move, different for every step and move."""
    return -1 - 0.01 * x - 0.1 * row - 0.05 * step


def table_policy():
    """Log-probabilities are `scored` plus the change of the pair's parameter."""

    def entries(log_prob):
        return log_prob[..., None, None]

    def log_prob(params, x, next_x, obs, step):
        row = obs["state"][:, 0, 0].astype(jnp.int32)
        moved = next_x[:, 0, 0] - x[:, 0, 0]  # always 1
        score = moved * scored(x[:, 0, 0], row, step)
        return entries(score + params[row, step] - 1)

    def chain_log_prob(params, chain, obs):
        scores = [
            log_prob(params, chain[:, k], chain[:, k + 1], obs, jnp.int32(k))
            for k in range(MOVES)
        ]
        return jnp.stack(scores, axis=1)

    def sample(params, keys, obs):
        row = obs["state"][:, 0, 0].astype(jnp.int32)
        return Sample(jnp.asarray(CHAIN)[row][..., None, None], None)

    return tiny.tiny_diffusion_policy(num_tuned=MOVES)._replace(
        sample=sample, log_prob=log_prob, chain_log_prob=chain_log_prob
    )


class TableCritic(NamedTuple):
    """The value of the observation n is parameter n."""

    def apply(self, params, obs):
        return params[obs["state"][:, 0, 0].astype(jnp.int32)]


def updated(iteration=0, num_active=None, **changes):
    """The state before and after, and the metrics as numbers."""
    changes = dict(
        batch_size=4,
        epochs=1,
        normalize_advantage=False,
        denoising_discount=0.5,
        **{"actor.learning_rate": ACTOR_RATE, "actor.min_learning_rate": ACTOR_RATE},
        **{"critic.learning_rate": CRITIC_RATE},
        **{"critic.min_learning_rate": CRITIC_RATE},
    ) | {name.replace("__", "."): value for name, value in changes.items()}
    updates = make_updates(
        table_policy(),
        TableCritic(),
        tiny.tiny_ppo_config(**changes),
        num_envs=2,
        num_chunks=2,
        mean=lambda log_prob: log_prob.mean((-2, -1)),
    )
    tuned, values = jnp.ones((4, MOVES)), jnp.ones(4)
    actor_optimizer, critic_optimizer = updates.init(tuned, values)
    state = OnPolicyState(
        params=PolicyParams(tuned, tuned, num_active),
        critic_params=values,
        actor_optimizer=actor_optimizer,
        critic_optimizer=critic_optimizer,
        env=None,
        first=jnp.zeros(2),
        reward_scale=init_reward_scale(2),
        key=jax.random.key(0),
        iteration=jnp.int32(iteration),
    )
    steps = Steps(
        obs={"state": jnp.asarray(1.0 * ROWS)[:, None, None]},
        chain=jnp.asarray(CHAIN)[..., None, None],
        log_prob=jnp.asarray(scored(CHAIN[:, :-1], ROWS[:, None], np.arange(MOVES))),
        advantage=jnp.asarray(ADVANTAGE),
        target=jnp.asarray(1 + ERROR),
        value=jnp.ones(4),
    )
    after, metrics = jax.jit(updates.run)(state, steps, jax.random.key(1))
    return state, after, {name: float(x) for name, x in metrics.items()}


@pytest.mark.parametrize("mode", ["pair", "chain"])
def test_minibatches_keep_the_data_of_a_move_together(mode):
    """Two minibatches of four pairs. Ratios are one only if a move is scored with its
    own observation and compared with its own log-probability. The loss of a pair is
    then minus its advantage, halved for the first move."""
    _, after, metrics = updated(minibatch=mode)
    assert metrics["num_updates"] == 2
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["approx_kl_last"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["policy_loss"] == pytest.approx(-ADVANTAGE.mean() * 0.75, rel=1e-4)
    gained = np.sign(after.params.tuned - 1)
    np.testing.assert_array_equal(gained, np.sign(ADVANTAGE)[:, None] * [1, 1])
    np.testing.assert_array_equal(after.params.base, 1)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_first_step_of_adam_has_the_size_of_the_rate(decay):
    """With all pairs in one minibatch there is only one step. Weight decay is
    proportional to the parameter, which is 1."""
    decays = dict(actor__weight_decay=decay, critic__weight_decay=decay)
    _, after, metrics = updated(batch_size=8, iteration=1, **decays)
    assert metrics["num_updates"] == 1
    expected = 1 + ACTOR_RATE * (np.sign(ADVANTAGE)[:, None] * [1, 1] - decay)
    np.testing.assert_allclose(after.params.tuned, expected, rtol=1e-5)
    expected = 1 + CRITIC_RATE * (np.sign(ERROR) - decay)
    np.testing.assert_allclose(after.critic_params, expected, rtol=1e-5)
    assert metrics["actor_lr"] == pytest.approx(ACTOR_RATE)
    assert metrics["critic_lr"] == pytest.approx(CRITIC_RATE)
    assert metrics["value_loss"] == pytest.approx(0.5 * (ERROR**2).mean(), rel=1e-5)


@pytest.mark.parametrize("iteration", [0, 1, 2])
def test_the_actor_waits_until_the_critic_is_warm(iteration):
    before, after, _ = updated(iteration, critic_warmup=2)
    waits = tiny.same(
        (before.params, before.actor_optimizer), (after.params, after.actor_optimizer)
    )
    assert waits == (iteration < 2)
    assert not tiny.same(before.critic_params, after.critic_params)


@pytest.mark.parametrize("target_kl, num_updates", [(None, 3), (1e-6, 2)])
def test_updates_stop_after_the_kl_exceeds_its_target(target_kl, num_updates):
    """With all pairs in each update the KL is zero in the first one and not later."""
    _, _, metrics = updated(
        iteration=1, batch_size=8, epochs=3, target_kl=target_kl, clip_top=0.1
    )
    assert metrics["num_updates"] == num_updates
    assert metrics["approx_kl_last"] > 1e-6
    if num_updates == 2:
        # Metrics are means over the updates that ran.
        half = metrics["approx_kl_last"] / 2
        assert metrics["approx_kl"] == pytest.approx(half, abs=1e-6)


@pytest.mark.parametrize("mode", ["pair", "chain"])
@pytest.mark.parametrize("micro_batch_size", [8, 2])
def test_moves_that_are_no_longer_tuned_have_no_effect(mode, micro_batch_size):
    """Only the last moves count, with advantages 1, -2, 3 and -4: the lower decile is
    -3.4, three tenths of the way from -4 to -2."""
    _, after, metrics = updated(
        num_active=jnp.int32(1),
        batch_size=8,
        minibatch=mode,
        micro_batch_size=micro_batch_size,
        advantage_quantiles=(0.1, 1.0),
    )
    assert metrics["policy_loss"] == pytest.approx(-(1 - 2 + 3 - 3.4) / 4, rel=1e-4)
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_array_equal(after.params.tuned[:, 0], 1)
    gained = np.sign(after.params.tuned[:, 1] - 1)
    np.testing.assert_array_equal(gained, np.sign(ADVANTAGE))


def test_the_cloning_penalty_counts_the_moves_that_are_tuned():
    """The teacher's chains are those that were collected."""
    changes = dict(clone_coef=1.0, batch_size=8, minibatch="chain")
    score = scored(CHAIN[:, :-1], ROWS[:, None], np.arange(MOVES))
    for num_active, counted in ((None, score), (jnp.int32(1), score[:, 1:])):
        _, _, metrics = updated(num_active=num_active, **changes)
        assert metrics["cloning_penalty"] == pytest.approx(-counted.mean(), rel=1e-5)


def test_micro_batches_must_divide_the_share_of_a_device():
    """Micro-batches of four rows fit four pairs on one device, but not on two."""
    config = tiny.tiny_ppo_config(batch_size=4, micro_batch_size=4)
    updates = make_updates(
        table_policy(), TableCritic(), config, num_envs=2, num_chunks=2, mean=jnp.mean
    )
    updates.check_devices(1)
    with pytest.raises(ValueError, match="micro_batch_size=4 must divide the 2 rows"):
        updates.check_devices(2)


@pytest.mark.parametrize("name", ["actor", "critic"])
def test_the_gradients_of_each_network_are_clipped_alone(name):
    """Adam's first moment is a tenth of the gradient."""
    _, after, _ = updated(batch_size=8, **{f"{name}__max_grad_norm": 1e-3})
    for other in ("actor", "critic"):
        optimizer = getattr(after, f"{other}_optimizer")
        moment = next(x for x in optimizer if hasattr(x, "mu")).mu
        cut = float(jnp.sqrt((moment**2).sum())) == pytest.approx(1e-4, rel=1e-3)
        assert cut == (other == name)
