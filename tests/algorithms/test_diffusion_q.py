"""What IDQL, DQL, QSM, DIPO and OGPO have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.algorithms import ALGORITHMS, dipo, dql, idql, ogpo, qsm
from dppo_jax.diffusion.chain import Sample
from dppo_jax.networks import StateActionCritic, StateCritic
from dppo_jax.policies import ChainPolicy, PolicyParams
from dppo_jax.types import Transition
from tests import tiny
from tests.resuming import resumed

MODULES = {"idql": idql, "dql": dql, "qsm": qsm, "dipo": dipo, "ogpo": ogpo}
CRITIC = StateActionCritic((32,), activation="relu")
VALUE = StateCritic((32,), activation="relu")


def constant_policy() -> ChainPolicy:
    """Actions are always m, of the tuned network; cloning has the loss (m - a)^2."""

    def act(params, keys, obs, *, deterministic=False):
        del deterministic
        shape = (len(keys), tiny.CHUNK, tiny.ACTION_DIM)
        return jnp.full(shape, params.tuned), {}

    def clone_loss(params, keys, obs, action, **options):
        return ((params - action) ** 2).mean((1, 2))

    def sample(params, keys, obs):
        shape = (len(keys), 2, tiny.CHUNK, tiny.ACTION_DIM)
        return Sample(jnp.full(shape, params.tuned), jnp.zeros(shape)[:, 1:])

    return tiny.tiny_diffusion_policy(tiny.NUM_STEPS)._replace(
        init=lambda key, obs: PolicyParams(jnp.float32(0.3), jnp.float32(0.3)),
        act=act,
        sample=sample,
        chain_log_prob=lambda params, chain, obs: params
        * (chain[:, 1:] - chain[:, 1:]),
        clone_loss=clone_loss,
        num_tuned_steps=1,
    )


def learner(name, policy=None, **changes):
    """With learning rates of zero: Adam's moments show the gradients."""
    rates = {"actor__learning_rate": 0.0, "critic__learning_rate": 0.0}
    if name == "ogpo":
        rates |= {"actor_states": 3, "replay__batch_size": 3}
    config = tiny.diffusion_q_config(name, **(rates | changes))
    policy = constant_policy() if policy is None else policy
    return MODULES[name].make_learner(tiny.point_env(4), policy, config)


def batch(terminated=(0.0, 0.0, 0.0), truncated=(0.0, 0.0, 0.0), extras=()):
    """One batch of rewards 1, 2 and 3; leaves [1, 3, ...]."""
    rows = Transition(
        obs={"state": jnp.array([[[0.1, 0.2]], [[0.3, -0.4]], [[0.5, 0.6]]])},
        action=jnp.array([[[0.5], [0.1]], [[-0.5], [0.3]], [[0.7], [-0.9]]]),
        reward=jnp.array([1.0, 2.0, 3.0]),
        next_obs={"state": jnp.array([[[0.5, 0.2]], [[-0.3, 0.6]], [[0.1, 0.9]]])},
        terminated=jnp.array(terminated),
        truncated=jnp.array(truncated),
        extras=extras,
    )
    return jax.tree.map(lambda x: x[None], rows)


def start(subject):
    """A state whose target networks differ from what is trained, V included."""
    state = subject.init(jax.random.key(0), {"state": jnp.zeros((1, 1, 2))})
    shifted = jax.tree.map(lambda x: 1.5 * x + 0.1, (state.target, state.target_actor))
    return state._replace(target=shifted[0], target_actor=shifted[1])


def gradient(trained):
    """The gradient of the first update, from Adam's first moment."""
    return jax.tree.map(lambda x: x / 0.1, trained.optimizer[0].mu)


def kept(name, rows):
    """The extras with which DIPO finds its batches."""
    return rows._replace(extras=rows.action) if name == "dipo" else rows


@pytest.mark.parametrize(
    "name, changes, next_action",
    [
        ("idql", {}, None),
        ("dql", {}, 1.5 * 0.3 + 0.1),  # of the target actor
        ("dql", {"reference_quirks": ("online_target",)}, 0.3),
        ("qsm", {}, 0.3),
        ("dipo", {}, 1.5 * 0.3 + 0.1),
        ("ogpo", {}, 1.5 * 0.3 + 0.1),
        ("ogpo", {"target_value": "min"}, 1.5 * 0.3 + 0.1),
    ],
)
@pytest.mark.parametrize("discount", [0.5, 0.9])
def test_targets_bootstrap_after_a_time_limit_but_not_after_a_termination(
    name, changes, next_action, discount
):
    """The target is the scaled reward, plus the discounted value of the last
    observation of the episode, which is that of the target critics or, in IDQL, V."""
    subject = learner(name, discount=discount, reward_scale=3.0, **changes)
    state = start(subject)
    given = kept(name, batch((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    _, metrics, *_ = jax.jit(subject.update)(state, given, jax.random.key(1))
    row = jax.tree.map(lambda x: x[0], given)
    if name == "idql":
        next_value = VALUE.apply(state.value.params, row.next_obs)
    else:
        action = jnp.full((3, 2, 1), next_action)
        next_value = CRITIC.apply(state.target, row.next_obs, action)
        takes_mean = name == "ogpo" and not changes
        next_value = next_value.mean(0) if takes_mean else next_value.min(0)
    target = np.array([3.0, 6.0, 9.0]) + discount * next_value * np.array([0, 1, 1])
    value = CRITIC.apply(state.critic.params, row.obs, row.action)
    expected = 0.5 * ((value - target) ** 2).mean(1).sum()
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", tiny.DIFFUSION_Q)
def test_the_actor_waits_for_the_critics_and_then_learns(name):
    """After one iteration only the critics have moved; the programs are the same."""
    algorithm = tiny.make_tiny_diffusion_q(name, critic_warmup=1)
    programs = tiny.compiled(algorithm)
    states = [algorithm.init(jax.random.key(0))]
    for _ in range(3):
        state, metrics = tiny.iterate(programs, states[-1])
        states.append(state)
    assert [program._cache_size() for program in programs] == [1, 1]
    actors = [state.learner.actor.params for state in states]
    assert tiny.same(actors[0], actors[1]) and not tiny.same(actors[1], actors[2])
    first, after = (state.learner for state in states[:2])
    assert not tiny.same(first.critic.params, after.critic.params)
    assert not tiny.same(first.target, after.target)
    assert after.updates == metrics["num_updates"] == 8
    assert all(np.isfinite(metrics[name]) for name in algorithm.finite)
    # After a hundred updates both critics have learnt, and they still differ.
    while states[-1].learner.updates < 100:
        states.append(tiny.iterate(programs, states[-1])[0])
    obs, action = {"state": jnp.ones((6, 1, 2))}, jnp.zeros((6, 2, 1))
    one, other = CRITIC.apply(states[-1].learner.critic.params, obs, action)
    assert (np.abs(one - other) > 1e-3).all()


@pytest.mark.parametrize("name", tiny.DIFFUSION_Q)
def test_it_starts_from_the_cloned_policy_and_acts_as_it_does(name):
    policy = tiny.tiny_diffusion_policy(tiny.NUM_STEPS)
    params = policy.init(jax.random.key(7), tiny.OBS)
    changes = {"num_samples": 1} if name in ("idql", "ogpo") else {}
    algorithm = tiny.make_tiny_diffusion_q(name, **changes)
    acting = algorithm.params(algorithm.init(jax.random.key(0), params))
    keys = jax.random.split(jax.random.key(1), 3)
    for deterministic in (False, True):
        ours, _ = algorithm.act(acting, keys, tiny.OBS, deterministic=deterministic)
        cloned, _ = policy.act(params, keys, tiny.OBS, deterministic=deterministic)
        np.testing.assert_array_equal(ours, cloned)
    lowered = params._replace(num_active=jnp.int32(1))
    with pytest.raises(ValueError, match="tuned_steps_drop"):
        algorithm.init(jax.random.key(0), lowered)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    """Of DIPO, so stored actions that were improved continue too."""
    env = tiny.point_env(4, lengths=(3, 99), max_steps=16)
    algorithm = tiny.make_tiny_diffusion_q("dipo", env)

    whole = resumed(algorithm, tmp_path)
    items = whole.replay.items
    assert (items.extras != items.action).any()


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("idql", {"discount": 1.1}, "idql.discount=1.1 must be between 0 and 1"),
        ("dql", {"target_rate": 0.0}, "dql.target_rate=0.0"),
        ("qsm", {"reward_scale": 0.0}, "qsm.reward_scale=0.0 must be positive"),
        ("dipo", {"critic_warmup": -1}, "dipo.critic_warmup=-1 must be at least 0"),
        ("idql", {"expectile": 1.0}, "idql.expectile=1.0"),
        ("idql", {"num_samples": 0}, "num_samples=0 must be at least 1"),
        ("idql", {"explore": "best"}, "explore='best' is unknown; use one of argmax"),
        ("idql", {"explore_expectile": 0.0}, "explore_expectile=0.0"),
        ("idql", {"temperature": 0.0}, "temperature=0.0 must be positive"),
        ("dql", {"eta": -1.0}, "dql.eta=-1.0 must be at least 0"),
        ("dql", {"num_critics": 3}, "dql.num_critics=3 must be 2"),
        (
            "dql",
            {"reference_quirks": ("x",)},
            "has 'x', which is unknown.* clone_generated, on",
        ),
        ("qsm", {"gradient_at": "x"}, "qsm.gradient_at='x' must be one of noisy, cle"),
        ("qsm", {"gradient_scale": 0.0}, "qsm.gradient_scale=0.0"),
        (
            "dipo",
            {"reference_quirks": ("x",)},
            "has 'x', which is unknown.* learn_improved, a",
        ),
        ("dipo", {"action__num_steps": 0}, "dipo.action.num_steps=0 must be at least"),
        ("dipo", {"action__learning_rate": -1.0}, "dipo.action.learning_rate=-1.0"),
        ("dipo", {"action__max_norm_per_entry": 0.0}, "max_norm_per_entry=0.0"),
        ("ogpo", {"group_size": 1}, "ogpo.group_size=1 must be at least 2"),
        ("ogpo", {"clip": 0.0}, "ogpo.clip=0.0 must be positive"),
        ("ogpo", {"advantage": "x"}, "ogpo.advantage='x' must be one of mean, cons"),
        ("ogpo", {"target_value": "x"}, "ogpo.target_value='x' must be one of min"),
        ("ogpo", {"actor_target_rate": 0.0}, "ogpo.actor_target_rate=0.0"),
        ("ogpo", {"actor_states": 3}, "actor_states=3 must be a divisor of .*=32"),
        ("ogpo", {"actor_states": 0}, "actor_states=0 must be a divisor"),
        (
            "ogpo",
            {"actor_states": 8, "replay__num_groups": 32},
            "actor_states=8 must be .* every group of replay.num_groups",
        ),
        ("ogpo", {"clone_return": 1.0}, "clone_return=1.0 must be None without a"),
        ("ogpo", {"clone_coef": -1.0}, "ogpo.clone_coef=-1.0"),
        ("ogpo", {"judges": 3}, "judges=3 must be between 1 and num_critics=2"),
        ("ogpo", {"num_samples": 0}, "num_samples=0 must be at least 1"),
        ("ogpo", {"reference_quirks": ("x",)}, "has 'x', .* actor_first, own_judges"),
        (
            "ogpo",
            {"replay__updates_per_round": 3},
            "must be a whole number of rounds of updates_per_round=3",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.make_tiny_diffusion_q(name, **changes)


@pytest.mark.parametrize("name", tiny.DIFFUSION_Q)
def test_policies_of_another_kind_or_chunk_are_refused(name):
    make, env = ALGORITHMS[name].make, tiny.point_env(4)
    policy = tiny.tiny_diffusion_policy(tiny.NUM_STEPS)
    config = tiny.diffusion_q_config(name)
    with pytest.raises(ValueError, match=f"{name} needs a diffusion policy, not this"):
        make(env, tiny.tiny_gaussian_policy(), config)
    config.model.sampling.num_tuned_steps = 3
    with pytest.raises(ValueError, match=f"all of which {name} trains; set it to 4"):
        make(env, policy, config)
    kind, known = ("flow", "diffusion")
    if name == "ogpo":
        kind, known = ("gaussian", "diffusion or flow")
    config.model.kind = kind
    with pytest.raises(ValueError, match=f"{name} needs a {known} policy, not '{kind}"):
        make(env, policy, config)
    shorter = env._replace(action_shape=(1, tiny.ACTION_DIM))
    algorithm = make(shorter, policy, tiny.diffusion_q_config(name))
    with pytest.raises(ValueError, match=r"\(2, 1\), but the environment .* \(1, 1\)"):
        algorithm.init(jax.random.key(0))


def test_qsm_needs_a_network_that_predicts_noise():
    config = tiny.diffusion_q_config("qsm")
    config.model.diffusion.predict_noise = False
    with pytest.raises(ValueError, match="qsm trains the predicted noise"):
        qsm.make(tiny.point_env(4), tiny.tiny_diffusion_policy(4), config)
