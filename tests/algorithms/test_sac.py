"""Properties of soft actor-critic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dppo_jax.algorithms import sac
from dppo_jax.learning.soft_actor_critic import COMBINE
from dppo_jax.networks import StateActionCritic
from dppo_jax.policies.squashed import SquashedPolicy
from dppo_jax.training.checkpoint import read_policy
from dppo_jax.types import Transition
from tests import tiny
from tests.resuming import resumed

CRITIC = StateActionCritic((8,), activation="tanh")
ENTROPY = 0.7  # of the policy below, at its initial parameter


def one_parameter_policy() -> SquashedPolicy:
    """Actions are always tanh(m), log pi is m^2 - 1 - ENTROPY, and m starts at 1."""

    def sample(params, keys, obs):
        action = jnp.full((len(keys), tiny.CHUNK, tiny.ACTION_DIM), jnp.tanh(params))
        return action, jnp.full(len(keys), params**2 - 1 - ENTROPY)

    return SquashedPolicy(
        init=lambda key, obs: jnp.float32(1.0),
        act=lambda params, keys, obs, **_: (sample(params, keys, obs)[0], {}),
        sample=sample,
        clone_loss=lambda params, keys, obs, action: jnp.zeros(len(keys)),
    )


def learner(**changes):
    """Updates with learning rates of zero: Adam's moments show the gradients."""
    config = sac.default_config()
    for name in ("actor", "critic", "temperature"):
        config[name].learning_rate = 0.0
    config.initial_temperature = 0.2
    config.update_from_flattened_dict(changes)
    env = tiny.point_env(4)
    return sac.make_learner(env, one_parameter_policy(), CRITIC, config)


def batches(terminated=(0.0, 0.0), truncated=(0.0, 0.0), num=1):
    """Rewards 1 and 2; leaves [num, 2, ...]."""
    batch = Transition(
        obs={"state": jnp.array([[[0.1, 0.2]], [[0.3, -0.4]]])},
        action=jnp.array([[[0.5], [0.1]], [[-0.5], [0.3]]]),
        reward=jnp.array([1.0, 2.0]),
        next_obs={"state": jnp.array([[[0.5, 0.2]], [[-0.3, 0.6]]])},
        terminated=jnp.array(terminated),
        truncated=jnp.array(truncated),
        extras=(),
    )
    return jax.tree.map(lambda x: jnp.stack([x] * num), batch)


def start(learner):
    return learner.init(jax.random.key(0), {"state": jnp.zeros((1, 1, 2))})


def gradient(trained):
    """The gradient of the first update, from Adam's first moment."""
    return jax.tree.map(lambda x: x / 0.1, trained.optimizer[0].mu)


def test_targets_bootstrap_after_a_time_limit_but_not_after_a_termination():
    subject = learner(discount=0.5, reward_scale=3.0)
    # The target network differs from the trained one.
    other = jax.tree.map(lambda x: 1.5 * x, start(subject).target)
    state = start(subject)._replace(target=other)
    given = batches(terminated=(1.0, 0.0), truncated=(0.0, 1.0))
    _, metrics = jax.jit(subject.update)(state, given, jax.random.key(1))
    row = jax.tree.map(lambda x: x[0], given)
    next_action = jnp.full((2, 2, 1), jnp.tanh(1.0))
    next_value = CRITIC.apply(other, row.next_obs, next_action).min(0) + 0.2 * ENTROPY
    target = np.array([3.0, 6.0 + 0.5 * next_value[1]])
    value = CRITIC.apply(state.critic.params, row.obs, row.action)
    expected = 0.5 * ((value - target) ** 2).mean(1).sum()
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", COMBINE)
def test_the_actor_gradient_is_that_of_its_objective(kind):
    """Compares with a finite difference of temperature log pi - Q, at fixed critics."""
    subject = learner(actor_value=kind)
    state, given = start(subject), batches()
    new, metrics = jax.jit(subject.update)(state, given, jax.random.key(1))
    row = jax.tree.map(lambda x: x[0], given)

    def objective(m):
        action = jnp.full((2, 2, 1), jnp.tanh(m))
        value = np.asarray(CRITIC.apply(state.critic.params, row.obs, action))
        value = value.min(0) if kind == "min" else value.mean(0)
        return (0.2 * (m**2 - 1 - ENTROPY) - value).mean()

    np.testing.assert_allclose(metrics["actor_loss"], objective(1.0), rtol=1e-5)
    difference = (objective(1.01) - objective(0.99)) / 0.02
    np.testing.assert_allclose(gradient(new.actor), difference, rtol=1e-3)


@pytest.mark.parametrize("target_entropy", [0.3, 0.7, 2.0, None])
def test_the_temperature_moves_towards_its_target_entropy(target_entropy):
    """It falls if the entropy is above the target, which is -Ta Da by default."""
    changes = {} if target_entropy is None else {"target_entropy": target_entropy}
    subject = learner(**changes, **{"temperature.learning_rate": 0.1})
    state, metrics = jax.jit(subject.update)(
        start(subject), batches(), jax.random.key(1)
    )
    wanted = -2.0 if target_entropy is None else target_entropy
    np.testing.assert_allclose(
        gradient(state.temperature), 0.2 * (ENTROPY - wanted), atol=1e-6
    )
    np.testing.assert_allclose(metrics["entropy"], ENTROPY, rtol=1e-6)
    moved = state.temperature.params - jnp.log(0.2)
    np.testing.assert_allclose(
        moved, -0.1 * np.sign(ENTROPY - wanted), atol=1e-3 if ENTROPY != wanted else 0.1
    )


def test_a_temperature_that_is_not_tuned_stays():
    subject = learner(tune_temperature=False, **{"temperature.learning_rate": 0.1})
    state, _ = jax.jit(subject.update)(start(subject), batches(), jax.random.key(1))
    assert state.temperature.params == jnp.log(jnp.float32(0.2))


def test_a_round_updates_the_critics_once_a_batch_and_the_actor_as_often_as_asked():
    """The target follows the critics after each of their updates."""
    subject = learner(actor_updates=2, target_rate=0.5, **{"critic.learning_rate": 0.1})
    first = start(subject)
    state, _ = jax.jit(subject.update)(first, batches(num=3), jax.random.key(1))
    assert state.critic.optimizer[0].count == 3
    assert state.actor.optimizer[0].count == state.temperature.optimizer[0].count == 2
    # It moved half of the remaining way each time, so it has not reached the critics.
    kernel = [
        x["params"]["members"]["layer_0"]["linear"]["kernel"]
        for x in (first.target, state.target, state.critic.params)
    ]
    way = np.abs(kernel[1] - kernel[0]) / np.abs(kernel[2] - kernel[0])
    assert 0.5 < np.median(way) < 0.9


def test_members_of_an_ensemble_stay_different_while_they_learn():
    algorithm = tiny.make_tiny_sac(num_critics=5, target_critics=2)
    state, _ = tiny.run(algorithm, 3)
    env = tiny.point_env(4)
    obs, action = {"state": jnp.ones((6, 1, 2))}, jnp.zeros((6, *env.action_shape))
    critic = StateActionCritic((32,), activation="relu", num_critics=5)
    value = np.asarray(critic.apply(state.learner.critic.params, obs, action))
    assert (np.abs(value[:, None] - value[None]) + np.eye(5)[..., None] > 1e-3).all()


def test_it_solves_the_point_task():
    """Reward -(a - 0.5)^2: the median becomes 0.5; 16 transitions per iteration."""
    algorithm = tiny.make_tiny_sac(
        tiny.point_env(4, lengths=(2,)), initial_temperature=0.1
    )
    state, rows = tiny.run(algorithm, 40)
    params = algorithm.params(state)
    obs = {"state": jnp.zeros((1, 1, 2))}
    keys = jax.random.split(jax.random.key(0), 1)
    action, _ = algorithm.act(params, keys, obs, deterministic=True)
    np.testing.assert_allclose(action, tiny.GOAL, atol=0.1)
    assert rows[-1]["episode_return"] > 0.3 * rows[0]["episode_return"]
    assert all(np.isfinite(row[name]) for row in rows for name in algorithm.finite)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    """Buffer, episodes, keys and moments all continue; only the actor is what acts."""
    env = tiny.point_env(4, lengths=(3, 99), max_steps=16)
    algorithm = tiny.make_tiny_sac(env, replay__random_steps=40)

    whole = resumed(algorithm, tmp_path, num_iterations=4, first=2)
    assert (whole.replay.size == 16).all() and whole.replay.items.action.any()
    saved = read_policy(tmp_path / "parts").params
    assert tiny.same(saved, whole.learner.actor.params)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"target_critics": 3}, "target_critics=3 must be between 1 and num_critics=2"),
        ({"actor_value": "max"}, "actor_value='max' must be one of min, mean"),
        ({"initial_temperature": 0.0}, "initial_temperature=0.0 must be positive"),
        ({"discount": 1.1}, "discount=1.1"),
        ({"actor_updates": 0}, "actor_updates=0 must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.make_tiny_sac(**changes)


def test_policies_of_another_kind_or_chunk_are_refused():
    with pytest.raises(ValueError, match="model.kind='squashed'"):
        config = ConfigDict(dict(algorithm=dict(sac=sac.default_config())))
        sac.make(tiny.point_env(4), tiny.tiny_gaussian_policy(), config)
    env = tiny.point_env(4)._replace(action_shape=(1, tiny.ACTION_DIM))
    algorithm = tiny.make_tiny_sac(env)
    with pytest.raises(ValueError, match=r"\(2, 1\), but the environment .* \(1, 1\)"):
        algorithm.init(jax.random.key(0))
