"""Every code block of README and docs runs, and every link leads somewhere.

The blocks of a page run in order in one empty folder, as a reader would run them. `bash` blocks are commands, `python` blocks are
executed (with prompts, doctest compares the output), `toml` and `csv` blocks are read as recipes and manifests, or as the
configuration that their name stands for, and `json` blocks are parsed. A block with `title="NAME"`, which the site
shows, is written to the folder, and `<!-- not run: REASON -->` above a block skips it, for the reasons in `NOT_RUN` only.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.processes import free_port

from pneumoscope.cli import VERBS
from pneumoscope.data.manifest import Manifest
from pneumoscope.reporting.labels import METRICS
from pneumoscope.reproduction.published import PRINTED, reconstruct_counts
from pneumoscope.runs.recipe_files import read_recipe
from pneumoscope.service.auth.openid_connect import read_configuration
from pneumoscope.service.dicom import configuration_file as dicom_configuration

ROOT = Path(__file__).resolve().parents[2]
TOP_PAGES = ("README.md", "README.zh-Hant.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
GENERATED = ("cli.md", "errors.md", "http-api.md", "recipes.md", "model-card.md")
# The reasons for skipping a block, and how many blocks have each.
NOT_RUN = {
    "changes where Python installs": 1,
    "needs a bucket": 1,
    "needs a cluster": 1,
    "needs a GPU": 1,
    "needs a PACS": 1,
    "needs a file of weights": 1,
    "needs a running service": 1,
    "needs Polars or Spark": 2,
    "needs a waiting result": 1,
    "needs root": 6,
    "needs the network": 1,
    "needs the public images": 2,
    "needs the weights of TorchXRayVision": 1,
    "needs two evaluated runs": 2,
    "needs your own bundle": 2,
    "needs your own image": 5,
    "opens a browser": 3,
    "needs MLflow": 1,
    "takes half a day": 1,
    "takes minutes": 6,
}
_FENCE = re.compile(r'^```(\w*)(?: title="(\S+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\n\Z")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PORT = re.compile(r"\b(864\d|8042|4242|11112)\b")  # of the services that pages start; each is replaced by a free one
_ADDRESS = re.compile(r"\b10\.0\.0\.[56]\b")  # of the machines of a page, which are this one here
_PID_FILES = ("serve.pid", "orthanc.pid", "archive.pid")
# The programs without which a page cannot run, and the packages of Debian.
_PROGRAMS = {
    "docs/how-to/orthanc.md": {
        "/usr/sbin/Orthanc": "orthanc",
        "/usr/share/orthanc/plugins/libOrthancDicomWeb.so": "orthanc-dicomweb",
        "/usr/bin/storescu": "dcmtk",
    },
}
_SECONDS = 400


def pages() -> dict[str, str]:
    paths = [ROOT / name for name in TOP_PAGES] + sorted((ROOT / "docs").rglob("*.md"))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


class Block(NamedTuple):
    """A fenced code block, with its title and the comment above it."""

    language: str
    text: str
    saved_as: str
    not_run: str


def blocks(page: str) -> Iterator[Block]:
    for fence in _FENCE.finditer(page):
        mark = _NOT_RUN.search(page[: fence.start()])
        yield Block(fence[1], fence[3], fence[2] or "", mark[1] if mark else "")


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])


# --- code blocks -----------------------------------------------------------------------------------------------------


def run_block(block: Block, folder: Path, environment: Mapping[str, str]) -> None:
    if block.saved_as:
        (folder / block.saved_as).write_text(block.text, encoding="utf-8")
    if block.language == "bash":
        script = "".join(runnable_lines(block.text))
        if not block.not_run:
            call(["bash", "-euo", "pipefail", "-c", script], folder, environment)
    elif block.language == "python":
        file = folder / "block.txt"
        file.write_text(block.text, encoding="utf-8")
        if not block.not_run:
            call([sys.executable, *(["-m", "doctest"] if ">>>" in block.text else []), file.name], folder, environment)
        file.unlink()
    elif block.saved_as == "openid.toml":
        (folder / block.saved_as).chmod(0o600)
        read_configuration(folder / block.saved_as)
    elif block.language == "toml" and "network" not in tomllib.loads(block.text):  # a recipe has one
        dicom_configuration.read_configuration(folder / block.saved_as)
    elif block.language == "toml":
        (folder / "block.toml").write_text(block.text, encoding="utf-8")
        read_recipe(str(folder / "block.toml"))
    elif block.language == "csv":
        assert len(Manifest.from_csv(block.text, folder, "block.csv"))
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "lua":
        assert block.saved_as, "a script that no program reads"
    else:
        assert block.language == "text", f"no check for a block of {block.language or 'no language'}"


def runnable_lines(script: str) -> Iterator[str]:
    """Yield the lines, except those that install or build: their targets and extras are checked instead."""
    for line in script.splitlines(keepends=True):
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            targets = [word for word in words[1:] if "=" not in word]
            assert targets, f"{line!r} names no target"
            assert set(targets) <= makefile_targets()
        elif words[:2] == ["pip", "install"]:
            names = set(itertools.chain.from_iterable(part.split(",") for part in re.findall(r"\[(.*?)\]", line)))
            assert words[2].startswith("."), f"{line!r} does not install this checkout"
            assert names <= extras()
        else:
            yield line


def call(command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    assert done.returncode == 0, f"{command[-1]}\nexit status {done.returncode}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """This interpreter's commands first, an empty cache, no network, one thread."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PNEUMOSCOPE_")}
    return {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PNEUMOSCOPE_CACHE": str(tmp_path_factory.mktemp("cache")),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.slow
@pytest.mark.training
@pytest.mark.timeout(600)  # some pages train several networks
@pytest.mark.parametrize("name", [name for name, text in pages().items() if "```" in text])
def test_every_block_of_a_page_runs(name: str, tmp_path: Path, environment: dict[str, str]) -> None:
    for program, package in _PROGRAMS.get(name, {}).items():
        if not Path(program).exists():
            pytest.skip(f"{program} is not installed (Debian's package {package})")
    ports = {port: str(free_port()) for port in _PORT.findall(pages()[name])}
    try:
        for block in blocks(pages()[name]):
            text = _ADDRESS.sub("127.0.0.1", _PORT.sub(lambda port: ports[port[0]], block.text))
            run_block(block._replace(text=text), tmp_path, environment)
    finally:
        for pid_file in _PID_FILES:
            kill_background_process(tmp_path / pid_file)


def kill_background_process(pid_file: Path) -> None:
    """Kill the service that a page started, if the page failed before it stopped the service."""
    if pid_file.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid_file.read_text()), signal.SIGKILL)


def test_blocks_are_skipped_only_for_listed_reasons() -> None:
    reasons = Counter(block.not_run for text in pages().values() for block in blocks(text) if block.not_run)
    assert dict(reasons) == NOT_RUN


def test_every_fence_is_read_as_a_block() -> None:
    for name, text in pages().items():
        assert 2 * len(list(blocks(text))) == len(re.findall(r"^ *```", text, re.MULTILINE)), name


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Block("bash", "true\nfalse\n", "", ""), "exit status 1"),
        (Block("bash", "make moon\n", "", ""), "moon"),
        (Block("bash", "pip install '.[moon]'\n", "", "needs the network"), "moon"),
        (Block("bash", "pip install pneumoscope\n", "", ""), "does not install this checkout"),
        (Block("python", "raise SystemExit(3)\n", "", ""), "exit status 3"),
        (Block("python", ">>> 1 + 1\n3\n", "", ""), "***Test Failed*** 1 failure"),
        (Block("ruby", "1\n", "", ""), "no check for a block of ruby"),
    ],
)
def test_a_block_that_fails_is_reported(
    block: Block, message: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    with pytest.raises(AssertionError) as caught:
        run_block(block, tmp_path, environment)
    assert message in str(caught.value)


# --- links -----------------------------------------------------------------------------------------------------------


def anchors(page: str) -> set[str]:
    """Return the anchors of the headings, as GitHub and MkDocs form them."""
    prose = _FENCE.sub("", page)
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(name: str, known: Mapping[str, str]) -> list[str]:
    broken = []
    for target in _LINK.findall(_FENCE.sub("", known[name])):
        if target.startswith(("https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        page = known.get(path.resolve().relative_to(ROOT).as_posix(), "")
        if not path.exists() or (anchor and anchor not in anchors(page)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("name", pages())
def test_relative_links_have_targets(name: str) -> None:
    assert broken_links(name, pages()) == []


def test_a_broken_link_is_reported() -> None:
    page = {"README.md": "# Top\n[a](#top) [b](#bottom) [c](docs/moon.md) [d](https://example.org)\n"}
    assert broken_links("README.md", page) == ["#bottom", "docs/moon.md"]


def test_the_start_page_links_to_every_page() -> None:
    others = {name.removeprefix("docs/") for name in pages() if name.startswith("docs/")} - {"index.md"}
    assert others <= set(_LINK.findall(pages()["docs/index.md"]))


# --- content ---------------------------------------------------------------------------------------------------------


def handwritten() -> str:
    return "\n".join(text for name, text in pages().items() if Path(name).name not in GENERATED)


@pytest.mark.parametrize("command", VERBS)
def test_every_command_is_shown_in_use(command: str) -> None:
    assert re.search(rf"^pneumoscope {command}\b", handwritten(), re.MULTILINE)


@pytest.mark.parametrize("extra", sorted(extras()))
def test_every_extra_is_documented(extra: str) -> None:
    assert f"`[{extra}]`" in handwritten()


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_defined(metric: str) -> None:
    assert f"`{metric}`" in pages()["docs/explanation/statistics.md"]


def test_the_erratum_follows_from_the_counts() -> None:
    page = pages()["docs/explanation/experiment.md"]
    for name, (accuracy, recall, precision, f1, *averages) in PRINTED.items():
        counts = reconstruct_counts(name, accuracy, recall, precision, f1)
        tp, fn, tn, fp = counts.tp, counts.fn, counts.tn, counts.fp
        numbers = [(tp + tn) / 624, tp / 390, tn / 234, tp / (tp + fp), 2 * tp / (2 * tp + fp + fn)]
        cells = [f"`{name}`", *map(str, (tp, fn, tn, fp)), *(f"{number:.4f}" for number in numbers)]
        assert f"| {' | '.join(cells)} |" in page
        assert re.search(rf"^\| `{name}` .*\| {averages[0]:.4f} \| {averages[1]:.4f} \|$", page, re.MULTILINE)


def test_the_layers_on_the_page_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = [
        sorted({name.split(".")[1] for name in layer.split(" | ")}) for layer in contracts["contracts"][0]["layers"]
    ]
    layers = [layer for layer, _ in itertools.groupby(layers)]  # core is several layers in the contract
    drawing = next(block.text for block in blocks(pages()["docs/explanation/architecture.md"]))
    drawn = iter(re.findall(r"^(\w+)(?:/|\.py) ", drawing, re.MULTILINE))
    assert [sorted(itertools.islice(drawn, len(layer))) for layer in layers] == layers
    assert not list(drawn)


def test_the_paths_in_the_threat_table_exist() -> None:
    page = pages()["docs/explanation/security.md"]
    rows = re.findall(r"^\| [^|]+\| [^|]+\|([^|]+)\|([^|]+)\|$", page.partition("## Threats")[2], re.MULTILINE)[2:]
    assert len(rows) > 30
    for code, tests in rows:
        for path in re.findall(r"`([\w/.-]+)`", code):
            assert any((ROOT / base / path).exists() for base in ("src/pneumoscope", ".")), path
        for path in re.findall(r"`([\w/.-]+)`", tests):
            assert any((ROOT / base / path).exists() for base in ("tests", ".")), path


@pytest.mark.parametrize("name", pages())
def test_pages_contain_no_local_path(name: str) -> None:
    folders = {ROOT, ROOT.parent, Path.home(), Path(tempfile.gettempdir())} - {Path("/")}
    private = {f"{folder}/" for folder in folders} | {"/home/", "/Users/", "/root/"}
    assert [path for path in private if path in pages()[name]] == []
