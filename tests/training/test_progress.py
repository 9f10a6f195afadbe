"""What a run says without a terminal."""

import pytest

from dppo_jax.training import progress as module
from dppo_jax.training.progress import Progress


def test_without_an_ended_episode_there_is_no_return(capsys):
    """NaN would look like a policy that diverges."""
    progress = Progress(0, 3, show=("reward", "episode_return"))
    progress.see({"reward": 0.5, "episode_return": float("nan"), "loss": 1.0})
    progress.reach(1)
    progress.see({"reward": 0.5, "episode_return": 2.0})
    progress.reach(3)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "1/3  reward 0.5  (no episode ended)  compiled"
    assert last == "3/3  reward 0.5  episode_return 2  done"


@pytest.mark.parametrize(
    ("may_stop", "left"), [(False, "30 s left"), (True, "at most 30 s left")]
)
def test_a_run_that_may_stop_earlier_says_how_long_it_takes_at_most(
    may_stop, left, monkeypatch, capsys
):
    """Iteration 1 compiles; 20 more take 20 s, so the other 30 take 30 s."""
    clock = iter([0.0, 5.0, 25.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    progress = Progress(0, 51, may_stop=may_stop)
    progress.reach(1)
    progress.reach(21)
    assert capsys.readouterr().err.splitlines()[1] == f"21/51    {left}"
