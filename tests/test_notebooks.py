"""The notebooks in `examples/` keep small outputs, and run from beginning to end."""

import ast
import inspect
import json
import os
import re

import pytest
from pyflakes import api, reporter

from tests.conftest import REPOSITORY
from tests.test_docs import leads_somewhere, links_of

NOTEBOOKS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((REPOSITORY / "examples").glob("*.ipynb"))
}
MOST_BYTES = 300_000


def code_of(notebook):
    """The cells of code; files that a cell writes come as cells of their own."""
    cells = [c for c in NOTEBOOKS[notebook]["cells"] if c["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in cells]


def outputs_of(notebook):
    cells = NOTEBOOKS[notebook]["cells"]
    return [output for cell in cells for output in cell.get("outputs", ())]


def test_there_is_a_notebook_for_every_purpose():
    assert set(NOTEBOOKS) == {
        *("quickstart", "your_task", "your_data", "inside_dppo", "your_algorithm")
    }


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_code_has_no_unknown_names(notebook, capsys):
    """What an editor would underline."""
    files, cells = [], []
    for source in code_of(notebook):
        written = re.match(r"%%writefile \S+\n", source)
        (files if written else cells).append(re.sub(r"\A%%.*\n", "", source))
    show = reporter._makeDefaultReporter()
    wrong = sum(
        api.check(source, notebook, show) for source in (*files, "\n".join(cells))
    )
    assert wrong == 0, capsys.readouterr().out


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_functions_of_the_project_are_called_as_they_are_defined(notebook):
    """So that a change of a signature is noticed without running the notebook."""
    names, checked = {}, 0
    for source in code_of(notebook):
        nodes = list(ast.walk(ast.parse(re.sub(r"\A%%.*\n", "", source))))
        imports = [node for node in nodes if _is_import_of_the_project(node)]
        exec(compile(ast.Module(imports, []), notebook, "exec"), names)
        for call in (node for node in nodes if isinstance(node, ast.Call)):
            function = _named(call.func, names)
            keywords = {x.arg: x.value for x in call.keywords}
            # *args and **settings may be anything.
            is_open = None in keywords or ast.Starred in map(type, call.args)
            if callable(function) and not is_open:
                inspect.signature(function).bind(*call.args, **keywords)
                checked += 1
    assert checked >= 5


def _is_import_of_the_project(node):
    parts = {"dppo_jax", "experiments"}
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] in parts
    if isinstance(node, ast.Import):
        return all(x.name.split(".")[0] in parts for x in node.names)
    return False


def _named(node, names):
    """What an expression such as `module.function` stands for; None if not known."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(_named(node.value, names), node.attr, None)
    return None


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_outputs_are_kept_and_small(notebook):
    path = REPOSITORY / "examples" / f"{notebook}.ipynb"
    assert path.stat().st_size < MOST_BYTES
    outputs = outputs_of(notebook)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert {x["output_type"] for x in outputs} <= {"stream", "display_data"}
    # Progress bars, warnings and paths of one machine say nothing to others.
    texts = ["".join(x["text"]) for x in outputs if x["output_type"] == "stream"]
    assert {x.get("name", "stdout") for x in outputs} == {"stdout"}
    assert not re.search(r"/(?:tmp|home|root|work)/", "".join(texts))


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_links_lead_to_files(notebook):
    cells = NOTEBOOKS[notebook]["cells"]
    text = "\n\n".join(
        "".join(c["source"]) for c in cells if c["cell_type"] == "markdown"
    )
    links = links_of(text)
    page = f"examples/{notebook}.ipynb"
    assert links and not [link for link in links if not leads_somewhere(page, link)]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_runs(notebook, tmp_path, monkeypatch):
    """In an empty folder and a kernel of its own."""
    nbformat = pytest.importorskip("nbformat", reason="needs dppo_jax[notebooks]")
    client = pytest.importorskip("nbclient", reason="needs dppo_jax[notebooks]")
    paths = (str(REPOSITORY), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    book = nbformat.read(REPOSITORY / "examples" / f"{notebook}.ipynb", as_version=4)
    nbformat.validate(book)
    client.NotebookClient(
        book,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
