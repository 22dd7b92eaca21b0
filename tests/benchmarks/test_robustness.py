"""The benchmark of robustness measures what it says: on a network that takes the mean grey, whose answers are known."""

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import LIMITS, SIZE, halves

from pneumoscope.core.errors import DatasetError
from pneumoscope.imaging.decode import decode
from pneumoscope.inference.model import load_model

_PATH = Path(__file__).parents[2] / "benchmarks" / "robustness.py"
_SPEC = importlib.util.spec_from_file_location("benchmark_robustness", _PATH)
benchmark = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = benchmark
_SPEC.loader.exec_module(benchmark)

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 30)).astype(np.uint8)


@pytest.mark.parametrize("name", benchmark.FORMATS)
def test_a_image_comes_back_from_each_form_as_it_was(name):
    np.testing.assert_array_equal(decode(benchmark.FORMATS[name](IMAGE)).pixels, IMAGE)


def test_the_forms_are_what_they_are_called():
    assert decode(benchmark.deep_png(IMAGE)).mode == "I;16"
    assert decode(benchmark.dicom(IMAGE)).mode == "MONOCHROME2, 12 bits"
    assert decode(benchmark.dicom(IMAGE, inverted=True)).mode == "MONOCHROME1, 12 bits"
    assert Image.open(io.BytesIO(benchmark.squeezed(IMAGE))).format == "JPEG"


def test_changes_by_hand():
    assert benchmark.lit(np.uint8([[100, 250]]), 1.2).tolist() == [[120, 255]]
    assert benchmark.lit(np.uint8([[100, 250]]), 0.8).tolist() == [[80, 200]]
    assert benchmark.middle(np.arange(16, dtype=np.uint8).reshape(4, 4), 0.25).tolist() == [[5, 6], [9, 10]]
    dot = np.zeros((41, 41), np.uint8)
    dot[20, 40] = 255  # the middle of the right edge rises when it is turned to the left
    rows, _ = np.nonzero(benchmark.turned(dot, 10))
    assert set(rows.tolist()) <= {16, 17}
    for name, change in benchmark.CORRUPTIONS.items():
        assert not np.array_equal(change(IMAGE), IMAGE), name


def test_what_is_counted_by_hand(maker):
    """Grey 120 has the score 0.4378, above 0.4; a fifth darker, 96, it has 0.19: the decision changes. Grey 200 keeps its own."""
    model = load_model(maker.bundle(maker.root / "bundle"))
    images = [halves(120), halves(200), halves(20)]
    before = list(model.predict_many(images))
    after = list(model.predict_many(benchmark.lit(image, 0.8) for image in images))

    row = benchmark.compare("darker", before, after, ["a", "b", "c"])

    assert (row["changed"].value, row["changed"].n) == (1 / 3, 3)
    probability = [1 / (1 + np.exp(-(0.8 * 0.05 * (level - 125) + 0.1))) for level in (120, 96)]
    assert row["largest"] == pytest.approx(probability[0] - probability[1], abs=1e-3)
    assert row["near"].value == 1 / 3  # grey 200 moves by 0.17, grey 20 by 0.003
    rejected = list(model.predict_many([np.zeros((SIZE, SIZE), np.uint8), b"", halves(200)]))
    row = benchmark.compare("blank", before, rejected, ["a", "b", "c"])
    assert (row["changed"].value, row["largest"]) == (1, pytest.approx(0.0, abs=1.0))
    row = benchmark.rejections("blank", rejected)
    assert (row["rejected"].value, row["predicted_pneumonia"]) == (2 / 3, 1)
    assert row["reasons"] == {"blank": 1, "the file is empty": 1}


def test_the_whole_table(maker, capsys):
    run = maker.run(rejection_limits=LIMITS)
    images = maker.images(split="train")
    (run / "manifest.csv").write_text(maker.manifest(images, "validation"))
    large = maker.root / "large"
    for path in sorted(images.rglob("*.png"))[:6]:
        (large / path.relative_to(images)).parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((64, 64), Image.Resampling.NEAREST).save(large / path.relative_to(images))
    options = ["--images", "12", "--phantoms", "4", "--pictures", str(images), "--out", str(maker.root / "out")]

    benchmark.main([str(run), "--data", str(images), "--originals", str(large), "--copies", str(images), *options])

    found = json.loads((maker.root / "out" / "robustness.json").read_text())
    assert found["n"] == 12
    assert {row["name"] for row in found["formats"]} == set(benchmark.FORMATS)
    assert [row["largest"] for row in found["formats"]] == [0, 0, 0, 0]
    assert (found["sizes"]["n"], found["sizes"]["changed"]["value"]) == (6, 0)
    rejected_rate = {row["name"]: row["rejected"]["value"] for row in found["corruptions"]}
    assert rejected_rate["blank"] == 1
    assert (
        rejected_rate["upside_down"] == rejected_rate["mirrored"] == found["as_they_are"]["rejected"]["value"]
    )  # the mean grey is the same
    assert (maker.root / "out" / "robustness.md").read_text() == capsys.readouterr().out.removesuffix("\n")


def test_an_original_without_its_copy_stops_it(maker):
    run = maker.run(rejection_limits=LIMITS)
    images = maker.images(split="train")
    (run / "manifest.csv").write_text(maker.manifest(images, "validation"))
    options = [
        "--images",
        "4",
        "--phantoms",
        "1",
        "--originals",
        str(images),
        "--copies",
        str(maker.root / "elsewhere"),
    ]

    with pytest.raises(DatasetError, match="have no copy"):
        benchmark.main([str(run), "--data", str(images), *options])


def test_originals_need_their_copies(maker):
    with pytest.raises(SystemExit):
        benchmark.main(["run", "--data", "images", "--originals", "large"])
