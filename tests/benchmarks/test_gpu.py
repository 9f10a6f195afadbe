"""The benchmark for a GPU, as far as a CPU can run it."""

import json
import threading

import jax
import pytest

from benchmarks import timing
from benchmarks.gpu import jobs, program, sizes, target
from dppo_jax.errors import SettingsError


def jobs_of(*runs):
    return [jobs.Job("matmul", {"width": i}, run) for i, run in enumerate(runs)]


def raise_(error):
    raise error


def run(measurements, **settings):
    """All rows, and the number of rows at each call of `keep`."""
    kept = []
    settings = {"max_minutes": 1} | settings
    rows = jobs.run_jobs(
        measurements, keep=lambda rows: kept.append(len(rows)), **settings
    )
    return rows, kept


def test_a_failure_keeps_all_other_rows_and_saves_each_at_once():
    rows, kept = run(
        jobs_of(
            lambda: [{"TFLOP/s": 1.0}],
            lambda: raise_(MemoryError("all\nfull")),
            lambda: raise_(SettingsError("needs a GPU")),
            lambda: [{"TFLOP/s": 2.0}, {"TFLOP/s": 3.0}],
        )
    )
    about = [{"table": "matmul", "width": i} for i in range(4)]
    assert rows == [
        about[0] | {"TFLOP/s": 1.0},
        about[1] | {"error": "MemoryError: all full"},
        about[2] | {"skipped": "needs a GPU"},
        about[3] | {"TFLOP/s": 2.0},
        about[3] | {"TFLOP/s": 3.0},
    ]
    assert kept == [1, 2, 3, 4, 5]


def test_a_job_out_of_time_is_cut_off_and_keeps_its_rows():
    never = threading.Event()

    def compile_for_ever():
        yield {"TFLOP/s": 1.0}
        never.wait()

    rows, _ = run(jobs_of(compile_for_ever), max_minutes=0.5 / 60)
    never.set()
    assert rows[0] == {"table": "matmul", "width": 0, "TFLOP/s": 1.0}
    assert rows[1]["skipped"].startswith(jobs.CUT_OFF) and len(rows) == 2


def test_nothing_is_started_when_the_time_is_over():
    now = [0.0]

    def take_a_minute():
        now[0] += 60
        return [{"TFLOP/s": 1.0}]

    rows, _ = run(jobs_of(take_a_minute, take_a_minute), clock=lambda: now[0])
    assert rows[0]["TFLOP/s"] == 1.0 and "1 minutes" in rows[1]["skipped"]
    assert now == [60.0]


def test_the_most_important_rows_come_first():
    ordered = program.make_jobs(sizes.FULL)
    assert {job.table for job in ordered} == set(sizes.TABLES)
    first = [job.about for job in ordered if job.table == "end_to_end"]
    assert [job.about for job in ordered[: len(first)]] == first
    assert first[0] == {"task": "hopper", "engine": "mjx", "envs": 4096}
    measured = {(x["task"], x["engine"], x["envs"]) for x in first}
    assert len(measured) == len(first) == 2 * 2 * 2
    assert ordered[len(first)].table == "time_to_target"
    for table in ("denoising", "update", "pretrain", "matmul"):
        precisions = {x.about["precision"] for x in ordered if x.table == table}
        assert precisions == set(sizes.PRECISIONS)
    # No job occurs twice.
    names = [str((job.table, job.about)) for job in ordered]
    assert len(names) == len(set(names))


def test_an_iteration_has_twenty_updates_at_any_size():
    config = sizes.make_config("hopper", sizes.FULL, envs=1024)
    rollout, ppo = config.rollout, config.algorithm.ppo
    num_tuned = config.model.sampling.num_tuned_steps
    pairs = rollout.num_envs * rollout.num_chunks * num_tuned
    assert rollout.num_envs == 1024 and ppo.epochs == 2
    assert pairs // ppo.batch_size == 10
    # Minibatches hold whole chains.
    assert ppo.batch_size % num_tuned == 0
    small = sizes.make_config("avoid", sizes.SMALL, precision="bfloat16")
    assert small.model.network.hidden_sizes == small.critic.hidden_sizes == (16,) * 3
    assert small.model.network.compute_dtype == small.critic.compute_dtype == "bfloat16"


def test_only_avoid_makes_its_own_demonstrations():
    with pytest.raises(ValueError, match="--data"):
        next(target.measure_target(sizes.FULL, None, "hopper", "float32"))


def test_files_are_called_after_device_and_date():
    report = {"device": "NVIDIA H100", "platform": "gpu", "date": "2026-01-31T12"}
    path = program.result_path(report, small=False)
    assert path.name == "nvidia-h100-2026-01-31.json"
    assert program.result_path(report, small=True).name.startswith("small-")


def test_without_a_gpu_only_a_trial_is_run(capsys):
    if jax.default_backend() != "cpu":
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        program.main([])
    assert "--small" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trial_runs_from_end_to_end(tmp_path, monkeypatch):
    # `start` changes settings of JAX that other tests rely on.
    report = timing.device_report()
    monkeypatch.setattr(timing, "start", lambda: report)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    path = tmp_path / "small.json"
    program.main(["--small", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert {row["table"] for row in rows} == set(sizes.TABLES)
    failed = [row for row in rows if "error" in row]
    assert not failed, failed
    measured = {row["table"] for row in rows if "skipped" not in row}
    assert measured == set(sizes.TABLES)
    for row in rows:
        if row.get("part") == "policy update":
            assert row["TFLOP/s"] > 0
