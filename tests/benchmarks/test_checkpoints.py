"""The cost of saving is measured with the state of a run, also without its buffer."""

import json

import pytest

from benchmarks import checkpoints, timing


@pytest.mark.slow
def test_rows_of_an_off_policy_run_are_with_and_without_its_buffer(
    tiny_sac, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoints, "load_config", lambda spec: tiny_sac)
    monkeypatch.setattr(timing, "start", lambda: {"platform": "cpu"})
    path = tmp_path / "rows.json"
    checkpoints.main(
        ["--configs", "hopper.py:sac", "--repeats", "1", f"--folder={tmp_path}"]
        + ["--set", "algorithm.sac.replay.capacity=20000", f"--json={path}"]
    )
    rows = json.loads(path.read_text())["rows"]
    assert [row["run"] for row in rows] == ["hopper_sac", "hopper_sac, without buffer"]
    for row in rows:
        assert row["iteration s"] > 0 and row["save s"] > 0 and row["every"] > 0
    # Random numbers: 20,000 transitions of 27 numbers hardly compress.
    buffer = 20_000 * 27 * 4 / 1e6
    whole, without = (row["MB on disk"] for row in rows)
    assert 0.7 * buffer < whole - without < 1.2 * buffer
    assert rows[0]["state MB"] == rows[1]["state MB"] > buffer
    assert sorted(x.name for x in tmp_path.iterdir()) == ["rows.json"]


def test_a_run_without_a_buffer_has_one_row(tiny, monkeypatch):
    monkeypatch.setattr(checkpoints, "load_config", lambda spec: tiny)
    ((name, config),) = checkpoints.rows_of("avoid.py:m1", ["seed=3"])
    assert name == tiny.name and config.seed == 3
    state = (1, 2)
    assert checkpoints.with_full_buffer(state) is state
