"""Checks of the losses of algorithms that learn from demonstrations: Cal-QL, IBRL."""

import jax
import jax.numpy as jnp

from dppo_jax.interop import stack_critics
from dppo_jax.learning import calibrated_q, q_losses
from dppo_jax.learning.imitation_bootstrap import bootstrap_value, policy_loss
from dppo_jax.policies.squashed import squash
from dppo_jax.types import Transition
from tests.reference_cases import (
    LOSS,
    Case,
    assert_close,
    assert_gradients_close,
    gaussian_mlp,
    read_case,
    state_action_critic,
)

# With a standard deviation that small the reference draws deterministic actions.
DETERMINISTIC_STD = 1e-4
# Draws of Gaussian policies are clipped to this, which cases leave out.
DRAW_CLIP = 3


def check_calql_critic(path, tmp_path):
    """With all quirks: see `calibrated_q.QUIRKS`."""
    case = read_case(path)
    arrays, config = case.arrays, case.config
    critic, params = state_action_critic(config["critic"]), case.params("critic")
    num_rows, backup = len(arrays["in/rewards"]), config["cql_n_actions"]
    backup_draw, draw, next_draw = case.group("draw/").values()
    next_state = arrays["in/next_state"]
    repeated = jnp.repeat(next_state, backup, axis=0)
    best, _ = squashed(case, repeated, backup_draw)
    value = critic.apply(case.params("target_critic"), {"state": repeated}, best)
    target = q_losses.td_target(
        arrays["in/rewards"],
        calibrated_q.best_target(value.reshape(-1, num_rows, backup)),
        arrays["in/terminated"],
        discount=config["gamma"],
    )
    action, log_prob = squashed(case, arrays["in/state"], draw)
    next_action, next_log_prob = squashed(case, next_state, next_draw)
    sampled = calibrated_q.Sampled(
        arrays["in/random_actions"], action, log_prob, next_action, next_log_prob
    )
    batch = transitions(case, extras={"return_to_go": arrays["in/mc_returns"]})

    def loss_of(params):
        return calibrated_q.calibrated_loss(
            lambda obs, action: critic.apply(params, obs, action),
            batch,
            target,
            sampled,
            weight=config["cql_min_q_weight"],
            quirks=calibrated_q.QUIRKS,
        )[0]

    check_loss(case, loss_of, params)


def check_ibrl_critic(path, tmp_path):
    """The reference averages over critics; the factor of one half is ours."""
    case = read_case(path)
    arrays, config = case.arrays, case.config
    critic, params = ensemble(case)
    chosen, cloned_draw, actor_draw = case.group("draw/").values()
    target = stack_critics([case.params(f"target_{i}") for i in chosen[:2]])
    obs, network = {"state": arrays["in/next_state"]}, gaussian_mlp(config["actor"])

    def next_value(module, draw, std=None):
        mean, own = network.apply(case.params(module), obs)
        action = mean + (own if std is None else std) * clipped(draw, mean)
        return critic.clone(num_critics=2).apply(target, obs, action)

    goal = q_losses.td_target(
        arrays["in/rewards"],
        bootstrap_value(
            next_value("bc_policy", cloned_draw, DETERMINISTIC_STD),
            next_value("target_actor", actor_draw),
        ),
        arrays["in/terminated"],
        discount=config["gamma"],
    )

    def loss_of(params):
        value = critic.apply(params, case.obs(), arrays["in/actions"])
        return 2 * q_losses.critic_loss(value, goal) / config["n_critics"]

    check_loss(case, loss_of, params)


def check_ibrl_actor(path, tmp_path):
    case = read_case(path)
    critic, critic_params = ensemble(case)
    network = gaussian_mlp(case.config["actor"])
    (draw,) = case.group("draw/").values()

    def loss_of(params):
        mean, std = network.apply(params, case.obs())
        action = mean + std * clipped(draw, mean)
        return policy_loss(critic.apply(critic_params, case.obs(), action))

    check_loss(case, loss_of, case.params("actor"))


def check_loss(case: Case, loss_of, params):
    """Compare the loss of a case and its gradient."""
    loss, gradients = jax.jit(jax.value_and_grad(loss_of))(params)
    assert_close(loss, case.arrays["out/loss"], LOSS, "loss")
    assert_gradients_close(case, "grad/", gradients)


def transitions(case: Case, extras) -> Transition:
    arrays = case.arrays
    return Transition(
        obs=case.obs(),
        action=arrays["in/actions"],
        reward=arrays["in/rewards"],
        next_obs={"state": arrays["in/next_state"]},
        terminated=arrays["in/terminated"],
        truncated=jnp.zeros_like(arrays["in/terminated"]),
        extras=extras,
    )


def ensemble(case: Case):
    """The critics of a case and their parameters."""
    critic = state_action_critic(case.config["critic"])
    critic = critic.clone(num_critics=case.config["n_critics"])
    return critic, case.params("critic_ensemble")


def clipped(draw, mean):
    return jnp.clip(draw.reshape(mean.shape), -DRAW_CLIP, DRAW_CLIP)


def squashed(case: Case, state, draw):
    """The actor's action of a recorded draw, and its log-probability."""
    mean, std = gaussian_mlp(case.config["actor"]).apply(
        case.params("actor"), {"state": state}
    )
    bound = case.config.get("randn_clip_value", 10)
    draw = jnp.clip(draw.reshape(mean.shape), -bound, bound)
    return squash(mean, std, draw, slope_margin=1e-6)
