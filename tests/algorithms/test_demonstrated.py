"""What RLPD, Cal-QL and IBRL have in common: data, ensembles, resuming, settings."""

import jax
import numpy as np
import pytest

from dppo_jax.algorithms import ALGORITHMS
from dppo_jax.demonstrations.transitions import transitions_of
from dppo_jax.learning import offline_data
from dppo_jax.networks import StateActionCritic
from dppo_jax.networks.build_encoder import make_state_action_critic
from tests import demonstrated, tiny
from tests.demonstrated import MODULES

NAMES = tuple(MODULES)


def values_of_members(state, num_critics):
    """[N, B] of made-up rows."""
    draws = np.random.default_rng(1)
    obs = {"state": draws.normal(size=(6, 1, 2)).astype(np.float32)}
    action = draws.uniform(-1, 1, (6, tiny.CHUNK, tiny.ACTION_DIM)).astype(np.float32)
    critic = StateActionCritic(
        (16,), activation="relu", layer_norm=True, num_critics=num_critics
    )
    return np.asarray(critic.apply(state.learner.critic.params, obs, action))


@pytest.mark.parametrize(
    "name", ["calql", "ibrl", pytest.param("rlpd", marks=pytest.mark.slow)]
)
def test_it_solves_the_point_task_with_critics_that_stay_different(name):
    """Reward -(a - 0.5)^2, also of the demonstrations; phases compile once."""
    data = demonstrated.demonstrations()
    rewards = -((data.actions[:, 0] - tiny.GOAL) ** 2)
    algorithm = demonstrated.make(
        name,
        tiny.point_env(4, lengths=(2,)),
        data=data._replace(rewards=rewards),
        num_critics=3,
        replay__batch_size=32,
        actor__learning_rate=1e-2,
        critic__learning_rate=1e-2,
        **({} if name == "ibrl" else {"initial_temperature": 0.1}),
        **({"penalty_weight": 1.0} if name == "calql" else {}),
    )
    state, rows, phases = demonstrated.run(name, algorithm, 40)
    assert sum(row["num_updates"] for row in rows) >= 600
    assert [phase._cache_size() for phase in phases] == [1, 1]
    assert all(np.isfinite(row[key]) for row in rows for key in algorithm.finite)
    keys, obs = jax.random.split(jax.random.key(0), 1), {"state": np.zeros((1, 1, 2))}
    params = algorithm.params(state)
    action, _ = algorithm.act(params, keys, obs, deterministic=True)
    np.testing.assert_allclose(action, tiny.GOAL, atol=0.25)
    value = values_of_members(state, 3)
    assert (np.abs(value[:, None] - value[None]) + np.eye(3)[..., None] > 1e-4).all()
    assert tiny.same(state.offline, demonstrated.start(name, algorithm).offline)


@pytest.mark.parametrize("name", ["rlpd", pytest.param("ibrl", marks=pytest.mark.slow)])
def test_members_of_the_reference_stay_equal(name):
    algorithm = demonstrated.make(
        name, num_critics=3, reference_quirks=("same_initialisation",)
    )
    state, _, _ = demonstrated.run(name, algorithm, 2)
    value = values_of_members(state, 3)
    np.testing.assert_allclose(value, value[:1].repeat(3, 0), atol=1e-5)
    before = values_of_members(demonstrated.start(name, algorithm), 3)
    assert np.abs(value - before).max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"reference_quirks": ("sane",)},
            "reference_quirks has 'sane', which is unknown; use some of ",
        ),
        ({"discount": 1.1}, r"discount=1.1 must be between"),
        ({"reward_scale": 0.0}, "reward_scale=0.0 must be positive"),
        ({"target_rate": 0.0}, "target_rate=0.0"),
        ({"actor_updates": 0}, "actor_updates=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(name, changes, message):
    with pytest.raises(ValueError, match=f"{name}.{message}"):
        demonstrated.make(name, **changes)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("rlpd", {"actor_value": "max"}, "rlpd.actor_value='max' must be one of"),
        ("rlpd", {"target_critics": 11}, "between 1 and num_critics=10"),
        ("rlpd", {"replay__num_groups": 0}, "num_groups=0"),
        ("calql", {"offline_iterations": -1}, "offline_iterations=-1"),
        ("calql", {"offline_updates": 0}, "offline_updates=0 must be a multiple"),
        ("calql", {"backup_actions": 0}, "backup_actions=0 must be at least 1"),
        ("calql", {"penalty_weight": -1.0}, "penalty_weight=-1.0"),
        ("ibrl", {"beta": 0.0}, "ibrl.beta=0.0 must be positive; use None"),
        ("ibrl", {"replay__capacity": 20}, "transitions .* do not fit .*capacity=20"),
    ],
)
def test_settings_of_one_algorithm_that_cannot_work_are_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        demonstrated.make(name, **changes)


@pytest.mark.parametrize("name", NAMES)
def test_policies_that_do_not_fit_are_refused(name):
    kind = "gaussian" if name == "ibrl" else "squashed"
    with pytest.raises(ValueError, match=f"model.kind='{kind}'"):
        demonstrated.make(name, policy=tiny.tiny_diffusion_policy())
    env = tiny.point_env(4)._replace(action_shape=(1, tiny.ACTION_DIM))
    algorithm = demonstrated.make(name, env)
    with pytest.raises(ValueError, match=r"\(2, 1\), but the environment .* \(1, 1\)"):
        demonstrated.start(name, algorithm)


@pytest.mark.parametrize("name", NAMES)
def test_data_that_cannot_be_used_are_refused_by_name(name, capsys):
    entry = ALGORITHMS[name]
    assert entry.uses_data
    config = demonstrated.configuration(name)
    given = tiny.point_env(4), demonstrated.policy_of(name), config
    with pytest.raises(ValueError, match=f"{name} learns from demonstrations and got"):
        entry.make(*given)
    data = demonstrated.demonstrations(rewards=None)
    with pytest.raises(ValueError, match=f"{name} needs demonstrations with rewards"):
        entry.make(*given, data)
    data = demonstrated.demonstrations()
    data = data._replace(observations={"state": np.ones((len(data.actions), 3))})
    with pytest.raises(ValueError, match=r"state of shape \(1, 3\).* \(1, 2\)"):
        entry.make(*given, data)
    assert not capsys.readouterr().out
    entry.make(*given, demonstrated.demonstrations(terminals=None))
    assert "no terminals" in capsys.readouterr().out


def test_ibrl_needs_a_cloned_policy():
    with pytest.raises(ValueError, match="cloned Gaussian policy and got none"):
        demonstrated.make("ibrl").init(jax.random.key(0))


def test_half_of_a_batch_are_demonstrations_and_all_of_them_offline(monkeypatch):
    """Demonstrated rewards are positive, those of the task are not. Nothing learns."""

    def shares(batches):
        given = (batches.reward > 0).mean(1)
        return {"least": given.min(), "most": given.max()}

    seen = {}
    for name in ("rlpd", "calql"):
        demonstrated.without_learning(name, monkeypatch, shares)
        _, rows, _ = demonstrated.run(name, demonstrated.make(name), 3)
        seen[name] = [(row["least"], row["most"]) for row in rows]
    assert seen["rlpd"] == [(0.5, 0.5)] * 3
    assert seen["calql"] == [(1.0, 1.0)] * 2 + [(0.5, 0.5)]


def test_the_buffer_of_ibrl_starts_with_the_demonstrations():
    algorithm = demonstrated.make("ibrl")
    state = demonstrated.start("ibrl", algorithm)
    # The last action of the three episodes that were cut off has no next observation.
    num = demonstrated.NUM_DEMONSTRATIONS * demonstrated.LENGTH - 3
    assert state.replay.size.sum() == num and state.offline is None
    reward = np.asarray(state.replay.items.reward)
    for ring, size in zip(reward, np.asarray(state.replay.size)):
        slot = np.arange(int(state.replay.head) - size, int(state.replay.head))
        assert (ring[slot] > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_discount_of_the_settings_is_the_one_in_the_target(name):
    """With a discount of zero, all values become rewards, of at most one."""
    changes = {"penalty_weight": 0.0} if name == "calql" else {}
    config = demonstrated.configuration(name, critic__learning_rate=0.0, **changes)
    env, policy = tiny.point_env(4), demonstrated.policy_of(name)
    settings = config.algorithm[name]
    critic = make_state_action_critic(config.critic, num_critics=settings.num_critics)
    given = transitions_of(
        env, demonstrated.demonstrations(), algorithm=name, discount=0.99
    )
    items = offline_data.as_items(given, with_returns=name == "calql")
    batches = jax.tree.map(lambda x: x[None, :8], items)

    @jax.jit
    def loss(discount, state):
        with settings.ignore_type():
            settings.discount = discount  # Traced: one program for both.
        learner = MODULES[name].make_learner(env, policy, critic, settings)
        return learner.update(state, batches, jax.random.key(1))[1]["critic_loss"]

    state = demonstrated.start(name, demonstrated.make(name)).learner
    state = state._replace(target=jax.tree.map(lambda x: x + 0.3, state.target))
    near, far = (float(loss(discount, state)) for discount in (0.0, 0.99))
    assert abs(near - far) > 0.1 * near
