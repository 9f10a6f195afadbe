"""The charts of a run: which metrics share a chart, over which axes, with what band."""

from collections.abc import Iterator, Mapping, Sequence

from dppo_jax.training.metric_names import EVALUATION, TIMES, about
from experiments import intervals
from experiments.curves import AXES, ON_PAGES, curve
from experiments.reports import html
from experiments.reports.run import Facts, Row, scores
from experiments.reports.svg import Chart, Curve

# Charts that are always shown: the title, and the metrics of one chart.
_MAIN = (
    ("Success", ("success", "eval/success")),
    ("Return", ("episode_return", "eval/episode_return")),
    ("Cloning loss", ("loss", "average_loss")),
    ("KL estimate", ("approx_kl", "approx_kl_last")),
    ("Clip fraction", ("clip_fraction",)),
    ("Critic: explained variance", ("explained_variance",)),
    ("Critic: loss", ("value_loss", "critic_loss")),
    ("Policy: loss", ("policy_loss", "actor_loss", "flow_loss")),
    ("Learning rates", ("learning_rate", "actor_lr", "critic_lr")),
    ("Time of an iteration", ("seconds", "rollout_seconds")),
)
_LOGARITHMIC = (
    *("loss", "average_loss", "value_loss", "critic_loss"),
    *("learning_rate", "actor_lr", "critic_lr", "approx_kl", "chain_kl"),
)
# Shares that are drawn from 0 to 100 %, because they may end anywhere.
_WHOLE = ("success", "eval/success", "solved", "eval/solved")
# A limit that is more often as high as the curve is left out, or it would flatten it.
_FAR = 20
# A critic that is worse than this is as useless as one that is much worse.
_LEAST_EXPLAINED = -1.0
_HIDDEN = ("iteration", "env_steps", "eval/episode_return_stderr", *TIMES)


def axes(facts: Facts) -> dict[str, str]:
    """Axis -> its name, for the axes that a run has."""
    names = {name for row in facts.rows for name in row}
    found = {key: AXES[key] for key in ON_PAGES if key in names}
    if facts.is_cloning:
        found = {"iteration": "epoch"} | found
        found["iteration"] = "epoch"
    return found


def main_figures(facts: Facts) -> Iterator[str]:
    """The charts that every reader needs."""
    for title, names in _MAIN:
        yield _figure(facts, title, names)


def other_figures(facts: Facts) -> Iterator[str]:
    """All other metrics, those of evaluations beside those of roll-outs."""
    shown = {name for _, names in _MAIN for name in names} | set(_HIDDEN)
    logged = dict.fromkeys(name for row in facts.rows for name in row)
    rest = dict.fromkeys(
        name.removeprefix(EVALUATION) for name in logged if name not in shown
    )
    for name in rest:
        title = about(name).label
        yield _figure(facts, title[:1].upper() + title[1:], (name, EVALUATION + name))


def _figure(facts: Facts, title: str, names: Sequence[str]) -> str:
    """A chart of the metrics that a run has; empty if it has none of them."""
    logged = {name for row in facts.rows for name in row}
    names = [name for name in names if name in logged]
    if not names:
        return ""
    charts = {
        key: _chart(facts, names, key, label) for key, label in axes(facts).items()
    }
    meaning = "; ".join(
        f"{about(name).label}: {about(name).meaning}"
        for name in dict.fromkeys(x.removeprefix(EVALUATION) for x in names)
        if about(name).meaning
    )
    return html.figure(title, charts, meaning)


def _chart(facts: Facts, names: Sequence[str], axis: str, x_label: str) -> Chart:
    first = about(names[0])
    factor = 100 if first.unit == "%" else 1
    curves = [
        Curve(
            label=curve_label(name, names),
            points=_scaled(points(facts.rows, name, axis, facts.evaluation), factor),
            color=i,
            marks=name.startswith(EVALUATION),
        )
        for i, name in enumerate(names)
    ]
    values = [point[1] for curve in curves for point in curve.points]
    y_range = (0.0, 100.0) if names[0] in _WHOLE else None
    if factor == 100 and y_range is None and values:
        y_range = (0.0, min(1.15 * max(values), 100.0) or 1.0)
    if names[0] == "explained_variance" and min(values, default=0) < _LEAST_EXPLAINED:
        y_range = (_LEAST_EXPLAINED, 1.0)
    return Chart(
        x_label=x_label,
        y_label=first.label.partition(",")[0] + (first.unit and f" ({first.unit})"),
        curves=curves,
        y_range=y_range,
        log=is_logarithmic(names[0], values),
        level=_level(facts, names, max(values, default=0.0)),
    )


def is_logarithmic(name: str, values: Sequence[float]) -> bool:
    """Whether the axis of a metric is logarithmic.

    Estimates of a small divergence are negative now and then, so most values suffice.
    """
    positive = sum(x > 0 for x in values) > 0.8 * len(values)
    return name in _LOGARITHMIC and positive


def curve_label(name: str, names: Sequence[str]) -> str:
    """The label of a curve among others; empty if it needs none."""
    plain = name.removeprefix(EVALUATION)
    if {plain, EVALUATION + plain} <= set(names):
        return "evaluation" if name != plain else "exploring"
    if name != plain:
        return "evaluation"
    return about(name).label if len(names) > 1 else ""


def points(
    rows: Sequence[Row], name: str, axis: str, evaluation: Mapping[str, object]
) -> list[tuple]:
    """The points of a curve, with 95 % intervals where they are known.

    Args:
        axis: a key of `curves.AXES`.
        evaluation: the settings of evaluations, of which `num_episodes` is used.
    """
    by_iteration = {row["iteration"]: row for row in rows}
    found = []
    for iteration, (x, y) in curve(rows, name, axis).items():
        ends = _interval(name, by_iteration[iteration], evaluation)
        found.append((x, y) if ends is None else (x, y, *ends))
    return found


def _interval(
    name: str, row: Row, evaluation: Mapping[str, object]
) -> intervals.Interval | None:
    is_evaluation = name.startswith(EVALUATION)
    count = evaluation.get("num_episodes") if is_evaluation else row.get("num_episodes")
    if not isinstance(count, (int, float)) or count < 1:
        return None
    metrics = scores(row, EVALUATION if is_evaluation else "")
    return intervals.of_score(metrics, int(count)).get(name.removeprefix(EVALUATION))


def _scaled(points: Sequence[tuple], factor: int) -> list[tuple]:
    return [(x, *(factor * y for y in ys)) for x, *ys in points]


def _level(
    facts: Facts, names: Sequence[str], highest: float
) -> tuple[float, str] | None:
    """The limit of the KL estimate, if the algorithm has one that is near the curve."""
    if "approx_kl" not in names or facts.config is None:
        return None
    algorithm = facts.config.algorithm
    limit = algorithm.get(algorithm.name, {}).get("target_kl")
    if limit is None or limit > _FAR * highest:
        return None
    return limit, f"target_kl {limit:g}"
