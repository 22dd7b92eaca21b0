"""The notebooks run from top to bottom, and are committed with the outputs that they have."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docs" / "run_notebooks.py"
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# Paths of a machine, times and versions, which would differ with each execution.
_VOLATILE = re.compile(
    r"/(?:tmp|home|root|usr|Users|work|var)/|site-packages|\d{4}-\d\d-\d\d|\d\d:\d\d|\b\d+\.\d+\.\d+\b|\x1b"
)


def cells(notebook: Path) -> list[dict[str, Any]]:
    """Return the cells with code."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def kinds(cell: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the types of the outputs of a cell, and their forms, such as "image/png"."""
    return [(each["output_type"], *sorted(each.get("data", [each.get("name")]))) for each in cell["outputs"]]


def texts(cell: dict[str, Any]) -> list[str]:
    """Return the outputs of a cell without images, whose bytes depend on libraries."""
    forms = [each.get("data", {"text": each.get("text")}) for each in cell["outputs"]]
    return ["".join(form[name]) for form in forms for name in sorted(form) if not name.startswith("image/")]


def headings(cell: dict[str, Any]) -> list[str]:
    """Return the headings of rows and columns, and the names of figures, which do not depend on the numbers."""
    return [name for text in texts(cell) for name in re.findall(r"<th\b[^>]*>([^<]*)</th>|\bkey='([\w-]+)'", text)]


@pytest.mark.slow
@pytest.mark.training
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_has_the_outputs_that_its_execution_gives(notebook: Path, tmp_path: Path) -> None:
    pytest.importorskip("nbclient", reason="nbclient is not installed (the extra [docs])")
    copy = Path(shutil.copy(notebook, tmp_path))
    copy.write_text(json.dumps(without_outputs(json.loads(copy.read_text("utf-8")))), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(copy)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    executed, stored = cells(copy), cells(notebook)
    assert [cell["execution_count"] for cell in executed] == [cell["execution_count"] for cell in stored]
    for new, old in zip(executed, stored, strict=True):
        assert kinds(new) == kinds(old), old["source"]
        varies = "varies" in old["metadata"].get("tags", [])
        assert headings(new) == headings(old) if varies else texts(new) == texts(old), old["source"]


def without_outputs(notebook: dict[str, Any]) -> dict[str, Any]:
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return notebook


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_committed_as_it_was_executed(notebook: Path) -> None:
    code = cells(notebook)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["outputs"] for cell in code)
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    assert notebook.stat().st_size < 500_000
    assert json.loads(notebook.read_text("utf-8"))["metadata"]["language_info"] == {"name": "python"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_state_no_path_time_or_version(notebook: Path) -> None:
    found = [match[0] for cell in cells(notebook) for text in texts(cell) for match in _VOLATILE.finditer(text)]
    assert found == []


def test_a_notebook_goes_from_a_folder_to_a_comparison_with_tables_and_figures() -> None:
    (notebook,) = (path for path in NOTEBOOKS if path.name == "report.ipynb")
    forms = {form for cell in cells(notebook) for kind in kinds(cell) for form in kind[1:]}
    assert {"text/html", "image/svg+xml", "image/png"} <= forms  # GitHub shows no SVG
    code = "".join("".join(cell["source"]) for cell in cells(notebook))
    for name in ("load_dataset", "train", "evaluate", "compare", "report"):
        assert f"pneumoscope.{name}(" in code
