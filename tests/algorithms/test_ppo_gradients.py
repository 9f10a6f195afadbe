"""The gradient of every term of PPO's losses, for models with one or two parameters.

The policy is a Gaussian over one action a, with mean w s and standard deviation e^l:
log pi = -z^2 / 2 - l - log(2 pi) / 2 with z = (a - w s) / e^l. Its derivatives are
z s / e^l by w and z^2 - 1 by l. The critic is V = v s.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.algorithms.ppo.gradients import Moves, Steps, make_gradients
from dppo_jax.algorithms.ppo.settings import log_prob_mean
from dppo_jax.diffusion.chain import Moments
from dppo_jax.policies import PolicyParams, gaussian_policy
from tests import tiny

STATE = np.array([1.0, -2.0, 0.5, 1.5])
ACTION = np.array([0.9, -0.2, 1.1, 0.1])
ADVANTAGE = np.array([1.0, 1.0, -2.0, 0.5])
W, L = 0.5, -0.2
TEACHER_W = 0.8
OBS = {"state": jnp.asarray(STATE)[:, None, None]}
KEY = jax.random.key(0)


class LinearGaussian(NamedTuple):
    """obs -> mean w s and standard deviation e^l, both [B, 1, 1]."""

    def init(self, key, obs):
        return {"w": jnp.float32(W), "l": jnp.float32(L)}

    def apply(self, params, obs):
        state = obs["state"]
        return params["w"] * state, jnp.exp(params["l"]) * jnp.ones_like(state)


class LinearCritic(NamedTuple):
    """V(s) = v s, [B]."""

    def apply(self, params, obs):
        return params * obs["state"][:, 0, 0]


def gradients(**changes):
    changes = dict(num_tuned_steps=1, batch_size=4, normalize_advantage=False) | changes
    config = tiny.tiny_ppo_config(**changes)
    policy = gaussian_policy(LinearGaussian())
    mean = log_prob_mean(config, policy, executed=1)
    return make_gradients(policy, LinearCritic(), config, mean=mean)


def tuned_params():
    """The teacher, the base network, has another mean and hardly any noise."""
    return PolicyParams(
        base={"w": jnp.float32(TEACHER_W), "l": jnp.float32(-20.0)},
        tuned={"w": jnp.float32(W), "l": jnp.float32(L)},
    )


def log_prob(action):
    z = (action - W * STATE) / np.exp(L)
    return -0.5 * z**2 - L - 0.5 * np.log(2 * np.pi)


def slopes(action):
    """Derivatives of the log-probabilities by w and by l."""
    z = (action - W * STATE) / np.exp(L)
    return {"w": z * STATE / np.exp(L), "l": z**2 - 1}


def actor_gradient(ratio=1.0, old_moments=None, **changes):
    """The actor's gradient over the four moves, at given ratios to the old policy."""
    moves = Moves(
        obs=OBS,
        chain=jnp.stack([jnp.zeros(4), ACTION], axis=1)[..., None, None],
        step=jnp.zeros((4, 1), jnp.int32),
        old_log_prob=jnp.asarray(log_prob(ACTION) - np.log(ratio))[:, None],
        advantage=jnp.asarray(ADVANTAGE)[:, None],
        old_moments=old_moments,
    )
    return jax.jit(gradients(**changes).actor)(tuned_params(), moves, KEY)


def assert_gradient(gradient, expected):
    for name in ("w", "l"):
        np.testing.assert_allclose(
            gradient[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_the_log_probs_in_this_file_are_not_clamped():
    """A clamped log-probability would have a gradient of zero."""
    for action in (ACTION, TEACHER_W * STATE):
        assert (-5 < log_prob(action)).all() and (log_prob(action) < 2).all()


def test_the_surrogate_has_the_policy_gradient():
    """At ratios of one it is -E[A d log pi]."""
    gradient, metrics = actor_gradient()
    expected = {k: -(ADVANTAGE * x).mean() for k, x in slopes(ACTION).items()}
    assert_gradient(gradient, expected)
    assert metrics["policy_loss"] == pytest.approx(-ADVANTAGE.mean())


def test_clipped_ratios_have_no_gradient():
    """Ratios outside the clip range have no gradient if they moved with the advantage.
    All others have a gradient in proportion to the ratio."""
    ratio = np.array([1.3, 0.7, 0.7, 1.05])
    pulls = np.array([0.0, 1.0, 0.0, 1.0])
    gradient, metrics = actor_gradient(ratio, clip_top=0.1, clip_base=0.1)
    expected = {
        k: -(pulls * ratio * ADVANTAGE * x).mean() for k, x in slopes(ACTION).items()
    }
    assert_gradient(gradient, expected)
    assert metrics["clip_fraction"] == 0.75
    kept = np.array([1.1, 0.7, 0.9, 1.05])
    assert metrics["policy_loss"] == pytest.approx(-(kept * ADVANTAGE).mean(), rel=1e-5)


@pytest.mark.parametrize("micro_batch_size", [4, 2])
def test_advantages_are_normalised_over_the_whole_minibatch(micro_batch_size):
    gradient, _ = actor_gradient(
        normalize_advantage=True, micro_batch_size=micro_batch_size
    )
    normal = (ADVANTAGE - ADVANTAGE.mean()) / ADVANTAGE.std(ddof=1)
    assert_gradient(
        gradient, {k: -(normal * x).mean() for k, x in slopes(ACTION).items()}
    )


@pytest.mark.parametrize(
    "clone_coef, entropy_coef, micro_batch_size",
    [(0.0, 0.3, 4), (0.7, 0.0, 4), (0.7, 0.3, 1)],
)
def test_the_entropy_is_raised_and_the_teacher_approached(
    clone_coef, entropy_coef, micro_batch_size
):
    """The entropy is l + log(2 pi e) / 2 in every state. The penalty is minus the
    log-probability of the teacher's actions, which equal its mean here."""
    gradient, metrics = actor_gradient(
        clone_coef=clone_coef,
        entropy_coef=entropy_coef,
        micro_batch_size=micro_batch_size,
    )
    surrogate, cloned = slopes(ACTION), slopes(TEACHER_W * STATE)
    bonus = {"w": 0.0, "l": 1.0}
    expected = {
        k: -(ADVANTAGE * surrogate[k]).mean()
        - entropy_coef * bonus[k]
        - clone_coef * cloned[k].mean()
        for k in ("w", "l")
    }
    assert_gradient(gradient, expected)
    assert ("entropy" in metrics) == (entropy_coef > 0)
    assert ("cloning_penalty" in metrics) == (clone_coef > 0)
    if entropy_coef:
        entropy = L + 0.5 * np.log(2 * np.pi * np.e)
        assert metrics["entropy"] == pytest.approx(entropy, rel=1e-5)
    if clone_coef:
        penalty = -log_prob(TEACHER_W * STATE).mean()
        assert metrics["cloning_penalty"] == pytest.approx(penalty, rel=1e-5)


OLD_W, OLD_L = 0.7, -0.5


def divergence():
    """KL(old || new) of every row, and its derivatives by w and by l: with the scale
    s = e^l, log(s / old s) + (old s^2 + d^2) / (2 s^2) - 1 / 2, d = (w - old w) s."""
    scale, old_scale = np.exp(L), np.exp(OLD_L)
    distance = (W - OLD_W) * STATE
    squares = (old_scale**2 + distance**2) / scale**2
    kl = L - OLD_L + 0.5 * squares - 0.5
    return kl, {"w": distance * STATE / scale**2, "l": 1 - squares}


@pytest.mark.parametrize("micro_batch_size", [4, 1])
@pytest.mark.parametrize("limit", [None, 0.15, 0.0001, 10.0])
def test_chains_at_the_limit_contribute_the_penalty_alone(limit, micro_batch_size):
    """Divergences are 0.10, 0.19, 0.08 and 0.14. Without a limit all rows have both."""
    kl, slope = divergence()
    old = Moments(
        *(
            jnp.asarray(x * np.ones(4), jnp.float32)[:, None, None, None]
            for x in (OLD_W * STATE, np.exp(OLD_L))
        )
    )
    gradient, metrics = actor_gradient(
        old_moments=old,
        **{"chain_kl.coef": 3.0, "chain_kl.limit": limit},
        micro_batch_size=micro_batch_size,
    )
    gated = np.ones(4) if limit is None else 1.0 * (kl >= limit)
    kept = np.ones(4) if limit is None else 1 - gated
    expected = {
        k: (-kept * ADVANTAGE * x + 3.0 * gated * slope[k]).mean()
        for k, x in slopes(ACTION).items()
    }
    assert_gradient(gradient, expected)
    assert metrics["chain_kl"] == pytest.approx(kl.mean(), rel=1e-5)
    assert metrics["policy_loss"] == pytest.approx(-(kept * ADVANTAGE).mean())
    assert metrics.get("gated_fraction") == (None if limit is None else gated.mean())
    if limit == 0.15:
        assert gated.tolist() == [0, 1, 0, 0]


TARGET = np.array([2.0, 0.0, 1.0, -1.0])
V = 0.8


def critic_gradient(row, old_value, **changes):
    """The critic's gradient at v = 0.8, for rows drawn from the four states."""
    steps = Steps(
        obs=OBS,
        chain=jnp.zeros((4, 2, 1, 1)),
        log_prob=jnp.zeros((4, 1)),
        advantage=jnp.zeros(4),
        target=jnp.asarray(TARGET),
        value=jnp.asarray(old_value),
    )
    gradient = jax.jit(gradients(**changes).critic)
    return gradient(jnp.float32(V), steps, jnp.array(row))


@pytest.mark.parametrize(
    "row",
    [[0, 1, 2, 3], [1, 2], [3, 0, 0, 2, 0, 3]],
    ids=["all", "some", "more than there are"],
)
def test_the_critic_descends_half_the_squared_error(row):
    error = (V * STATE - TARGET)[row]
    gradient, loss = critic_gradient(row, np.zeros(4), value_coef=0.7)
    assert gradient == pytest.approx(0.7 * (error * STATE[row]).mean(), rel=1e-5)
    assert loss == pytest.approx(0.5 * (error**2).mean(), rel=1e-5)


def test_a_clipped_value_has_no_gradient_towards_its_target():
    """Values are 0.8, -1.6, 0.4 and 1.2. From its old value the first moved by 0.8
    towards its target, the second by 0.1, the third away from it, and the fourth past
    the clip range but away from it."""
    old = np.array([0.0, -1.7, 0.9, 0.0])
    pulls = np.array([0.0, 1.0, 1.0, 1.0])
    value = V * STATE
    gradient, loss = critic_gradient([0, 1, 2, 3], old, value_clip=0.2, value_coef=1.0)
    expected = (pulls * (value - TARGET) * STATE).mean()
    assert gradient == pytest.approx(expected, rel=1e-5)
    counted = np.array([0.2, -1.6, 0.4, 1.2])
    assert loss == pytest.approx(0.5 * ((counted - TARGET) ** 2).mean(), rel=1e-5)
