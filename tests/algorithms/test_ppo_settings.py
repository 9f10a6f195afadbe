"""PPO refuses settings that contradict each other, and what it cannot tune."""

import pytest

from dppo_jax.envs.core import vectorize
from dppo_jax.envs.wrappers import time_limit
from dppo_jax.errors import SettingsError
from tests import tiny


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(batch_size=33), "batch_size=33 .* 32 pairs .*4 environments x 4 chunks"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(micro_batch_size=5), "micro_batch_size=5 .* 16 rows"),
        (dict(minibatch="rows"), "minibatch='rows'.*pair, chain"),
        (dict(minibatch="chain", batch_size=15), "batch_size=15 .* 2 moves"),
        (dict(minibatch="chain", micro_batch_size=1), "micro_batch_size=1 .* of 2"),
        (dict(num_chunks=0), "num_chunks=0"),
        (dict(epochs=0), "epochs=0"),
        (dict(reward_horizon=0), "reward_horizon=0 .* 2 executed"),
        (dict(reward_horizon=3), "reward_horizon=3 .* 2 executed"),
        (dict(target_kl=0.0), "target_kl=0.0 must be positive; use None"),
        (dict(target_kl=-1.0), "target_kl=-1.0 must be positive"),
        (dict(value_clip=0.0), "value_clip=0.0 must be positive; use None"),
        (dict(reward_scale=0.0), "reward_scale=0.0"),
        (dict(log_prob_bounds=(3.0, -3.0)), r"log_prob_bounds=\(3.0, -3.0\)"),
        (dict(log_prob_bounds=(1.0,)), "log_prob_bounds=.* two numbers"),
        (dict(clone_coef=-0.1), "clone_coef=-0.1 must not be negative"),
        (dict(critic_warmup=-1), "critic_warmup=-1"),
        (dict(actor__weight_decay=-1.0), "actor: weight_decay=-1.0"),
        (dict(critic__max_grad_norm=0.0), "critic: max_grad_norm=0.0.*None to clip"),
        (dict(discount=1.5), "discount=1.5"),
        (dict(gae_lambda=-0.1), "gae_lambda=-0.1"),
        (dict(denoising_discount=2.0), "denoising_discount=2.0"),
        (dict(advantage_quantiles=(0.9, 0.1)), r"advantage_quantiles=\(0.9, 0.1\)"),
        (dict(advantage_quantiles=(0.1,)), r"\(0.1,\) must be two numbers"),
        (dict(advantage_quantiles=(0.1, 0.5, 0.9)), "must be two numbers"),
        (dict(advantage_quantiles=("a", "b")), "must be two numbers"),
        (dict(clip_base=0.2, clip_top=0.1), "clip_base=0.2, clip_top=0.1"),
        (dict(clip_rate=0.0), "clip_rate=0.0"),
        (dict(actor__warmup_steps=1000), "actor: warmup_steps=1000"),
        (dict(critic__learning_rate=1e-3), "critic: .* learning_rate=0.001"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.make_tiny_ppo(**changes)


@pytest.mark.parametrize(
    "make, name",
    [(tiny.tiny_gaussian_policy, "Gaussian policy"), (tiny.tiny_gmm_policy, "mixture")],
)
def test_a_single_move_has_no_ratio_of_a_chain(make, name):
    """Half the log-ratio would count, because the start of a chain counts as a move."""
    with pytest.raises(SettingsError, match=f"a {name} has .*set ratio='move'"):
        tiny.make_tiny_ppo(make(), **tiny.FLOW_PPO)


def test_actions_of_a_mixture_have_no_distance():
    with pytest.raises(SettingsError, match="distance_coef=0.1 .* clone_coef"):
        tiny.make_tiny_ppo(tiny.tiny_gmm_policy(), distance_coef=0.1)


def test_an_environment_without_chunks_is_refused():
    env = vectorize(time_limit(tiny.point_task(), 8), 4)
    with pytest.raises(ValueError, match=r"shape \(1,\), .* chunk_actions"):
        tiny.make_tiny_ppo(env=env)


def test_a_gaussian_policy_has_no_sampling_floor_to_anneal():
    """Sampling and log-probabilities would use different standard deviations."""
    policy = tiny.tiny_gaussian_policy()
    with pytest.raises(ValueError, match="min_std_steps=5 .* Gaussian"):
        tiny.make_tiny_ppo(policy, min_std_steps=5)


def test_a_policy_that_is_no_chain_is_refused():
    with pytest.raises(ValueError, match="ppo needs .* SquashedPolicy.*model.kind"):
        tiny.make_tiny_ppo(tiny.tiny_squashed_policy())
