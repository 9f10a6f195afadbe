import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.rollout import rollout
from dppo_jax.types import Sample
from tests import tiny


def constant(key, obs):
    """Three actions, of which the environment executes two."""
    batch = obs["state"].shape[0]
    chain = jnp.broadcast_to(jnp.array([0.1, 0.2, 0.9]), (batch, 3))[:, None, :, None]
    return Sample(jnp.concatenate([0 * chain, chain], axis=1), jnp.zeros((batch, 1)))


def run(act, num_steps=3, lengths=(3,)):
    env = tiny.point_env(2, lengths=lengths)
    return rollout(env, act, env.reset(jax.random.key(0)), jax.random.key(1), num_steps)


def test_a_roll_out_executes_the_start_of_every_chunk_and_records_what_follows():
    state, transitions, metrics = run(constant)
    # Episodes of 3 control steps: a chunk of two, then a chunk cut after one.
    np.testing.assert_array_equal(transitions.terminated[:, 0], [0, 1, 0])
    reward = -np.array([0.4**2 + 0.3**2, 0.4**2, 0.4**2 + 0.3**2])
    np.testing.assert_allclose(transitions.reward[:, 0], reward, rtol=1e-5)
    np.testing.assert_allclose(
        transitions.next_obs["state"][:, 0, 0], [[0.2, 2], [0.1, 3], [0.2, 2]]
    )
    assert transitions.chain.shape == (3, 2, 2, 3, 1)
    np.testing.assert_allclose(metrics["episode_return"][1], reward[:2].sum(), 1e-5)


def test_the_next_observation_is_acted_on_unless_an_episode_ended():
    state, transitions, _ = run(constant)
    obs, following = transitions.obs["state"], transitions.next_obs["state"]
    np.testing.assert_array_equal(obs[1], following[0])
    np.testing.assert_array_equal(obs[2], jnp.zeros_like(obs[2]))  # a new episode
    np.testing.assert_array_equal(state.obs["state"], following[-1])


def test_two_halves_make_a_whole():
    env = tiny.point_env(2, lengths=(3,))
    start, keys = env.reset(jax.random.key(0)), jax.random.split(jax.random.key(1))
    whole = rollout(env, constant, start, keys[0], 4)[1]
    state, first, _ = rollout(env, constant, start, keys[0], 2)
    _, second, _ = rollout(env, constant, state, keys[1], 2)
    for a, b, c in zip(*(jax.tree.leaves(x) for x in (whole, first, second))):
        np.testing.assert_array_equal(a, jnp.concatenate([b, c]))


def test_every_step_draws_from_a_key_of_its_own():
    def random(key, obs):
        chain = jax.random.normal(key, (2, 2, tiny.CHUNK, 1))
        return Sample(chain, jnp.zeros((2, 1)))

    chain = np.asarray(run(random, num_steps=5)[1].chain)
    assert len(np.unique(chain)) == chain.size
