import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.training import seeds
from dppo_jax.training.checkpoint import read_policy
from dppo_jax.training.config_file import save_config
from dppo_jax.training.loop import compiled_step, train
from dppo_jax.training.metric_names import TIMES
from dppo_jax.training.metrics import read_metrics
from dppo_jax.training.trees import with_types
from dppo_jax.types import Algorithm
from tests import tiny

N = 3
CPU = jax.default_backend() == "cpu"
# The same object for the same arguments, so that each program compiles once.
many = functools.cache(seeds.many)


@pytest.fixture(scope="module")
def algorithm() -> Algorithm:
    """Episodes of different lengths, which continue from one iteration to the next."""
    env = tiny.point_env(4, lengths=(3, 99), max_steps=16)
    return tiny.make_tiny_ppo(env=env, reset_at_iteration=False)


def keys(num: int = N):
    return jnp.stack([jax.random.key(seed) for seed in range(num)])


def run_many(algorithm, num_iterations, **settings):
    """Final states and rows of N seeds, each a list, and their algorithm."""
    together = many(algorithm, N, **settings)
    step, state, rows = compiled_step(together), together.init(keys()), []
    for _ in range(num_iterations):
        state, metrics = step(state)
        rows.append(metrics)
    each = [
        [{name: float(x[i]) for name, x in row.items()} for row in rows]
        for i in range(N)
    ]
    return seeds.split(state, N), each, together


def alone(algorithm, seed, num_iterations):
    """As `tiny.run`, with the programs of a stage."""
    step, state = compiled_step(algorithm), algorithm.init(jax.random.key(seed))
    rows = []
    for _ in range(num_iterations):
        state, metrics = step(state)
        rows.append({name: float(x) for name, x in metrics.items()})
    return state, rows


@pytest.mark.parametrize("vectorize", [False, True])
def test_every_seed_of_one_program_equals_a_single_run(algorithm, vectorize):
    """One after another they are equal to rounding; a batch adds in another order."""
    states, rows, together = run_many(algorithm, 2, vectorize=vectorize)
    for phase in together.phases:
        assert jax.jit(phase, donate_argnums=0)._cache_size() == 1
    for i in range(N):
        state, row = alone(algorithm, i, 2)
        if not vectorize and CPU:
            assert tiny.same(states[i], state, tolerance=1e-5)
        for one, other in zip(rows[i], row, strict=True):
            tolerance = dict(rtol=1e-3, atol=1e-5) if vectorize else dict(rtol=1e-5)
            np.testing.assert_allclose(
                list(one.values()), [other[name] for name in one], **tolerance
            )
    curves = [tuple(row["reward"] for row in each) for each in rows]
    assert len(set(curves)) == N


def test_splitting_undoes_stacking():
    trees = [{"x": jnp.arange(3) + i, "key": jax.random.key(i)} for i in range(N)]
    assert tiny.same(trees, seeds.split(seeds.stack(trees), N))


def test_an_invalid_number_of_seeds_is_refused(algorithm):
    with pytest.raises(ValueError, match="num_seeds=0 must be at least 1"):
        seeds.many(algorithm, 0)
    with pytest.raises(ValueError, match="2 keys for num_seeds=3"):
        seeds.many(algorithm, 3).init(keys(2))


def doubler() -> Algorithm:
    """Seed i starts at i + 1 and doubles."""

    def init(key):
        x = jax.random.key_data(key)[1].astype(jnp.float32) + 1
        return {"x": x, "iteration": jnp.zeros((), jnp.int32)}

    def step(state):
        new = {"x": 2 * state["x"], "iteration": state["iteration"] + 1}
        return new, {"loss": jnp.where(new["x"] > 1200, jnp.nan, 1.0), "x": new["x"]}

    return tiny.silent(init, step, params=lambda state: {"w": state["x"]})


def go(folder, num_iterations, algorithm, which=range(N), **settings):
    """Train seeds in one program, or one seed as a single run."""
    dirs = [str(folder / f"seed_{seed}") for seed in which]
    for run_dir in dirs:
        save_config(run_dir, {})
    if len(dirs) == 1:
        state, dirs = algorithm.init(jax.random.key(which[0])), dirs[0]
    else:
        algorithm = many(algorithm, len(dirs), vectorize=not CPU)
        state = algorithm.init(keys(len(dirs)))
    return train(
        algorithm,
        state,
        run_dir=dirs,
        num_iterations=num_iterations,
        normalizer=tiny.NORMALIZER,
        **settings,
    )


def rows_of(folder, seed):
    return [
        {name: x for name, x in row.items() if name not in TIMES}
        for row in read_metrics(folder / f"seed_{seed}")
    ]


def test_seeds_resume_together_or_alone_like_uninterrupted_runs(algorithm, tmp_path):
    """3 = 1 + 2 iterations, by any command; directories are those of single runs.

    The same program repeats its numbers bit for bit. Two programs may round
    differently, which depends on how XLA fuses their operations.
    """
    whole = go(tmp_path / "whole", 3, algorithm)
    single = go(tmp_path / "single", 3, algorithm, [1])
    go(tmp_path / "parts", 1, algorithm)
    shutil.copytree(tmp_path / "parts", tmp_path / "mixed")
    parts = go(tmp_path / "parts", 3, algorithm)
    assert tiny.same(whole, parts)
    mixed = go(tmp_path / "mixed", 3, algorithm, [1])
    for state in (whole[1], mixed):
        if CPU:
            assert tiny.same(state, single, tolerance=1e-6)
    for folder in ("single", "parts", "mixed"):
        one, other = rows_of(tmp_path / folder, 1), rows_of(tmp_path / "whole", 1)
        assert [row["iteration"] for row in one] == [1, 2, 3]
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-4)
    saved = read_policy(tmp_path / "whole" / "seed_1")
    assert saved.iteration == 3
    assert tiny.same(with_types(saved.params, whole[1].params), whole[1].params)


def test_seeds_interrupted_between_checkpoints_go_back_together(tmp_path, capsys):
    go(tmp_path, 2, doubler())
    go(tmp_path, 3, doubler(), [1])
    states = go(tmp_path, 4, doubler())
    said = capsys.readouterr().out
    assert "seed_1 are newer than those of the other seeds; all resume" in said
    assert "at iteration 2," in said and "resuming at iteration 2 of 4" in said
    assert [float(state["x"]) for state in states] == [16.0, 32.0, 48.0]
    assert [row["x"] for row in rows_of(tmp_path, 1)] == [4.0, 8.0, 16.0, 32.0]


def test_seeds_too_far_apart_are_refused_and_lose_nothing(tmp_path):
    go(tmp_path, 2, doubler(), [0])
    with pytest.raises(ValueError, match="seed_0: 2, .*seed_1: 0.*num_seeds=1"):
        go(tmp_path, 4, doubler())
    assert read_policy(tmp_path / "seed_0").iteration == 2
    assert len(rows_of(tmp_path, 0)) == 2


def test_a_seed_that_reached_its_target_ends_and_others_continue(tmp_path):
    """From 1, 2 and 3 to at least 12 in 4, 3 and 2 iterations; their rows stay."""
    settings = dict(
        stop=lambda rows: rows[-1].get("x", 0) >= 12,
        evaluate=lambda params, run_dir, i: {"score": i},
    )
    states = go(tmp_path, 9, doubler(), **settings)
    ends = [4, 3, 2]
    assert [float(state["x"]) for state in states] == [16.0, 16.0, 12.0]
    for seed, end in enumerate(ends):
        assert read_policy(tmp_path / f"seed_{seed}").iteration == end
        rows = rows_of(tmp_path, seed)
        assert [row["iteration"] for row in rows] == list(range(end + 1))
        assert rows[-1]["score"] == end
    before = [rows_of(tmp_path, seed) for seed in range(N)]
    again = go(tmp_path, 9, doubler(), **settings)
    assert tiny.same(states, again)
    assert before == [rows_of(tmp_path, seed) for seed in range(N)]
    settings["stop"] = lambda rows: rows[-1].get("x", 0) >= 16
    higher = go(tmp_path, 9, doubler(), **settings)
    assert [float(state["x"]) for state in higher] == [16.0, 16.0, 24.0]


def test_a_seed_that_diverges_is_named(tmp_path):
    """3 doubles to more than 1200 in iteration 9."""
    with pytest.raises(FloatingPointError, match="seed_2: loss became nan .* 9"):
        go(tmp_path, 20, doubler(), checkpoint_every=4)
    assert read_policy(tmp_path / "seed_2").iteration == 8
    assert len(rows_of(tmp_path, 0)) == 8
