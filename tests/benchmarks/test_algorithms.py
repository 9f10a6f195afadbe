"""The table of all algorithms: what it measures, and that every variant exists."""

import pytest

from benchmarks import algorithms
from dppo_jax.algorithms import ALGORITHMS
from dppo_jax.errors import SettingsError
from experiments.settings import load_config


def load(task, label):
    variant = algorithms.VARIANTS[task][label]
    return load_config(f"experiments/configs/{task}.py:{variant}")


@pytest.mark.parametrize("task", algorithms.VARIANTS)
def test_every_algorithm_has_its_variant_and_learns_at_once(task):
    others = set(ALGORITHMS) - {"ppo", "fpo", "ppo_exact", "sac"}
    assert others <= set(algorithms.VARIANTS[task])
    for label in algorithms.VARIANTS[task]:
        config = algorithms.learning_config(load(task, label))
        assert config.algorithm.name == ("ppo" if label == "dppo" else label)
        settings = config.algorithm[config.algorithm.name]
        assert not settings.get("critic_warmup", 0)
        assert not settings.get("offline_iterations", 0)
        replay = settings.get("replay", {})
        assert not replay.get("min_fill", 0) and not replay.get("random_steps", 0)


@pytest.mark.parametrize(
    "label", ["calql", pytest.param("ibrl", marks=pytest.mark.slow)]
)
def test_a_row_adds_physics_and_products(label, monkeypatch):
    """A few updates on random demonstrations, with tiny networks."""
    config = load("avoid", label)
    config.rollout.update(num_envs=2, num_chunks=2)
    config.model.network.hidden_sizes = config.critic.hidden_sizes = (16,)
    settings = config.algorithm[label]
    rounds = settings.replay.updates_per_round
    settings.replay.update(batch_size=8, capacity=4000)
    settings.replay.updates_per_transition = rounds / 4
    if label == "calql":
        settings.offline_updates = rounds
    monkeypatch.setattr(algorithms.floors, "alone_seconds", lambda found: 0.5)
    row = algorithms.measure_algorithm(label, config, max_seconds=0.1)
    assert row["control steps"] == 2 * 2 * 4
    assert row["floor s"] == row["physics s"] + 0.5
    assert row["utilisation"] == row["floor s"] / row["iteration s"]
    assert row["GFLOP"] > 0


def test_unknown_algorithms_are_refused():
    with pytest.raises(SettingsError, match="--only dppo2: use some of dppo, drwr"):
        algorithms.main(["--only", "dppo2"])
