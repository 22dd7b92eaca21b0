"""The blocks of the docs that open the table in other programs print the decisions of the archive.

Pandas and DuckDB also run with the page, in tests/docs. Polars and Spark are not in [dev], since they have hundreds of megabytes.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.archive.archives import DEADLINE, draw_images, score, table

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "archive.md"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["pandas", "duckdb", "polars", "pyspark"])
def test_a_block_of_the_page_counts_the_decisions(tmp_path: Path, bundle: Path, package: str) -> None:
    (block,) = [
        each for each in _BLOCK.findall(PAGE.read_text(encoding="utf-8")) if f" {package}" in each.splitlines()[0]
    ]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    score(draw_images(tmp_path / "images", 11), tmp_path / "archive", bundle)
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, done.stderr
    for decision, count in Counter(row["decision"] for row in table(tmp_path / "archive")).items():
        assert re.search(rf"\b{decision}\b\W+{count}\b", done.stdout), done.stdout
