"""Timing: what is timed, what is excluded, what is written."""

import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from benchmarks import timing


def test_a_call_takes_as_long_as_it_sleeps():
    result = timing.measure(lambda: time.sleep(0.01), repeats=3)
    assert 0.01 <= result.fastest <= result.median <= result.slowest
    assert result.compile == 0
    assert result.repeats == 3


def test_warm_up_calls_are_made_but_not_timed():
    naps = iter([0.2, 0.2, 0.0, 0.0, 0.0])
    result = timing.measure(lambda: time.sleep(next(naps)), repeats=3, warmup=2)
    assert result.slowest < 0.2
    assert next(naps, None) is None


def test_compiling_is_timed_separately_and_once():
    def slow_to_trace(x):
        time.sleep(0.2)
        return x + 1

    result = timing.measure(jax.jit(slow_to_trace), jnp.zeros(3), repeats=3)
    assert result.compile >= 0.2
    assert result.slowest < 0.2


@pytest.mark.parametrize("with_metrics", [False, True])
def test_a_donated_state_can_be_carried_on(with_metrics):
    def step(state):
        count = state[0] + 1
        jax.debug.callback(lambda value: seen.append(int(value)), count)
        return ((count,), {"loss": count}) if with_metrics else (count,)

    seen: list[int] = []
    state = (jnp.int32(0),)
    timing.measure(
        jax.jit(step, donate_argnums=0), state, carry=True, warmup=1, repeats=4
    )
    jax.effects_barrier()
    assert seen == [1, 2, 3, 4, 5]


def test_repeats_stop_when_the_time_is_spent():
    result = timing.measure(
        lambda: time.sleep(0.02), repeats=1000, warmup=0, max_seconds=0.0
    )
    assert result.repeats == timing.MIN_REPEATS


def test_settings_that_measure_nothing_are_refused():
    with pytest.raises(ValueError, match="repeats=1"):
        timing.measure(time.time, repeats=1)
    with pytest.raises(ValueError, match="2 were given"):
        timing.measure(max, 1, 2, carry=True)


def test_a_table_aligns_text_left_and_numbers_right(capsys):
    rows = [
        {"task": "avoid", "rate": 12345.6, "batch": 1024, "ratio": 0.98765},
        {"task": "hopper", "rate": 99.25, "batch": 8, "ratio": None},
    ]
    timing.print_table(rows)
    assert capsys.readouterr().out.splitlines() == [
        "task      rate  batch  ratio",
        "avoid   12,346  1,024  0.988",
        "hopper    99.2      8      -",
    ]


def test_results_are_filed_under_device_and_date(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "results")
    report = timing.device_report()
    for package in ("python", "jax", "jaxlib", "flax", "mujoco", "mujoco-mjx"):
        assert report["versions"][package]

    report.update(platform="gpu", device="NVIDIA H200", date="2026-01-31T12:00:00")
    path = timing.result_path("physics", report)
    assert path == tmp_path / "results" / "physics-nvidia-h200-2026-01-31.json"
    report.update(platform="cpu", processor="Intel(R) Xeon(R) Processor", cores=2)
    path = timing.result_path("physics", report)
    assert path.name == "physics-intel-xeon-processor-2-cores-2026-01-31.json"

    rows = [{"task": "avoid", "rate": 1.5}]
    written = timing.write_json(path, rows, report)
    assert json.loads(written.read_text()) == {"report": report, "rows": rows}


def test_the_peak_of_memory_counts_arrays_that_are_gone():
    """In a process of its own, whose peak no other test has raised."""
    code = """if True:
    import numpy as np
    from benchmarks import timing
    before = timing.peak_memory()
    np.ones(100_000_000, np.float32)  # 400 MB
    print(timing.peak_memory() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert 300 < float(done.stdout) < 410  # Importing may have used more for a moment.
