"""README and docs are run, not believed: every code block, every link, every verb and extra, and the generated pages.

The blocks of a page run in order in one empty folder, as a reader would run them. Fenced as bash they are commands, as
python they are run (or, with prompts, checked by doctest against the output shown), as toml or csv they are read as
recipes or manifests. `<!-- saved as: NAME -->` above a block puts it into the folder; `<!-- not run: REASON -->` above one
leaves it out, for the reasons that `NOT_RUN` lists and no others.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from pneumoscope.cli import VERBS
from pneumoscope.data.manifest import Manifest
from pneumoscope.reporting.wording import METRICS
from pneumoscope.reproduction.published import PRINTED, restore
from pneumoscope.runs.recipe import read_recipe

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ("cli.md", "errors.md", "model-card.md", "recipes.md", "../results/default-model/seeds.md")
# Why a block may be left out, and how many are: a new one has to be counted here.
NOT_RUN = {"needs the network": 1, "needs the public images": 1, "changes where Python installs": 1, "needs root": 4}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (saved as|not run): (.+?) -->\n\Z")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SECONDS = 200


def pages() -> dict[str, str]:
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


class Block(NamedTuple):
    """One fenced block; `saved_as` and `not_run` are what the comment above it says."""

    language: str
    text: str
    saved_as: str
    not_run: str


def blocks(page: str) -> Iterator[Block]:
    for found in _FENCE.finditer(page):
        mark = _MARK.search(page[: found.start()])
        kind, words = mark.groups() if mark else ("", "")
        yield Block(found[1], found[2], words if kind == "saved as" else "", words if kind == "not run" else "")


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])


# --- running a page --------------------------------------------------------------------------------------------------


def run_block(block: Block, folder: Path, environment: Mapping[str, str]) -> None:
    if block.saved_as:
        (folder / block.saved_as).write_text(block.text, encoding="utf-8")
    if block.language == "bash":
        script = "".join(runnable(block.text))
        if not block.not_run:
            call(["bash", "-euo", "pipefail", "-c", script], folder, environment)
    elif block.language == "python":
        file = folder / "block.txt"
        file.write_text(block.text, encoding="utf-8")
        call([sys.executable, *(["-m", "doctest"] if ">>>" in block.text else []), file.name], folder, environment)
        file.unlink()
    elif block.language == "toml":
        (folder / "block.toml").write_text(block.text, encoding="utf-8")
        read_recipe(str(folder / "block.toml"))
    elif block.language == "csv":
        assert len(Manifest.from_csv(block.text, folder, "block.csv"))
    else:
        assert block.language == "text", f"nothing checks a block of {block.language or 'no language'}"


def runnable(script: str) -> Iterator[str]:
    """Its lines without those that install or build, which are checked instead."""
    for line in script.splitlines(keepends=True):
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            targets = [word for word in words[1:] if "=" not in word]
            assert targets, f"{line!r} names no target"
            assert set(targets) <= makefile_targets()
        elif words[:2] == ["pip", "install"]:
            asked = set(itertools.chain.from_iterable(names.split(",") for names in re.findall(r"\[(.*?)\]", line)))
            assert words[2].startswith("."), f"{line!r} installs something else than this checkout"
            assert asked <= extras()
        else:
            yield line


def call(command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    assert done.returncode == 0, f"{command[-1]}\nexit status {done.returncode}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """This Python's commands first, an empty cache, no network; a thread, since other tests run beside this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PNEUMOSCOPE_")}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PNEUMOSCOPE_CACHE": str(tmp_path_factory.mktemp("cache")),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.slow
@pytest.mark.training
@pytest.mark.parametrize("name", [name for name, text in pages().items() if "```" in text])
def test_every_block_of_a_page_runs(name: str, tmp_path: Path, environment: dict[str, str]) -> None:
    for block in blocks(pages()[name]):
        run_block(block, tmp_path, environment)


def test_blocks_are_left_out_only_for_reasons_that_are_listed() -> None:
    found = Counter(block.not_run for text in pages().values() for block in blocks(text) if block.not_run)
    assert dict(found) == NOT_RUN


def test_every_fence_is_read_as_a_block() -> None:
    for name, text in pages().items():
        assert 2 * len(list(blocks(text))) == len(re.findall(r"^ *```", text, re.MULTILINE)), name


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        (Block("bash", "true\nfalse\n", "", ""), "exit status 1"),
        (Block("bash", "make moon\n", "", ""), "moon"),
        (Block("bash", "pip install '.[moon]'\n", "", "needs the network"), "moon"),
        (Block("bash", "pip install pneumoscope\n", "", ""), "something else than this checkout"),
        (Block("python", "raise SystemExit(3)\n", "", ""), "exit status 3"),
        (Block("python", ">>> 1 + 1\n3\n", "", ""), "***Test Failed*** 1 failure"),
        (Block("ruby", "1\n", "", ""), "nothing checks a block of ruby"),
    ],
)
def test_a_block_that_fails_is_noticed(
    block: Block, complaint: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    with pytest.raises(AssertionError) as caught:
        run_block(block, tmp_path, environment)
    assert complaint in str(caught.value)


# --- what pages say --------------------------------------------------------------------------------------------------


@pytest.mark.training
def test_generated_pages_are_fresh() -> None:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    made = generate.pages()
    assert tuple(made) == GENERATED
    for name, text in made.items():
        on_disk = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert on_disk == text, f"docs/{name} is stale: run make docs"
        assert on_disk.startswith("<!-- Generated by `make docs`")


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives to headings: lower case, letters, digits, - and _, blanks as -."""
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
def test_links_within_the_repository_lead_somewhere(name: str) -> None:
    assert broken_links(name, pages()) == []


def test_a_broken_link_is_noticed() -> None:
    page = {"README.md": "# Top\n[a](#top) [b](#bottom) [c](docs/moon.md) [d](https://example.org)\n"}
    assert broken_links("README.md", page) == ["#bottom", "docs/moon.md"]


def written_by_hand() -> str:
    return "\n".join(text for name, text in pages().items() if Path(name).name not in GENERATED)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_shown_in_use(verb: str) -> None:
    assert re.search(rf"^pneumoscope {verb}\b", written_by_hand(), re.MULTILINE)


@pytest.mark.parametrize("extra", sorted(extras()))
def test_every_extra_is_explained(extra: str) -> None:
    assert f"`[{extra}]`" in written_by_hand()


@pytest.mark.parametrize("metric", METRICS)
def test_every_statistic_has_its_definition(metric: str) -> None:
    assert f"`{metric}`" in pages()["docs/statistics.md"]


def test_the_erratum_is_what_the_counts_of_each_row_give() -> None:
    page = pages()["docs/experiment.md"]
    for name, (accuracy, recall, precision, f1, *averages) in PRINTED.items():
        counts = restore(name, accuracy, recall, precision, f1)
        tp, fn, tn, fp = counts.tp, counts.fn, counts.tn, counts.fp
        numbers = [(tp + tn) / 624, tp / 390, tn / 234, tp / (tp + fp), 2 * tp / (2 * tp + fp + fn)]
        cells = [f"`{name}`", *map(str, (tp, fn, tn, fp)), *(f"{number:.4f}" for number in numbers)]
        assert f"| {' | '.join(cells)} |" in page
        assert re.search(rf"^\| `{name}` .*\| {averages[0]:.4f} \| {averages[1]:.4f} \|$", page, re.MULTILINE)


def test_the_floors_on_the_page_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = [layer.replace("pneumoscope.", "").split(" | ") for layer in contracts["contracts"][0]["layers"]]
    drawing = next(block.text for block in blocks(pages()["docs/architecture.md"]))
    drawn = iter(re.findall(r"^(\w+)(?:/|\.py) ", drawing, re.MULTILINE))
    assert [sorted(itertools.islice(drawn, len(layer))) for layer in layers] == [sorted(layer) for layer in layers]
    assert not list(drawn)


def test_index_leads_to_every_page() -> None:
    index = pages()["docs/index.md"]
    others = {Path(name).name for name in pages() if name.startswith("docs/")} - {"index.md"}
    assert others <= set(_LINK.findall(index))


@pytest.mark.parametrize("name", pages())
def test_no_page_names_a_path_of_a_machine(name: str) -> None:
    private = {str(ROOT), str(ROOT.parent), str(Path.home()), tempfile.gettempdir(), "/home/", "/Users/", "/root/"}
    assert [path for path in private if path in pages()[name]] == []
