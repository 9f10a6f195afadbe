"""Parts and their floors: definitions and settings."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import setups, timing
from experiments.settings import load_config


def test_a_row_relates_a_part_to_its_products(monkeypatch):
    monkeypatch.setattr("benchmarks.floors.CALL_SECONDS", 1e-4)
    x = jnp.ones((32, 32))

    def part(x):
        return jax.lax.scan(lambda x, _: (x @ x / 32, None), x, length=3)[0]

    call = setups.jitted(part, x)
    row = setups.measure_part(
        setups.Part("squares", call, (jnp.matmul, x, x)), max_seconds=0.1
    )
    assert row["GFLOP"] == pytest.approx(3 * 2 * 32**3 / 1e9)
    # XLA's count is of one unit, without the division, scaled to the part.
    assert row["XLA GFLOP"] == pytest.approx(row["GFLOP"], rel=0.05)
    assert row["floor s"] == pytest.approx(row["GFLOP"] / row["matmul GFLOP/s"])
    assert row["utilisation"] == pytest.approx(row["floor s"] / row["median s"])
    assert row["GFLOP/s"] == pytest.approx(row["GFLOP"] / row["median s"])
    assert row["fastest"] <= row["median s"] <= row["slowest"]
    assert row["compile s"] > 0


def test_bytes_add_to_the_floor(monkeypatch):
    monkeypatch.setattr("benchmarks.floors.CALL_SECONDS", 1e-4)
    x = jnp.ones((32, 32))
    part = setups.Part(
        "square",
        setups.jitted(jnp.matmul, x, x),
        (jnp.matmul, x, x),
        num_bytes=5e6,
        stream=x,
    )
    row = setups.measure_part(part, max_seconds=0.1)
    assert row["GB"] == 5e-3
    seconds = row["GFLOP"] / row["matmul GFLOP/s"] + row["GB"] / row["GB/s"]
    assert row["floor s"] == pytest.approx(seconds)


def test_a_part_may_bring_its_floor_or_have_none():
    call = timing.Call(jnp.sin, (jnp.ones(3),))
    row = setups.measure_part(setups.Part("known", call, floor=1e-3), max_seconds=0.1)
    assert row["utilisation"] == pytest.approx(1e-3 / row["median s"])
    row = setups.measure_part(setups.Part("none", call), max_seconds=0.1)
    assert row["floor s"] is None and row["utilisation"] is None


def test_configurations_are_found_by_file_and_variant():
    assert load_config(setups.HOPPER).env.task == "hopper"
    assert load_config("experiments/configs/avoid.py:m2").name == "avoid_m2"
    with pytest.raises(ValueError, match="not a Python file"):
        load_config("README.md")


def test_both_networks_get_the_data_type():
    config = load_config(setups.AVOID)
    setups.set_compute_dtype(config, "bfloat16")
    assert (
        config.model.network.compute_dtype == config.critic.compute_dtype == "bfloat16"
    )


def test_moves_have_the_shapes_of_the_policy(tiny):
    setup = setups.make_setup(tiny)
    obs, x, next_x, step = setups.random_moves(setup, 12)
    assert obs["state"].shape == (12, 1, 4)
    assert x.shape == next_x.shape == (12, 4, 2)
    assert step.tolist() == [*range(10), 0, 1]


def test_random_observations_of_pictures_are_pictures():
    setup = setups.make_setup(load_config("experiments/configs/avoid.py:m1_pixels"))
    obs = setups.random_obs(setup, 3)
    assert obs["rgb"].shape == (3, 1, 96, 96, 3) and obs["rgb"].dtype == jnp.uint8
    assert obs["rgb"].min() < 10 and obs["rgb"].max() > 245
    assert obs["state"].shape == (3, 1, 4)
