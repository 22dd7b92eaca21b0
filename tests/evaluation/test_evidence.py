"""Evidence for the model card of a run: measured once, on validation images, and copied with the bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pneumoscope.bundle.bundle_folder import export_bundle
from pneumoscope.bundle.evidence import EVIDENCE, evidence_command
from pneumoscope.bundle.model_card import model_card
from pneumoscope.core.errors import BundleError, UsageError
from pneumoscope.evaluation import evidence as module
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.evidence import measure_evidence
from pneumoscope.runs.run_folder import evaluation_of_bundle


@pytest.fixture
def images(maker: Any) -> Path:
    """Twelve training and test images of NORMAL and PNEUMONIA each."""
    for split in ("test", "train"):
        maker.images(split=split, pneumonia=12, seed=len(split))
    folder: Path = maker.root / "images"
    return folder


@pytest.fixture
def finished(maker: Any, images: Path) -> Callable[..., Path]:
    """Return a function that makes the run, again with another network if it has another gain; it validated on `train`."""

    def make(gain: float = 0.05) -> Path:
        run: Path = maker.run(gain=gain)
        (run / "manifest.csv").write_text(maker.manifest(images, "validation"))
        return run

    return make


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_card_has_a_section_for_each_measurement_of_validation_images(
    finished: Callable[..., Path], images: Path
) -> None:
    run, log = finished(), []
    measure_evidence([run], images, command="pneumoscope train quick --evidence", log=log.append)

    folder = run / "bundle/evidence"
    assert files(folder) == {"audit.json", "robustness.json", "robustness.md", "shortcuts.json", "shortcuts.md"}
    assert log[:3] == [
        "model card: checking the data",
        "model card: robustness, on validation images",
        "model card: shortcuts, on validation images",
    ]
    assert log[-1] == "model card: heatmaps were not checked: the network has no layer with weights to shuffle"
    for name in ("robustness", "shortcuts"):
        result = json.loads((folder / f"{name}.json").read_text())
        assert (result["split"], result["command"]) == ("validation", "pneumoscope train quick --evidence")
    missing = [line for line in model_card(run / "bundle").splitlines() if "Not measured yet" in line]
    assert missing == [
        f"Not measured yet: `{EVIDENCE[name]}`." for name in ("evaluation", "saliency_check", "phantom_saliency_check")
    ]


def test_measurements_are_resumed(finished: Callable[..., Path], images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished()
    measure = module.MEASUREMENTS["shortcuts"]

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(module.MEASUREMENTS, "shortcuts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_evidence([run], images)
    first = (run / "bundle/evidence/robustness.json").stat().st_mtime_ns
    monkeypatch.setitem(module.MEASUREMENTS, "shortcuts", measure)
    measure_evidence([run], images)
    assert (run / "bundle/evidence/robustness.json").stat().st_mtime_ns == first
    assert (run / "bundle/evidence/shortcuts.json").is_file()


def test_evidence_of_another_network_is_measured_again(finished: Callable[..., Path], images: Path) -> None:
    run = finished()
    measure_evidence([run], images)
    finished(0.06)
    with pytest.raises(BundleError, match="belongs to the network"):
        model_card(run / "bundle")
    measure_evidence([run], images)
    model_card(run / "bundle")


@pytest.mark.parametrize("change", [{}, {"split": "train"}, {"onnx_sha256": "0" * 64}])
def test_file_without_a_result_on_validation_images_is_measured_again(
    finished: Callable[..., Path], images: Path, change: dict[str, str]
) -> None:
    run = finished()
    measure_evidence([run], images)
    file = run / "bundle/evidence/shortcuts.json"
    right = json.loads(file.read_text())
    file.write_text(json.dumps(right | change if change else {}))
    measure_evidence([run], images)
    assert json.loads(file.read_text()) == right


def test_command_of_a_run_keeps_words_of_its_path() -> None:
    run = Path("runs/BUNDLE-MANIFEST")
    assert evidence_command("robustness", run / "bundle", run) == (
        "pneumoscope robustness runs/BUNDLE-MANIFEST --data DATA --out runs/BUNDLE-MANIFEST/bundle/evidence"
    )
    assert evidence_command("evaluation", Path("DATA x")) == (
        "pneumoscope evaluate 'DATA x' --data DATA --out 'DATA x'/evidence"
    )


def test_data_are_checked_once_for_several_runs(
    maker: Any, finished: Callable[..., Path], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MEASUREMENTS", {})
    other = maker.run("other")
    log: list[str] = []
    measure_evidence([finished(), other], images, log=log.append)
    assert log == ["model card: checking the data"]
    assert files(other / "bundle/evidence") == {"audit.json"}


def test_run_without_validation_images_is_an_error_even_if_only_heatmaps_are_missing(
    maker: Any, finished: Callable[..., Path], images: Path
) -> None:
    run = finished()
    measure_evidence([run], images)
    (run / "manifest.csv").unlink()
    with pytest.raises(UsageError, match="cannot tell which images"):
        measure_evidence([run], images)


def test_bundle_of_several_classes_has_the_check_of_the_data(maker: Any) -> None:
    run = maker.multiclass_run()
    measure_evidence([run], maker.classes())
    assert files(run / "bundle/evidence") == {"audit.json"}


def test_exported_bundle_has_the_evidence_and_the_test_evaluation_of_its_run(
    finished: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    run = finished()
    measure_evidence([run], images)
    evidence = run / "bundle/evidence"
    evaluate(run, images, out=run / "evaluation/test", ledger=tmp_path / "ledger.jsonl")
    (evidence / "notes.txt").write_text("not evidence")

    export_bundle(run / "bundle", tmp_path / "copy", evaluation=evaluation_of_bundle(run / "bundle"))

    copied = tmp_path / "copy/evidence"
    assert files(copied) == {"audit.json", "evaluation.json", "robustness.json", "shortcuts.json"}
    for name in files(copied) - {"evaluation.json"}:
        assert (copied / name).read_bytes() == (evidence / name).read_bytes()
    assert (copied / "evaluation.json").read_bytes() == (run / "evaluation/test/evaluation.json").read_bytes()
    assert model_card(tmp_path / "copy") == model_card(run / "bundle", evaluation_of_bundle(run / "bundle"))


def test_evidence_of_another_network_is_not_exported(
    finished: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    measure_evidence([finished()], images)
    run = finished(0.06)
    with pytest.raises(BundleError, match="belongs to the network"):
        export_bundle(run / "bundle", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
