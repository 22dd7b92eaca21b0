"""The record of the adults in results/: its comparison follows from its evaluations, and its page states their figures."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pneumoscope.core.result_forms import to_json
from pneumoscope.evaluation.comparison.compare import compare

ADULTS = Path(__file__).resolve().parents[1] / "results" / "adults"
SEEDS = range(3)


def recorded(seed: int) -> dict[str, Any]:
    evaluation: dict[str, Any] = json.loads(
        (ADULTS / f"seed-{seed}/evaluation/test/evaluation.json").read_text("utf-8")
    )
    return evaluation


def stated(interval: dict[str, Any]) -> str:
    return f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


@pytest.mark.slow
def test_comparison_follows_from_the_evaluations() -> None:
    found = json.loads(to_json(dataclasses.replace(compare([ADULTS]), command="", created="", version="")))
    expected = json.loads((ADULTS / "comparison.json").read_text("utf-8")) | {
        "command": "",
        "created": "",
        "version": "",
    }
    assert found.keys() == expected.keys()
    for part in ("images", "sentences", "pairs"):
        assert found[part] == expected[part]
    (group,) = found["groups"]
    for metric, spread in expected["groups"][0]["metrics"].items():
        again = group["metrics"][metric]
        for name in ("sd", "minimum", "maximum"):
            assert again[name] == pytest.approx(spread[name], rel=1e-9)
        for end in ("value", "low", "high"):
            number = spread["mean"][end]
            assert again["mean"][end] == (None if number is None else pytest.approx(number, rel=1e-9))


def test_page_states_the_figures_of_the_files() -> None:
    page = (ADULTS / "README.md").read_text("utf-8")
    (group,) = json.loads((ADULTS / "comparison.json").read_text("utf-8"))["groups"]
    for metric in ("accuracy", "auroc", "sensitivity", "specificity"):
        spread = group["metrics"][metric]
        values = [
            {**recorded(k)["metrics"], **recorded(k)["operating_points"]["half"]["metrics"]}[metric] for k in SEEDS
        ]
        label = "AUROC" if metric == "auroc" else metric
        cells = [label, stated(spread["mean"]), f"{spread['sd']:.4f}", *map(stated, values)]
        assert f"| {' | '.join(cells)} |" in page
    groups = [{group["value"]: group for group in recorded(k)["subgroups"]} for k in SEEDS]
    for source, metric in (("nih", "auroc"), ("nih", "specificity"), ("rsna", "specificity")):
        row = next(line for line in page.splitlines() if line.startswith(f"| `{source}`") and metric in line.lower())
        assert re.findall(r"\d\.\d+ \([^)]*\)", row) == [stated(each[source]["metrics"][metric]) for each in groups]
        first = groups[0][source]
        assert f"| {first['n']} | {first['counts'].get('PNEUMONIA', 0)} |" in row
    normal = recorded(0)["counts"]["NORMAL"] / recorded(0)["n"]
    assert f"{100 * normal:.1f}% of the test images are normal" in page


def test_ledger_has_every_evaluation_of_the_adults() -> None:
    lines = [json.loads(line) for line in (ADULTS.parent / "test-ledger.jsonl").read_text("utf-8").splitlines()]
    evaluations = [line for line in lines if line.get("images_sha256") == recorded(0)["images_sha256"]]
    assert [line["test_evaluation"] for line in evaluations] == [1, 2, 3, 4, 5, 6]
    for seed in SEEDS:
        evaluation = recorded(seed)
        first, second = (line for line in evaluations if line["bundle_sha256"] == evaluation["bundle_sha256"])
        assert first["metrics"] == second["metrics"] == {k: v["value"] for k, v in evaluation["metrics"].items()}
        assert second["test_evaluation"] == evaluation["test_evaluation"]


def test_record_has_no_path_of_a_machine_and_no_image() -> None:
    files = [path for path in ADULTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".md", ".json", ".csv", ".toml"}
    for path in files:
        assert re.findall(r"[ \",]/\w+/|[A-Z]:\\", path.read_text("utf-8")) == [], path
