import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.algorithms import clone as pretrain
from dppo_jax.demonstrations.dataset import Episodes, windows
from dppo_jax.policies import ChainPolicy, PolicyParams
from tests import tiny

NUM_WINDOWS = 10


def dataset(action=0.5):
    """Two episodes of six steps, five windows each; row i has the state i."""
    num = 12
    state = np.stack([np.arange(num), np.zeros(num)], axis=1).astype(np.float32)
    return windows(
        Episodes(
            observations={"state": state},
            actions=np.full((num, 1), action, np.float32),
            episode_lengths=np.array([6, 6]),
        ),
        chunk=tiny.CHUNK,
    )


def counting_policy() -> ChainPolicy:
    """A policy whose gradient counts how often each state is in a minibatch."""

    def init(key, obs):
        params = jnp.zeros(12)
        return PolicyParams(params, params)

    def clone_loss(params, keys, obs, action):
        return params[obs["state"][:, 0, 0].astype(jnp.int32)]

    def unused(*args, **kwargs):
        raise NotImplementedError

    return tiny.tiny_gaussian_policy()._replace(
        init=init, act=unused, clone_loss=clone_loss, entropy=unused
    )


def make(policy=None, **changes):
    config = pretrain.default_config()
    config.update(batch_size=5, ema_every=1, ema_start=0, warmup_epochs=0)
    config.update(learning_rate=1e-2, min_learning_rate=1e-2)
    config.update(changes)
    policy = tiny.tiny_diffusion_policy() if policy is None else policy
    return pretrain.make_pretrain(policy, dataset(), config)


@pytest.mark.parametrize("batch_size, num_updates", [(5, 2), (4, 3), (64, 1)])
def test_an_epoch_sees_every_window_and_fills_the_last_minibatch(
    batch_size, num_updates
):
    """The gradient is a count, so every parameter that moved was in a minibatch."""
    algorithm = make(counting_policy(), batch_size=batch_size)
    state, (row,) = tiny.run(algorithm, 1)
    assert state.updates == num_updates and state.epoch == 1
    starts = [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]  # of two episodes of six
    moved = np.flatnonzero(np.asarray(state.params))
    np.testing.assert_array_equal(moved, starts)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_updated_every_ema_every_updates(warmup):
    """e <- decay e + (1 - decay) p, after updates 4, 7, ... for every = 3.

    Averaging starts in epoch 3. With a warm-up the decays are 1/10 and 2/11, without
    one 0.15.
    """
    algorithm = make(
        ema_decay=0.15,
        ema_every=3,
        ema_start=3,
        ema_warmup=warmup,
        batch_size=NUM_WINDOWS,
    )
    step = jax.jit(algorithm.step)
    state = algorithm.init(jax.random.key(0))
    decays = {0: 0.0, 3: 1 / 10 if warmup else 0.15, 6: 0.15}
    expected = state.ema
    for update in range(8):
        state, _ = step(state)
        if update in decays:
            decay = decays[update]
            expected = jax.tree.map(
                lambda e, p: decay * e + (1 - decay) * p, expected, state.params
            )
        for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected)):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_loss_of_the_average_is_logged_beside_that_of_the_network():
    """Every minibatch holds each window once, so the loss is the mean of the states."""
    algorithm = make(counting_policy(), batch_size=NUM_WINDOWS, ema_decay=0.9)
    state, rows = tiny.run(algorithm, 3)
    starts = np.array([0, 1, 2, 3, 4, 6, 7, 8, 9, 10])
    np.testing.assert_allclose(rows[-1]["average_loss"], state.ema[starts].mean())
    assert rows[-1]["average_loss"] != rows[-1]["loss"]


def test_the_average_follows_the_network_until_it_starts():
    algorithm = make(ema_start=2, ema_decay=0.9, batch_size=NUM_WINDOWS)
    step = jax.jit(algorithm.step)
    state = algorithm.init(jax.random.key(0))
    for epoch in range(3):
        state, _ = step(state)
        # Epoch 2, counted from 1, is the first with an average.
        assert tiny.same(state.ema, state.params) == (epoch < 1)


def test_cloning_learns_a_constant_action():
    policy = tiny.tiny_diffusion_policy(tiny.NUM_STEPS)
    algorithm = make(policy, ema_decay=0.9)
    state, rows = tiny.run(algorithm, 400)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    obs = {"state": jnp.arange(8.0)[:, None, None] * jnp.array([1.0, 0.0])}
    keys = jax.random.split(jax.random.key(1), 8)
    action, _ = algorithm.act(algorithm.params(state), keys, obs, deterministic=True)
    assert abs(action - 0.5).mean() < 0.2


def test_the_policy_is_the_average():
    algorithm = make(ema_decay=0.9)
    state, _ = tiny.run(algorithm, 2)
    params = algorithm.params(state)
    assert tiny.same(params.base, state.ema) and tiny.same(params.tuned, state.ema)
    assert not tiny.same(state.ema, state.params)


def test_one_program_serves_all_epochs():
    algorithm = make()
    step = jax.jit(algorithm.step)
    state = algorithm.init(jax.random.key(0))
    for _ in range(3):
        state, _ = step(state)
    assert step._cache_size() == 1


def test_an_entropy_bonus_widens_a_gaussian_policy():
    """The data have no spread, so only the bonus keeps the standard deviation large."""

    def entropy_after(coefficient):
        network = tiny.GaussianMLP(
            action_dim=1,
            chunk=tiny.CHUNK,
            hidden_sizes=(16,),
            fixed_std=0.3,
            learn_fixed_std=True,
        )
        policy = tiny.gaussian_policy(network)
        algorithm = make(policy, clone_entropy_coef=coefficient)
        state, _ = tiny.run(algorithm, 30)
        return policy.entropy(state.params, tiny.OBS).mean()

    assert entropy_after(1.5) > entropy_after(0.0) + 0.05


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(batch_size=0), "pretrain.batch_size=0"),
        (dict(ema_every=0), "pretrain.ema_every=0"),
        (dict(ema_decay=1.0), "pretrain.ema_decay=1.0"),
        (dict(warmup_epochs=1000), "pretrain: warmup_steps=1000"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_policy_that_is_no_chain_is_refused():
    with pytest.raises(ValueError, match="SquashedPolicy cannot be cloned"):
        make(tiny.tiny_squashed_policy())
