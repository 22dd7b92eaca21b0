"""The site builds without a warning, and loads nothing from another host."""

from __future__ import annotations

import base64
import http.server
import inspect
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
# Elements that load what they name; <a href> and <link rel="canonical"> do not.
_LOADED = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "img": ("src", "srcset"),
    "image": ("href", "xlink:href"),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}
_EXTERNAL = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
_EXTERNAL_IN_CSS = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])(?:https?:)?//[^'\")]+", re.IGNORECASE)


class _Assets(HTMLParser):
    """Collect the assets that a page loads from other hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.external: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") in ("canonical", "alternate", "license"):
            return
        names = _LOADED.get(tag, ())
        self.external += [value for name in names if (value := values.get(name)) and _EXTERNAL.match(value)]
        self.external += _EXTERNAL_IN_CSS.findall(values.get("style") or "")


def external_assets(name: str, text: str) -> list[str]:
    if name.endswith(".css"):
        return _EXTERNAL_IN_CSS.findall(text)
    parser = _Assets()
    parser.feed(text)
    return parser.external + (_EXTERNAL_IN_CSS.findall(text) if name.endswith(".svg") else [])


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of the built site, and what the build printed."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (the extra [docs])")
    site = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean", "--site-dir", str(site)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "true"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return site, done.stdout + done.stderr


def test_site_builds_without_a_warning(build: tuple[Path, str]) -> None:
    _, printed = build
    assert "WARNING" not in printed
    assert "ERROR" not in printed


def test_every_page_is_in_the_site(build: tuple[Path, str]) -> None:
    site, _ = build
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert pages
    assert [page for page in pages if not (site / page).is_file()] == []
    assert not list(site.rglob("*.py*"))  # nor bytecode
    assert (site / "notebooks" / "quickstart.ipynb").is_file()


def test_notebooks_are_pages_with_their_tables_and_figures(build: tuple[Path, str]) -> None:
    site, _ = build
    page = (site / "notebooks" / "report.html").read_text("utf-8")
    cells = json.loads((site / "notebooks" / "report.ipynb").read_text("utf-8"))["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    figures = ["".join(data["image/svg+xml"]) for data in outputs if "image/svg+xml" in data]
    assert figures
    shown = re.findall(r'<img alt="([^"]+)" width="\d+" src="data:image/svg\+xml;base64,([^"]+)">', page)
    assert [base64.b64decode(source).decode() for _, source in shown] == figures
    assert any(label.startswith("ROC curves: size-32 AUROC 0.") for label, _ in shown)
    assert page.count("<table") >= sum("".join(data.get("text/html", "")).count("<table") for data in outputs) > 5
    assert "calibration_intercept</td>" in page
    assert "Wrote synthetic images to images" in page
    assert '<div class="output-' not in page
    for name, link in (
        ("how-to/python.html", "../notebooks/report.html"),
        ("notebooks/quickstart.html", "report.html"),
    ):
        article = (site / name).read_text("utf-8").partition("<article")[2]
        assert f'<a href="{link}">' in article


def test_no_file_of_the_site_loads_an_asset_from_another_host(build: tuple[Path, str]) -> None:
    site, _ = build
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    assert len(files) > 30
    found = {str(path.relative_to(site)): external_assets(path.name, path.read_text("utf-8")) for path in files}
    assert {name: assets for name, assets in found.items() if assets} == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<link rel="stylesheet" href="https://fonts.googleapis.com/css">'),
        ("a.html", '<script src="//cdn.example/x.js"></script>'),
        ("a.html", '<img src="x.png" srcset="https://cdn.example/x.png 2x">'),
        ("a.css", '@import "https://cdn.example/x.css";'),
        ("a.svg", "<svg><style>@font-face { src: url('https://cdn.example/x.woff2') }</style></svg>"),
    ],
)
def test_an_external_asset_is_reported(name: str, text: str) -> None:
    assert external_assets(name, text)


def test_links_to_other_hosts_are_not_assets() -> None:
    assert not external_assets(
        "a.html", '<a href="https://doi.org/1">x</a><link rel="canonical" href="https://e.org/">'
    )


def test_the_python_reference_documents_every_public_name(build: tuple[Path, str]) -> None:
    import pneumoscope

    site, _ = build
    page = (site / "reference" / "python.html").read_text("utf-8")
    names = [
        name
        for name in pneumoscope.__all__
        if not name.startswith("_") and not inspect.ismodule(getattr(pneumoscope, name))
    ]
    assert names
    assert [name for name in names if f'id="pneumoscope.{name}"' not in page] == []


def test_the_python_reference_documents_every_class_that_a_public_function_returns(build: tuple[Path, str]) -> None:
    import pneumoscope

    site, _ = build
    page = (site / "reference" / "python.html").read_text("utf-8")
    functions = [value for name in pneumoscope.__all__ if inspect.isfunction(value := getattr(pneumoscope, name))]
    returned = {
        name
        for function in functions
        for name in re.findall(r"\w+", str(inspect.signature(function).return_annotation))
        if inspect.isclass(value := function.__globals__.get(name)) and value.__module__.startswith("pneumoscope.")
    }
    assert {"Comparison", "Evaluation", "ModelSpec", "Report", "ScoredImage", "Sweep", "Training"} <= returned
    assert {name for name in returned if not re.search(rf'id="pneumoscope[\w.]*\.{name}"', page)} == set()


@pytest.fixture
def address(build: tuple[Path, str]) -> Iterator[str]:
    """Serve the site on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(build[0]))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(60)


@pytest.mark.browser
def test_pages_and_search_work_in_a_browser_without_another_host(
    browser: Any, build: tuple[Path, str], address: str
) -> None:
    requests: list[str] = []
    errors: list[str] = []
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    names = ("index.html", "tutorials/clinic.html", "reference/cli.html", "reference/python.html")
    for base in (build[0].as_uri(), address):
        for name in names:
            page.goto(f"{base}/{name}")
        page.locator("[data-md-component=search-query]").click()
        page.keyboard.type("Venn-Abers")
        page.locator(".md-search-result__item", has_text="Statistics").first.wait_for()
    page.close()
    assert [url for url in requests if not url.startswith((f"{address}/", "file://", "data:", "blob:"))] == []
    assert {f"{base}/{name}" for base in (build[0].as_uri(), address) for name in names} <= set(requests)
    assert errors == []
