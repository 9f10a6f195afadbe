"""The latency of a control step is measured for policies of a configuration."""

import pytest

from benchmarks import latency
from experiments.settings import load_config


@pytest.mark.parametrize("task", latency.VARIANTS)
def test_every_row_has_a_configuration(task):
    for variant in latency.VARIANTS[task].values():
        load_config(f"experiments/configs/{task}.py:{variant}")


def test_every_timed_call_samples_a_chunk(tiny, monkeypatch):
    calls = []
    sample = latency.LoadedPolicy.sample

    def watch(policy, *args, **settings):
        calls.append(len(policy.reads["state"].shape))
        return sample(policy, *args, **settings)

    monkeypatch.setattr(latency.LoadedPolicy, "sample", watch)
    row = latency.measure_policy("tiny", tiny, 3)
    # The first one compiles.
    assert len(calls) == 1 + latency._WARM_CALLS + 3
    assert 0 < row["p50 ms"] <= row["p99 ms"] <= row["slowest ms"]
    assert row["control period ms"] == pytest.approx(35) and row["chunk"] == 4
