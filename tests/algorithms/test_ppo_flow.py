"""PPO on a flow, with one ratio for each chain (ReinFlow, arXiv 2505.22094)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny


def make(num_steps=2, *, bounds=None, policy=None, **changes):
    if policy is None:
        policy = tiny.tiny_flow_policy(num_steps, **(bounds or {}))
    changes = dict(batch_size=8 * num_steps) | tiny.FLOW_PPO | changes
    return tiny.make_tiny_ppo(policy, **changes)


@pytest.mark.parametrize("ratio", ["chain", "move"])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_the_first_update_finds_the_policy_that_sampled(num_steps, ratio):
    """At 0.05 densities exceed the bounds that PPO has for other policies, and a third
    of the actions stand at their own bound."""
    algorithm = make(
        num_steps,
        bounds=dict(std_min=0.05, std_max=0.06, final_clip=0.9),
        ratio=ratio,
        batch_size=16 * num_steps,
        epochs=1,
    )
    _, (row,) = tiny.run(algorithm, 1)
    assert row["num_updates"] == 1
    assert row["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert row["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert row["clip_fraction"] == 0.0


def test_velocity_and_noise_are_trained_and_the_cloned_velocity_stays():
    algorithm = make(entropy_coef=0.03)
    start = algorithm.init(jax.random.key(0))
    state, (row,) = tiny.run(algorithm, 1)
    assert tiny.same(state.params.base, start.params.base)
    for before, after in zip(start.params.tuned, state.params.tuned):
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
            assert (a != b).any()
    middle = np.sqrt(0.1 * 0.24)
    expected = np.log(middle * np.sqrt(2 * np.pi * np.e))
    assert row["entropy"] == pytest.approx(expected, abs=0.1)


def test_a_learning_rate_of_zero_changes_no_parameter():
    still = {
        f"{name}__{rate}": 0.0
        for name in ("actor", "critic")
        for rate in ("learning_rate", "min_learning_rate")
    }
    algorithm = make(entropy_coef=0.03, distance_coef=0.1, **still)
    start = algorithm.init(jax.random.key(0))
    state, (row,) = tiny.run(algorithm, 1)
    assert tiny.same(state.params, start.params)
    assert tiny.same(state.critic_params, start.critic_params)
    assert row["params_change"] == 0
    assert row["action_distance"] == pytest.approx(0, abs=1e-10)


def test_a_cloned_checkpoint_without_a_noise_network_gets_one():
    policy = tiny.tiny_flow_policy()
    cloned = policy.init(jax.random.key(9), tiny.OBS)
    assert cloned.tuned.noise is None
    state = make(policy=policy).init(jax.random.key(0), cloned)
    assert tiny.same(state.params.base.velocity, cloned.base.velocity)
    assert tiny.same(state.params.tuned.velocity, cloned.tuned.velocity)
    assert state.params.tuned.noise is not None
    again = make(policy=policy).init(jax.random.key(1), state.params)
    assert tiny.same(again.params, state.params)


def gradient(state):
    """Of the first update: a tenth of it is Adam's first moment."""
    return next(x for x in state.actor_optimizer if hasattr(x, "mu")).mu


@pytest.mark.parametrize("drop", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_parts_of_a_minibatch_change_nothing_but_rounding(drop):
    changes = dict(
        batch_size=32,
        epochs=1,
        entropy_coef=0.5,
        distance_coef=0.5,
        advantage_quantiles=(0.1, 0.9),
        tuned_steps_drop=drop,
        tuned_steps_every=drop,
    )
    (whole, whole_rows), (parts, rows) = (
        tiny.run(make(**changes, micro_batch_size=size), 2) for size in (32, 8)
    )
    for a, b in zip(jax.tree.leaves(gradient(whole)), jax.tree.leaves(gradient(parts))):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    for a, b in zip(whole_rows, rows):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def test_a_chain_counts_once_in_the_statistics_of_a_minibatch():
    """Advantages are normalised over chains: the loss at ratios of one is zero, and
    the gradient that of single moves, which are one of K of the mean, times K over
    K + 1 and what one more row than moves does to an unbiased deviation."""
    rows = 16
    changes = dict(batch_size=2 * rows, epochs=1)
    (chain, chain_row), (move, move_row) = (
        tiny.run(make(ratio=ratio, **changes), 1) for ratio in ("chain", "move")
    )
    assert chain_row[0]["policy_loss"] == pytest.approx(0, abs=1e-5)
    assert move_row[0]["policy_loss"] == pytest.approx(0, abs=1e-5)
    deviations = np.sqrt((rows - 1) / rows / ((2 * rows - 1) / (2 * rows)))
    for a, b in zip(jax.tree.leaves(gradient(chain)), jax.tree.leaves(gradient(move))):
        expected = b * deviations * 2 / 3
        np.testing.assert_allclose(a, expected, rtol=2e-3, atol=1e-6)


def test_a_flow_learns_where_the_reward_is():
    """One-step episodes with reward -(a - 0.5)^2."""
    algorithm = make(num_envs=64, batch_size=128, epochs=4, clip_top=0.1, clip_base=0.1)
    _, rows = tiny.run(algorithm, 15)
    before, after = (
        np.mean([row["reward"] for row in r]) for r in (rows[:2], rows[-2:])
    )
    # What is left at best is about 2 x 0.15 x 0.15, the noise of the last move.
    assert after > 0.6 * before and after > before + 0.05


def test_annealed_moves_go_to_a_copy_of_velocity_and_noise():
    algorithm = make(tuned_steps_drop=1, tuned_steps_every=1)
    state, rows = tiny.run(algorithm, 2)
    assert state.params.num_active == 1
    assert jax.tree.structure(state.params.base) == jax.tree.structure(
        state.params.tuned
    )
    assert np.isfinite(list(rows[1].values())).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(ratio="pair"), "ratio='pair' is unknown; use one of move, chain"),
        (dict(minibatch="pair"), "minibatch='pair'.*set minibatch='chain'"),
        (dict(denoising_discount=0.9), "denoising_discount=0.9 .*1.0 with ratio"),
        (dict(clip_base=0.001), "clip_base=0.001 and clip_top=0.01 .* same value"),
        (dict(distance_coef=-1.0), "distance_coef=-1.0 must not be negative"),
        (dict(log_prob_bounds=(-1.0, 1.0)), r"log_prob_bounds=\(-1.0, 1.0\) .* None"),
        (dict(min_std_steps=5), "min_std_steps=5 .* flow"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_diffusion_policy_may_have_one_ratio_for_a_chain_too():
    policy = tiny.tiny_diffusion_policy()
    _, (row,) = tiny.run(make(policy=policy, batch_size=32, epochs=1), 1)
    assert row["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert jnp.isfinite(row["params_change"]) and row["params_change"] > 0
