"""The off-policy iteration: what it stores, draws and counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax import replay as buffers
from dppo_jax.learning.learner import Learner
from dppo_jax.learning.off_policy import off_policy
from dppo_jax.types import OF_ENVIRONMENT
from tests import tiny

ACTION = 0.25


def counter() -> Learner:
    """A learner that acts with ACTION, counts its batches and keeps the last ones."""

    def update(state, batches, key):
        rounds = state["rounds"] + 1
        mean = batches.reward.mean()
        return {"rounds": rounds, "rows": batches.reward}, {"reward_seen": mean}

    def act(params, keys, obs, *, deterministic=False):
        shape = (len(keys), tiny.CHUNK, tiny.ACTION_DIM)
        return jnp.full(shape, ACTION), {"unused": jnp.zeros(len(keys))}

    return Learner(
        init=lambda key, obs, rows=(2, 6): {
            "rounds": jnp.int32(0),
            "rows": jnp.zeros(rows),
        },
        update=update,
        params=lambda state: state["rounds"],
        act=act,
        finite=("reward_seen",),
    )


def make(env=None, **settings):
    """4 environments x 3 chunks; 2 batches of 6 per round, 2 updates per transition."""
    settings = {
        "num_chunks": 3,
        "capacity": 40,
        "batch_size": 6,
        "updates_per_transition": 2.0,
        "updates_per_round": 2,
    } | settings
    env = tiny.point_env(4, lengths=(3, 99), max_steps=5) if env is None else env
    return off_policy(env, counter(), **settings)


@pytest.mark.parametrize(
    "ratio, per_round, rounds", [(2.0, 2, 12), (0.25, 1, 3), (20.0, 20, 12)]
)
def test_the_number_of_updates_follows_the_data(ratio, per_round, rounds):
    algorithm = make(updates_per_transition=ratio, updates_per_round=per_round)
    state = algorithm.init(jax.random.key(0), (per_round, 6))
    state, metrics = jax.jit(algorithm.step)(state)
    state, metrics = jax.jit(algorithm.step)(state)
    assert state.learner["rounds"] == 2 * rounds
    assert metrics["num_updates"] == rounds * per_round == ratio * 12
    assert metrics["env_steps"] == 2 * 12 * tiny.CHUNK
    assert algorithm.finite == (*OF_ENVIRONMENT, "reward_seen")
    assert algorithm.params(state) == 2 * rounds


def test_collected_transitions_are_stored_with_their_end_flags():
    """The time limit cuts at 5 steps, in chunk 3; tasks of 3 steps end in chunk 2."""
    algorithm = make()
    state, metrics = jax.jit(algorithm.step)(algorithm.init(jax.random.key(3)))
    stored = jax.tree.map(lambda x: np.asarray(x)[:, :3], state.replay.items)
    assert stored.extras == ()
    assert metrics["replay_size"] == 12
    np.testing.assert_array_equal(stored.action, np.full((4, 3, 2, 1), ACTION))
    steps = stored.next_obs["state"][:, :, 0, 1]
    assert set(map(tuple, steps.tolist())) == {(2, 4, 5), (2, 3, 2)}
    np.testing.assert_array_equal(stored.terminated, steps == 3)
    np.testing.assert_array_equal(stored.truncated, steps == 5)
    # The stored next observation is the old episode's, the next action the new one's.
    np.testing.assert_array_equal(
        stored.obs["state"][:, 2, 0, 1], np.where(steps[:, 1] == 3, 0, 4)
    )


def test_uniform_actions_come_first_and_updates_after_enough_data():
    """With 12 transitions per iteration two are uniform, and updates start in the
    third."""
    algorithm = make(random_steps=13, min_fill=30)
    state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
    rows = []
    for _ in range(4):
        state, metrics = step(state)
        rows.append({name: float(x) for name, x in metrics.items()})
    assert step._cache_size() == 1
    assert [row["num_updates"] for row in rows] == [0, 0, 24, 24]
    assert [row["reward_seen"] != 0 for row in rows] == [False, False, True, True]
    # A run that resumes without its buffer waits again, and does not act at random.
    fresh = algorithm.init(jax.random.key(1)).replay
    again, emptied = [], state._replace(replay=fresh)
    for _ in range(3):
        emptied, metrics = step(emptied)
        again.append(float(metrics["num_updates"]))
    assert again == [0, 0, 24] and (fresh.items.action == 0).all()
    assert (emptied.replay.items.action[:, :9] == ACTION).all()
    action = np.asarray(state.replay.items.action).reshape(4, 10, 2)
    # Each ring holds the last ten of twelve steps.
    is_random = (action != ACTION).any(-1)
    order = (np.arange(10) + 2) % 10
    np.testing.assert_array_equal(
        is_random[:, order], np.tile(np.arange(2, 12) < 6, (4, 1))
    )
    drawn = action[is_random]
    assert -1 <= drawn.min() < -0.5 and 0.5 < drawn.max() <= 1


def test_a_batch_takes_its_share_from_the_offline_data():
    """Offline rewards are 7 and make half of every batch; the task's are negative."""
    env = tiny.point_env(4)
    seen, _ = jax.jit(make(env).step)(make(env).init(jax.random.key(0)))
    given = jax.tree.map(lambda x: x[0, :3], seen.replay.items)
    given = given._replace(reward=jnp.full(3, 7.0))
    offline = buffers.init(jax.tree.map(lambda x: x[0], given), 1, 3)
    algorithm = make(env, offline=buffers.fill(offline, given), offline_share=0.5)
    state, _ = jax.jit(algorithm.step, donate_argnums=0)(
        algorithm.init(jax.random.key(0))
    )
    np.testing.assert_array_equal((state.learner["rows"] == 7).sum(1), [3, 3])
    again = algorithm.init(jax.random.key(0))  # Donation keeps the offline data.
    assert (again.offline.items.reward == 7).all()


def test_resets_every_iteration_mark_a_truncation_in_the_buffer():
    algorithm = make(tiny.point_env(4, lengths=(99,), max_steps=6), num_chunks=4)
    state, _ = jax.jit(algorithm.step)(algorithm.init(jax.random.key(0)))
    assert not state.replay.items.truncated[:, 3].any()
    algorithm = make(
        tiny.point_env(4, lengths=(99,), max_steps=6),
        num_chunks=4,
        reset_at_iteration=True,
    )
    state, _ = jax.jit(algorithm.step)(algorithm.init(jax.random.key(0)))
    np.testing.assert_array_equal(state.replay.items.truncated[0, :4], [0, 0, 1, 1])
    state, _ = jax.jit(algorithm.step)(state)
    assert (state.replay.items.obs["state"][:, 4] == 0).all()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"updates_per_transition": 0.3}, "updates_per_transition=0.3 for the 12"),
        ({"updates_per_round": 0}, "updates_per_round=0, at least one"),
        ({"min_fill": 41}, "min_fill=41 .* replay.capacity=40"),
        ({"capacity": 3}, "capacity=3"),
        ({"capacity": 5}, "batch_size=6 must not be above replay.capacity=5"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"num_groups": 0}, "num_groups=0 must divide"),
        ({"num_groups": 4}, "num_groups=4 must divide replay.batch_size=6"),
        ({"reset_at_iteration": True, "num_chunks": 2}, "time limit of 3 chunks"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_devices_need_groups():
    algorithm = make()
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    with pytest.raises(ValueError, match="num_groups=1 must be a multiple of the 2"):
        algorithm.split(state, 2)


def test_what_a_learner_keeps_is_stored_with_the_transitions_it_was_drawn_with():
    """This learner keeps ten times the reward, and adds 1 to what a round has drawn."""

    def update(state, batches, key):
        agrees = jnp.abs(batches.extras % 1 - (10 * batches.reward) % 1).max() < 1e-3
        state = state | {"rows": batches.reward}
        return state, {"reward_seen": 1.0 * agrees}, batches.extras + 1

    learner = counter()._replace(
        update=update, keep=lambda transitions: 10 * transitions.reward
    )
    env = tiny.point_env(4, lengths=(3, 99), max_steps=5)
    settings = dict(num_chunks=3, capacity=40, batch_size=6)
    algorithm = off_policy(
        env, learner, updates_per_transition=2 / 12, updates_per_round=2, **settings
    )
    state, metrics = jax.jit(algorithm.step)(algorithm.init(jax.random.key(0)))
    assert metrics["reward_seen"] == 1 and metrics["num_updates"] == 2
    items = state.replay.items
    added = np.round(np.asarray(items.extras - 10 * items.reward), 3)
    # One round of twelve draws from twelve items hits some of them, all by one.
    assert set(added[:, :3].ravel()) == {0, 1} and not added[:, 3:].any()
    assert set(np.asarray(state.learner["rows"]).ravel()) <= set(
        np.asarray(items.reward)[:, :3][added[:, :3] == 1]
    )
    given = jax.tree.map(lambda x: x[0, :3], items)
    offline = buffers.init(jax.tree.map(lambda x: x[0], given), 1, 3)
    with pytest.raises(ValueError, match="given ones have none"):
        off_policy(env, learner, offline=offline, **settings)


def test_a_round_whose_loss_is_not_finite_is_counted_and_left_out_of_the_means():
    """Every third round has a loss of NaN; the others that of their number."""
    plain = counter()

    def update(state, batches, key):
        state, metrics = plain.update(state, batches, key)
        loss = jnp.where(state["rounds"] % 3 == 0, jnp.nan, 1.0 * state["rounds"])
        return state, {"reward_seen": loss}

    env = tiny.point_env(4, lengths=(3, 99), max_steps=5)
    algorithm = off_policy(
        env,
        plain._replace(update=update),
        **dict(num_chunks=3, capacity=40, batch_size=6, updates_per_round=2),
    )
    _, metrics = jax.jit(algorithm.step)(algorithm.init(jax.random.key(0)))
    assert metrics["num_updates"] == 12 and metrics["skipped_updates"] == 4
    assert metrics["reward_seen"] == np.mean([1, 2, 4, 5])
