"""The points of learning curves, over iterations, environment steps or time."""

from collections.abc import Mapping, Sequence

# What a curve can be drawn over: the label of the axis.
AXES = {
    "iteration": "iteration",
    "env_steps": "environment steps",
    "seconds": "training time without evaluations (s)",
}
# Their order on pages, where the first is chosen at first.
ON_PAGES = ("env_steps", "seconds", "iteration")


def curve(
    rows: Sequence[Mapping[str, float]], metric: str, over: str
) -> dict[float, tuple[float, float]]:
    """Iteration -> place on the axis and value, for the rows that have both.

    The row of iteration 0, an evaluation before training, has neither steps nor a time.
    """
    points, seconds, last = {}, 0.0, 0.0
    for row in rows:
        iteration = row["iteration"]
        seconds += row.get("seconds", 0.0) * (iteration - last)
        last = iteration
        start = {} if iteration else {"env_steps": 0.0}
        place = {**start, **row, "seconds": seconds}.get(over)
        if metric in row and place is not None:
            points[iteration] = (place, row[metric])
    return points
