"""A run whose checkpoints lack the replay buffer resumes with an empty one."""

import jax
import numpy as np
import pytest

from dppo_jax.training.checkpoint import Checkpoints, read_policy, read_state
from dppo_jax.training.loop import train
from dppo_jax.training.metrics import read_metrics
from experiments import inspect
from tests import tiny

# Of `make_tiny_sac`: 4 environments x 4 chunks.
PER_ITERATION = 16


def go(run_dir, num_iterations, **replay):
    settings = {f"replay__{name}": value for name, value in replay.items()}
    algorithm = tiny.make_tiny_sac(**settings)
    return train(
        algorithm,
        algorithm.init(jax.random.key(0)),
        run_dir=run_dir,
        num_iterations=num_iterations,
        normalizer=tiny.NORMALIZER,
        checkpoint_every=1,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two iterations, then two more in another call."""
    run_dir = tmp_path_factory.mktemp("run")
    first = go(run_dir, 2, in_checkpoints=False)
    return run_dir, first, go(run_dir, 4, in_checkpoints=False)


def test_a_checkpoint_without_the_buffer_says_so(run, capsys):
    run_dir, first, _ = run
    assert read_state(run_dir)["replay"] is None
    size = sum(x.nbytes for x in jax.tree.leaves(first.replay))
    assert read_policy(run_dir).about["left_out"] == {"replay": size, "offline": 0}
    inspect.main(str(run_dir), None)
    assert f"left out: replay {size / 1e3:.1f} kB" in capsys.readouterr().out


def test_everything_but_the_buffer_continues(run):
    run_dir, first, last = run
    rows = read_metrics(run_dir)
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    stored = [row["replay_size"] for row in rows]
    assert stored == [PER_ITERATION * n for n in (1, 2, 1, 2)]
    steps = [row["env_steps"] for row in rows]
    assert steps == [PER_ITERATION * tiny.CHUNK * n for n in (1, 2, 3, 4)]
    with Checkpoints(run_dir) as checkpoints:
        saved = checkpoints.restore(last, 2, dispensable=("replay", "offline"))
    assert tiny.same(saved._replace(replay=()), first._replace(replay=()))
    assert tiny.same(saved.replay, last.replay)  # It is that of `like`.


def test_the_setting_may_change(tmp_path, capsys):
    """With the buffer, then without, and with it again."""
    go(tmp_path, 1)
    go(tmp_path, 2, in_checkpoints=False)
    assert "was saved without" not in capsys.readouterr().out
    state = go(tmp_path, 3)
    assert "checkpoints/2 was saved without replay (0.0" in capsys.readouterr().out
    assert state.replay.size.sum() == PER_ITERATION
    sizes = [row["replay_size"] for row in read_metrics(tmp_path)]
    np.testing.assert_array_equal(sizes, [PER_ITERATION, 2 * PER_ITERATION, 16])
    assert tiny.same(go(tmp_path, 3), state)
