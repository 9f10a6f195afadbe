"""The check of PPO over a Gaussian mixture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.learning.chain_losses import (
    LOG_PROB_BOUNDS,
    joint_log_prob,
    policy_loss,
)
from dppo_jax.policies import gmm_policy
from dppo_jax.policies.gmm import component_entropy
from tests.reference_cases import LOSS, NETWORK, assert_close, mixture, read_case
from tests.reference_losses import check_losses


def check_ppo_gmm(path, tmp_path):
    """Log-probabilities are joint ones, and clamped as only the reference does."""
    case = read_case(path)
    network, params = mixture(case.config["net"]), case.params("net")
    policy, arrays = gmm_policy(network), case.arrays
    action = arrays["in/actions"]
    row = np.arange(len(action))
    step = jnp.zeros(len(row), jnp.int32)
    start = np.zeros_like(action)
    log_prob = policy.log_prob(params, start, action, case.obs(), step)
    joint = joint_log_prob(log_prob)
    assert_close(joint, arrays["out/logprobs"], NETWORK, "logprobs")
    keys = jax.random.split(jax.random.key(0), len(row))
    loss = policy.clone_loss(params, keys, case.obs(), action)
    assert_close(loss, -arrays["out/logprobs"], NETWORK, "clone_loss")
    _, stds, logits = network.apply(params, case.obs())
    entropy = component_entropy(stds, logits).mean()
    assert_close(entropy, arrays["out/entropy"], LOSS, "entropy")
    std = (jax.nn.softmax(logits) * stds.mean((-2, -1))).sum(-1).mean()
    assert_close(std, arrays["out/std"], NETWORK, "std")

    def actor_loss(params, obs, advantage):
        clip = case.config["clip_ploss_coef"]
        return policy_loss(
            params,
            policy,
            obs,
            x=start,
            next_x=action,
            step=step,
            old_log_prob=np.clip(arrays["in/oldlogprobs"], *LOG_PROB_BOUNDS),
            advantage=advantage,
            mean=functools.partial(joint_log_prob, bounds=LOG_PROB_BOUNDS),
            clip_top=clip,
            clip_base=clip,
            clip_rate=1.0,
            denoising_discount=1.0,
            normalize=case.config.get("norm_adv", True),
        )

    check_losses(case, row, "net", actor_loss, case.config.get("clip_vloss_coef"))
