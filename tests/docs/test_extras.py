"""Commands work without the extras that docs/how-to/install.md does not list for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pneumoscope.cli import EXTRAS

_WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from pneumoscope.cli import cli, run_and_exit
run_and_exit(cli, sys.argv[1:])
"""
_TRAIN, _EVALUATE = set(EXTRAS["train"]), set(EXTRAS["evaluate"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocked", "arguments", "missing"),
    [
        (_TRAIN | _EVALUATE, ["phantom", "other", "--train", "4", "--test", "4", "--size", "32"], ""),
        (_TRAIN | _EVALUATE, ["split", "images", "--out", "images.csv"], ""),
        (_TRAIN | _EVALUATE, ["recipes"], ""),
        (_TRAIN | _EVALUATE, ["models"], ""),
        (_TRAIN | _EVALUATE, ["download", "data"], "evaluate"),
        (_TRAIN, ["download", "--help"], ""),
        (_TRAIN | _EVALUATE, ["export", "bundle", "--out", "copy"], ""),
        (_TRAIN | _EVALUATE, ["check-data", "images"], "evaluate"),
        (_TRAIN, ["check-data", "images", "--html", "check.html"], ""),
        (_TRAIN, ["evaluate", "bundle", "--data", "images", "--out", "evaluation"], ""),
        (_TRAIN, ["train", "quick", "--data", "images", "--out", "run"], "train"),
        (_TRAIN, ["reproduce", "--data", "images", "--out", "runs"], "train"),
    ],
)
def test_a_command_needs_only_its_documented_extra(
    blocked: set[str],
    arguments: list[str],
    missing: str,
    maker: object,
    tmp_path: Path,
) -> None:
    maker.images("images", split="test")  # type: ignore[attr-defined]
    maker.images("images", split="train", seed=1)  # type: ignore[attr-defined]
    maker.bundle(tmp_path / "bundle")  # type: ignore[attr-defined]
    command = [sys.executable, "-c", _WITHOUT.format(blocked=blocked), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    if missing:
        assert f"pip install 'pneumoscope[{missing}]'" in done.stderr
    assert done.returncode == (2 if missing else 0), done.stderr


def test_the_service_needs_no_other_extra_than_serve() -> None:
    pacs = {"pynetdicom", "highdicom", "dicomweb_client", "requests"}
    blocked = _TRAIN | pacs | {"sklearn", "matplotlib", "pooch", *EXTRAS["openid"]}
    script = _WITHOUT.partition("from pneumoscope.cli")[0].format(blocked=blocked)
    command = [sys.executable, "-c", f"{script}import pneumoscope.service.server, pneumoscope.service.app"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
