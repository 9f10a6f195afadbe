"""The sections of the report of a run."""

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dppo_jax.training.metric_names import EVALUATION, SCORES, about, in_time
from experiments import directories, intervals, settings_table
from experiments.dry_run import executed
from experiments.reports import html
from experiments.reports.axes import short
from experiments.reports.run import Facts, Row, scores
from experiments.reports.times import Times
from experiments.settings import as_flag

# Settings that only name a run or its sources, which are shown elsewhere.
_NOT_SHOWN = ("name", "run_dir", "policy", "data", "num_seeds", "seed")
_PICTURES = (
    ("trajectories.png", "Trajectories of evaluated episodes"),
    ("episodes.png", "Frames of evaluated episodes"),
)
# Bytes of videos inside of a page; more are named only.
_MOST_BYTES = 8_000_000
_EARLY = (
    "An episode may take several iterations, so the exploring scores of the first ones "
    "are those of episodes that ended early."
)
_STAGES = {"pretrain": "behaviour cloning", "collect": "demonstrator, trained by PPO"}


def title(facts: Facts) -> str:
    """The name of the run."""
    name = str(facts.settings.get("name") or facts.run_dir.resolve().parent.name)
    folder = facts.run_dir.resolve().name
    return f"{name}: {facts.stage or folder}"


def what(facts: Facts) -> str:
    """Algorithm, policy, task and seed, in one line."""
    if facts.config is None:
        return f"a run of {facts.stage or 'an unknown program'}"
    config = facts.config
    name, kind = config.algorithm.name, config.model.kind
    method = _STAGES.get(facts.stage, name.upper())
    if facts.stage == "finetune" and name == "ppo" and kind == "diffusion":
        method = "DPPO"
    network = config.model.network.kind
    task = config.env.task or "no task"
    return (
        f"{method} of a {kind} policy (network {network}), task {task}, "
        f"seed {config.seed}"
    )


def when(facts: Facts) -> str:
    """The dates of a run."""
    known = [
        f"{word} {_date(time)}"
        for word, time in (
            ("started", facts.started),
            ("last checkpoint", facts.ended),
        )
        if time is not None
    ]
    return ", ".join(known) or "date unknown"


def headline(facts: Facts, times: Times) -> Iterator[tuple[str, str, str]]:
    """Scores before and after with their intervals, steps and time."""
    scored = [row for row in facts.rows if any(x.startswith(EVALUATION) for x in row)]
    for name in SCORES:
        rows = [row for row in scored if EVALUATION + name in row]
        if rows:
            yield _score_card(facts, rows, name)
    own = _own_evaluation(facts.run_dir)
    if own:
        yield own
    if facts.rows and "env_steps" in facts.rows[-1]:
        rate = times.steps_per_second
        below = f"{rate:,.0f} steps/s in training" if rate else ""
        yield "Environment steps", short(facts.rows[-1]["env_steps"]), below
    if facts.is_cloning and facts.rows and "loss" in facts.rows[-1]:
        losses = [row["loss"] for row in facts.rows if "loss" in row]
        change = f"{losses[0]:.3g} → {losses[-1]:.3g}"
        yield "Cloning loss", change, "first → last epoch"
    if times.total:
        yield "Time", in_time(times.total), f"{facts.iteration} {facts.iterations}"
    if facts.best is not None:
        yield "Best checkpoint", str(facts.best), "--checkpoint=best reads it"


def _score_card(facts: Facts, rows: Sequence[Row], name: str) -> tuple[str, str, str]:
    shown = [rows[0], rows[-1]] if len(rows) > 1 else [rows[-1]]
    label, factor, unit = _shown(name)
    values = [_number(factor * row[EVALUATION + name]) for row in shown]
    count = facts.evaluation.get("num_episodes")
    below = f"{facts.iterations[:-1]} "
    below += " → ".join(f"{row['iteration']:.0f}" for row in shown)
    if isinstance(count, int) and count > 0:
        ends = [_ends(row, name, count, factor) for row in shown]
        each = " each" * (len(shown) > 1)
        below += f", {count} episodes{each}"
        if all(ends):
            below += f"; 95 % in {' → '.join(ends)}"
    return label, " → ".join(values) + unit, below


def _shown(name: str) -> tuple[str, int, str]:
    """What a score is called, and the factor and the unit with which it is shown."""
    metric = about(name)
    factor, unit = (100, " %") if metric.unit == "%" else (1, "")
    return metric.label.capitalize(), factor, unit


def _ends(row: Row, name: str, count: int, factor: int) -> str:
    ends = intervals.of_score(scores(row, EVALUATION), count).get(name)
    return (
        ""
        if ends is None
        else f"[{_number(factor * ends[0])}, {_number(factor * ends[1])}]"
    )


def _number(value: float) -> str:
    """Three digits; all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _own_evaluation(run_dir: Path) -> tuple[str, str, str] | None:
    """What `experiments.evaluate` has written, if it is readable."""
    try:
        found = json.loads((run_dir / "evaluation.json").read_text())
        metrics, ends = found["metrics"], found["intervals"]
        name = next(x for x in SCORES if x in metrics)
        label, factor, unit = _shown(name)
        below = f"checkpoint {found['checkpoint']}, {found['num_episodes']} episodes"
        if ends.get(name):
            low, high = (factor * x for x in ends[name])
            below += f", seed {found['seed']}"
            below += f"; 95 % in [{_number(low)}, {_number(high)}]"
        value = _number(factor * metrics[name])
        return f"{label}, evaluated again", f"{value}{unit}", below
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None


def times_section(times: Times) -> str:
    """A bar and a table of the parts."""
    total = times.total
    if not total:
        return html.paragraph("No times were logged.", "soft")
    rows = [
        (name, in_time(seconds), f"{100 * seconds / total:.1f} %")
        for name, seconds in times.parts
    ]
    return "\n".join(
        (
            html.parts_of_time(times.parts),
            html.keyed([(name, share) for name, _, share in rows]),
            html.table(("part", "time", "share"), rows),
            *(html.paragraph(note, "soft") for note in times.notes),
        )
    )


def legend(facts: Facts) -> str:
    """What stands below the curves of a run."""
    text = (
        "Bars and bands are 95 % intervals. Exploring: the episodes of the roll-outs, "
        "with exploration noise. Point at a title for the meaning of its metric."
    )
    config = facts.config
    if config is None or facts.stage != "finetune" or config.rollout.reset_at_iteration:
        return text
    if config.rollout.num_chunks * executed(config) >= (config.env.max_steps or 0):
        return text
    return f"{text} {_EARLY}"


def settings_section(facts: Facts) -> str:
    """The settings of the stage that differ from their defaults."""
    if facts.config is None:
        return ""
    changed = [
        row
        for row in settings_table.rows(facts.config)
        if row.is_changed and _is_shown(row.name, facts.stage)
    ]
    rows = [
        (as_flag(row.name, row.value), _default(row), row.meaning)
        for row in settings_table.said_once(changed)
    ]
    if not rows:
        return html.paragraph("None: all settings have their defaults.", "soft")
    return html.table(("setting", "default", "meaning"), rows, code=0, stacked=True)


def _is_shown(name: str, stage: str) -> bool:
    hidden = name in _NOT_SHOWN
    return not hidden and directories.is_read(name, stage)


def _default(row: settings_table.Row) -> str:
    if not row.source:
        return "added by the configuration"
    return "empty" if row.default == "" else str(row.default)


def media_section(run_dir: Path) -> str:
    """Pictures and videos of episodes."""
    plots = run_dir / "plots"
    parts = [
        html.picture(plots / name, title, whole=True)
        for name, title in _PICTURES
        if (plots / name).is_file()
    ]
    left, size = [], 0
    for path in sorted((run_dir / "videos").glob("*.gif")):
        size += path.stat().st_size
        if size > _MOST_BYTES:
            left.append(str(path.relative_to(run_dir)))
            continue
        parts.append(html.picture(path, _title_of(path)))
    text = f"Not shown here, because of their size: {', '.join(left)}."
    return (f'<div class="media">{"".join(parts)}</div>' if parts else "") + (
        html.paragraph(text, "soft") if left else ""
    )


def _title_of(video: Path) -> str:
    """Such as "episode 3: success" for episode_3_success.gif."""
    return re.sub(r"^(\w+ \d+) ", r"\1: ", video.stem.replace("_", " "))


def provenance_section(facts: Facts) -> str:
    """Where a run lies, what wrote it, and what it started from."""
    about = facts.about
    rows = [("directory", str(facts.run_dir.resolve())), *_written(about)]
    for name in ("policy", "data"):
        source = about.get(name)
        if isinstance(source, Mapping):
            rows.append((f"started from {name}", _source(source)))
    evaluate = facts.evaluation
    if evaluate:
        mode = "deterministic" if evaluate.get("deterministic") else "exploring"
        rows.append(
            (
                "evaluations",
                f"{evaluate.get('num_episodes')} episodes, {mode} mode, "
                f"seed {evaluate.get('seed')}",
            )
        )
    return html.table((), rows, stacked=True)


def _written(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    versions, device = about.get("versions"), about.get("device")
    if not isinstance(versions, Mapping) or not isinstance(device, Mapping):
        yield "written by", "not recorded: no checkpoint, or an older version"
        return
    git = about.get("git")
    ours = versions.get("dppo_jax", "of an unknown version")
    yield "written by", f"dppo_jax {ours}" + (f", git {git}" if git else "")
    others = (f"{name} {x}" for name, x in versions.items() if name != "dppo_jax")
    yield "versions", ", ".join(others)
    yield (
        "device",
        f"{device.get('count')} x {device.get('kind')} ({device.get('platform')}), "
        f"matmul precision {about.get('matmul_precision') or 'of JAX'}",
    )


def _source(source: Mapping[str, Any]) -> str:
    words = [str(source.get("path", ""))]
    if "checkpoint" in source:
        words.append(f"checkpoint {source['checkpoint']}")
    if "episodes" in source:
        words.append(f"{source['episodes']} episodes, {source.get('steps')} steps")
    words.append(f"digest {source.get('digest')}")
    return ", ".join(words)


def _date(time: datetime.datetime) -> str:
    return f"{time.day} {time:%B %Y, %H:%M}"
