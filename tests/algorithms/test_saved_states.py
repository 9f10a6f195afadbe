"""What an algorithm continues from is saved whole, bit for bit.

An iteration is a function of the training state alone, so this makes a resumed run
equal to an uninterrupted one. `test_loop` and `test_sac` interrupt whole runs; so do
the slow tests of the other algorithms.
"""

import functools

import jax
import numpy as np
import pytest

from dppo_jax.training.checkpoint import Checkpoints
from tests import demonstrated, tiny
from tests.tiny_regression import make_tiny_dawr, make_tiny_drwr, make_tiny_dsrl

MAKE = {
    "drwr": make_tiny_drwr,
    "dawr": make_tiny_dawr,
    "dsrl": make_tiny_dsrl,
    "ppo_exact": tiny.make_tiny_exact,
    "fpo": tiny.make_tiny_fpo,
    **{
        name: functools.partial(tiny.make_tiny_diffusion_q, name)
        for name in ("idql", "dql", "qsm")
    },
    "dipo": lambda: tiny.make_tiny_diffusion_q("dipo"),
    # With the returns of stored chunks, which decide what is cloned.
    "ogpo": lambda: tiny.make_tiny_diffusion_q("ogpo", clone_coef=0.5),
    "rlpd": lambda: demonstrated.make("rlpd"),
    "calql": lambda: demonstrated.make("calql"),
    "ibrl": lambda: demonstrated.make("ibrl"),
}


def random_state(shapes, seed):
    """A state whose leaves differ, and which no compiled program made."""
    draws = np.random.default_rng(seed)

    def leaf(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            shape = jax.eval_shape(jax.random.key_data, x).shape
            bits = draws.integers(0, 2**32, shape, np.uint32)
            return jax.random.wrap_key_data(bits)
        # Truth values of two states must differ somewhere.
        end = 2 if x.dtype == bool else 200
        return np.asarray(draws.integers(0, end, x.shape)).astype(x.dtype)

    return jax.tree.map(leaf, shapes)


@pytest.mark.parametrize("name", MAKE)
def test_a_training_state_returns_whole(name, tmp_path):
    algorithm = MAKE[name]()
    shapes = jax.eval_shape(lambda: demonstrated.start(name, algorithm))
    state, other = (random_state(shapes, seed) for seed in (0, 1))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, algorithm.params(state), tiny.NORMALIZER)
    with Checkpoints(tmp_path) as checkpoints:
        assert tiny.same(checkpoints.restore(other), state)
