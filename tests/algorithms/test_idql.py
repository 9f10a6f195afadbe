"""V and the acting of IDQL."""

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.algorithms import idql
from dppo_jax.policies import CandidateParams
from tests import tiny
from tests.algorithms.test_diffusion_q import (
    CRITIC,
    VALUE,
    batch,
    gradient,
    learner,
    start,
)

KEY = jax.random.key(1)
ROW = jax.tree.map(lambda x: x[0], batch())


def test_the_value_learns_an_expectile_of_the_target_critics():
    """Compares with the gradient of the loss, written with plain arithmetic."""
    subject = learner("idql", expectile=0.9)
    state = start(subject)
    goal = CRITIC.apply(state.target, ROW.obs, ROW.action).min(0)

    def loss_of(params):
        error = goal - VALUE.apply(params, ROW.obs)
        return (jnp.where(error > 0, 0.9, 0.1) * error**2).mean()

    expected, slope = jax.jit(jax.value_and_grad(loss_of))(state.value.params)
    new, metrics = jax.jit(subject.update)(state, batch(), KEY)
    np.testing.assert_allclose(metrics["value_loss"], expected, rtol=1e-5)
    for ours, theirs in zip(
        jax.tree.leaves(gradient(new.value)), jax.tree.leaves(slope), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_what_acts_is_what_was_trained():
    """The critics that choose are the target networks of the trained ones."""
    algorithm = tiny.make_tiny_diffusion_q("idql", target_rate=0.5)
    first = algorithm.init(jax.random.key(0))
    state, _ = tiny.iterate(tiny.compiled(algorithm), first)
    before, after = algorithm.params(first), algorithm.params(state)
    assert tiny.same(after.critic, state.learner.target)
    assert tiny.same(after.value, state.learner.value.params)
    assert tiny.same(after.policy.tuned, state.learner.actor.params)
    assert tiny.same(after.policy.base, after.policy.tuned)
    assert all(
        not tiny.same(one, other) for one, other in zip(before, after, strict=True)
    )


def test_the_deterministic_action_is_the_best_candidate_by_the_acting_critics():
    """With another critic another candidate of the same draws is best."""
    algorithm = tiny.make_tiny_diffusion_q("idql", num_samples=8)
    subject = idql.acting_params(algorithm.init(jax.random.key(0)).learner)
    policy = tiny.tiny_diffusion_policy(tiny.NUM_STEPS)
    keys = jax.random.split(KEY, 3)
    each = jax.vmap(lambda key: jax.random.split(key, 9))(keys)[:, 1:]
    candidates = np.stack(
        [
            policy.act(subject.policy, each[:, i], tiny.OBS, deterministic=True)[0]
            for i in range(8)
        ],
        axis=1,
    )
    for critic in (subject.critic, jax.tree.map(lambda x: -x, subject.critic)):
        params = CandidateParams(subject.policy, critic, subject.value)
        action, extras = algorithm.act(params, keys, tiny.OBS, deterministic=True)
        assert extras == {}
        score = [
            CRITIC.apply(critic, tiny.OBS, candidates[:, i]).min(0) for i in range(8)
        ]
        best = candidates[np.arange(3), np.argmax(score, axis=0)]
        np.testing.assert_allclose(action, best, atol=1e-5)
