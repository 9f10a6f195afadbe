"""The updates of DSRL, with decoders and critics in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.learning import optimizers
from dppo_jax.learning.soft_actor_critic import Trainers, soft_updates
from dppo_jax.learning.steering import steering
from dppo_jax.policies import SquashedPolicy, SteeredParams, SteeredPolicy
from dppo_jax.types import Transition

MATRIX = jnp.array([[2.0, -1.0], [0.5, 3.0]])
COST = jnp.array([[1.0, -2.0], [0.3, 0.7]])  # Of two critics, c in Q(s, a) = c a.
START, LOG_PROB = jnp.array([0.4, -0.2]), -0.6


class Linear:
    """Q_i(s, a) = c_i a, whatever s is."""

    def init(self, key, obs, action):
        return jnp.zeros((2, action[0].size))

    def apply(self, params, obs, action):
        return params @ action.reshape(len(action), -1).T

    def clone(self, num_critics):
        assert num_critics == 2
        return self


@pytest.fixture(autouse=True)
def all_members(monkeypatch):
    """Both critics enter every target; this ensemble has no names of its own."""
    module = "dppo_jax.learning.soft_actor_critic.random_members"
    monkeypatch.setattr(module, lambda key, params, num_members: params)


def policy() -> SteeredPolicy:
    """f(w) = M w, and an actor that always draws START, moved by its parameter."""

    def decode(params, obs, start):
        return jax.lax.stop_gradient(
            (start.reshape(-1, 2) @ params.T).reshape(start.shape)
        )

    def sample(params, keys, obs):
        start = jnp.broadcast_to(START + params, (len(keys), 2)).reshape(-1, 2, 1)
        return start, jnp.full(len(keys), LOG_PROB)

    def act(params, keys, obs, *, deterministic=False):
        start, _ = sample(params.actor, keys, obs)
        return decode(params.decoder, obs, start), start

    noise = SquashedPolicy(
        init=lambda key, obs: jnp.zeros(2),
        act=lambda params, keys, obs, **_: (sample(params, keys, obs)[0], {}),
        sample=sample,
        clone_loss=lambda *_: 0,
    )

    def init(key, obs):
        return SteeredParams(MATRIX, jnp.zeros(2))

    return SteeredPolicy(init, act, decode, noise)


def make(variant="noise_aliasing", distillation_updates=3, rates=(0.0, 0.0), **more):
    actor, critic = (optimizers.trainer(learning_rate=rate) for rate in rates)
    trainers = Trainers(actor, critic, optimizers.trainer(learning_rate=0.0))
    settings = dict(
        discount=0.5, target_entropy=0.0, target_rate=0.005, target_critics=2
    )
    return steering(
        policy(),
        Linear(),
        trainers,
        functools.partial(
            soft_updates, critic=Linear(), trainers=trainers, **(settings | more)
        ),
        variant=variant,
        action_shape=(2, 1),
        distillation_updates=distillation_updates,
        initial_temperature=0.1,
    )


def batches(num, size=2, terminated=(0.0, 1.0)):
    """Transitions whose executed action and start differ."""

    def every(x):
        return np.broadcast_to(x, (num, *np.shape(x))).astype(np.float32)

    action = np.tile([[0.5], [-1.0]], (size, 1, 1)).astype(np.float32)
    obs = {"state": np.zeros((size, 1, 1))}
    return Transition(
        obs=jax.tree.map(every, obs),
        action=every(action),
        reward=every(np.arange(1.0, size + 1)),
        next_obs=jax.tree.map(every, obs),
        terminated=every(np.resize(terminated, size)),
        truncated=every(np.ones(size)),
        extras=every(2 * action),
    )


def start(learner, **critics):
    state = learner.init(jax.random.key(0), {"state": jnp.zeros((1, 1, 1))})
    soft = state.soft._replace(
        critic=state.soft.critic._replace(params=COST), target=COST
    )
    return state._replace(soft=soft)


def gradient(trained):
    """The gradient of the first update, from Adam's first moment."""
    return trained.optimizer[0].mu / 0.1


def test_starts_learn_the_value_of_what_they_decode_to():
    """With f(w) = M w and Q^A = c a distillation ends at Q^W = (M' c) w."""
    learner = make(distillation_updates=600, rates=(0.0, 0.05))
    state, metrics = start(learner), {}
    # No soft update moves Q^A, because there is no batch left for one.
    state, metrics = jax.jit(learner.update)(state, batches(600, 16), jax.random.key(1))
    np.testing.assert_array_equal(state.soft.critic.params, COST)
    np.testing.assert_allclose(state.noise_critic.params, COST @ MATRIX, atol=0.05)
    assert metrics["distillation_loss"] > 0


@pytest.mark.parametrize("variant", ["sac", "noise_aliasing"])
def test_targets_decode_the_next_start_and_end_at_terminations(variant):
    """y = r + 0.5 (min_i c_i a' - 0.1 log pi), where a' is w' for "sac"."""
    learner = make(variant, distillation_updates=1)
    num = 1 if variant == "sac" else 2
    given = batches(num)
    new, metrics = jax.jit(learner.update)(start(learner), given, jax.random.key(1))
    row = jax.tree.map(lambda x: x[0], given)
    following, taken = START, 2 * row.action
    if variant == "noise_aliasing":
        following, taken = MATRIX @ START, row.action
    value = (COST @ following).min() - 0.1 * LOG_PROB
    target = np.array([1 + 0.5 * value, 2.0])  # The second chunk terminates.
    error = COST @ taken.reshape(2, 2).T - target
    expected = 0.5 * (error**2).mean(1).sum()
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-5)
    slope = (error[..., None] * taken.reshape(2, 2)).mean(1)
    np.testing.assert_allclose(gradient(new.soft.critic), slope, rtol=1e-4)


@pytest.mark.parametrize("variant", ["sac", "noise_aliasing"])
def test_the_actor_climbs_the_critic_of_starts(variant):
    """Of Q = c w its gradient is that c of the lesser value, and none reaches f."""
    learner = make(variant, distillation_updates=1)
    state = start(learner)
    cost = COST
    if variant == "noise_aliasing":
        cost = jnp.array([[5.0, 1.0], [0.2, -0.3]])
        noise_critic = state.noise_critic._replace(params=cost)
        state = state._replace(noise_critic=noise_critic)
    new, metrics = jax.jit(learner.update)(
        state, batches(1 if variant == "sac" else 2), jax.random.key(1)
    )
    worse = cost[jnp.argmin(cost @ START)]
    np.testing.assert_allclose(gradient(new.soft.actor), -worse, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["actor_loss"], 0.1 * LOG_PROB - (cost @ START).min(), rtol=1e-5
    )
    np.testing.assert_array_equal(new.decoder, MATRIX)


def test_a_round_has_soft_updates_and_then_distillations():
    learner = make(distillation_updates=3)
    state, _ = jax.jit(learner.update)(start(learner), batches(5), jax.random.key(1))
    assert state.soft.critic.optimizer[0].count == 2
    assert state.soft.actor.optimizer[0].count == 2
    assert state.noise_critic.optimizer[0].count == 3
    learner = make("sac")
    state, _ = jax.jit(learner.update)(start(learner), batches(5), jax.random.key(1))
    assert state.soft.actor.optimizer[0].count == 5 and state.noise_critic is None


@pytest.mark.parametrize("target_entropy, falls", [(0.0, True), (1.0, False)])
def test_the_temperature_falls_while_the_entropy_exceeds_its_target(
    target_entropy, falls
):
    """The entropy is 0.6."""
    learner = make("sac", target_entropy=target_entropy)
    state, _ = jax.jit(learner.update)(start(learner), batches(1), jax.random.key(1))
    assert (gradient(state.soft.temperature) > 0) == falls


def test_only_the_starts_of_sac_are_kept_and_warm_up_draws_normal_ones():
    obs = {"state": jnp.zeros((4000, 1, 1))}
    keys = jax.random.split(jax.random.key(0), 4000)
    for variant in ("sac", "noise_aliasing"):
        learner = make(variant)
        params = SteeredParams(MATRIX, jnp.zeros(2))
        _, kept = jax.jit(learner.explore)(params, keys, obs)
        action, drawn = jax.jit(learner.warm_up)(params, keys, obs)
        if variant == "noise_aliasing":
            assert kept == drawn == ()
        else:
            np.testing.assert_allclose(kept[0, :, 0], START)
            np.testing.assert_allclose(np.std(drawn), 1, atol=0.05)
            assert np.abs(drawn).max() > 2.5
        covariance = np.cov(np.asarray(action)[..., 0].T)
        np.testing.assert_allclose(covariance, MATRIX @ MATRIX.T, atol=0.5)
