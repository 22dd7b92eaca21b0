"""A hook of MkDocs: a page of the site for each notebook, with its cells and stored outputs. Nothing is executed."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_SUFFIX = ".ipynb"
# Styles of pandas; the tables of the site have their own.
_PANDAS = re.compile(
    r"<style scoped>.*?</style>| border=\"1\" class=\"dataframe\"| style=\"text-align: right;\"", re.DOTALL
)


class NotebookFile(File):
    """A notebook that becomes a page, to which links and the navigation lead."""

    def is_documentation_page(self) -> bool:
        """Return True, so that MkDocs builds a page."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace each notebook by its page."""
    for file in [file for file in files if file.src_uri.endswith(_SUFFIX)]:
        files.remove(file)
        files.append(NotebookFile(file.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls))
    return files


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    """Return the cells of a notebook as Markdown, with a mark for each output that is HTML."""
    if not isinstance(page.file, NotebookFile):
        return None
    name = Path(page.file.src_uri).name
    parts, marked = [], _marked_outputs(page)
    for number, cell in enumerate(_cells(page)):
        if cell["cell_type"] == "markdown":
            parts.append("".join(cell["source"]))
            continue
        parts.append(f"```python\n{''.join(cell['source'])}\n```")
        for index, output in enumerate(cell["outputs"]):
            mark = _mark(number, index)
            parts.append(mark if mark in marked else f"```text\n{_text(output).rstrip()}\n```")
    title, *rest = parts
    link = f'<p><a href="{name}" download>Download this notebook</a></p>'
    return "\n\n".join([title, link, *rest]) + "\n"


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the outputs that are HTML in the place of their marks."""
    if isinstance(page.file, NotebookFile):
        for mark, output in _marked_outputs(page).items():
            assert content.count(mark) == 1, mark
            content = content.replace(mark, output)
    return content


def on_post_build(config: MkDocsConfig) -> None:
    """Copy the notebooks beside their pages."""
    for path in Path(config.docs_dir).rglob(f"*{_SUFFIX}"):
        shutil.copy(path, Path(config.site_dir) / path.relative_to(config.docs_dir))


def _cells(page: Page) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(Path(str(page.file.abs_src_path)).read_text(encoding="utf-8"))["cells"]
    return cells


def _marked_outputs(page: Page) -> dict[str, str]:
    """Return the HTML of tables and figures by their marks."""
    return {
        _mark(number, index): found
        for number, cell in enumerate(_cells(page))
        for index, output in enumerate(cell.get("outputs", []))
        if (found := _html(output.get("data", {})))
    }


def _mark(cell: int, output: int) -> str:
    return f'<div class="output-{cell}-{output}"></div>'


def _html(data: dict[str, Any]) -> str:
    """Return an output as HTML; "" if it is plain text."""
    if "image/svg+xml" in data:
        svg = "".join(data["image/svg+xml"])
        root = ElementTree.fromstring(svg)  # noqa: S314  written by this project
        label, width = html.escape(root.get("aria-label", "")), root.get("viewBox", "").split()[2]
        source = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
        return f'<p><img alt="{label}" width="{float(width):.0f}" src="{source}"></p>'
    return _PANDAS.sub("", "".join(data.get("text/html", "")))


def _text(output: dict[str, Any]) -> str:
    return "".join(output["text"] if "text" in output else output["data"]["text/plain"])
