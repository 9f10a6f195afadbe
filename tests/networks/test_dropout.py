"""Dropout is for cloning, and every row has a key of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.networks import GaussianTransformer
from dppo_jax.networks.dropout import apply_with_dropout, drop
from tests import tiny

B = 400
KEYS = jax.random.split(jax.random.key(1), B)
OBS = {"state": jnp.ones((B, 1, 3))}
RATES = [dict(embedding_dropout=0.5), dict(attention_dropout=0.5)]


class Dropping(nn.Module):
    """The state, with a quarter of its entries dropped."""

    has_dropout = True

    @nn.compact
    def __call__(self, obs):
        return drop(self, 0.25, obs["state"]), obs["state"]


def test_a_share_of_the_entries_is_dropped_and_the_others_grow():
    dropped, whole = apply_with_dropout(Dropping(), {}, KEYS, OBS)
    assert set(np.unique(dropped)) == {0.0, np.float32(4 / 3)}
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=0.05)
    np.testing.assert_array_equal(whole, OBS["state"])


def test_nothing_is_dropped_without_keys():
    np.testing.assert_array_equal(Dropping().apply({}, OBS)[0], OBS["state"])


dropping = jax.jit(apply_with_dropout, static_argnums=0)


def transformer(**rates):
    return GaussianTransformer(
        2, 4, embed_dim=8, num_heads=2, num_layers=1, fixed_std=0.1, **rates
    )


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_a_row_of_a_transformer_depends_on_its_own_key_alone(rates):
    network, plain = transformer(**rates), transformer()
    obs = jax.tree.map(lambda x: x[:3], OBS)
    params = tiny.random_params(plain, obs)
    exact, _ = jax.jit(plain.apply)(params, obs)
    np.testing.assert_array_equal(jax.jit(network.apply)(params, obs)[0], exact)
    mean, _ = dropping(network, params, KEYS[:3], obs)
    assert (mean != exact).any((1, 2)).all() and (mean[0] != mean[1]).any()
    # The other rows get other keys.
    beside, _ = dropping(network, params, KEYS[np.array([0, 4, 5])], obs)
    np.testing.assert_allclose(beside[0], mean[0], rtol=1e-4, atol=1e-6)
    assert (beside[1] != mean[1]).any()
    again, _ = dropping(plain, params, KEYS[:3], obs)
    np.testing.assert_array_equal(again, exact)


def test_only_rates_above_zero_are_dropout():
    assert not transformer().has_dropout
    assert all(transformer(**rates).has_dropout for rates in RATES)
