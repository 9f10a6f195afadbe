"""Hooks of MkDocs: what the site has beside the files in docs/.

The same files are read on GitHub, so links are written for the repository. They become
links of the site: to pages, to the API reference, or, for all other files,
into their text alone. README.md becomes the first page, notebooks become pages, and
equations become MathML, so that the site needs neither a network nor JavaScript.
"""

import ast
import base64
import html
import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent.parent
# Page of the site -> file of the repository that it is made of.
ADDED = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
PACKAGE = "dppo_jax"
_FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_MATH = re.compile(
    r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL
)
_OUTPUT_LINES = 40


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made of other files."""
    for page, source in ADDED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    for name, text in api_pages():
        files.append(File.generated(config, name, content=text))
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        text, pictures = notebook_page(path)
        files.append(File.generated(config, f"examples/{path.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"examples/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn the links of a page into links of the site."""
    uri = page.file.src_uri
    source = source_of(uri)

    def link(match: re.Match) -> str:
        picture, text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match.group(0)
        name, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        goal = goal_of(path, anchor)
        if goal is None:
            return text
        goal_uri, anchor = goal
        there = posixpath.relpath(goal_uri, posixpath.dirname(uri) or ".")
        return f"{picture}[{text}]({there}{'#' * bool(anchor)}{anchor})"

    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(link, part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Write equations as MathML."""

    def math(match: re.Match) -> str:
        kind, text = match.groups()
        display = "block" if kind == "div" else "inline"
        text = re.sub(r"\\tag\{(\w+)\}", r"\\qquad (\1)", html.unescape(text))
        return latex2mathml.converter.convert(text, display=display)

    return _MATH.sub(math, content)


def source_of(uri: str) -> str:
    """The file of the repository that a page is made of."""
    if uri in ADDED:
        return ADDED[uri]
    if uri.startswith("examples/"):
        return uri.removesuffix(".md") + ".ipynb"
    return f"docs/{uri}"


def goal_of(path: str, anchor: str) -> tuple[str, str] | None:
    """Page and anchor of a file of the repository; None: the site does not have it."""
    for page, source in ADDED.items():
        if path == source:
            return page, anchor
    if path.startswith("docs/"):
        return path.removeprefix("docs/"), anchor
    if path.endswith(".ipynb"):
        return path.removesuffix(".ipynb") + ".md", anchor
    if path.startswith("examples/") and path.endswith(".png"):
        return path, anchor  # A picture of a notebook.
    if path.startswith(f"{PACKAGE}/") and path.endswith(".py"):
        module = module_of(path)
        return page_of(module), f"{module}.{anchor}" if anchor else module
    return None


def module_of(path: str) -> str:
    """`dppo_jax.learning.returns` for `dppo_jax/learning/returns.py`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def page_of(module: str) -> str:
    """The page of the reference that documents a module."""
    parts = module.split(".")
    is_package = (ROOT / PACKAGE / parts[1]).is_dir() if len(parts) > 1 else False
    return f"api/{parts[1] if is_package else PACKAGE}.md"


def api_pages() -> Iterator[tuple[str, str]]:
    """Name and text of every page of the reference: one for each folder."""
    pages: dict[str, list[str]] = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        relative = path.relative_to(ROOT).as_posix()
        if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None:
            continue
        module = module_of(relative)
        if module != PACKAGE:
            pages.setdefault(page_of(module), []).append(module)
    for page, modules in pages.items():
        title = Path(page).stem
        yield page, f"# `{title}`\n\n" + "\n\n".join(f"::: {x}" for x in modules)


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            # Single dollars are formulas in notebooks, and shell variables elsewhere.
            parts.append(re.sub(r"(?<!\$)\$([^$\n]+)\$(?!\$)", r"\\(\1\\)", text))
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![Picture](../examples/{name})")
            elif printed := "".join(output.get("text", data.get("text/plain", ""))):
                lines = printed.rstrip().splitlines()[:_OUTPUT_LINES]
                parts.append("```text\n" + "\n".join(lines) + "\n```")
    size = os.path.basename(path)
    parts.insert(1, f"*This page is the notebook `examples/{size}`.*")
    return "\n\n".join(parts), pictures
