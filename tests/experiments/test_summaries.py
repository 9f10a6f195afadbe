"""The line that --json prints."""

import json

from experiments import summaries
from tests.runs_on_paper import make_run


def test_a_summary_of_runs_has_their_scores_and_paths(tmp_path):
    run_dir = make_run(tmp_path / "a")
    (run_dir / "report.html").touch()
    told = summaries.of_runs([str(run_dir)])
    (run,) = json.loads(summaries.line("finetune", "finished", told))["runs"]
    assert run["run_dir"] == str(run_dir) and run["report"].endswith("a/report.html")
    assert (run["iteration"], run["env_steps"], run["num_episodes"]) == (3, 1200, 10)
    assert run["before"]["metrics"]["success"] == 0.3
    assert run["after"]["metrics"]["episode_return"] == 2.5
    low, high = run["after"]["intervals"]["success"]
    assert 0.59 < low < 0.9 < high < 0.99


def test_a_summary_of_an_evaluation_is_its_file(tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text('{"checkpoint": 3, "metrics": {"success": 0.5}}')
    assert summaries.of_evaluation(str(path)) == {
        "path": str(path),
        "checkpoint": 3,
        "metrics": {"success": 0.5},
    }


def test_json_has_no_infinities():
    line = summaries.line("s", "finished", {"a": [float("inf"), 1.0], "b": {"c": None}})
    assert json.loads(line)["a"] == [None, 1.0]
