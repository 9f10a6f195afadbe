"""The documentation as a site: it builds without warnings and needs no network."""

import html.parser
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="needs dppo_jax[site]"
)
# Attributes with which a browser fetches something, or goes somewhere.
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src"}


class Page(html.parser.HTMLParser):
    """Collects what a page links to and fetches, and its anchors."""

    def __init__(self, path):
        super().__init__()
        self.links, self.fetched, self.anchors = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[x] for x in ("id", "name") if values.get(x)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        target = values.get(FETCHED.get(tag, ""), "")
        if target and not target.startswith("data:"):
            self.fetched.append(target)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    # `python -m` finds this package in the repository, not an installed one.
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # The page of unknown addresses has absolute links, because it may stand anywhere.
    paths = [path for path in folder.rglob("*.html") if path.name != "404.html"]
    return {path.relative_to(folder): Page(path) for path in paths}


def is_elsewhere(link):
    return link.startswith(("http:", "https:", "//", "mailto:"))


@needs_mkdocs
@pytest.mark.slow
def test_every_link_leads_somewhere(site):
    broken = []
    for path, page in site.items():
        for link in filter(lambda x: not is_elsewhere(x), page.links):
            name, _, anchor = link.partition("#")
            goal = Path(path.parent, name) if name else path
            goal = Path(*_normal(goal.parts))
            known = site.get(goal)
            if known is None:
                broken.append((str(path), link))
            elif anchor and anchor not in known.anchors:
                broken.append((str(path), link))
    assert len(site) > 40 and broken == []


@needs_mkdocs
@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site):
    fetched = {(str(p), x) for p, page in site.items() for x in page.fetched}
    assert fetched and not {x for x in fetched if is_elsewhere(x[1])}


@needs_mkdocs
@pytest.mark.slow
def test_pages_have_equations_definitions_and_pictures(site):
    def page(name):
        return site[Path(name)]

    assert "dppo_jax.learning.returns.gae" in page("api/learning.html").anchors
    assert any(x.endswith("can.gif") for x in page("index.html").fetched)
    assert any(
        "quickstart_0.png" in x for x in page("examples/quickstart.html").fetched
    )


def _normal(parts):
    """Path components without `..`."""
    kept: list[str] = []
    for part in parts:
        if part == "..":
            kept.pop()
        elif part != ".":
            kept.append(part)
    return kept
