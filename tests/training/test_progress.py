"""What a run says without a terminal."""

from dppo_jax.training.progress import Progress


def test_without_an_ended_episode_there_is_no_return(capsys):
    """NaN would look like a policy that diverges."""
    progress = Progress(0, 3)
    progress.show({"reward": 0.5, "episode_return": float("nan")})
    progress.reach(1)
    progress.show({"reward": 0.5, "episode_return": 2.0})
    progress.reach(3)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "1/3  reward 0.5  (no episode ended)  compiled"
    assert last.startswith("3/3  reward 0.5  episode_return 2  ")
