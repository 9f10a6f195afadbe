"""Properties of IBRL alone."""

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.algorithms import ibrl
from dppo_jax.networks import StateActionCritic
from dppo_jax.policies.proposals import propose
from dppo_jax.types import Transition
from tests import demonstrated, tiny

CRITIC = StateActionCritic((8,), activation="tanh")


def config_with(**changes):
    """Learning rates of zero, so that metrics show values before an update."""
    config = ibrl.default_config()
    config.update(num_critics=2, target_critics=2)
    for name in ("actor", "critic"):
        config[name].learning_rate = 0.0
    config.update_from_flattened_dict(changes)
    return config


def start(policy, subject):
    obs = {"state": jnp.zeros((1, 1, 2))}
    state = subject.init(jax.random.key(0), obs, policy.init(jax.random.key(1), obs))
    # Parts that start equal differ, so that a wrong one is noticed.
    moved = (
        jax.tree.map(lambda x, s=scale: s * x, part)
        for part, scale in ((state.target, 1.5), (state.target_actor, 2.0))
    )
    target, target_actor = moved
    return state._replace(target=target, target_actor=target_actor)


def batches(terminated, truncated):
    draws = np.random.default_rng(0)
    obs, next_obs = ({"state": draws.normal(size=(1, 2, 1, 2))} for _ in range(2))
    return Transition(
        obs=obs,
        action=draws.uniform(-1, 1, (1, 2, 2, 1)),
        reward=np.array([[1.0, 2.0]]),
        next_obs=next_obs,
        terminated=np.array([terminated]),
        truncated=np.array([truncated]),
        extras=(),
    )


def test_targets_take_the_better_proposal_but_none_after_a_termination():
    """The actor's noise is nearly none here."""
    policy = tiny.tiny_gaussian_policy(fixed_std=1e-4)
    config = config_with(discount=0.5, reward_scale=3.0)
    subject = ibrl.make_learner(tiny.point_env(4), policy, CRITIC, config)
    state = start(policy, subject)
    given = batches(terminated=(1.0, 0.0), truncated=(0.0, 1.0))
    _, metrics = jax.jit(subject.update)(state, given, jax.random.key(2))
    row = jax.tree.map(lambda x: x[0], given)
    keys = jax.random.split(jax.random.key(3), 2)
    value = [
        CRITIC.apply(
            state.target,
            row.next_obs,
            propose(policy, network, keys, row.next_obs, deterministic=True),
        ).min(0)[1]
        for network in (state.cloned, state.target_actor)
    ]
    assert abs(value[0] - value[1]) > 1e-2
    target = np.array([3.0, 6.0 + 0.5 * max(value)])
    error = CRITIC.apply(state.critic.params, row.obs, row.action) - target
    expected = 0.5 * (error**2).mean(1).sum()
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-3)


def test_the_trained_critics_act_and_the_cloned_network_stays():
    algorithm = demonstrated.make("ibrl")
    state, _, _ = demonstrated.run("ibrl", algorithm, 2)
    first = demonstrated.start("ibrl", algorithm)
    params = algorithm.params(state)
    assert tiny.same(params.critic, state.learner.critic.params)
    assert not tiny.same(params.critic, first.learner.critic.params)
    assert tiny.same(params.cloned, first.learner.cloned)
    assert tiny.same(first.learner.actor.params, first.learner.cloned)
    assert not tiny.same(params.actor, params.cloned)


def test_critics_of_the_reference_act_untrained():
    algorithm = demonstrated.make("ibrl", reference_quirks=("untrained_critics",))
    state = demonstrated.start("ibrl", algorithm)
    first = jax.tree.map(np.asarray, state.learner.critic.params)
    trained = jax.tree.map(lambda x: x + 1, state.learner.critic)
    state = state._replace(learner=state.learner._replace(critic=trained))
    assert tiny.same(algorithm.params(state).critic, first)
