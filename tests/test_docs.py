"""The example of the README runs, and the files and programs that it names exist."""

import re
from pathlib import Path

import pytest

from tests import tiny

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()


def test_the_notebook_example_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (source,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(compile(source, "README.md", "exec"), names)
    assert int(names["state"].iteration) == 3
    assert len(names["scores"].metrics["success"]) == 32
    assert "episode_return" in capsys.readouterr().out
    saved, state = names["saved"], names["state"]
    assert saved.iteration == 3 and names["action"].shape == (1, 4, 2)
    assert tiny.same(saved.params, names["algorithm"].params(state))


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_to_files(link):
    assert (REPOSITORY / link).exists()


@pytest.mark.parametrize(
    "module",
    sorted(set(re.findall(r"python -m ((?:experiments|benchmarks)\.\w+)", README))),
)
def test_commands_name_programs(module):
    assert (REPOSITORY / module.replace(".", "/")).with_suffix(".py").exists()
