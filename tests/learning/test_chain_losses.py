"""The losses over moves, with a policy whose log-probabilities are its parameters.

`listed_policy` gives every move of step k the log-probability in entry k of its
parameters. As a teacher it samples the chain that is listed in its parameters.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.diffusion.chain import Sample
from dppo_jax.learning import chain_losses
from tests import tiny

KEYS = jax.random.split(jax.random.key(1), 3)
STEP = jnp.arange(3)  # K' = 3, one move of each


def listed_policy():
    """The log-probability of every entry is parameter k; for a whole chain it is that
    minus half the square of the chain's entry."""

    def log_prob(params, x, next_x, obs, step):
        return jnp.broadcast_to(params[step][:, None, None], x.shape)

    def sample(params, keys, obs):
        chain = jnp.broadcast_to(params.base, (len(keys), 3))
        return Sample(jnp.pad(chain, ((0, 0), (1, 0)))[..., None, None], None)

    def chain_log_prob(params, chain, obs):
        return params[:, None, None] - 0.5 * chain[:, 1:] ** 2

    return tiny.tiny_diffusion_policy(num_tuned=3)._replace(
        log_prob=log_prob, sample=sample, chain_log_prob=chain_log_prob
    )


LOG_PROB = jnp.array([[[3.0, -9.0], [1.0, 0.0]]])  # [B, Ta, Da]


@pytest.mark.parametrize(
    "settings, expected",
    [
        (dict(bounds=None), -1.25),
        (dict(bounds=None, horizon=1), -3.0),
        (dict(bounds=None, bound_entries=False), -1.25),
        (dict(), (2.0 - 5.0 + 1.0 + 0.0) / 4),  # entries are clamped to [-5, 2]
        (dict(horizon=1), (2.0 - 5.0) / 2),
        (dict(bound_entries=False), -1.25),
        (dict(bounds=(-1.0, 1.0), bound_entries=False), -1.0),  # the mean is
    ],
)
def test_the_log_prob_of_a_move_is_a_mean_clamped_as_the_settings_say(
    settings, expected
):
    mean = chain_losses.mean_log_prob(LOG_PROB, **settings)
    np.testing.assert_allclose(mean, [expected], rtol=1e-6)


@pytest.mark.parametrize(
    "num_active, weight", [(None, None), (3, [1, 1, 1]), (2, [0, 1, 1]), (1, [0, 0, 1])]
)
def test_only_the_last_moves_of_a_chain_count(num_active, weight):
    given = chain_losses.move_weight(STEP, 3, num_active)
    assert given is None if weight is None else given.tolist() == weight


def test_noisier_moves_have_a_smaller_advantage():
    """It is halved for every move that is left in the chain."""
    advantage = chain_losses.move_advantage(
        jnp.full(3, 8.0),
        STEP,
        num_tuned_steps=3,
        denoising_discount=0.5,
        normalize=False,
    )
    assert advantage.tolist() == [2.0, 4.0, 8.0]


def test_advantages_are_normalised_unless_told_otherwise():
    """1, 2, 3 have a mean of 2 and a standard deviation of 1."""
    advantage = chain_losses.move_advantage(
        jnp.array([1.0, 2.0, 3.0]), STEP, num_tuned_steps=3, denoising_discount=1.0
    )
    np.testing.assert_allclose(advantage, [-1, 0, 1], atol=1e-6)


def test_moves_that_do_not_count_do_not_affect_the_statistics():
    """Only 1 and 3 count: median 2, mean 2, standard deviation sqrt 2."""
    settings = dict(num_tuned_steps=3, denoising_discount=1.0, num_active=jnp.array(2))
    advantage = jnp.array([1e6, 1.0, 3.0])
    normal = chain_losses.move_advantage(advantage, STEP, **settings)
    np.testing.assert_allclose(normal[1:], [-(0.5**0.5), 0.5**0.5], rtol=1e-5)
    settings |= dict(normalize=False, quantiles=(0.0, 0.5))
    clipped = chain_losses.move_advantage(advantage, STEP, **settings)
    np.testing.assert_allclose(clipped[1:], [1, 2], rtol=1e-6)


@pytest.mark.parametrize(
    "num_active, kept",
    [(None, [1.1, 1.15, 1.3]), (2, [1.1, 1.3]), (1, [1.3])],
)
def test_the_clip_range_widens_along_the_moves_that_count(num_active, kept):
    """All moves are good and twice as likely as before, so every ratio is clipped to 1
    plus its range. With e^(rate / 2) = 3 the middle range has grown by a quarter of
    the way, (3 - 1) / (9 - 1)."""
    loss, info = chain_losses.surrogate_loss(
        jnp.full(3, np.log(2.0)),
        STEP,
        jnp.zeros(3),
        jnp.ones(3),
        num_tuned_steps=3,
        clip_base=0.1,
        clip_top=0.3,
        clip_rate=2 * np.log(3.0),
        num_active=None if num_active is None else jnp.array(num_active),
    )
    assert loss == pytest.approx(-np.mean(kept), rel=1e-5)
    assert (info.ratio, info.clip_fraction) == pytest.approx((2.0, 1.0))


def loss_of_listed(**changes):
    """The loss of moves 0, 1 and 2 with ratios of one and advantages 16, 1 and 3."""
    params, x = jnp.array([-1.0, -2.0, -3.0]), jnp.zeros((3, tiny.CHUNK, 1))
    settings = dict(clip_top=0.1, clip_base=0.1, clip_rate=1.0, denoising_discount=0.5)
    loss, info = chain_losses.policy_loss(
        params,
        listed_policy(),
        tiny.OBS,
        x,
        x,
        STEP,
        params,
        jnp.array([16.0, 1.0, 3.0]),
        **settings | changes,
    )
    assert info.ratio == 1.0
    return loss


def test_the_loss_is_minus_the_mean_advantage_at_ratios_of_one():
    """The advantages count a quarter, a half and fully."""
    assert loss_of_listed(normalize=False) == pytest.approx(-(4 + 0.5 + 3) / 3)
    # The advantages 1 and 3 are clipped to their median 2.
    some = dict(normalize=False, quantiles=(0.0, 0.5), num_active=jnp.array(2))
    assert loss_of_listed(**some) == pytest.approx(-(0.5 + 2) / 2)
    # They are normalised to -sqrt 0.5 and sqrt 0.5, and the first counts half.
    loss = loss_of_listed(num_active=jnp.array(2))
    assert loss == pytest.approx(-(0.5**0.5) * (1 - 0.5) / 2, rel=1e-5)


def test_the_caller_chooses_the_mean_over_entries():
    """`mean` sets log-probabilities -1, -2 and -3 to 0, so ratios are e, e^2, e^3."""
    params, x = jnp.array([-1.0, -2.0, -3.0]), jnp.zeros((3, tiny.CHUNK, 1))
    settings = dict(clip_top=0.1, clip_base=0.1, clip_rate=1.0, denoising_discount=0.5)
    _, info = chain_losses.policy_loss(
        params,
        listed_policy(),
        tiny.OBS,
        x,
        x,
        STEP,
        params,
        jnp.ones(3),
        mean=lambda log_prob: jnp.zeros(3),
        **settings,
    )
    assert info.ratio == pytest.approx(np.exp([1, 2, 3]).mean(), rel=1e-5)


def test_the_cloning_penalty_is_minus_the_mean_over_the_moves_that_count():
    """The teacher's chain is 1, 0, 2. The log-probabilities of its moves are -1, -2 and
    -3 minus 1/2, 0 and 2."""
    scores, base = jnp.array([-1.0, -2.0, -3.0]), jnp.array([1.0, 0.0, 2.0])

    def penalty(base, **settings):
        return chain_losses.cloning_penalty(
            scores, listed_policy(), base, KEYS, tiny.OBS, **settings
        )

    assert penalty(base) == pytest.approx((1.5 + 2 + 5) / 3)
    assert penalty(base, num_active=jnp.array(2)) == pytest.approx((2 + 5) / 2)
    # The caller may clamp, here at -1.
    mean = functools.partial(chain_losses.mean_log_prob, bounds=(-1.0, 0.0))
    assert penalty(base, mean=mean) == pytest.approx(1.0)
    # No gradient flows to the teacher's chain.
    assert (jax.grad(penalty)(base) == 0).all()


def test_the_cloning_penalty_is_smallest_for_the_teacher_itself():
    policy = tiny.tiny_diffusion_policy()
    teacher = policy.init(jax.random.key(0), tiny.OBS).base
    obs = {"state": jnp.tile(tiny.OBS["state"], (50, 1, 1))}

    def penalty(params):
        keys = jax.random.split(jax.random.key(1), len(obs["state"]))
        return chain_losses.cloning_penalty(params, policy, teacher, keys, obs)

    at_teacher = jax.jit(penalty)(teacher)
    for seed in (1, 2, 3):
        stranger = policy.init(jax.random.key(seed), tiny.OBS).base
        assert jax.jit(penalty)(stranger) > at_teacher


def test_minibatches_pair_every_step_with_its_own_move():
    """The policy gradient with K' = 2 is the mean of those of single moves."""
    policy = tiny.tiny_diffusion_policy()
    params = policy.init(jax.random.key(0), tiny.OBS)
    chain, log_prob = policy.sample(params, KEYS, tiny.OBS)
    log_prob = chain_losses.mean_log_prob(log_prob)
    advantage = jnp.array([1.0, -2.0, 0.5])
    settings = dict(clip_top=0.1, clip_base=0.1, clip_rate=1.0, normalize=False)

    def loss(row, step):
        rows, steps = jnp.array(row), jnp.array(step)
        return chain_losses.policy_loss(
            params.tuned,
            policy,
            {"state": tiny.OBS["state"][rows]},
            x=chain[rows, steps],
            next_x=chain[rows, steps + 1],
            step=steps,
            old_log_prob=log_prob[rows, steps],
            advantage=advantage[rows],
            denoising_discount=0.5,
            **settings,
        )[0]

    # Ratios are one: a pair's loss is minus its advantage, halved per remaining move.
    assert loss([0], [1]) == pytest.approx(-1.0, abs=1e-4)
    assert loss([0], [0]) == pytest.approx(-0.5, abs=1e-4)
    both = loss([0, 1, 1], [0, 0, 1])
    assert both == pytest.approx((-0.5 + 1.0 + 2.0) / 3, abs=1e-4)


def test_dropped_moves_do_not_affect_the_loss():
    policy = tiny.tiny_diffusion_policy()
    params = policy.init(jax.random.key(0), tiny.OBS)
    stranger = policy.init(jax.random.key(5), tiny.OBS).tuned
    chain, log_prob = policy.sample(params, KEYS, tiny.OBS)
    log_prob = chain_losses.mean_log_prob(log_prob)

    def loss(rows, steps, num_active=None):
        return chain_losses.policy_loss(
            stranger,
            policy,
            {"state": tiny.OBS["state"][rows]},
            x=chain[rows, steps],
            next_x=chain[rows, steps + 1],
            step=steps,
            old_log_prob=log_prob[rows, steps],
            advantage=jnp.array([1.0, -2.0, 0.5])[rows],
            clip_top=0.1,
            clip_base=0.01,
            clip_rate=1.0,
            denoising_discount=0.9,
            quantiles=(0.1, 0.9),
            num_active=num_active,
        )

    rows = jnp.array([0, 1, 2, 0, 1, 2])
    steps = jnp.array([1, 1, 1, 0, 0, 0])
    annealed = loss(rows, steps, jnp.array(1))
    # The only tuned move of a chain has the full clip range, like the last of two, so
    # dropping the other rows by hand gives the same.
    alone = loss(rows[:3], steps[:3])
    for a, b in zip(jax.tree.leaves(annealed), jax.tree.leaves(alone)):
        np.testing.assert_allclose(a, b, rtol=1e-4)
