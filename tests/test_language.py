"""The project's language: standard terms, direct English. The words and phrases below are not used anywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".md", ".html", ".js", ".css", ".toml", ".po", ".yml", ".cff", ".txt"}
FOLDERS = (".github", "src", "docs", "tests", "benchmarks")
FILES = (
    "README.md",
    "README.zh-Hant.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CITATION.cff",
    "Makefile",
    "mkdocs.yml",
    "pyproject.toml",
    ".ci/run",
    ".gitignore",
)

# Phrase: use instead.
BANNED = {
    r"\bfilms?\b": "image, radiograph",
    r"\bjudg(e|es|ed|ing|ement|ements)\b": "predict, score, evaluate",
    r"\brefusals?\b": "rejection",
    r"\baskew\b": "augmented, rotated",
    r"\bwhoever\b": "the client, the caller, anyone who",
    r"\bwhomever\b|\b(of|by|from|to) whom\b": "name the person",
    r"\bnobody\b": "no one, or name the actor",
    r"\bof ours\b": "our, internal",
    r"\bwho asks\b|\bwho is asked\b": "the client, the user",
    r"\bwhat (is|was) said\b|\bsaid of\b": "prediction, result",
    r"\bsays? of (each|an?|the|them)\b": "predict",
    r"\bwhat became of\b": "outcome, status",
    r"\btold of\b|\b(is|are|was|were) told\b": "reported",
    r"\ban error of its own\b": "reported",
    r"\bcalled rightly\b": "correct",
    r"\bno (image|film|name|number|path|hash|key) is so\b": "no match",
    r"(?<=[\w,`)'\"] )(?<!there )\b(is|are|was|were) no "
    r"(?!(?:faster|higher|larger|less|longer|lower|more|narrower|slower|smaller|wider)\b)": "is not a ..., are not ...",
    r"pseudonymis|anonymis|colour|labelled\b|normalis|recognis|\bcatalogues?\b": "the American spelling",
    r"\ba stranger\b|\bstrangers?'s?\b": "untrusted",
    r"\baudit[- ]trails?\b": "audit log",
    r"\blooks? at (the )?test images\b|\bevery look\b|\btest look\b": "test-set evaluation",
    r"\bwritten down\b": "recorded",
    r"\bat hand\b": "available",
    r"\ball the same\b": "anyway, even so",
    r"\b(shows? itself|show themselves)\b": "is displayed",
    r"\banew\b": "again",
    r"\bspoil(s|ed|t)?\b": "corrupt, alter",
    r"--points?\b": "--operating-point",
    r"(\b|_)a[ _]image": "an image",
    r"\blooks? \d": "test-set evaluation",
    r"\b(radiograph|predictor|networks|dataset)\.(decode|dicom|prepare|document|refuse|network|population)\b": "its new name",
    r"\bsays? (so|little)\b": "mention, report, warn; inconclusive",
    r"\bof (its|their) own(?=[.,;:)\"'`]|\s*\n| (and|by|in|is|on|so|that|which|with)\b)": "its own, separate",
    r"\balso if\b": "even if",
    r"\bothers than\b": "other than, differ from",
    r"\bthe more so\b": "increasingly",
    r"\bif need be\b": "if necessary",
    r"\bcan be had\b": "is available",
    r"\bby the looks? of\b": "suggests",
    r"\bstands? in for\b|\bstand-ins? for\b": "replaces",
    r"\bsomebody\b|\beverybody\b(?! =|,|\)|:| =)": "someone, everyone",
    r"\bweb UI\b": "web interface",
    r"(?m)^\s*(\"\"\"|#|-|\*)?\s*(What|Who|Whatever|Whichever|Nobody|Nothing)"
    r" (is|are|was|were|can|may|must|stands|has|have|comes|a|an|the)\b": "a noun as the subject",
}  # fmt: skip
ALLOWED = {
    "tests/test_language.py": set(BANNED),
    # The first lines of the test ledger, which is append-only, use the older key.
    "src/pneumoscope/evaluation/ledger.py": {r"\bfilms?\b"},
    "tests/evaluation/test_ledger.py": {r"\bfilms?\b"},
    "tests/service/conftest.py": {r"\bnobody\b"},  # the Unix user
}


def text_files() -> list[Path]:
    found = [ROOT / name for name in FILES if (ROOT / name).is_file()]
    for folder in FOLDERS:
        found += sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES and path.is_file())
    return [path for path in found if "bundle/default" not in path.as_posix()]


def violations(path: Path, text: str) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    allowed = ALLOWED.get(name, set())
    text = re.sub(r"(?<=[^\W_])_(?=[^\W_])", " ", text)  # the words of names such as test_file_that_is_no_image
    return [
        f"{name}:{text[: match.start()].count(chr(10)) + 1}: {match.group().strip()!r}: use {instead}"
        for pattern, instead in BANNED.items()
        if pattern not in allowed
        for match in re.finditer(pattern, text, re.IGNORECASE if not pattern.startswith("(?m)") else re.MULTILINE)
    ]


def test_no_banned_word_or_phrase() -> None:
    found = [line for path in text_files() for line in violations(path, path.read_text(encoding="utf-8"))]
    assert not found, f"{len(found)} violations:\n" + "\n".join(found[:200])


@pytest.mark.parametrize(
    "text",
    [
        "A film that cannot be read",
        "# What is kept",
        "Whoever asks",
        "--points half",
        "test_a_image",
        "after looks 3",
        "a program that is no PACS",
        "files that are no images",
        "a path that is no folder",
        "--pseudonymise",
        "Pages are normalised",
        "def test_file_that_is_no_image() -> None:",
        "def test_names_are_told_apart() -> None:",
        "a note says so.",
        "a folder of its own.",
        "the web UI",
    ],
)
def test_the_check_finds_banned_phrases(text: str) -> None:
    assert violations(ROOT / "src" / "example.py", text)


@pytest.mark.parametrize(
    "text",
    [
        "there is no image",
        "it is no longer there",
        "the page is no wider",
        "is no more than 3",
        "three of its own training images",
    ],
)
def test_the_check_allows_common_phrases(text: str) -> None:
    assert violations(ROOT / "src" / "example.py", text) == []
