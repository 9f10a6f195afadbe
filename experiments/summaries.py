"""Summaries of what a stage has done, for other programs: the line of --json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dppo_jax.training.metric_names import EVALUATION
from experiments import intervals
from experiments.reports import run, run_page


def of_runs(run_dirs: Sequence[str]) -> dict[str, Any]:
    """Of `pretrain` and `finetune`: one entry for each run directory."""
    return {"runs": [_of_run(run_dir) for run_dir in run_dirs]}


def of_data(folder: str) -> dict[str, Any]:
    """Of `collect`."""
    return {"data": str(Path(folder).absolute())}


def of_evaluation(path: str) -> dict[str, Any]:
    """Of `evaluate`: the content of its file, and the path."""
    return {"path": str(Path(path).absolute()), **json.loads(Path(path).read_text())}


def line(stage: str, status: str, more: Mapping[str, Any]) -> str:
    """One line of JSON. It has no NaN, which JSON does not know."""
    return json.dumps({"stage": stage, "status": status, **_plain(more)})


def _of_run(run_dir: str) -> dict[str, Any]:
    facts = run.read(run_dir)
    scored = [row for row in facts.rows if any(x.startswith(EVALUATION) for x in row)]
    page = Path(run_dir, run_page.FILE)
    last = facts.rows[-1] if facts.rows else {}
    return {
        "run_dir": str(Path(run_dir).absolute()),
        "report": str(page.absolute()) if page.is_file() else None,
        "status": run.status(facts).text,
        "iteration": facts.iteration,
        "best": facts.best,
        "env_steps": last.get("env_steps"),
        "num_episodes": facts.evaluation.get("num_episodes"),
        "before": _score(facts, scored[0]) if len(scored) > 1 else None,
        "after": _score(facts, scored[-1]) if scored else None,
    }


def _score(facts: run.Facts, row: run.Row) -> dict[str, Any]:
    metrics = run.scores(row, EVALUATION)
    count = facts.evaluation.get("num_episodes")
    ends = intervals.of_score(metrics, count) if isinstance(count, int) else {}
    return {"iteration": row["iteration"], "metrics": metrics, "intervals": ends}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value
