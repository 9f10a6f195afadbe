"""The tables of denoising, iterations, pre-training and scaling add up."""

import json

import jax
import numpy as np
import pytest
from matplotlib import pyplot

from benchmarks import (
    command_line,
    denoising,
    floors,
    off_policy,
    pretrain,
    scaling,
    setups,
    train_step,
)
from experiments.settings import load_config


def matmul_flops(params):
    """Operations of one row through all dense layers."""
    return sum(2 * x.size for x in jax.tree.leaves(params) if x.ndim == 2)


def test_denoising_evaluates_the_network_at_every_step_of_a_chain(tiny):
    row = denoising.measure_batch(tiny, batch=3, num_calls=2, max_seconds=0.1)
    setup = setups.make_setup(tiny)
    obs = setups.random_obs(setup, 1)
    network = setup.policy.init(jax.random.key(0), obs).tuned["params"]
    time, rest = (
        matmul_flops({k: v for k, v in network.items() if (k == "time_embedding") == t})
        for t in (True, False)
    )
    # Two calls of 20 steps; all three chains share one embedding of the time.
    assert row["GFLOP"] == pytest.approx((time + 3 * rest) * 2 * 20 / 1e9)
    assert row["chunks/s"] == pytest.approx(3 * 2 / row["median s"])
    assert row["floor s"] > 0


def test_denoising_counts_the_encoder_once_per_chain(tiny_pixels):
    """Only that of the tuned network, which runs all five steps; each of the two calls
    has observations of its own, so that the compiler cannot encode once for both."""
    part = denoising.denoising_part(setups.make_setup(tiny_pixels), 3, 2)
    _, obs, _ = part.call.args
    assert np.any(obs["rgb"][0] != obs["rgb"][1])

    def repeats(function, *args):
        """How often the products run that read pixels, and those that make actions."""
        found = floors.products(function, *args)
        pixels = [n for product, n in found if product.rhs.shape == (8 * 8 * 3, 8)]
        actions = [n for product, n in found if product.rhs.shape == (16, 4 * 2)]
        return pixels, actions

    assert repeats(part.call.function, *part.call.args) == ([2], [2 * 5])
    assert repeats(*part.unit) == ([1], [5])


@pytest.mark.slow
def test_the_split_of_an_iteration_adds_up(tiny):
    rows = train_step.measure_all(tiny, max_seconds=0.1)
    names = [row["part"] for row in rows]
    assert names == [
        *("physics", "denoising", "returns", "policy update", "critic update"),
        *("rest", "step"),
    ]
    seconds = [row["median s"] for row in rows]
    assert sum(seconds[:-1]) == pytest.approx(seconds[-1])
    assert sum(row["share"] for row in rows[:-1]) == pytest.approx(1)
    for row in rows[:5]:
        assert row["floor s"] > 0
        assert row["utilisation"] == pytest.approx(row["floor s"] / row["median s"])


def test_the_floor_of_an_iteration_is_that_of_its_parts():
    def row(name, seconds, floor):
        return {"part": name, "median s": seconds, "floor s": floor}

    parts = [row("physics", 2.0, 1.0), row("denoising", 3.0, 2.5)]
    *_, rest, step = train_step.split(parts, row("step", 7.0, None))
    assert rest["median s"] == 2.0 and rest["share"] == pytest.approx(2 / 7)
    assert step["floor s"] == 3.5 and step["utilisation"] == 0.5
    parts[0]["floor s"] = None
    assert train_step.split(parts, row("step", 7.0, None))[-1]["floor s"] is None


def test_updates_count_forward_and_backward_of_every_pair(tiny):
    setup = setups.make_setup(tiny)
    # 4 environments x 2 chunks x 10 moves in minibatches of 20, three times.
    assert train_step.num_updates(tiny) == 12
    for make, rows in (
        (train_step.policy_update_part, 20),
        # At most one value per environment step.
        (train_step.critic_update_part, 8),
    ):
        part = make(setup)
        (params, _), _ = part.call.args
        counted = floors.flops(part.call.function, *part.call.args)
        # Once per update, whether the gradients are finite.
        counted -= 12 * matmul_flops(params)
        # Three products per layer, but no gradient of the inputs.
        bound = 3 * rows * 12 * matmul_flops(params)
        assert 0.8 * bound < counted < bound
        assert counted == 12 * floors.flops(*part.unit)


def test_returns_evaluate_every_observation_once_and_where_the_roll_out_ends(tiny):
    """4 environments x 2 chunks, and the 4 observations after the last chunk."""
    part = train_step.returns_part(setups.make_setup(tiny))
    params = part.call.args[0].critic_params
    counted = floors.flops(part.call.function, *part.call.args)
    assert counted == (8 + 4) * matmul_flops(params)


def test_soft_updates_count_all_their_products(tiny_sac):
    """For 8 rows, per layer 1 product forward and 2 backward, 1 in the first layer."""
    tiny_sac.algorithm.sac.replay.updates_per_round = 2
    setup = setups.make_off_policy_setup(tiny_sac)
    actor, critic = 11 * 16 + 16 * 16 + 16 * 6, 2 * (14 * 16 + 16 * 16 + 16)
    part = off_policy.critic_updates_part(setup)
    counted = floors.flops(part.call.function, *part.call.args)
    # Whether the gradients are finite, also those of the biases of both members.
    counted -= 8 * 2 * (critic + 2 * (16 + 16 + 1))
    # Next action and target; then value and gradient, but no gradient of the inputs.
    assert counted == 8 * 2 * 8 * (actor + critic + 3 * critic - 2 * 14 * 16)
    part = off_policy.actor_updates_part(setup)
    counted = floors.flops(part.call.function, *part.call.args)
    counted -= 4 * 2 * actor
    # The gradient goes through the critics to the action, not to their parameters.
    assert counted == 4 * 2 * 8 * (3 * actor - 11 * 16 + 2 * critic)


def test_the_replay_part_moves_what_is_stored_and_drawn(tiny_sac):
    part = off_policy.replay_part(setups.make_off_policy_setup(tiny_sac))
    # 8 stored and 8 batches of 8 drawn, of 11 + 11 + 3 + 3 numbers, read and written.
    assert part.num_bytes == 2 * (8 + 64) * 28 * 4
    ((_, collected, _),) = part.call.args
    reward = np.array(collected.reward)  # The call overwrites its arguments.
    (replay, *_), batches = part.call.function(part.call.args[0])
    assert batches.obs["state"].shape == (8, 8, 1, 11)
    np.testing.assert_array_equal(replay.items.reward[:, :2], reward.T)


def test_the_timed_off_policy_iteration_makes_updates(tiny_sac):
    """The timed iteration comes after the random actions and has a full buffer."""
    part = off_policy.step_part(setups.make_off_policy_setup(tiny_sac))
    (state,) = part.call.args
    assert state.iteration == 2
    _, metrics = part.call.function(state)
    assert metrics["num_updates"] == 8 and metrics["replay_size"] == 40


@pytest.mark.slow
def test_the_split_of_an_off_policy_iteration_adds_up(tiny_sac):
    rows = off_policy.measure_all(tiny_sac, max_seconds=0.1)
    assert [row["part"] for row in rows] == [
        *("physics", "acting", "replay", "critic updates", "actor updates"),
        *("rest", "step"),
    ]
    assert sum(row["share"] for row in rows[:-1]) == pytest.approx(1)
    assert all(row["floor s"] > 0 for row in rows[:5])
    with pytest.raises(ValueError, match="use 'squashed', or benchmarks.train_step"):
        off_policy.measure_all(load_config(setups.HOPPER))


def test_cloning_counts_bytes_of_the_optimizer_and_the_average(tiny):
    assert pretrain.update_bytes(100, ema_every=10) == 700 + 30
    row = pretrain.measure_batch(tiny, batch=8, num_updates=3, max_seconds=0.1)
    assert row["samples/s"] == pytest.approx(24 / row["median s"])
    setup = setups.make_setup(tiny)
    params = setup.policy.init(jax.random.key(0), setups.random_obs(setup, 1)).tuned
    size = sum(4 * x.size for x in jax.tree.leaves(params))
    assert row["GB"] == pytest.approx(3 * 7.3 * size / 1e9)
    products = row["GFLOP"] / row["matmul GFLOP/s"]
    assert row["floor s"] == pytest.approx(products + row["GB"] / row["GB/s"])


def test_random_windows_are_as_many_as_asked_for(tiny):
    windows = pretrain.random_windows(setups.make_setup(tiny), 24)
    assert windows.size == 24


@pytest.mark.slow
def test_more_environments_make_more_updates_of_the_same_size(tiny):
    rows = [scaling.measure_envs(tiny, envs, 2, 40, 0.1) for envs in (2, 4)]
    assert [row["updates"] for row in rows] == [1, 2]
    for row in rows:
        assert row["ms/update"] == pytest.approx(
            1e3 * row["updates s"] / row["updates"]
        )
    with pytest.raises(ValueError, match="--pairs=41"):
        scaling.measure_envs(tiny, 2, 2, 41, 0.1)


def test_growth_is_the_exponent_between_rows():
    rows = [
        {"environments": n, "physics s": 0.1 * n, "ms/update": 7.0} for n in (2, 8, 32)
    ]
    rows[2]["ms/update"] = 14.0
    rows = scaling.add_growth(rows)
    assert rows[0]["physics growth"] is None
    assert [row["physics growth"] for row in rows[1:]] == pytest.approx([1, 1])
    assert [row["update growth"] for row in rows[1:]] == pytest.approx([0, 0.5])


def test_scaling_is_drawn_beside_proportional_growth(tmp_path, monkeypatch):
    """Left plot: seconds of the parts. Right plot: milliseconds per update."""
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    parts = ("step", "physics", "denoising", "updates")
    envs = np.array([1, 2, 4])
    rows = [
        {"environments": n, "ms/update": 7.0 * n}
        | {f"{part} s": (i + 1.0) * n**2 for i, part in enumerate(parts)}
        for n in envs
    ]
    path = tmp_path / "plots" / "scaling.png"
    scaling.plot(rows, path, "a title")
    (figure,) = drawn
    left, right = figure.axes
    lines = {line.get_label(): line for line in left.get_lines()}
    assert set(lines) == {*parts, "proportional"}
    for line in lines.values():
        np.testing.assert_array_equal(line.get_xdata(), envs)
    for i, part in enumerate(parts):
        np.testing.assert_allclose(lines[part].get_ydata(), (i + 1) * envs**2)
    # The line of proportional growth, from the physics of the first row.
    np.testing.assert_allclose(lines["proportional"].get_ydata(), 2 * envs)
    (update,) = right.get_lines()
    np.testing.assert_allclose(update.get_ydata(), 7 * envs)
    assert left.get_xlabel() == right.get_xlabel() == "environments"
    assert (left.get_ylabel(), right.get_ylabel()) == ("seconds", "milliseconds")
    assert left.get_yscale() == "log" and right.get_ylim()[0] == 0
    height, width, _ = pyplot.imread(path).shape
    assert (width, height) == (9 * 150, 3.5 * 150)


def test_programs_keep_what_they_print(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "load_config", lambda spec: tiny)
    # `start` changes settings of JAX that other tests rely on.
    report = {"device": "none"}
    monkeypatch.setattr(denoising.timing, "start", lambda: report)
    path = tmp_path / "out.json"
    settings = ["--set", "model.sampling.num_tuned_steps=1"]
    words = ["--batch", "2", "--calls", "1", *settings, "--json", str(path)]
    denoising.main(words)
    kept = json.loads(path.read_text())
    named = " ".join([setups.HOPPER, settings[1]])
    assert kept["report"] == report | {"config": named}
    assert kept["rows"][0]["batch"] == 2
    assert "utilisation" in capsys.readouterr().out


def test_an_iteration_is_measured_with_the_settings_of_the_command_line(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command_line.timing, "start", lambda: {"device": "none"})

    def measure(config):
        return [{"part": "step", "epochs": config.algorithm.ppo.epochs}]

    path = tmp_path / "out.json"
    command_line.measure_iteration(
        "train_step",
        setups.AVOID,
        measure,
        ["--set", "algorithm.ppo.epochs=3", "--json", str(path)],
    )
    kept = json.loads(path.read_text())
    assert kept["rows"] == [{"part": "step", "epochs": 3}]
    assert kept["report"]["config"] == f"{setups.AVOID} algorithm.ppo.epochs=3"
    assert "epochs" in capsys.readouterr().out
