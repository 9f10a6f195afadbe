"""What the targets of Cal-QL bootstrap."""

import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.algorithms import calql
from dppo_jax.networks import StateActionCritic
from dppo_jax.types import Transition
from tests import tiny


def test_targets_bootstrap_after_a_time_limit_but_not_after_a_termination():
    """Another target network changes the former alone."""
    config = calql.default_config()
    config.update(backup_actions=2, random_actions=2)
    subject = calql.make_learner(
        tiny.point_env(4),
        tiny.tiny_squashed_policy(),
        StateActionCritic((8,), activation="tanh"),
        config,
    )
    state = subject.init(jax.random.key(0), {"state": jnp.zeros((1, 1, 2))})
    other = jax.tree.map(lambda x: 1.5 * x + 0.1, state.target)
    update = jax.jit(subject.update)

    def td_loss(target, terminated):
        batch = Transition(
            obs={"state": jnp.full((1, 2, 1, 2), 0.3)},
            action=jnp.full((1, 2, tiny.CHUNK, tiny.ACTION_DIM), 0.2),
            reward=jnp.ones((1, 2)),
            next_obs={"state": jnp.full((1, 2, 1, 2), -0.4)},
            terminated=jnp.full((1, 2), terminated),
            truncated=jnp.full((1, 2), 1 - terminated),
            extras={"return_to_go": jnp.zeros((1, 2))},
        )
        state_with = state._replace(target=target)
        return update(state_with, batch, jax.random.key(1))[1]["td_loss"]

    assert td_loss(state.target, 1.0) == td_loss(other, 1.0)
    cut, with_other = td_loss(state.target, 0.0), td_loss(other, 0.0)
    assert not np.isclose(cut, with_other) and not np.isclose(cut, td_loss(other, 1.0))
