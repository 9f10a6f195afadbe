import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.diffusion.chain import Sample
from dppo_jax.policies import ChainPolicy, PolicyParams
from tests import tiny


@pytest.fixture(scope="module")
def algorithm():
    """PPO with every setting at its tiny default; compiled once for the module."""
    algorithm = tiny.make_tiny_ppo()
    return algorithm._replace(step=jax.jit(algorithm.step))


@pytest.fixture(scope="module")
def history(algorithm):
    """The states after 0 to 10 iterations, and the metrics of each iteration."""
    state = algorithm.init(jax.random.key(0))
    states, rows = [state], []
    for _ in range(10):
        state, metrics = algorithm.step(state)
        states.append(state)
        rows.append({name: float(value) for name, value in metrics.items()})
    return states, rows


def leaves_differ(one, other):
    return all(
        bool((a != b).any())
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def test_ten_iterations_are_one_program(algorithm, history):
    assert history[0][-1].iteration == 10
    assert algorithm.step._cache_size() == 1


def test_the_seed_decides_everything_bit_for_bit(algorithm, history):
    state = algorithm.init(jax.random.key(0))
    for expected in history[0][1:4]:
        state, _ = algorithm.step(state)
        assert tiny.same(state, expected)
    other, _ = algorithm.step(algorithm.init(jax.random.key(1)))
    assert leaves_differ(other.params.tuned, history[0][1].params.tuned)


def test_the_frozen_network_stays_and_the_tuned_one_moves(history):
    first, last = (history[0][i].params for i in (0, -1))
    assert tiny.same(first.base, last.base)
    assert tiny.same(first.base, first.tuned)
    assert leaves_differ(first.tuned, last.tuned)


def test_an_iteration_makes_every_update_and_counts_every_episode(history):
    for row in history[1]:
        assert row["num_updates"] == 4  # 2 epochs of 32 pairs in batches of 16
        assert row["num_episodes"] == 16  # each chunk is an episode
        assert row["reward"] == pytest.approx(row["episode_return"], rel=1e-5)
        assert np.isfinite(list(row.values())).all()


@pytest.fixture(scope="module")
def single_update():
    """State and metrics after one update, with the critic's gradient cut to 1e-3."""
    changes = dict(batch_size=32, epochs=1, critic__max_grad_norm=1e-3)
    state, (row,) = tiny.run(tiny.make_tiny_ppo(**changes), 1)
    return state, row


def test_ratios_are_one_in_the_first_update(single_update):
    """Before any optimizer step all ratios are one and nothing is clipped."""
    row = single_update[1]
    assert row["num_updates"] == 1
    assert row["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert row["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert row["clip_fraction"] == 0.0


@pytest.mark.slow
def test_jit_changes_nothing():
    """A scan is slow without jit: use one environment, one chunk and two updates."""
    changes = dict(num_envs=1, num_chunks=2, batch_size=4, epochs=1)
    small = tiny.make_tiny_ppo(normalize_advantage=False, **changes)
    state = small.init(jax.random.key(0))
    jitted, metrics = jax.jit(small.step)(state)
    with jax.disable_jit():
        plain, plain_metrics = small.step(state)
    for a, b in zip(*(jax.tree.leaves(s.params.tuned) for s in (jitted, plain))):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    for name in metrics:
        np.testing.assert_allclose(
            metrics[name], plain_metrics[name], rtol=1e-3, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("annealed", [False, True])
def test_micro_batches_change_only_rounding(annealed):
    """With annealed K' some micro-batches hold more pairs that count than others. The
    other case is a Gaussian policy, because its entropy changes."""
    policy = None
    if annealed:
        changes = dict(tuned_steps_drop=1, tuned_steps_every=1)
    else:
        policy = tiny.tiny_gaussian_policy(learn_fixed_std=True)
        changes = dict(entropy_coef=0.5, num_chunks=8)
    changes |= dict(batch_size=32, epochs=1, value_clip=0.1)
    # Compare Adam's first moments, which are gradients. Parameters would also depend on
    # gradients that are rounding errors, because Adam divides by their size.
    (whole, whole_rows), (parts, rows) = (
        tiny.run(tiny.make_tiny_ppo(policy, **changes, micro_batch_size=size), 2)
        for size in (32, 4)
    )
    for name in ("actor_optimizer", "critic_optimizer"):
        a, b = (
            next(x for x in getattr(state, name) if hasattr(x, "mu")).mu
            for state in (whole, parts)
        )
        for a, b in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    for a, b in zip(whole_rows, rows):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def gradients(state):
    """A tenth of the gradients of the first update: the first moments of Adam."""
    adams = (
        next(x for x in optimizer if hasattr(x, "mu"))
        for optimizer in (state.actor_optimizer, state.critic_optimizer)
    )
    return jax.tree.leaves([adam.mu for adam in adams])


@functools.cache
def first_update(annealed, **mode):
    """State and metrics after one update from all 32 pairs."""
    changes = dict(batch_size=32, epochs=1, advantage_quantiles=(0.1, 0.9)) | mode
    if annealed:
        changes |= dict(tuned_steps_drop=1, tuned_steps_every=1)
    return tiny.run(tiny.make_tiny_ppo(**changes), 1)


@pytest.mark.parametrize(
    "annealed, changes",
    [
        (False, dict(minibatch="chain")),
        (False, dict(minibatch="chain", micro_batch_size=8)),
        (True, dict(minibatch="chain", micro_batch_size=8)),
    ],
    ids=str,
)
def test_pairs_and_chains_in_one_minibatch_give_the_same_gradient(annealed, changes):
    """With all 32 pairs in one minibatch both modes compute the same mean."""
    (pair, pair_rows), (state, rows) = (
        first_update(annealed, **mode) for mode in ({}, changes)
    )
    for a, b in zip(gradients(pair), gradients(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    assert rows[0] == pytest.approx(pair_rows[0], rel=1e-3, abs=1e-5)


def test_minibatches_of_chains_see_every_environment_step_with_all_its_moves():
    """16 environment steps in minibatches of 8 pairs, which are 4 steps."""
    state, (row,) = run_table((99,), minibatch="chain", batch_size=8)
    assert row["num_updates"] == 4
    assert (state.params.tuned != 0).all()


def test_the_critic_learns_alone_during_its_warm_up():
    warm = tiny.make_tiny_ppo(critic_warmup=2)
    programs, state = tiny.compiled(warm), warm.init(jax.random.key(0))
    for iteration in range(3):
        following, _ = tiny.iterate(programs, state)
        assert not tiny.same(following.critic_params, state.critic_params)
        frozen = tiny.same(
            (following.params, following.actor_optimizer),
            (state.params, state.actor_optimizer),
        )
        assert frozen == (iteration < 2)
        state = following


def test_a_kl_beyond_its_target_ends_the_updates_of_an_iteration():
    """The first update has a KL of zero; a huge step makes the second exceed it."""
    changes = dict(target_kl=1e-4, epochs=8, actor__learning_rate=0.3)
    changes |= dict(actor__min_learning_rate=0.3, batch_size=32)
    _, (row, _) = tiny.run(tiny.make_tiny_ppo(**changes), 2)
    assert row["num_updates"] == 2
    # A mean over both updates, of which the first has 0.
    assert row["approx_kl"] > 1e-4 / 2


def test_a_nan_in_one_update_shows_in_the_metrics(algorithm):
    """After a step of an endless size the gradients of the others are not finite."""
    state = algorithm.init(jax.random.key(0))
    endless = (
        (
            x._replace(mu=jax.tree.map(lambda m: m + jnp.inf, x.mu))
            if hasattr(x, "mu")
            else x
        )
        for x in state.actor_optimizer
    )
    _, metrics = algorithm.step(state._replace(actor_optimizer=tuple(endless)))
    assert not np.isfinite(metrics["params_change"])
    assert metrics["skipped_updates"] == metrics["num_updates"] - 1


def test_annealing_freezes_a_copy_of_the_tuned_network(annealed):
    """After two iterations one of two moves is dropped; the other stays tuned."""
    states, _ = annealed
    assert [int(s.params.num_active) for s in states] == [2, 2, 1, 1, 1, 1, 1]
    for done, (state, following) in enumerate(zip(states, states[1:]), start=1):
        moved = not tiny.same(following.params.base, state.params.base)
        assert moved == (done == 2)
        if moved:
            assert tiny.same(following.params.base, following.params.tuned)


def test_the_sampling_floor_is_annealed(annealed):
    expected = [0.1, 0.08, 0.06, 0.04, 0.02, 0.02]
    assert [row["min_std"] for row in annealed[1]] == pytest.approx(expected)


@pytest.fixture(scope="module")
def annealed():
    """Six iterations in which K' and the sampling floor fall."""
    algorithm = tiny.make_tiny_ppo(
        tuned_steps_drop=1, tuned_steps_every=2, min_std_end=0.02, min_std_steps=4
    )
    programs = tiny.compiled(algorithm)
    state = algorithm.init(jax.random.key(0))
    states, rows = [state], []
    for _ in range(6):
        state, metrics = tiny.iterate(programs, state)
        states.append(state)
        rows.append({name: float(value) for name, value in metrics.items()})
    assert [program._cache_size() for program in programs] == [1, 1]
    return states, rows


@pytest.mark.parametrize("reset", [True, False])
def test_episodes_go_on_across_iterations_unless_they_are_reset(reset):
    """Episodes have 8 chunks and iterations 4: without resets episodes end in every
    second iteration, with resets never."""
    env = tiny.point_env(4, lengths=(99,), max_steps=16)
    algorithm = tiny.make_tiny_ppo(env=env, reset_at_iteration=reset)
    state, rows = tiny.run(algorithm, 4)
    ended = [row["num_episodes"] for row in rows]
    assert ended == ([0, 0, 0, 0] if reset else [0, 4, 0, 4])
    assert np.isnan(rows[0]["episode_return"])
    np.testing.assert_array_equal(state.first, 0.0 if reset else 1.0)


def test_gradients_are_clipped_to_their_norm(single_update, history):
    """Adam's moments show the size of the gradients after clipping."""

    def moment(state):
        adam = next(s for s in state.critic_optimizer if hasattr(s, "mu"))
        return np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(adam.mu)))

    assert moment(history[0][1]) > 1e-2
    np.testing.assert_allclose(moment(single_update[0]), 0.1 * 1e-3, rtol=1e-3)


def test_training_starts_from_the_parameters_it_is_given(algorithm, history):
    last = history[0][-1]
    state = algorithm.init(jax.random.key(0), last.params, last.critic_params)
    assert tiny.same(state.params, last.params)
    assert tiny.same(state.critic_params, last.critic_params)
    np.testing.assert_array_equal(state.first, 1.0)


def test_penalties_join_the_loss_and_are_reported():
    """Without a learning signal only the cloning penalty is minimised."""
    changes = dict(clone_coef=1.0, entropy_coef=0.5)
    _, rows = tiny.run(tiny.make_tiny_ppo(tiny.tiny_gaussian_policy(), **changes), 1)
    assert rows[0]["entropy"] == pytest.approx(
        np.log(0.2 * np.sqrt(2 * np.pi * np.e)), rel=1e-4
    )
    assert np.isfinite(rows[0]["cloning_penalty"])


@pytest.mark.parametrize("kind", ["diffusion", "gaussian"])
def test_both_kinds_of_policy_learn_where_the_reward_is(kind):
    """One-step episodes with reward -(a - 0.5)^2; both start away from 0.5."""
    if kind == "diffusion":
        policy = tiny.tiny_diffusion_policy()
    else:
        policy = tiny.tiny_gaussian_policy()
    changes = dict(num_envs=64, batch_size=128, epochs=4, clip_top=0.2, clip_base=0.2)
    _, rows = tiny.run(tiny.make_tiny_ppo(policy, **changes), 15)
    before, after = (
        np.mean([row["reward"] for row in r]) for r in (rows[:2], rows[-2:])
    )
    # The spread of exploration alone costs about 2 x 0.1 x 0.1 or 0.04.
    assert after > 0.6 * before and after > before + 0.05


def table_policy() -> ChainPolicy:
    """Always returns 0; one parameter per observed step count (0, 2, 4, 6) and move."""

    def init(key, obs):
        table = jnp.zeros((4, tiny.NUM_TUNED))
        return PolicyParams(table, table)

    def sample(params, keys, obs, *, min_std):
        chain = jnp.zeros((len(keys), tiny.NUM_TUNED + 1, tiny.CHUNK, 1))
        return Sample(chain, jnp.zeros((len(keys), tiny.NUM_TUNED, tiny.CHUNK, 1)))

    def entries(log_prob):
        return jnp.broadcast_to(
            log_prob[..., None, None], (*log_prob.shape, tiny.CHUNK, 1)
        )

    def log_prob(params, x, next_x, obs, step):
        return entries(params[(obs["state"][:, 0, 1] / 2).astype(jnp.int32), step])

    def chain_log_prob(params, chain, obs):
        return entries(params[(obs["state"][:, 0, 1] / 2).astype(jnp.int32)])

    return tiny.tiny_diffusion_policy()._replace(
        init=init, sample=sample, log_prob=log_prob, chain_log_prob=chain_log_prob
    )


class StepsCritic(NamedTuple):
    """V(s) is the number of control steps taken and ignores the parameters."""

    def init(self, key, obs):
        return jnp.zeros(())

    def apply(self, params, obs):
        return obs["state"][:, 0, 1] + 0 * params


@functools.cache
def run_table(lengths, **changes):
    """One iteration over one whole episode: 4 chunks from 0, 2, 4 and 6 steps."""
    env = tiny.point_env(4, lengths=lengths, max_steps=8)
    settings = dict(scale_rewards=False, epochs=1) | changes
    return tiny.run(
        tiny.make_tiny_ppo(table_policy(), env, StepsCritic(), **settings), 1
    )


# Advantages look no further than the next chunk.
NEXT_CHUNK = dict(gae_lambda=0.0, discount=0.5)


def test_every_pair_of_step_and_move_enters_the_update():
    """A parameter changes only if its pair was in a minibatch."""
    state, (row,) = run_table((99,), **NEXT_CHUNK)
    assert row["num_updates"] == 2
    assert (state.params.tuned != 0).all()


@pytest.mark.parametrize("ends", [True, False])
def test_advantages_bootstrap_from_the_next_observation(ends):
    """With lambda = 0 an advantage is r + discount V(s') - V(s), and the critic's
    loss is half its mean square. V(s') counts 0 only where the task itself ended."""
    _, (row,) = run_table((8 if ends else 99,), **NEXT_CHUNK)
    reward = -2 * tiny.GOAL**2  # two actions of zero
    steps = np.array([0, 2, 4, 6])
    advantage = reward + 0.5 * (steps + 2) * [1, 1, 1, 1 - ends] - steps
    assert row["value_loss"] == pytest.approx(0.5 * (advantage**2).mean(), rel=1e-5)
    assert row["num_episodes"] == 4
