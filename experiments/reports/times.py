"""Where the time of a run went, from the rows that it wrote."""

import re
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from dppo_jax.training.metric_names import (
    CHECKPOINT_SECONDS,
    EVALUATION_SECONDS,
    ITERATION_SECONDS,
    ROLLOUT_SECONDS,
)
from experiments.reports.run import Facts


class Times(NamedTuple):
    """Seconds of a run.

    parts: names and seconds, in the order in which they are shown.
    notes: what was not measured, in words.
    steps_per_second: median control steps of all environments in a second of training;
        None where there are none.
    """

    parts: Sequence[tuple[str, float]]
    notes: Sequence[str]
    steps_per_second: float | None

    @property
    def total(self) -> float:
        """All that was measured."""
        return sum(seconds for _, seconds in self.parts)


def times(facts: Facts) -> Times:
    """Add up the times of the rows."""
    starts = _starts(facts)
    rows = [row for row in facts.rows if ITERATION_SECONDS in row]
    later = [row for row in rows if row["iteration"] not in starts]
    usual = {
        name: statistics.median(row[name] for row in later if name in row)
        for name in (ITERATION_SECONDS, ROLLOUT_SECONDS)
        if any(name in row for row in later)
    }
    compiling = training = rollout = 0.0
    last, rates = 0.0, []
    steps_before = 0.0
    for row in rows:
        count = row["iteration"] - last
        seconds, acting = row[ITERATION_SECONDS], row.get(ROLLOUT_SECONDS, 0.0)
        if row["iteration"] in starts and usual:
            # The first iteration after a start also compiles.
            compiling += count * max(seconds - usual[ITERATION_SECONDS], 0.0)
            seconds = min(seconds, usual[ITERATION_SECONDS])
            acting = min(acting, usual.get(ROLLOUT_SECONDS, acting))
        elif "env_steps" in row and seconds > 0 and count:
            rates.append((row["env_steps"] - steps_before) / count / seconds)
        training += count * seconds
        rollout += count * acting
        last, steps_before = row["iteration"], row.get("env_steps", steps_before)
    parts = [("compiling", compiling)] if compiling else []
    if rollout:
        parts += [("roll-outs", rollout), ("updates", training - rollout)]
    elif training:
        name = "training" if facts.is_cloning else "roll-outs and updates"
        parts.append((name, training))
    for name, column in (
        ("evaluations", EVALUATION_SECONDS),
        ("checkpoints", CHECKPOINT_SECONDS),
    ):
        spent = sum(row.get(column, 0.0) for row in facts.rows)
        if spent:
            parts.append((name, spent))
    return Times(
        parts=parts,
        notes=list(_notes(facts, rollout)),
        steps_per_second=statistics.median(rates) if rates else None,
    )


def _notes(facts: Facts, rollout: float):
    logged = {name for row in facts.rows for name in row}
    if not rollout and not facts.is_cloning and ITERATION_SECONDS in logged:
        yield (
            "Roll-outs and updates were not measured apart: on accelerators they are "
            "one program."
        )
    evaluated = any(name.startswith("eval/") for name in logged)
    if evaluated and EVALUATION_SECONDS not in logged:
        yield "The version that wrote this run did not measure evaluations."


def _starts(facts: Facts) -> set[int]:
    """Iterations that began a process, which the names of event files end with."""
    names = [path.name for path in facts.run_dir.glob("events.out.tfevents.*")]
    found = [re.fullmatch(r"events\.out\.tfevents\.\d+\..*\.(\d+)", x) for x in names]
    return {1, *(int(match[1]) for match in found if match)}
