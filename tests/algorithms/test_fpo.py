"""FPO and FPO++ (arXiv 2507.21053, 2602.02481) on tasks of a few numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.algorithms import fpo, make_algorithm
from dppo_jax.diffusion.flow import LEAST_STD
from dppo_jax.learning.flow_losses import flow_objective
from dppo_jax.learning.on_policy import Steps
from experiments.defaults import default_config
from tests import tiny

# Of FPO, where the default is FPO++.
FPO = dict(
    ratio="chunk",
    trust_region="clip",
    prediction="noise",
    reduction="mean",
    times="discrete",
    loss_max=None,
    log_ratio_max=None,
)
KINDS = {"FPO": FPO, "FPO++": {}}
still = {
    f"{name}__{rate}": 0.0
    for name in ("actor", "critic")
    for rate in ("learning_rate", "min_learning_rate")
}
ARGUMENTS = dict(
    executed=tiny.CHUNK,
    draw_time=jax.random.uniform,
    num_pairs=5,
    prediction="velocity",
    reduction="mean",
    huber=None,
    loss_max=None,
    ratio="pair",
    log_ratio_max=None,
    trust_region="asymmetric",
    clip=0.05,
)


def objective_and_steps(num_rows=6, **changes):
    """The objective, parameters, and steps that they collected."""
    policy = tiny.noiseless_flow_policy()
    obs = {"state": jax.random.normal(jax.random.key(7), (num_rows, 1, 2))}
    params = policy.init(jax.random.key(0), obs)
    # A new network predicts nearly nothing, whatever it reads.
    params = jax.tree.map(lambda x: x + 0.1, params)
    objective = flow_objective(policy, **(ARGUMENTS | changes))
    keys = jax.random.split(jax.random.key(1), num_rows)
    chunk, extras = objective.explore(params)(keys, obs)
    advantage = jnp.array([1.0, -2.0, 0.5, -0.3, 1.5, -1.0])[:num_rows]
    steps = Steps(obs, extras, advantage, target=advantage, value=advantage)
    return policy, objective, params, chunk, steps


def test_a_roll_out_keeps_the_chunk_its_pairs_and_their_losses():
    """Each pair has a loss of its own, as if it were the only one."""
    policy, _, params, chunk, steps = objective_and_steps()
    pairs, losses = steps.extras
    np.testing.assert_array_equal(pairs.chunk, chunk)
    assert losses.shape == pairs.time.shape == (6, 5)
    for n in range(5):
        noise, time = pairs.noise[:, n : n + 1], pairs.time[:, n : n + 1]
        error = policy.velocity_error(params.tuned, steps.obs, chunk, noise, time)
        np.testing.assert_allclose(
            (error**2).mean((-2, -1))[:, 0], losses[:, n], rtol=1e-4
        )


def test_all_ratios_are_one_for_the_parameters_that_acted():
    _, objective, params, _, steps = objective_and_steps(loss_max=1.0)
    assert (steps.extras[1] == 1.0).any() and (steps.extras[1] < 1.0).any()
    value, metrics = objective.loss(params.tuned, params, steps)
    assert metrics["ratio"] == 1 and metrics["approx_kl"] == 0
    assert value == pytest.approx(float(-steps.advantage.mean()))
    _, moved = objective.loss(
        jax.tree.map(lambda x: x + 0.01, params.tuned), params, steps
    )
    assert moved["ratio"] != 1 and moved["approx_kl"] > 0


@pytest.mark.parametrize("ratio", ["pair", "chunk"])
@pytest.mark.parametrize("trust_region", ["clip", "asymmetric"])
def test_the_first_gradient_is_that_of_cloning_weighted_by_advantages(
    ratio, trust_region
):
    policy, objective, params, _, steps = objective_and_steps(
        ratio=ratio, trust_region=trust_region
    )
    pairs, _ = steps.extras

    def weighted(tuned):
        error = policy.velocity_error(
            tuned, steps.obs, pairs.chunk, pairs.noise, pairs.time
        )
        return ((error**2).mean((-2, -1)) * steps.advantage[:, None]).mean()

    expected = jax.jit(jax.grad(weighted))(params.tuned)
    loss = jax.jit(jax.grad(lambda tuned: objective.loss(tuned, params, steps)[0]))
    found = loss(params.tuned)
    assert max(jnp.abs(x).max() for x in jax.tree.leaves(expected)) > 0.1
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_loss_counts_executed_actions_alone():
    """The second action of the chunk has no effect on the loss of the first."""
    policy, objective, params, chunk, steps = objective_and_steps(executed=1)
    pairs, losses = steps.extras
    error = policy.velocity_error(
        params.tuned, steps.obs, chunk, pairs.noise, pairs.time
    )
    np.testing.assert_allclose(
        losses, (error[..., :1, :] ** 2).mean((-2, -1)), rtol=1e-5
    )


def test_the_first_update_finds_the_policy_that_acted():
    """That of FPO++ does in `test_first_ratio.py`."""
    algorithm = tiny.make_tiny_fpo(batch_size=16, epochs=1, **FPO)
    _, (row,) = tiny.run(algorithm, 1)
    assert row["num_updates"] == 1
    assert row["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert row["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert row["clip_fraction"] == 0.0
    assert row["policy_loss"] == pytest.approx(0.0, abs=1e-5)  # normalised advantages
    assert row["env_steps"] == 4 * 4 * tiny.CHUNK


def test_an_iteration_changes_the_velocity_and_the_critic_alone():
    algorithm = tiny.make_tiny_fpo()
    start = algorithm.init(jax.random.key(0))
    state, (row,) = tiny.run(algorithm, 1)
    assert state.iteration == 1 and row["num_updates"] == 4
    assert state.params.tuned.noise is None
    assert tiny.same(state.params.base, start.params.base)
    assert not tiny.same(state.critic_params, start.critic_params)
    before, after = (jax.tree.leaves(x.params.tuned) for x in (start, state))
    for a, b in zip(before, after, strict=True):
        assert (a != b).any()


def test_a_learning_rate_of_zero_changes_no_parameter():
    algorithm = tiny.make_tiny_fpo(**still)
    start = algorithm.init(jax.random.key(0))
    state, (row,) = tiny.run(algorithm, 1)
    assert tiny.same(state.params, start.params)
    assert tiny.same(state.critic_params, start.critic_params)
    assert row["params_change"] == 0
    assert row["ratio"] == pytest.approx(1.0, abs=1e-5)


def test_the_actor_waits_for_the_critic():
    algorithm = tiny.make_tiny_fpo(critic_warmup=1)
    start = algorithm.init(jax.random.key(0))
    first, _ = tiny.run(algorithm, 1)
    assert tiny.same(first.params, start.params)
    second, _ = tiny.run(algorithm, 2)
    assert not tiny.same(second.params, start.params)


def gradient(state):
    """Of the first update: a tenth of it is Adam's first moment."""
    return next(x for x in state.actor_optimizer if hasattr(x, "mu")).mu


def test_parts_of_a_minibatch_change_nothing_but_rounding():
    (whole, _), (parts, _) = (
        tiny.run(tiny.make_tiny_fpo(batch_size=16, epochs=1, micro_batch_size=size), 1)
        for size in (64, 8)
    )
    for a, b in zip(jax.tree.leaves(gradient(whole)), jax.tree.leaves(gradient(parts))):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_updates_stop_when_ratios_are_too_far_from_one():
    _, (row,) = tiny.run(tiny.make_tiny_fpo(epochs=10, target_kl=1e-6), 1)
    assert row["num_updates"] == 2 and row["approx_kl_last"] > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_learns_where_the_reward_is(kind):
    """One-step episodes with reward -(a - 0.5)^2. A wrong sign makes it fall."""
    algorithm = tiny.make_tiny_fpo(
        num_envs=64, batch_size=128, num_pairs=8, epochs=4, **KINDS[kind]
    )
    _, rows = tiny.run(algorithm, 20)
    before, after = (
        np.mean([row["reward"] for row in r]) for r in (rows[:2], rows[-2:])
    )
    assert after > 0.5 * before and after > before + 0.05


def test_an_iteration_compiles_once():
    algorithm = tiny.make_tiny_fpo()
    programs = tiny.compiled(algorithm)
    state = algorithm.init(jax.random.key(0))
    for _ in range(3):
        state, _ = tiny.iterate(programs, state)
    assert [program._cache_size() for program in programs] == [1, 1]


def test_two_phases_are_the_step():
    algorithm = tiny.make_tiny_fpo()
    state = algorithm.init(jax.random.key(0))
    assert len(algorithm.phases) == 2
    one, _ = jax.jit(algorithm.step)(state)
    two, _ = tiny.iterate(tiny.compiled(algorithm), state)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_it_starts_from_a_cloned_policy_and_a_critic():
    algorithm = tiny.make_tiny_fpo()
    cloned = tiny.noiseless_flow_policy().init(jax.random.key(9), tiny.OBS)
    critic = tiny.tiny_critic().init(jax.random.key(8), tiny.OBS)
    state = algorithm.init(jax.random.key(0), cloned, critic)
    assert tiny.same(state.params, cloned)
    assert tiny.same(state.critic_params, critic)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(batch_size=17), "batch_size=17 .* 16 chunks .*4 environments x 4 chunks"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(micro_batch_size=6), "micro_batch_size=6 .* 32 rows .* items of 4"),
        (dict(num_pairs=0), "num_pairs=0 must be at least 1"),
        (dict(ratio="move"), "ratio='move' is unknown; use one of chunk, pair"),
        (dict(trust_region="spo"), "trust_region='spo'.*clip, asymmetric"),
        (dict(prediction="action"), "prediction='action'.*velocity, noise"),
        (dict(reduction="sum"), "reduction='sum'.*mean, root, chunk"),
        (dict(times="normal"), "fpo.times='normal'.*uniform"),
        (dict(num_times=0, times="discrete"), "fpo.num_times=0"),
        (dict(clip=0.0), "clip=0.0 must lie between"),
        (dict(clip=1.0), "clip=1.0 must lie between"),
        (dict(huber=0.0), "huber=0.0 must be positive; None"),
        (dict(loss_max=-1.0), "loss_max=-1.0 must be positive; None"),
        (dict(log_ratio_max=0.0), "log_ratio_max=0.0 must be positive; None"),
        (dict(discount=1.5), "discount=1.5"),
        (dict(num_chunks=0), "num_chunks=0"),
        (dict(shuffle_groups=3), "shuffle_groups=3 must divide the 4 environments"),
        (dict(shuffle_groups=4, batch_size=6), "shuffle_groups=4 .* 6 chunks"),
        (dict(actor__warmup_steps=1000), "actor: warmup_steps=1000"),
    ],
)
def test_settings_that_do_not_work_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.make_tiny_fpo(**changes)


def test_devices_must_share_the_groups():
    algorithm = tiny.make_tiny_fpo(shuffle_groups=2)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    with pytest.raises(ValueError, match="algorithm.fpo.shuffle_groups=2 .* 4 devices"):
        algorithm.split(state, 4)


def test_policies_that_are_no_flow_are_refused():
    for policy in (tiny.tiny_diffusion_policy(), tiny.tiny_squashed_policy()):
        with pytest.raises(ValueError, match="fpo needs a flow.*model.kind='flow'"):
            tiny.make_tiny_fpo(policy)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kind": "diffusion"}, "needs a flow, not 'diffusion'; set model.kind='flow'"),
        ({"sampling.num_tuned_steps": 2}, "num_tuned_steps=2 .*flow_steps=4"),
        ({"noise.std_max": 0.2}, f"std_max=0.2 ask .* noise network.* {LEAST_STD} "),
    ],
)
def test_a_whole_configuration_must_tune_all_of_the_flow(changes, message):
    config = default_config()
    config.algorithm.name = "fpo"
    config.model.kind = "flow"
    config.model.sampling.update(flow_steps=4, num_tuned_steps=4)
    config.model.noise.update(std_min=LEAST_STD, std_max=LEAST_STD)
    config.model.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        make_algorithm(tiny.point_env(4), None, config)


def test_a_flow_whose_first_steps_were_frozen_is_refused():
    policy = tiny.noiseless_flow_policy()
    algorithm = tiny.make_tiny_fpo()
    params = policy.init(jax.random.key(0), tiny.OBS)._replace(num_active=jnp.array(1))
    with pytest.raises(ValueError, match="lowered K'.*start it from the cloned flow"):
        algorithm.init(jax.random.key(0), params)


def test_the_defaults_are_accepted():
    fpo.make_fpo(
        tiny.point_env(10),
        tiny.noiseless_flow_policy(),
        tiny.tiny_critic(),
        fpo.default_config(),
        num_chunks=100,
    )
