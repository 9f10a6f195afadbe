"""Before the first update all ratios are one, for every policy and on-policy algorithm.

Old and new log-probabilities (or losses) come from different programs: sampling, and
the first evaluation in the updates. A clip range of 1e-5 counts every ratio that is
further from one.
"""

import jax
import pytest

from dppo_jax.algorithms import ogpo
from tests import tiny

CLIP = 1e-5
PPO = dict(clip_top=CLIP, clip_base=CLIP)
CASES = {
    "DDPM": lambda **once: tiny.make_tiny_ppo(batch_size=32, **once, **PPO),
    "DDIM": lambda **once: tiny.make_tiny_ppo(
        tiny.tiny_diffusion_policy(ddim_steps=2), batch_size=32, **once, **PPO
    ),
    "flow, ratio of a move": lambda **once: tiny.make_tiny_ppo(
        tiny.tiny_flow_policy(2), batch_size=32, **once, **PPO
    ),
    "flow, ratio of a chain": lambda **once: tiny.make_tiny_ppo(
        tiny.tiny_flow_policy(2), batch_size=32, **once, **(tiny.FLOW_PPO | PPO)
    ),
    "Gaussian": lambda **once: tiny.make_tiny_ppo(
        tiny.tiny_gaussian_policy(), batch_size=16, **once, **PPO
    ),
    "mixture": lambda **once: tiny.make_tiny_ppo(
        tiny.tiny_gmm_policy(), batch_size=16, **once, **PPO
    ),
    "exact likelihood": lambda **once: tiny.make_tiny_exact(
        batch_size=16, clip=CLIP, reduction="sum", **once
    ),
    "FPO, ratio of a pair": lambda **once: tiny.make_tiny_fpo(
        batch_size=16, clip=CLIP, **once
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_all_ratios_are_one_before_the_first_update(case):
    _, (row,) = tiny.run(CASES[case](epochs=1), 1)
    assert row["num_updates"] == 1
    assert row["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert row["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert row["clip_fraction"] == 0.0
    assert row["params_change"] > 0


# Chains of OGPO are sampled by the target actor, which starts equal to the actor. With
# the tight bounds of the last two, many actions lie at them.
POLICIES = {
    "DDPM": tiny.tiny_diffusion_policy(tiny.NUM_STEPS),
    "DDIM": tiny.tiny_diffusion_policy(2, ddim_steps=2),
    "DDPM, bounded": tiny.tiny_diffusion_policy(tiny.NUM_STEPS, final_clip=0.1),
    "flow, bounded": tiny.tiny_flow_policy(2, final_clip=0.1, mean_clip=0.1),
}


@pytest.mark.parametrize("case", POLICIES)
def test_all_ratios_of_ogpo_are_one_before_the_first_update(case):
    config = tiny.diffusion_q_config("ogpo", clip=CLIP, num_samples=1)
    config.algorithm.ogpo.replay.updates_per_transition = 1 / 16
    sampling = config.model.sampling
    config.model.kind = case[:4] if case.startswith("flow") else "diffusion"
    sampling.ddim_steps = 2 if case == "DDIM" else None
    sampling.flow_steps = 2
    sampling.num_tuned_steps = POLICIES[case].num_tuned_steps
    algorithm = ogpo.make(tiny.point_env(4), POLICIES[case], config)
    state, (row,) = tiny.run(algorithm, 1)
    assert row["num_updates"] == 1 and row["advantage_size"] > 0
    assert row["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert row["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert row["clip_fraction"] == 0.0
    actor = jax.jit(algorithm.init)(jax.random.key(0)).learner.actor.params
    assert not tiny.same(state.learner.actor.params, actor)
