"""OGPO on tasks of a few numbers; its updates are in `test_group_surrogate`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.algorithms import ogpo
from dppo_jax.learning.group_surrogate import surrogate_update
from dppo_jax.learning.optimizers import trainer
from tests import tiny
from tests.algorithms.test_diffusion_q import CRITIC, batch
from tests.resuming import resumed

KEY = jax.random.key(1)


def adam(trained):
    """The state of Adam, after that of the bound of gradients."""
    return trained.optimizer[1]


@pytest.mark.parametrize(
    "kind", ["diffusion", pytest.param("flow", marks=pytest.mark.slow)]
)
def test_it_learns_the_best_action(kind):
    """Reward -(a - 0.5)^2 of two actions; one program for the warm-up and after."""
    policy = tiny.tiny_diffusion_policy(tiny.NUM_STEPS)
    config = tiny.diffusion_q_config(
        "ogpo",
        replay__min_fill=32,
        replay__updates_per_transition=2.0,
        replay__updates_per_round=2,
        clip=0.1,
        actor_target_rate=0.2,
    )
    if kind == "flow":
        policy = tiny.tiny_flow_policy(2, has_noise_network=False)
        config.model.kind = "flow"
        config.model.sampling.update(flow_steps=2, num_tuned_steps=2)
    algorithm = ogpo.make(tiny.point_env(4, lengths=(2,)), policy, config)
    state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
    returns = []
    for iteration in range(40):
        state, metrics = step(state)
        returns.append(float(metrics["episode_return"]))
        assert all(np.isfinite(metrics[name]) for name in algorithm.finite)
        assert (metrics["critic_loss"] > 0) == (iteration > 0)
    assert step._cache_size() == 1
    assert np.mean(returns[-5:]) > 0.3 * np.mean(returns[:2])


@pytest.fixture(scope="module")
def warmed_up():
    """The algorithm and its states after one and two iterations.

    16 transitions, 8 batches in rounds of 4; the actor waits for an iteration.
    """
    algorithm = tiny.make_tiny_diffusion_q(
        "ogpo", replay__updates_per_round=4, critic_warmup=1, actor_target_rate=0.5
    )
    programs = tiny.compiled(algorithm)
    first, _ = tiny.iterate(programs, algorithm.init(jax.random.key(0)))
    return algorithm, (first, tiny.iterate(programs, first)[0])


def test_a_round_has_updates_of_the_critics_and_then_one_of_the_actor(warmed_up):
    counts = [
        (x.learner.updates, adam(x.learner.critic).count, adam(x.learner.actor).count)
        for x in warmed_up[1]
    ]
    assert counts == [(2, 8, 0), (4, 16, 2)]


def test_a_flow_goes_through_an_iteration():
    """Its numbers are those of the slow case above."""
    config = tiny.diffusion_q_config("ogpo")
    config.model.kind = "flow"
    config.model.sampling.update(flow_steps=2, num_tuned_steps=2)
    policy = tiny.tiny_flow_policy(2, has_noise_network=False)
    algorithm = ogpo.make(tiny.point_env(4), policy, config)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    after, metrics = jax.eval_shape(algorithm.step, state)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert set(algorithm.finite) <= set(metrics)


@pytest.mark.parametrize("quirks", [(), ("actor_first",)])
def test_the_actor_may_learn_before_the_critics(quirks):
    """Its groups are then scored by target critics that have not moved yet."""
    policy = tiny.tiny_diffusion_policy(tiny.NUM_STEPS)
    config = tiny.diffusion_q_config(
        "ogpo", actor_states=3, replay__batch_size=3, reference_quirks=quirks
    )
    learner = ogpo.make_learner(tiny.point_env(4), policy, config)
    state = learner.init(jax.random.key(0), {"state": jnp.zeros((1, 1, 2))})
    settings = config.algorithm.ogpo
    alone = surrogate_update(
        policy,
        CRITIC,
        trainer(**settings.actor),
        group_size=settings.group_size,
        num_states=3,
        clip=settings.clip,
        advantage="mean",
        target_rate=settings.actor_target_rate,
    )
    rows = batch()
    new, _ = jax.jit(learner.update)(state, rows, KEY)
    actor_key = jax.random.split(KEY, 2)[0]
    first, _ = jax.jit(alone)(state, jax.tree.map(lambda x: x[0], rows), actor_key)
    assert tiny.same(new.actor.params, first.actor.params) == bool(quirks)


def test_the_target_networks_act_and_are_saved(warmed_up):
    algorithm, (_, state) = warmed_up
    params, learner = algorithm.params(state), state.learner
    assert tiny.same(params.policy.tuned, learner.target_actor)
    assert tiny.same(params.policy.base, learner.target_actor)
    assert tiny.same(params.critic, learner.target)
    assert not tiny.same(learner.target_actor, learner.actor.params)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    """With the returns of stored chunks, which decide what is cloned."""
    env = tiny.point_env(4, lengths=(3, 99), max_steps=16)
    algorithm = tiny.make_tiny_diffusion_q(
        "ogpo", env, clone_coef=0.5, clone_return=-1.0
    )

    whole = resumed(algorithm, tmp_path)
    returns = whole.replay.items.extras["return_to_go"]
    assert ((returns > -1.0) & (returns < 0)).any()
