"""PPO with a penalty on the KL divergence of chains, or a gate (arXiv 2606.15260)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.algorithms.ppo.gradients import Moves, make_gradients
from dppo_jax.errors import SettingsError
from dppo_jax.learning.chain_losses import mean_log_prob
from tests import tiny

OBS = tiny.OBS

CHAINS = dict(minibatch="chain", batch_size=32)
MAKE = {
    "diffusion": lambda **changes: tiny.make_tiny_ppo(**(CHAINS | changes)),
    "flow": lambda **changes: tiny.make_tiny_ppo(
        tiny.tiny_flow_policy(), **(CHAINS | tiny.FLOW_PPO | changes)
    ),
    "Gaussian": lambda **changes: tiny.make_tiny_ppo(
        tiny.tiny_gaussian_policy(), **(dict(batch_size=16) | changes)
    ),
}


def products(function, *inputs):
    """Matrix products in a program, wherever they stand, and what it returns."""

    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*inputs)
    return str(jaxpr).count("dot_general["), shapes


def halves(make, **changes):
    """Products in the roll-out and in the updates, and the data between the two."""
    algorithm = make(**changes)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    collect, learn = algorithm.phases
    collected, (state, steps, metrics) = products(collect, state)
    learned, _ = products(learn, state, steps, metrics)
    return collected, learned, steps


@pytest.mark.parametrize("name", MAKE)
def test_only_who_asks_for_it_pays_for_it(name):
    """Without it nothing is kept. With it, the roll-out evaluates the tuned moves once
    more, and the updates evaluate nothing more than they do anyway."""
    collected, learned, steps = halves(MAKE[name])
    more_collected, more_learned, kept = halves(MAKE[name], chain_kl__coef=1.0)
    assert steps.moments is None
    rows, num_entries, *shape = kept.chain.shape
    assert kept.moments.mean.shape == (rows, num_entries - 1, *shape)
    assert more_learned == learned and more_collected > collected


@pytest.mark.parametrize(
    "name",
    [
        "diffusion",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("flow", "Gaussian")),
    ],
)
def test_before_the_first_update_it_is_zero_and_pulls_nowhere(name):
    once = dict(epochs=1, batch_size=16 if name == "Gaussian" else 32)
    plain, (plain_row,) = tiny.run(MAKE[name](**once), 1)
    state, (row,) = tiny.run(MAKE[name](**once, chain_kl__coef=1.0), 1)
    assert row["num_updates"] == 1
    assert row["chain_kl"] == pytest.approx(0, abs=1e-8)
    assert "chain_kl" not in plain_row

    def gradient(state):
        return next(x for x in state.actor_optimizer if hasattr(x, "mu")).mu

    for a, b in zip(*(jax.tree.leaves(gradient(x)) for x in (plain, state))):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_it_keeps_chains_near_those_of_the_roll_out():
    changes = dict(epochs=10, clip_top=0.5, clip_base=0.5, chain_kl__limit=1e-2)
    (_, free), (_, near) = (
        tiny.run(MAKE["flow"](**changes, chain_kl__coef=coef), 2)
        for coef in (1e-6, 10.0)
    )
    for before, after in zip(free, near):
        assert after["chain_kl"] < 0.5 * before["chain_kl"]
        assert 0 < after["gated_fraction"] < before["gated_fraction"]


def test_moves_that_are_no_longer_tuned_do_not_count():
    """With K' = 1 of two moves, the first one belongs to another network."""
    policy = tiny.tiny_diffusion_policy()
    params = policy.init(jax.random.key(0), OBS)._replace(num_active=jnp.int32(1))
    chain, log_prob = policy.sample(params, jax.random.split(jax.random.key(1), 3), OBS)
    new = policy.chain_moments(params.tuned, chain, OBS)
    apart = jnp.array([10.0, 0.1])[:, None, None]
    moves = Moves(
        obs=OBS,
        chain=chain,
        step=jnp.tile(jnp.arange(2), (3, 1)),
        old_log_prob=mean_log_prob(log_prob),
        advantage=jnp.ones((3, 2)),
        old_moments=new._replace(mean=new.mean + apart * new.std),
    )
    config = tiny.tiny_ppo_config(
        **{"minibatch": "chain", "batch_size": 6, "chain_kl.coef": 1.0}
    )
    gradients = make_gradients(policy, tiny.tiny_critic(), config, mean=mean_log_prob)
    _, metrics = jax.jit(gradients.actor)(params, moves, jax.random.key(2))
    entries = tiny.CHUNK * tiny.ACTION_DIM
    assert metrics["chain_kl"] == pytest.approx(entries * 0.5 * 0.1**2, rel=1e-3)


@pytest.mark.parametrize(
    "policy, changes, message",
    [
        (None, dict(coef=-1.0), "chain_kl.coef=-1.0 must not be negative"),
        (None, dict(coef=1.0, limit=0.0), "limit=0.0 must be positive; use None"),
        (None, dict(limit=0.1), "chain_kl.limit=0.1 .* positive number, or"),
        (None, dict(coef=1.0), "minibatch='pair' .*set minibatch='chain'"),
        (tiny.tiny_gmm_policy, dict(coef=1.0), "mixture are not; set chain_kl.coef=0"),
    ],
)
def test_what_has_no_such_divergence_is_refused_by_name(policy, changes, message):
    with pytest.raises(SettingsError, match=message):
        changes = {f"chain_kl__{name}": value for name, value in changes.items()}
        tiny.make_tiny_ppo(policy and policy(), **changes)
