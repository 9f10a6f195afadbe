"""The program for a GPU, as far as it can be tried without one."""

import json

import pytest

from benchmarks import gpu


def jobs_of(*runs):
    return [gpu.Job("physics", {"batch": i}, run) for i, run in enumerate(runs)]


def raise_(error):
    raise error


def test_a_row_that_fails_loses_no_other_and_all_are_kept_at_once():
    kept = []
    rows = gpu.run_jobs(
        jobs_of(
            lambda: [{"steps/s": 1.0}],
            lambda: raise_(MemoryError("all\nfull")),
            lambda: raise_(ValueError("engine='mjx-warp' needs a GPU")),
            lambda: [{"steps/s": 2.0}, {"steps/s": 3.0}],
        ),
        max_minutes=1,
        keep=lambda rows: kept.append(len(rows)),
    )
    about = [{"table": "physics", "batch": i} for i in range(4)]
    assert rows == [
        about[0] | {"steps/s": 1.0},
        about[1] | {"error": "MemoryError: all full"},
        about[2] | {"skipped": "engine='mjx-warp' needs a GPU"},
        about[3] | {"steps/s": 2.0},
        about[3] | {"steps/s": 3.0},
    ]
    assert kept == [1, 2, 3, 5]


def test_what_would_end_too_late_is_skipped_by_name():
    now = [0.0]

    def take(seconds):
        now[0] += seconds
        return [{"steps/s": seconds}]

    rows = gpu.run_jobs(
        # After 50 seconds 10 are left, too few for another physics job of 50.
        [*jobs_of(lambda: take(50.0), take), gpu.Job("matmul", {}, lambda: take(5.0))],
        max_minutes=1,
        keep=lambda rows: None,
        clock=lambda: now[0],
    )
    assert rows[1]["batch"] == 1 and "1 minutes" in rows[1]["skipped"]
    assert rows[2] == {"table": "matmul", "steps/s": 5.0}


def test_every_table_engine_and_size_is_on_the_list():
    jobs = gpu.make_jobs(gpu.FULL)
    assert {job.table for job in jobs} == set(gpu.TABLES)
    physics = {
        (job.about["task"], job.about["engine"], job.about["batch"])
        for job in jobs
        if job.table == "physics"
    }
    assert len(physics) == 4 * 2 * len(gpu.FULL.batches)
    assert min(gpu.FULL.batches) == 256 and max(gpu.FULL.batches) == 8192
    steps = [job.about for job in jobs if job.table == "train_step"]
    assert {x["task"] for x in steps} == set(gpu.CONFIGS)
    assert {x["engine"] for x in steps} == {"mjx", "mjx-warp"}
    assert {x["dtype"] for x in steps} == set(gpu.DTYPES)
    # No job twice, which would waste what little time there is.
    names = [str((job.table, job.about)) for job in jobs]
    assert len(names) == len(set(names))


def test_sizes_reach_the_configuration():
    config = gpu.make_config("avoid", gpu.SMALL, envs=4, engine="mjx")
    assert config.rollout.num_envs == 4 and config.algorithm.ppo.batch_size == 40
    assert config.model.network.hidden_sizes == (16, 16, 16)
    # As many pairs as there are, where those are fewer than an update should have.
    config = gpu.make_config("hopper", gpu.FULL, envs=8)
    assert config.algorithm.ppo.batch_size == 8 * 50 * 10


def test_files_are_called_after_device_and_date():
    report = {"device": "NVIDIA H100", "platform": "gpu", "date": "2026-01-31T12"}
    path = gpu.result_path(report, small=False)
    assert path.name == "nvidia-h100-2026-01-31.json"
    assert gpu.result_path(report, small=True).name.startswith("small-")


def test_without_a_gpu_only_a_trial_is_run(capsys):
    if gpu.jax.default_backend() != "cpu":
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--small" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trial_runs_from_end_to_end(tmp_path, monkeypatch):
    # `start` changes settings of JAX that other tests rely on.
    report = gpu.timing.device_report()
    monkeypatch.setattr(gpu.timing, "start", lambda: report)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    path = tmp_path / "small.json"
    gpu.main(["--small", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert {row["table"] for row in rows} == set(gpu.TABLES)
    failed = [row for row in rows if "error" in row]
    assert not failed, failed
    measured = {row["table"] for row in rows if "skipped" not in row}
    assert measured == set(gpu.TABLES)
    for row in rows:
        if row.get("part") == "policy update":
            assert row["floor s"] > 0
