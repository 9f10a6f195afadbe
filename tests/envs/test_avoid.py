import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from dppo_jax.envs import make_task
from dppo_jax.envs.tasks import avoid
from dppo_jax.envs.tasks.avoid_servo import fit_servo, stitched_to_padded

ENGINES = ("mjx", "mujoco")


def run(env, actions, desired=None):
    """Play actions [T, N, 2]; TimeSteps [T, N] of N episodes."""

    @jax.jit
    def play(actions, desired):
        keys = jax.random.split(jax.random.key(0), actions.shape[1])
        state = jax.vmap(env.reset)(keys)
        state = state._replace(desired=desired)
        return jax.lax.scan(jax.vmap(env.step), state, actions)[1]

    if desired is None:
        desired = np.tile(np.array(avoid.START, np.float32), (actions.shape[1], 1))
    return jax.tree.map(np.asarray, play(jnp.asarray(actions), jnp.asarray(desired)))


def codes_along(path):
    gaps = -jnp.ones(3)
    for point in path:
        gaps = avoid.gap_codes(gaps, jnp.array(point))
    return gaps.tolist()


def test_an_episode_starts_at_rest_at_the_recorded_point():
    env = make_task("avoid", engine="mujoco")
    state = env.reset(jax.random.key(3))
    np.testing.assert_allclose(
        state.obs["state"], [0.52493, -0.27974, 0.52493, -0.27974]
    )
    _, step = env.step(state, jnp.zeros(2))
    np.testing.assert_allclose(step.obs["state"], state.obs["state"], atol=1e-6)
    assert step.reward == 0.0 and step.terminated == 0.0 and step.truncated == 0.0


def test_actions_are_clipped_changes_of_the_desired_position():
    env = make_task("avoid", engine="mujoco")
    state = env.reset(jax.random.key(0))
    state, _ = env.step(state, jnp.array([0.01, -1.0]))
    change = state.obs["state"][:2] - jnp.array(avoid.START)
    np.testing.assert_allclose(change, [0.01, -avoid.MAX_ACTION], atol=1e-7)


def test_gap_codes_of_hand_made_paths():
    assert codes_along([(0.4, -0.2), (0.4, 0.0), (0.4, 0.2)]) == [-1, -1, -1]
    assert codes_along([(0.4, -0.1), (0.3, 0.08), (0.3, 0.26)]) == [0, 2, 5]
    assert codes_along([(0.6, -0.1), (0.5, 0.08), (0.42, 0.26)]) == [1, 3, 6]
    assert codes_along([(0.6, -0.1), (0.6, 0.08), (0.58, 0.26)]) == [1, 4, 7]
    assert codes_along([(0.7, 0.9)]) == [-1, -1, 8]
    # The first sample less than 3 cm from the row decides.
    assert codes_along([(0.4, -0.129), (0.6, -0.1)])[0] == 0
    assert codes_along([(0.4, -0.131), (0.6, -0.1)])[0] == 1


def test_rewards_of_hand_made_samples():
    def reward(x, y, gap=-1.0, collision=0.0):
        gaps = jnp.array([-1.0, -1.0, gap])
        position = jnp.array([x, y])
        return float(avoid.reward(position, gaps, jnp.float32(collision), 5))

    assert reward(0.5, 0.0) == 0.0
    assert reward(0.3, 0.3, gap=5.0) == 1.0
    assert reward(0.3, 0.41, gap=5.0) == 2.0
    assert reward(0.4, 0.41, gap=6.0) == 1.0
    for penalized in (reward(0.19, 0.41, 5.0), reward(0.81, 0.0)):
        assert penalized == pytest.approx(-0.1)
    assert reward(0.3, 0.41, gap=5.0, collision=1.0) == pytest.approx(-0.1)


def test_the_rod_touches_within_the_sum_of_the_radii():
    for x, y, radius in avoid.CYLINDERS:
        reach = radius + avoid.ROD_RADIUS
        assert avoid.touches(jnp.array([x + 0.99 * reach, y])) == 1.0
        assert avoid.touches(jnp.array([x, y - 1.01 * reach])) == 0.0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cylinder_stops_the_rod_and_the_collision_is_kept(engine):
    """The rod moves straight at the first cylinder from below, then back."""
    forward = np.tile(np.array([[-0.0025, 0.01]], np.float32), (10, 1))
    push = np.tile(np.array([[0.0, 0.0125]], np.float32), (15, 1))
    actions = np.concatenate([forward, push, -push, -push])[:, None]
    steps = run(make_task("avoid", engine=engine), actions)
    collision = steps.metrics["collision"][:, 0]
    first = int(collision.argmax())
    assert 10 < first < 35 and collision[first:].all()
    np.testing.assert_allclose(steps.reward[first:, 0], -0.1)
    np.testing.assert_array_equal(steps.reward[:first, 0], 0.0)
    # The rod stays outside, up to the softness of a MuJoCo contact.
    centre, radius = avoid.CYLINDERS[0, :2], avoid.CYLINDERS[0, 2]
    distance = np.linalg.norm(steps.trace["position"][:, 0] - centre, axis=-1)
    assert distance.min() > radius + avoid.ROD_RADIUS - 0.005


def test_success_needs_the_rewarded_gap_and_the_finish_line():
    """A path through gap 5 is a success only if gap 5 is rewarded."""
    way = np.array([[0.58, -0.1], [0.35, 0.08], [0.28, 0.26], [0.28, 0.45]])
    points = np.concatenate([[avoid.START], way])
    legs = [
        np.repeat((end - start)[None] / 25, 25, axis=0)
        for start, end in zip(points[:-1], points[1:])
    ]
    actions = np.concatenate(legs).astype(np.float32)[:, None]
    steps = run(make_task("avoid", engine="mujoco", rewarded_gap=5), actions)
    codes = [steps.metrics[f"gap_row{row}"][-1, 0] for row in (1, 2, 3)]
    assert codes == [1, 2, 5]
    success = steps.metrics["success"][:, 0]
    finished = steps.trace["position"][:, 0, 1] > avoid.FINISH_Y
    np.testing.assert_array_equal(success, np.maximum.accumulate(finished))
    assert success[-1] == 1.0 and steps.reward[-1, 0] == 2.0
    solved = np.maximum.accumulate(steps.reward[:, 0] == 2.0)
    np.testing.assert_array_equal(steps.metrics["solved"][:, 0], solved)
    other = run(make_task("avoid", engine="mujoco", rewarded_gap=6), actions)
    assert not other.metrics["success"].any() and other.reward[-1, 0] == 1.0


def test_engines_agree_over_an_episode_with_contacts():
    rng = np.random.default_rng(0)
    actions = np.float32(rng.uniform(-0.0125, 0.0125, (100, 64, 2)) + [0, 0.006])
    mjx, c = (run(make_task("avoid", engine=engine), actions) for engine in ENGINES)
    assert mjx.metrics["collision"][-1].mean() > 0.1
    np.testing.assert_allclose(mjx.trace["position"], c.trace["position"], atol=2e-4)


def test_seven_substeps_are_fine_enough():
    """The error, compared with steps of 0.1 ms, is below 1.2 mm: a tenth of the 12 mm
    to which the servo fits humans."""
    coarse = mujoco.MjModel.from_xml_string(avoid.mjcf())
    fine = mujoco.MjModel.from_xml_string(avoid.mjcf())
    assert coarse.opt.timestep * avoid.NUM_SUBSTEPS == pytest.approx(0.035)
    fine.opt.timestep = 1e-4
    data, exact = mujoco.MjData(coarse), mujoco.MjData(fine)
    for step in range(60):
        for d, m, substeps in ((data, coarse, 7), (exact, fine, 350)):
            if step == 0:
                d.qpos[:] = [0.75, -0.28]
            d.ctrl[:] = [0.75, -0.28 + 0.0125 * step]
            mujoco.mj_step(m, d, substeps)
        np.testing.assert_allclose(data.qpos, exact.qpos, atol=1.2e-3)


@pytest.fixture(scope="module")
def human(demos_dir):
    file = demos_dir / "avoid" / "human_raw.npz"
    if not file.is_file():
        pytest.skip("needs the recorded human episodes of the avoidance task")
    with np.load(file, allow_pickle=False) as data:
        return {key: data[key] for key in data.files}


def test_the_servo_is_the_fit_to_the_human_episodes(human):
    stiffness, damping = fit_servo(
        human["desired_xy"], human["actual_xy"], human["episode_lengths"]
    )
    np.testing.assert_allclose(stiffness, avoid.STIFFNESS, rtol=1e-3)
    np.testing.assert_allclose(damping, avoid.DAMPING, rtol=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_human_episodes_replay(human, engine):
    """All 96 pass the recorded gaps and cross the line, and hardly any collides."""
    lengths = human["episode_lengths"]
    desired = stitched_to_padded(human["desired_xy"], lengths).swapaxes(0, 1)
    actual = stitched_to_padded(human["actual_xy"], lengths).swapaxes(0, 1)
    actions = np.diff(desired, axis=0)
    assert np.abs(actions).max() < avoid.MAX_ACTION
    np.testing.assert_allclose(actual[0], [avoid.START] * 96, atol=1e-5)
    steps = run(make_task("avoid", engine=engine), actions, desired[0])

    played = steps.trace["position"]
    recorded = np.arange(1, lengths.max())[:, None] < lengths
    last = lengths - 2, np.arange(96)
    modes = np.stack([steps.metrics[f"gap_row{r}"][last] for r in (1, 2, 3)], axis=1)

    @jax.jit
    def follow(path):
        step = jax.vmap(avoid.gap_codes)
        return jax.lax.scan(lambda g, p: (step(g, p), None), -jnp.ones((96, 3)), path)

    np.testing.assert_array_equal(modes, follow(jnp.asarray(actual))[0])
    assert len(np.unique(modes, axis=0)) == 24
    assert ((played[..., 1] > avoid.FINISH_Y) & recorded).any(axis=0).all()
    assert (steps.metrics["collision"][last] == 0).sum() >= 92
    error = np.linalg.norm(played - actual[1:], axis=-1)[recorded].mean()
    assert error <= 0.013


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="rewarded_gap=4"):
        make_task("avoid", rewarded_gap=4)
    with pytest.raises(ValueError, match="'maze'.*avoid"):
        make_task("maze")


def test_commands_are_limited_to_the_workspace():
    """100 steps to the left end at the edge of the table, where the servo follows."""
    steps = run(make_task("avoid", engine="mujoco"), np.full((100, 1, 2), [-1.0, 0.0]))
    desired = steps.obs["state"][-1, 0, :2]
    np.testing.assert_allclose(desired, [avoid.WORKSPACE_MIN[0], avoid.START[1]])
    np.testing.assert_allclose(steps.trace["position"][-1, 0, 0], 0.1, atol=0.005)
    assert steps.metrics["outside"][-1, 0] == 1
    assert steps.metrics["solved"][-1, 0] == 0
    assert steps.reward[-1, 0] == pytest.approx(-0.1)
