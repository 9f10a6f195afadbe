import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.errors import SettingsError
from dppo_jax.training.checkpoint import read_policy
from dppo_jax.training.config_file import save_config
from dppo_jax.training.loop import train
from dppo_jax.training.metric_names import TIMES
from dppo_jax.training.metrics import has_reached, read_metrics
from dppo_jax.training.trees import with_types
from dppo_jax.types import OF_ENVIRONMENT
from tests import tiny
from tests.counting import count, counter, iterations, watch


def without_times(row):
    return {name: x for name, x in row.items() if name not in TIMES}


def test_a_resumed_ppo_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    """Episodes, keys, moments and reward scale all continue: 4 = 2 + 2."""
    env = tiny.point_env(4, lengths=(3, 99), max_steps=16)
    algorithm = tiny.make_tiny_ppo(env=env, reset_at_iteration=False)

    def go(name, num_iterations):
        save_config(tmp_path / name, {})
        start = algorithm.init(jax.random.key(0))
        return train(
            algorithm,
            start,
            run_dir=tmp_path / name,
            num_iterations=num_iterations,
            normalizer=tiny.NORMALIZER,
        )

    whole = go("whole", 4)
    go("parts", 2)
    parts = go("parts", 4)
    assert tiny.same(whole, parts)
    whole_rows, rows = (read_metrics(tmp_path / name) for name in ("whole", "parts"))
    assert all(0 < row["rollout_seconds"] < row["seconds"] for row in whole_rows)
    for a, b in zip(whole_rows, rows, strict=True):
        assert without_times(a) == without_times(b)
    policies = [read_policy(tmp_path / name).params for name in ("whole", "parts")]
    assert tiny.same(*policies)
    assert tiny.same(with_types(policies[0], whole.params), whole.params)


def test_a_run_killed_between_checkpoints_repeats_lost_iterations(tmp_path):
    """The last checkpoint is 4, so iteration 5 runs again and its row is rewritten."""

    def die(params, run_dir, iteration):
        if iteration == 5:
            raise KeyboardInterrupt
        return {"score": iteration}

    settings = dict(checkpoint_every=2, evaluate_every=1)
    with pytest.raises(KeyboardInterrupt):
        count(tmp_path, 8, evaluate=die, **settings)
    assert read_policy(tmp_path).iteration == 4
    state = count(
        tmp_path, 8, evaluate=lambda params, run_dir, i: {"score": i}, **settings
    )
    assert iterations(tmp_path) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["x"] for row in read_metrics(tmp_path)[1:]] == [2.0**i for i in R8]
    assert state["x"] == 2.0**8


R8 = range(1, 9)


def test_a_finished_run_is_not_changed_and_a_longer_one_resumes(tmp_path):
    count(tmp_path, 3)
    before = (tmp_path / "metrics.csv").read_text()
    assert count(tmp_path, 3)["x"] == 8.0
    assert (tmp_path / "metrics.csv").read_text() == before
    assert count(tmp_path, 5)["x"] == 32.0
    assert iterations(tmp_path) == [1, 2, 3, 4, 5]


def test_keep_best_must_name_a_metric_of_the_evaluation(tmp_path):
    def evaluate(params, run_dir, iteration):
        return {"eval/score": 1.0}

    with pytest.raises(ValueError, match="keep_best='eval/sore' .*eval/score"):
        count(tmp_path, 2, evaluate=evaluate, evaluate_every=1, keep_best="eval/sore")


def test_a_new_run_forgets_the_best_of_one_whose_checkpoints_are_gone(tmp_path):
    def scores(value):
        settings = dict(evaluate_every=1, keep_best="eval/score")
        return settings | {"evaluate": lambda *_: {"eval/score": value}}

    count(tmp_path, 2, **scores(5.0))
    shutil.rmtree(tmp_path / "checkpoints")
    count(tmp_path, 1, **scores(1.0))
    assert read_policy(tmp_path, "best").iteration == 0
    assert float(read_policy(tmp_path, "best").params["w"]) == 1.0


def test_the_state_of_the_caller_is_not_overwritten(tmp_path):
    """A step overwrites its argument, but not the state that the caller passed."""
    algorithm = counter()
    state = algorithm.init(None)
    train(
        algorithm,
        state,
        run_dir=tmp_path,
        num_iterations=2,
        normalizer=tiny.NORMALIZER,
    )
    assert state["x"] == 1.0


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoints/7"])
def test_results_without_a_configuration_are_not_overwritten(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("iteration,loss\n1,2\n")
    algorithm = counter()
    with pytest.raises(SettingsError, match="but no config.json.*another"):
        train(
            algorithm,
            algorithm.init(None),
            run_dir=tmp_path,
            num_iterations=2,
            normalizer=tiny.NORMALIZER,
        )
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert found == [tmp_path / name]
    assert found[0].read_text() == "iteration,loss\n1,2\n"


@pytest.mark.parametrize(
    "settings, rows, scores, saved",
    [
        (dict(), range(13), [0, 12], [12]),
        (dict(log_every=5), [0, 1, 5, 10, 12], [0, 12], [12]),
        (
            dict(log_every=5, evaluate_every=4),
            [0, 1, 4, 5, 8, 10, 12],
            [0, 4, 8, 12],
            [12],
        ),
        (
            dict(log_every=6, checkpoint_every=5),
            [0, 1, 5, 6, 10, 12],
            [0, 12],
            [5, 10, 12],
        ),
    ],
)
def test_rows_evaluations_and_checkpoints_come_when_they_are_due(
    tmp_path, settings, rows, scores, saved
):
    score = {"evaluate": lambda params, run_dir, iteration: {"score": iteration}}
    count(tmp_path, 12, **score, **settings)
    assert iterations(tmp_path) == list(rows)
    assert iterations(tmp_path, "score") == scores
    folders = (tmp_path / "checkpoints").iterdir()
    assert sorted(int(path.name) for path in folders) == saved


def test_a_due_evaluation_can_depend_on_the_metrics_of_its_iteration(tmp_path):
    """x is 2^iteration; only the last evaluation does not depend on it."""
    settings = dict(
        evaluate=lambda params, run_dir, iteration: {"score": iteration},
        evaluate_every=2,
        evaluate_if=lambda row: 10 < row["x"] < 100,
    )
    count(tmp_path, 9, **settings)
    assert iterations(tmp_path) == list(range(1, 10))
    assert iterations(tmp_path, "score") == [4, 6, 9]


def until(x):
    return lambda rows: rows[-1].get("x", 0) >= x


def test_a_run_stops_when_stop_is_true_and_stays_stopped(tmp_path):
    """8 = 2^3; the last row has an evaluation, and there is a checkpoint."""
    score = {"evaluate": lambda params, run_dir, iteration: {"score": iteration}}
    assert count(tmp_path, 9, stop=until(8), **score)["x"] == 8.0
    assert read_policy(tmp_path).iteration == 3
    assert iterations(tmp_path, "score") == [0, 3]
    before = (tmp_path / "metrics.csv").read_text()
    assert count(tmp_path, 9, stop=until(8), **score)["x"] == 8.0
    assert (tmp_path / "metrics.csv").read_text() == before


def test_a_stopped_run_goes_on_to_a_higher_target(tmp_path):
    count(tmp_path, 9, stop=until(8))
    assert count(tmp_path, 9, stop=until(32))["x"] == 32.0
    assert iterations(tmp_path) == [1, 2, 3, 4, 5]


def test_a_run_that_never_reaches_its_target_runs_all_iterations(tmp_path):
    assert count(tmp_path, 4, stop=until(1e9))["x"] == 16.0


def test_stopping_sees_all_rows_also_those_before_a_resumption(tmp_path):
    seen = []
    count(tmp_path, 2, stop=lambda rows: False)
    count(tmp_path, 3, stop=lambda rows: bool(seen.append(list(rows))))
    assert [[row["x"] for row in rows] for rows in seen] == [[2, 4], [2, 4, 8]]


def test_a_nan_loss_ends_the_run_and_keeps_the_checkpoints(tmp_path):
    with pytest.raises(FloatingPointError, match="loss became nan in iteration 4"):
        count(tmp_path, 9, counter(fails_at=4), checkpoint_every=2, log_every=5)
    assert read_policy(tmp_path).iteration == 2


@pytest.mark.parametrize("name", ["reward", "obs_magnitude"])
def test_an_environment_that_returns_nan_is_not_taken_for_divergence(tmp_path, name):
    what = OF_ENVIRONMENT[name]
    failing = counter(fails_at=4)

    def step(state):
        state, metrics = failing.step(state)
        return state, {name: metrics["loss"], **metrics}

    algorithm = failing._replace(step=step, finite=(name, "loss"))
    message = f"{name} became nan in iteration 4; the environment returned {what}"
    with pytest.raises(FloatingPointError, match=message) as raised:
        count(tmp_path, 9, algorithm)
    assert "learning rate" not in str(raised.value)
    assert "log_every" not in str(raised.value)
    with pytest.raises(FloatingPointError, match="any iteration after 1,.*log_every=1"):
        count(tmp_path, 9, algorithm, log_every=5, checkpoint_every=4)


def test_a_run_in_which_everything_broke_is_told_so(tmp_path):
    plain = counter()

    def step(state):
        state, metrics = plain.step(state)
        broken = {"reward": jnp.float32(jnp.nan), "diverged": jnp.float32(8)}
        return state, metrics | broken

    algorithm = plain._replace(step=step, finite=("reward",))
    with pytest.raises(FloatingPointError, match="every simulation broke in every st"):
        count(tmp_path, 9, algorithm)


def test_rows_hold_the_time_of_an_iteration(tmp_path):
    count(tmp_path, 3)
    seconds = [row["seconds"] for row in read_metrics(tmp_path)]
    assert len(seconds) == 3 and np.all(np.array(seconds) > 0)


def test_rows_hold_the_times_of_evaluations_and_of_checkpoints_before(tmp_path):
    settings = dict(evaluate=lambda *_: {"score": 1.0}, evaluate_every=2)
    count(tmp_path, 5, checkpoint_every=2, **settings)
    assert iterations(tmp_path, "evaluation_seconds") == [0, 2, 4, 5]
    assert iterations(tmp_path, "checkpoint_seconds") == [3, 5]


def test_another_progress_sees_every_row_and_is_closed_after_a_failure(tmp_path):
    seen = []

    class Watch:
        def __init__(self, start, total):
            seen.append((start, total))

        def see(self, numbers):
            seen.append(numbers.get("score", numbers.get("x")))

        def reach(self, iteration):
            seen.append(f"reached {iteration}")

        def close(self):
            seen.append("closed")

    def evaluate(params, run_dir, iteration):
        if iteration:
            raise RuntimeError("no simulator")
        return {"score": 7.0}

    with pytest.raises(RuntimeError):
        count(tmp_path, 2, evaluate=evaluate, progress=Watch)
    assert seen == [(0, 2), 7.0, 2.0, "reached 1", "closed"]


def test_a_run_stops_at_its_first_evaluation_that_is_good_enough(tmp_path):
    """Scores are 0, 2, 4 in iterations 0, 2, 4; only these can reach the target."""
    settings = dict(
        evaluate=lambda params, run_dir, iteration: {"score": iteration},
        evaluate_every=2,
        stop=lambda rows: has_reached(rows, "score", 3),
    )
    assert count(tmp_path, 9, **settings)["x"] == 2.0**4
    assert iterations(tmp_path, "score") == [0, 2, 4]
    assert read_policy(tmp_path).iteration == 4
    assert count(tmp_path, 9, **settings)["x"] == 2.0**4


def test_a_policy_that_is_good_enough_from_the_start_is_saved(tmp_path):
    settings = dict(
        evaluate=lambda params, run_dir, iteration: {"score": 5},
        stop=lambda rows: has_reached(rows, "score", 3),
    )
    for _ in range(2):
        assert count(tmp_path, 9, **settings)["x"] == 1.0
        assert read_policy(tmp_path).iteration == 0
        assert iterations(tmp_path) == [0]


def scoring(events):
    """The call dispatches the evaluation; the function it returns gives the number."""

    def evaluate(params, run_dir, iteration):
        events.append(f"score {iteration}")
        return lambda: {"score": float(params["w"])}

    return evaluate


def test_a_row_is_written_after_the_next_dispatch(tmp_path, monkeypatch):
    events = watch(monkeypatch)
    count(tmp_path, 3, checkpoint_every=1)
    assert events == ["step 1", "step 2", "row 1", "step 3", "row 2", "row 3"]
    assert read_policy(tmp_path).iteration == 3


def test_a_row_that_may_be_the_end_is_written_at_once(tmp_path, monkeypatch):
    events = watch(monkeypatch)
    count(tmp_path, 2, stop=lambda rows: False)
    assert events == ["step 1", "row 1", "step 2", "row 2"]


@pytest.mark.parametrize(
    "backend, order",
    [
        ("cpu", "step 1, row 1, step 2, score 2, row 2, step 3, row 3, step 4"),
        ("gpu", "step 1, step 2, row 1, score 2, step 3, row 2, step 4, row 3"),
    ],
)
def test_an_evaluation_overlaps_with_the_next_iteration_except_on_a_cpu(
    tmp_path, monkeypatch, backend, order
):
    """Its parameters stay valid although the next step overwrites the state."""
    events = watch(monkeypatch, backend=backend)
    count(tmp_path, 4, evaluate=scoring(events), evaluate_every=2, checkpoint_every=2)
    assert ", ".join(events) == (f"score 0, row 0, {order}, score 4, row 4")
    scores = [row["score"] for row in read_metrics(tmp_path) if "score" in row]
    assert scores == [1.0, 4.0, 16.0]
    assert float(read_policy(tmp_path, 2).params["w"]) == 4.0


def test_an_interrupt_loses_no_row_and_no_checkpoint(tmp_path, monkeypatch):
    """It comes at the dispatch of iteration 4, when row 3 is not yet written."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        watch(patch, interrupt_at=4)
        count(tmp_path, 9, checkpoint_every=1)
    assert iterations(tmp_path) == [1, 2, 3]
    assert read_policy(tmp_path).iteration == 3
    assert count(tmp_path, 5)["x"] == 2.0**5


def test_an_iteration_that_fails_keeps_all_rows_before_it(tmp_path):
    def fail(iteration):
        if iteration == 4:
            raise RuntimeError("the simulator is gone")
        return iteration

    def step(state):
        shape = jax.ShapeDtypeStruct((), jnp.int32)
        iteration = jax.pure_callback(fail, shape, state["iteration"] + 1)
        return state | {"iteration": iteration}, {"loss": jnp.ones(())}

    with pytest.raises(Exception, match="simulator is gone"):
        count(tmp_path, 9, counter()._replace(step=step), checkpoint_every=1)
    assert iterations(tmp_path) == [1, 2, 3]
    assert read_policy(tmp_path).iteration == 3
