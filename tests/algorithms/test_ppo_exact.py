"""PPO with the exact likelihood of actions (DPPO paper, App. B.5) on tiny tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.algorithms import make_algorithm, ppo_exact
from dppo_jax.learning.likelihood_losses import likelihood_objective
from dppo_jax.learning.on_policy import Steps
from dppo_jax.policies import PolicyParams
from experiments.defaults import default_config
from tests import tiny

CLIP = 0.2
ADVANTAGE = jnp.array([1.0, -2.0, 0.5, -0.3, 1.5, -1.0])


class Collected:
    """A policy, its objective, parameters, and steps that they collected."""

    def __init__(self, *, reduction="mean", **settings):
        self.policy = tiny.tiny_diffusion_policy(**settings)
        obs = {"state": jax.random.normal(jax.random.key(7), (6, 1, 2))}
        start = jax.tree.map(
            # A new network predicts nearly nothing, whatever it reads.
            lambda x: x + 0.1,
            self.policy.init(jax.random.key(0), obs),
        )
        tuned = jax.tree.map(lambda x: 0.9 * x, start.tuned)
        self.params = PolicyParams(start.base, tuned)
        self.objective = likelihood_objective(
            self.policy,
            num_probes=2,
            ode_steps=None,
            ode_tolerance=None,
            reduction=reduction,
            clip=CLIP,
        )
        keys = jax.random.split(jax.random.key(1), 6)
        self.chunk, extras = jax.jit(self.objective.explore(self.params))(keys, obs)
        self.steps = Steps(obs, extras, ADVANTAGE, ADVANTAGE, ADVANTAGE)

    def log_prob(self, params):
        kept = self.steps.extras
        return self.policy.ode_log_prob(params, self.steps.obs, kept.chunk, kept.probes)


@pytest.fixture(scope="module")
def collected():
    return Collected()


def moved(params, size):
    """Other parameters, all of which differ."""

    def move(x):
        return x + size * jnp.cos(jnp.arange(x.size)).reshape(x.shape)

    return jax.tree.map(move, params)


def test_a_roll_out_keeps_what_the_likelihood_depends_on(collected):
    kept = collected.steps.extras
    np.testing.assert_array_equal(kept.chunk, collected.chunk)
    assert kept.probes.shape == (6, 2, tiny.CHUNK, tiny.ACTION_DIM)
    expected = collected.log_prob(collected.params) / 2  # Ta Da
    np.testing.assert_allclose(kept.log_prob, expected, rtol=1e-5, atol=1e-5)


def test_past_actions_change_the_order_of_a_chunk_but_not_its_density(collected):
    ours = tiny.tiny_diffusion_policy(past_actions=1)
    obs, kept = collected.steps.obs, collected.steps.extras
    of_network = jnp.roll(kept.chunk, 1, axis=1), jnp.roll(kept.probes, 1, axis=2)
    expected = collected.policy.ode_log_prob(collected.params, obs, *of_network)
    found = ours.ode_log_prob(collected.params, obs, kept.chunk, kept.probes)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(found - collected.log_prob(collected.params)).max() > 1e-3


def test_ratios_are_those_of_densities(collected):
    """With the same probes; "mean" takes the root of as many entries as chunks have."""
    tuned = moved(collected.params.tuned, 0.01)
    new = collected.params._replace(tuned=tuned)
    change = collected.log_prob(new) - collected.log_prob(collected.params)
    assert 1e-3 < jnp.abs(change).max() < CLIP
    for reduction, size in (("mean", 2), ("sum", 1)):
        objective = likelihood_objective(
            collected.policy,
            num_probes=2,
            ode_steps=None,
            ode_tolerance=None,
            reduction=reduction,
            clip=CLIP,
        )
        kept = collected.steps.extras
        kept = kept._replace(log_prob=kept.log_prob * 2 / size)
        steps = collected.steps._replace(extras=kept)
        value, metrics = objective.loss(tuned, collected.params, steps)
        ratio = np.exp(change / size)
        assert metrics["ratio"] == pytest.approx(float(ratio.mean()), abs=1e-5)
        assert value == pytest.approx(float(-(ratio * ADVANTAGE).mean()), abs=1e-5)


def test_the_gradient_is_that_of_finite_differences(collected):
    """Along one direction of all tuned parameters, through x and the divergence."""

    @jax.jit
    def mean(size):
        tuned = moved(collected.params.tuned, size)
        return collected.log_prob(collected.params._replace(tuned=tuned)).mean()

    step = 3e-3
    expected = (mean(step) - mean(-step)) / (2 * step)
    slope = jax.jit(jax.grad(mean))(0.0)
    assert abs(expected) > 0.05
    assert slope == pytest.approx(float(expected), rel=5e-3)


def test_only_the_tuned_network_has_a_gradient_and_both_count(collected):
    """The frozen network runs the noisiest levels, so it changes the likelihood."""
    gradient = jax.jit(jax.grad(lambda params: collected.log_prob(params).mean()))(
        collected.params
    )
    for x in jax.tree.leaves(gradient.base):
        np.testing.assert_array_equal(x, 0)
    for x in jax.tree.leaves(gradient.tuned):
        assert jnp.abs(x).max() > 0
    base = moved(collected.params.base, 0.1)
    other = collected.log_prob(collected.params._replace(base=base))
    assert jnp.abs(other - collected.log_prob(collected.params)).max() > 1e-3


def test_the_solver_of_diffrax_agrees(collected):
    """Where the tuned network takes over, the equation jumps; small steps help."""
    pytest.importorskip("diffrax")
    expected = likelihood_objective(
        collected.policy,
        num_probes=2,
        ode_steps=960,
        ode_tolerance=None,
        reduction="mean",
        clip=CLIP,
    )
    found = likelihood_objective(
        collected.policy,
        num_probes=2,
        ode_steps=None,
        ode_tolerance=1e-5,
        reduction="mean",
        clip=CLIP,
    )
    params, steps = collected.params, collected.steps

    def log_prob(objective):
        loss = jax.jit(objective.loss)(params.tuned, params, steps)
        return float(loss[1]["log_prob"])

    assert log_prob(found) == pytest.approx(log_prob(expected), abs=2e-3)
    assert log_prob(found) != log_prob(expected)


def test_where_all_steps_are_tuned_the_frozen_network_is_not_read():
    collected = Collected(num_tuned=tiny.NUM_STEPS)
    base = moved(collected.params.base, 0.1)
    other = collected.log_prob(collected.params._replace(base=base))
    np.testing.assert_array_equal(other, collected.log_prob(collected.params))


def test_where_fewer_steps_are_still_tuned_the_frozen_network_runs_the_others(
    collected,
):
    """Parameters of a run of PPO that lowered K' from 4 to 2."""
    policy = tiny.tiny_diffusion_policy(tiny.NUM_STEPS)
    params = collected.params._replace(num_active=jnp.array(tiny.NUM_TUNED))
    kept = collected.steps.extras
    found = policy.ode_log_prob(params, collected.steps.obs, kept.chunk, kept.probes)
    np.testing.assert_allclose(found, collected.log_prob(collected.params), rtol=1e-5)


def test_an_iteration_changes_the_tuned_network_and_the_critic_alone():
    algorithm = tiny.make_tiny_exact()
    programs = tiny.compiled(algorithm)
    start = algorithm.init(jax.random.key(0))
    state, row = tiny.iterate(programs, start)
    assert state.iteration == 1 and row["num_updates"] == 4
    assert row["env_steps"] == 4 * 4 * tiny.CHUNK
    assert tiny.same(state.params.base, start.params.base)
    assert not tiny.same(state.critic_params, start.critic_params)
    before, after = (jax.tree.leaves(x.params.tuned) for x in (start, state))
    for a, b in zip(before, after, strict=True):
        assert (a != b).any()
    assert all(np.isfinite(float(x)) for x in row.values())
    for _ in range(2):
        state, _ = tiny.iterate(programs, state)
    assert [program._cache_size() for program in programs] == [1, 1]


def test_parts_of_a_minibatch_change_nothing_but_rounding():
    """Adam's first moment is a tenth of the gradient of the only update."""
    first, second = (
        tiny.run(
            tiny.make_tiny_exact(batch_size=16, epochs=1, micro_batch_size=size), 1
        )[0]
        for size in (48, 12)
    )
    moments = (
        jax.tree.leaves(next(x for x in s.actor_optimizer if hasattr(x, "mu")).mu)
        for s in (first, second)
    )
    for a, b in zip(*moments, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_the_policy_learns_where_the_reward_is():
    """One-step episodes with reward -(a - 0.5)^2. A wrong sign makes it fall."""
    algorithm = tiny.make_tiny_exact(
        num_envs=64, batch_size=128, epochs=4, num_tuned_steps=4, clip=0.1
    )
    _, rows = tiny.run(algorithm, 20)
    before, after = (
        np.mean([row["reward"] for row in r]) for r in (rows[:2], rows[-2:])
    )
    assert after > 0.5 * before and after > before + 0.05


def test_it_starts_from_a_cloned_policy_and_a_critic():
    algorithm = tiny.make_tiny_exact()
    cloned = tiny.tiny_diffusion_policy().init(jax.random.key(9), tiny.OBS)
    critic = tiny.tiny_critic().init(jax.random.key(8), tiny.OBS)
    state = algorithm.init(jax.random.key(0), cloned, critic)
    assert tiny.same(state.params, cloned)
    assert tiny.same(state.critic_params, critic)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(batch_size=17), "batch_size=17 .* 16 chunks"),
        (dict(micro_batch_size=8), "micro_batch_size=8 .* 24 rows .* items of 3"),
        (dict(num_probes=0), "num_probes=0 must be at least 1"),
        (dict(ode_steps=0), "ode_steps=0 must be at least 1; use None"),
        (dict(ode_tolerance=0.0), "ode_tolerance=0.0 must be positive"),
        (dict(ode_tolerance=1e-3, ode_steps=9), "ode_tolerance=0.001 .* ode_steps=9"),
        (dict(reduction="root"), "reduction='root' is unknown; use one of mean, sum"),
        (dict(clip=0.0), "clip=0.0 must lie between"),
        (dict(clip=1.0), "clip=1.0 must lie between"),
        (dict(discount=1.5), "discount=1.5"),
        (dict(num_chunks=0), "num_chunks=0"),
    ],
)
def test_settings_that_do_not_work_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.make_tiny_exact(**changes)


def test_without_diffrax_its_solver_is_refused(monkeypatch):
    monkeypatch.setattr(ppo_exact.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"ode_tolerance=0.001 needs.*dppo_jax\[diffrax\]"
    ):
        tiny.make_tiny_exact(ode_tolerance=1e-3)


def test_devices_must_share_the_groups():
    algorithm = tiny.make_tiny_exact(shuffle_groups=2)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    with pytest.raises(ValueError, match="ppo_exact.shuffle_groups=2 .* 4 devices"):
        algorithm.split(state, 4)


def test_policies_without_an_equation_are_refused():
    for policy in (
        tiny.tiny_diffusion_policy(1, ddim_steps=1),
        tiny.tiny_diffusion_policy(x0_clip=None),
        tiny.tiny_gaussian_policy(),
        tiny.tiny_squashed_policy(),
    ):
        with pytest.raises(ValueError, match="ppo_exact needs a diffusion policy"):
            tiny.make_tiny_exact(policy)


def test_a_whole_configuration_makes_it():
    config = default_config()
    config.algorithm.name = "ppo_exact"
    config.rollout.num_chunks = 250
    policy = tiny.tiny_diffusion_policy()
    algorithm = make_algorithm(tiny.point_env(4), policy, config)
    assert algorithm.act is policy.act
    expected = ppo_exact.default_config().to_dict()
    assert config.algorithm.ppo_exact.to_dict() == expected
