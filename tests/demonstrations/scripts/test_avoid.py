import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.demonstrations.scripts import avoid as avoid_script
from dppo_jax.demonstrations.scripts.avoid import ALL_MODES, scripted_episodes
from dppo_jax.envs.tasks.avoid import MAX_ACTION, REWARD_Y, START, make_avoid

ENGINE = "mujoco"


@pytest.fixture(scope="module")
def episodes():
    return scripted_episodes(ALL_MODES, 2, seed=0, engine=ENGINE)


def test_every_mode_is_demonstrated_as_often_as_asked(episodes):
    assert len(set(ALL_MODES)) == 24
    assert [e.mode for e in episodes] == [m for m in ALL_MODES for _ in range(2)]


def test_replaying_the_actions_gives_the_states_and_the_mode(episodes):
    """The recorded actions alone lead through the gaps without a collision."""
    env = make_avoid(engine=ENGINE)
    longest = max(len(e.actions) for e in episodes)
    actions = np.zeros((longest, len(episodes), 2), np.float32)
    for index, episode in enumerate(episodes):
        actions[: len(episode.actions), index] = episode.actions

    @jax.jit
    def play(actions):
        state = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 48))
        return jax.lax.scan(jax.vmap(env.step), state, actions)[1]

    steps = jax.tree.map(np.asarray, play(jnp.asarray(actions)))
    for index, episode in enumerate(episodes):
        length = len(episode.states)
        np.testing.assert_array_equal(
            episode.states[1:], steps.obs["state"][: length - 1, index]
        )
        codes = [steps.metrics[f"gap_row{r}"][length - 2, index] for r in (1, 2, 3)]
        assert tuple(codes) == episode.mode
        assert steps.metrics["collision"][length - 2, index] == 0.0
        np.testing.assert_array_equal(episode.rewards, steps.reward[:length, index])
        # Beyond the reward line every gap earns one, and gap 5 another one.
        assert episode.rewards[-1] == 1 + (episode.mode[2] == 5)


def test_episodes_look_like_human_ones(episodes):
    lengths = np.array([len(e.states) for e in episodes])
    assert (lengths >= 60).all() and (lengths <= 107).all()
    actions = np.concatenate([e.actions for e in episodes])
    assert np.abs(actions).max() <= MAX_ACTION and actions[:, 1].min() >= 0.0
    # Humans: median length 73, mean |action| 4.8 mm in x and 9.5 mm in y.
    assert 65 <= np.median(lengths) <= 90
    mean = np.abs(actions).mean(axis=0)
    np.testing.assert_allclose(mean, [0.0048, 0.0095], rtol=0.2)
    ends = np.array([e.states[-1, 3] for e in episodes])
    assert (ends > REWARD_Y).all() and (ends < 0.5).all()
    np.testing.assert_allclose([e.states[0] for e in episodes], [START * 2] * 48)


def test_episodes_of_a_mode_differ_and_a_seed_repeats_them():
    modes = [(1, 2, 5), (1, 2, 6)]
    first, again, other = (
        scripted_episodes(modes, 2, seed=seed, engine=ENGINE) for seed in (1, 1, 2)
    )
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a.states, b.states)
    assert not np.array_equal(first[0].actions[:50], first[1].actions[:50])
    assert not np.array_equal(first[0].actions[:50], other[0].actions[:50])


def test_wrong_requests_are_named():
    with pytest.raises(ValueError, match=r"\(2, 2, 5\)"):
        scripted_episodes([(2, 2, 5)], 1, seed=0)
    with pytest.raises(ValueError, match="episodes_per_mode=0"):
        scripted_episodes([(1, 2, 5)], 0, seed=0)
    with pytest.raises(ValueError, match="0 modes"):
        scripted_episodes([], 1, seed=0)


def test_modes_that_never_succeed_are_reported(monkeypatch):
    monkeypatch.setattr(avoid_script, "MIN_STEPS", 1000)
    monkeypatch.setattr(avoid_script, "MAX_ROUNDS", 2)
    with pytest.raises(RuntimeError, match=r"\(1, 2, 5\).*2 attempts"):
        scripted_episodes([(1, 2, 5)], 1, seed=0, engine=ENGINE)
