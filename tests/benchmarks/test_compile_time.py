"""The two starts that are timed, and their settings."""

import pytest

from benchmarks import compile_time, setups
from experiments.settings import load_config, override

TINY = (
    *("rollout.num_envs=4", "rollout.num_chunks=2", "algorithm.ppo.epochs=1"),
    *("algorithm.ppo.batch_size=20", "model.network.hidden_sizes=(16,16,16)"),
)


def test_settings_override_the_configuration():
    config = load_config(setups.AVOID)
    override(config, [*TINY, "env.engine=mjx"])
    assert config.algorithm.ppo.batch_size == 20
    assert config.model.network.hidden_sizes == (16, 16, 16)
    assert config.env.engine == "mjx"
    for wrong in ("algorithm.ppo.epoch=1", "nothing.at.all=1", "algorithm.ppo.epochs"):
        with pytest.raises(ValueError, match="--set"):
            override(config, [wrong], "--set ")


@pytest.mark.slow
def test_a_second_start_finds_the_programs_of_the_first():
    cold, warm = compile_time.measure_config(setups.AVOID, [*TINY, "env.engine=mjx"])
    assert (cold["start"], warm["start"]) == ("cold", "warm")
    assert cold["found"] < warm["found"]
    for row in (cold, warm):
        laps = ("import s", "setup s", "trace s", "lower s", "compile s", "first s")
        assert all(row[name] > 0 for name in laps)
        assert sum(row[name] for name in laps) == pytest.approx(row["wait s"])
        assert row["all compile s"] >= row["compile s"] * 0.9
        assert row["programs"] > 1


@pytest.mark.slow
def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="batch_size=0"):
        compile_time.measure_config(setups.AVOID, [*TINY, "algorithm.ppo.batch_size=0"])
