"""A policy that is steered by the noise that its chains start from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.policies import scaled_policy, squashed_policy, steered_policy
from dppo_jax.policies.steered import SteeredParams
from tests import tiny
from tests.tiny_regression import decoder

DECODERS = {
    "DDIM": decoder,
    "a flow": lambda: tiny.tiny_flow_policy(has_noise_network=False),
}
NOISE = jax.random.normal(jax.random.key(3), (3, tiny.CHUNK, tiny.ACTION_DIM))


def params_of(policy):
    """Parameters whose output depends on everything, the frozen ones others."""
    params = policy.init(jax.random.key(0), tiny.OBS)
    return params._replace(
        base=jax.tree.map(lambda x: x + 0.1, params.base),
        tuned=jax.tree.map(lambda x: x - 0.1, params.tuned),
    )


@pytest.mark.parametrize("kind", DECODERS)
def test_decoding_is_the_deterministic_mode_of_a_given_start(kind):
    """The same start gives the same bits; N(0, I) gives the policy's own actions."""
    policy = DECODERS[kind]()
    params, decode = params_of(policy), jax.jit(policy.decode)
    action = decode(params, tiny.OBS, NOISE)
    np.testing.assert_array_equal(action, decode(params, tiny.OBS, NOISE))
    assert not np.allclose(action, decode(params, tiny.OBS, NOISE + 0.1))
    keys = jax.random.split(jax.random.key(1), 3)
    acted, sample = policy.act(params, keys, tiny.OBS, deterministic=True)
    if sample.chain.shape[1] == 3:  # All moves are tuned: the chain shows its start.
        start = sample.chain[:, 0]
        np.testing.assert_allclose(decode(params, tiny.OBS, start), acted, rtol=1e-5)
    draws = jax.vmap(lambda key: jax.random.normal(key, (3, *NOISE.shape[1:])))(keys)
    np.testing.assert_allclose(
        decode(params, tiny.OBS, draws[:, 0]), acted, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "policy",
    [
        tiny.tiny_diffusion_policy(),  # DDPM
        tiny.tiny_gaussian_policy(),
        tiny.tiny_gmm_policy(),
        tiny.tiny_squashed_policy(),
    ],
)
def test_policies_that_draw_more_than_their_start_are_refused(policy):
    with pytest.raises(ValueError, match="model.sampling.ddim_steps set"):
        steered_policy(policy, tiny.tiny_squashed_policy())


def test_no_gradient_goes_through_the_frozen_policy():
    subject = steered_policy(decoder(), tiny.tiny_squashed_policy())
    params = params_of(decoder())
    inputs = (params, NOISE)

    def scalar(inputs, decode):
        return (decode(inputs[0], tiny.OBS, inputs[1]) ** 2).sum()

    through = jax.grad(scalar)(inputs, decoder().decode)
    blocked = jax.grad(scalar)(inputs, subject.decode)
    assert any(x.any() for x in jax.tree.leaves(through))
    assert not any(x.any() for x in jax.tree.leaves(blocked))


class Wide:
    """A network whose mean and standard deviation are parameters."""

    def init(self, key, obs):
        return jnp.array([0.3, 1.2])

    def apply(self, params, obs):
        shape = (len(obs["state"]), 1, 1)
        return jnp.full(shape, params[0]), jnp.full(shape, params[1])


def test_the_density_of_scaled_noise_integrates_to_one_within_its_bound():
    bound = 1.5
    policy = scaled_policy(squashed_policy(Wide()), bound)
    start = jnp.linspace(-bound, bound, 4001)[1:-1]
    obs = {"state": jnp.zeros((len(start), 1, 1))}
    params, keys = policy.init(None, obs), jax.random.split(jax.random.key(0), 3999)
    density = jnp.exp(-policy.clone_loss(params, keys, obs, start[:, None, None]))
    np.testing.assert_allclose(density.sum() * (start[1] - start[0]), 1, rtol=1e-3)
    drawn, log_prob = policy.sample(params, keys, obs)
    assert (abs(drawn) <= bound).all() and abs(drawn).max() > 1.3
    given = policy.clone_loss(params, keys, obs, drawn)
    np.testing.assert_allclose(log_prob, -given, atol=2e-2)
    median, _ = policy.act(params, keys, obs, deterministic=True)
    np.testing.assert_allclose(median, bound * np.tanh(0.3), rtol=1e-6)


def test_it_acts_by_decoding_what_its_actor_draws():
    noise = scaled_policy(tiny.tiny_squashed_policy(), 2.0)
    subject = steered_policy(decoder(), noise)
    keys = jax.random.split(jax.random.key(1), 3)
    params = subject.init(jax.random.key(0), tiny.OBS)
    assert isinstance(params, SteeredParams)
    for mode in (False, True):
        action, start = subject.act(params, keys, tiny.OBS, deterministic=mode)
        expected, _ = noise.act(params.actor, keys, tiny.OBS, deterministic=mode)
        np.testing.assert_array_equal(start, expected)
        np.testing.assert_allclose(
            action, decoder().decode(params.decoder, tiny.OBS, start), rtol=1e-6
        )
