"""Checks of the losses of soft actor-critic methods: SAC and RLPD."""

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.interop import stack_critics
from dppo_jax.learning import q_losses
from dppo_jax.networks import StateActionCritic
from dppo_jax.policies.squashed import squash
from tests.reference_cases import (
    LOSS,
    Case,
    assert_close,
    assert_gradients_close,
    gaussian_mlp,
    read_case,
    state_action_critic,
)


def check_critic(path, tmp_path):
    """Compare the TD target with entropy, and the squared errors of all critics.

    The reference has no factor of one half; RLPD draws two target critics at random and
    averages the errors over critics.
    """
    case = read_case(path)
    arrays, config = case.arrays, case.config
    critic, params = ensemble(case)
    action, log_prob = sample(case, case.params("actor"), arrays["in/next_state"])
    if "draw/000_randperm" in arrays:
        chosen = arrays["draw/000_randperm"][:2]
        target = stack_critics([case.params(f"target_{i}") for i in chosen])
    else:
        target = case.params("target_critic")
    next_value = critic.clone(num_critics=2).apply(
        target, {"state": arrays["in/next_state"]}, action
    )
    goal = q_losses.td_target(
        arrays["in/rewards"],
        q_losses.soft_value(next_value, log_prob, config["alpha"]),
        arrays["in/terminated"],
        discount=config["gamma"],
    )
    share = config.get("n_critics", 1)

    def loss_of(params):
        value = critic.apply(params, case.obs(), arrays["in/actions"])
        return 2 * q_losses.critic_loss(value, goal) / share

    loss, gradients = jax.jit(jax.value_and_grad(loss_of))(params)
    assert_close(loss, arrays["out/loss"], LOSS, "loss")
    assert_gradients_close(case, "grad/", gradients)


def check_actor(path, tmp_path):
    """SAC uses the least value of two critics, RLPD the mean of many."""
    case = read_case(path)
    critic, critic_params = ensemble(case)
    combine = jnp.mean if "n_critics" in case.config else jnp.min

    def loss_of(params):
        action, log_prob = sample(case, params, case.arrays["in/state"])
        value = critic.apply(critic_params, case.obs(), action)
        return q_losses.actor_loss(combine(value, 0), log_prob, case.config["alpha"])

    loss, gradients = jax.jit(jax.value_and_grad(loss_of))(case.params("actor"))
    assert_close(loss, case.arrays["out/loss"], LOSS, "loss")
    assert_gradients_close(case, "grad/", gradients)


def check_temperature(path, tmp_path):
    case = read_case(path)
    _, log_prob = sample(case, case.params("actor"), case.arrays["in/state"])
    loss = q_losses.temperature_loss(
        jnp.log(case.config["alpha"]),
        log_prob,
        target_entropy=case.config["target_entropy"],
    )
    assert_close(loss, case.arrays["out/loss"], LOSS, "loss")


def ensemble(case: Case) -> tuple[StateActionCritic, dict]:
    """The critics of a case and their parameters."""
    critic = state_action_critic(case.config["critic"])
    if "n_critics" in case.config:
        critic = critic.clone(num_critics=case.config["n_critics"])
        return critic, case.params("critic_ensemble")
    return critic, case.params("critic")


def sample(case: Case, params, state) -> tuple[jax.Array, jax.Array]:
    """The squashed action of the recorded draw, and its log-probability."""
    mean, std = gaussian_mlp(case.config["actor"]).apply(params, {"state": state})
    (draw,) = (value for name, value in case.group("draw/").items() if "eps" in name)
    assert np.abs(draw).max() < 10  # The reference would clip it there.
    return squash(mean, std, jnp.asarray(draw).reshape(mean.shape), slope_margin=1e-6)
