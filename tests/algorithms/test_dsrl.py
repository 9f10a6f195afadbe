"""DSRL on tasks of a few numbers."""

import jax
import numpy as np
import pytest

from dppo_jax.policies import SteeredParams
from dppo_jax.training.checkpoint import read_policy
from tests import tiny
from tests.resuming import resumed
from tests.tiny_regression import make_tiny_dsrl


@pytest.mark.parametrize(
    "variant, num_iterations", [("sac", 80), ("noise_aliasing", 3)]
)
def test_it_steers_a_frozen_flow_to_the_goal(variant, num_iterations):
    """Reward -(a - 0.5)^2, twice in an episode; starts of N(0, I) cost about 1.5.

    One compilation serves the warm-up and what follows.
    """
    policy = tiny.tiny_flow_policy(has_noise_network=False)
    algorithm = make_tiny_dsrl(
        policy,
        tiny.point_env(4, lengths=(2,)),
        variant=variant,
        initial_temperature=0.1,
        target_entropy=-2.0,
        replay__updates_per_transition=2.0,
    )
    frozen = policy.init(jax.random.key(5), tiny.OBS)
    state, returns = algorithm.init(jax.random.key(0), frozen), []
    programs = tiny.compiled(algorithm)
    for _ in range(num_iterations):
        state, metrics = tiny.iterate(programs, state)
        returns.append(float(metrics["episode_return"]))
        assert all(np.isfinite(metrics[name]) for name in algorithm.finite)
    assert [program._cache_size() for program in programs] == [1, 1]
    if num_iterations > 10:
        assert np.mean(returns[-5:]) > 0.1 * returns[0]
    params = algorithm.params(state)
    assert tiny.same(params.decoder, frozen)
    again = algorithm.init(jax.random.key(1), params)
    assert tiny.same(algorithm.params(again), params)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    """What acts, the actor and the frozen policy, is saved as the policy."""
    algorithm = make_tiny_dsrl()

    whole = resumed(algorithm, tmp_path)
    saved = read_policy(tmp_path / "parts").params
    assert set(saved) == set(SteeredParams._fields)
    assert tiny.same(saved["actor"], whole.learner.soft.actor.params)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(variant="td3"), "algorithm.dsrl.variant='td3' must be one of sac, noise"),
        (dict(noise_bound=0.0), "algorithm.dsrl.noise_bound=0.0 must be positive"),
        (
            dict(distillation_updates=4),
            "distillation_updates=4 must be .* below replay.updates_per_round=4",
        ),
        (dict(target_critics=3), "target_critics=3 must be between 1 and num_critics"),
        (dict(policy=tiny.tiny_diffusion_policy()), "model.sampling.ddim_steps set"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_tiny_dsrl(**changes)
