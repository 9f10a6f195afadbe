"""Improved actions of DIPO: how they are made, stored and used."""

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.algorithms import dipo
from dppo_jax.learning.diffusion_q_losses import ascend
from tests import tiny
from tests.algorithms.test_diffusion_q import CRITIC, batch, gradient, learner, start

KEY = jax.random.key(1)
STORED = jnp.array([[[0.2], [0.2]], [[0.0], [-0.2]], [[0.4], [0.6]]])
ROWS = batch(extras=STORED)
ROW = jax.tree.map(lambda x: x[0], ROWS)


def test_the_actor_clones_stored_actions_that_the_critics_have_improved():
    """Its gradient is that of (m - a)^2; a round returns a for the buffer."""
    subject = learner("dipo", action__learning_rate=0.05)
    state, metrics, kept = jax.jit(subject.update)(start(subject), ROWS, KEY)
    improved = kept[0]
    expected = ascend(
        lambda action: CRITIC.apply(state.critic.params, ROW.obs, action),
        STORED,
        num_steps=10,
        learning_rate=0.05,
        max_norm=0.1 * 2,
    )
    np.testing.assert_allclose(improved, expected, rtol=1e-5)
    value = [
        CRITIC.apply(state.critic.params, ROW.obs, action).min(0)
        for action in (STORED, improved)
    ]
    assert (value[1] > value[0]).all()
    np.testing.assert_allclose(
        metrics["actor_loss"], ((0.3 - improved) ** 2).mean(), rtol=1e-5
    )
    slope = 2 * (0.3 - improved).mean()
    np.testing.assert_allclose(gradient(state.actor), slope, rtol=1e-4)


def test_critics_learn_from_executed_actions_or_with_a_quirk_from_improved_ones():
    for quirks, action in (((), ROW.action), (("learn_improved",), STORED)):
        subject = learner("dipo", reference_quirks=quirks, discount=0.0)
        state = start(subject)
        _, metrics, _ = jax.jit(subject.update)(state, ROWS, KEY)
        value = CRITIC.apply(state.critic.params, ROW.obs, action)
        expected = 0.5 * ((value - ROW.reward) ** 2).mean(1).sum()
        np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-5)


def test_the_actor_acts_or_with_a_quirk_its_target_network():
    for quirks, name in (((), "actor"), (("act_by_target",), "target_actor")):
        subject = learner("dipo", reference_quirks=quirks)
        state = start(subject)
        acting = state.actor.params if name == "actor" else state.target_actor
        assert subject.params(state).tuned == acting


def test_the_buffer_keeps_executed_actions_beside_the_improved_ones():
    """They are equal at first, and differ only where a round has drawn the item; an
    item that is drawn again starts from what is stored."""
    algorithm = tiny.make_tiny_diffusion_q(
        "dipo",
        tiny.point_env(4, lengths=(99,)),
        num_chunks=16,
        replay__batch_size=8,
        replay__updates_per_transition=1 / 16,
        action__learning_rate=0.01,
        actor__learning_rate=0.0,
    )
    programs = tiny.compiled(algorithm)
    state, _ = tiny.iterate(programs, algorithm.init(jax.random.key(0)))
    items = jax.tree.map(lambda x: np.asarray(x[:, :16]), state.replay.items)
    # Four rounds of 8 of 64 items leave more than half as they were.
    assert 0.25 < (items.extras != items.action).any((-2, -1)).mean() < 0.5
    # Ten steps of Adam move an entry by about 0.1, two times ten by 0.2.
    moved = np.abs(items.extras - np.clip(items.action, -1, 1))[
        items.extras != items.action
    ]
    assert (np.abs(moved - 0.1) < 0.02).any() and (np.abs(moved - 0.2) < 0.02).any()
    assert moved.max() < 0.45
    before = state.replay.items.action[:, :16]
    state, _ = tiny.iterate(programs, state)
    np.testing.assert_array_equal(state.replay.items.action[:, :16], before)
    kept = np.asarray(state.replay.items.extras)[:, :16]
    again = np.abs(kept - items.extras).max((-2, -1))
    # Four rounds of 8 of 128 items leave most as they were.
    assert (again == 0).mean() > 0.6 and (again > 0.01).any()


def test_before_the_actor_learns_nothing_is_improved():
    algorithm = tiny.make_tiny_diffusion_q("dipo", critic_warmup=1)
    state, (metrics,) = tiny.run(algorithm, 1)
    items = state.replay.items
    np.testing.assert_array_equal(items.extras, items.action)
    assert metrics["actor_loss"] == 0
    assert dipo.default_config().critic_warmup == 5
