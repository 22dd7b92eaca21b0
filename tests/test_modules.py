"""The size of modules: one that has more lines has more than one role."""

from __future__ import annotations

from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
MAXIMUM = 400  # lines; see CONTRIBUTING.md


def test_no_module_has_more_than_400_lines():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCE.rglob("*.py")}
    assert len(lines) > 100
    assert {str(path.relative_to(SOURCE)): count for path, count in lines.items() if count > MAXIMUM} == {}
