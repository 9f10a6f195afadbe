from dppo_jax.training import clock as module
from dppo_jax.training.clock import Clock


def test_times_of_iterations_are_means_and_others_are_sums(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    clock = Clock()
    clock.spent("rollout_seconds", 4.0)
    clock.spent("rollout_seconds", 2.0)
    with clock.timing("checkpoint_seconds"):
        now[0] = 3.0
    now[0] = 12.0
    assert clock.read(2) == {
        "rollout_seconds": 3.0,
        "checkpoint_seconds": 3.0,
        "seconds": 6.0,
    }
    clock.restart(logged=2)
    now[0] = 13.0
    assert clock.read(3) == {"seconds": 1.0}
