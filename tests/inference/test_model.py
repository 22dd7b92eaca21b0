"""Python's door: one image, many images, and what becomes of those that cannot be read."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import LIMITS, SIZE, halves

import pneumoscope
from pneumoscope.core.errors import BundleError, RunError, UnknownNameError, UnreadableImageError, UsageError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.prediction import ImageInfo
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference import model as module
from pneumoscope.inference.model import load_model
from pneumoscope.inference.saliency import render_heatmap


@pytest.fixture(scope="module")
def bundle(shared_maker):
    """logit = 0.05 x (mean grey - 125); slope 0.8, intercept 0.1."""
    return shared_maker.bundle(shared_maker.root / "model")


@pytest.fixture(scope="module")
def model(bundle):
    return load_model(bundle)


def png(level, height=SIZE, width=SIZE):
    file = io.BytesIO()
    Image.fromarray(halves(level, height, width)).save(file, "PNG")
    return file.getvalue()


def images(folder, levels):
    """A PNG of each grey level, named by its place."""
    paths = [folder / f"{place:03}.png" for place in range(len(levels))]
    for path, level in zip(paths, levels, strict=True):
        path.write_bytes(png(level))
    return paths


# --- one image --------------------------------------------------------------------------------------------------------


def test_one_image_by_hand(model, tmp_path):
    """Grey 165: logit 0.05 x 40 = 2, probability 1 / (1 + exp(-1.7)) = 0.8455347."""
    path = tmp_path / "image.png"
    path.write_bytes(png(165, 20, 30))
    found = model.predict(path)

    assert (found.path, found.decision, found.reason, found.error) == (str(path), "pneumonia", "", "")
    assert found.probability == pytest.approx(0.8455347, abs=1e-6)
    assert (found.interval, found.interval_reason) == (None, "this bundle states none")
    assert found.image == ImageInfo(width=30, height=20, format="PNG")
    assert (found.model.name, found.model.version, found.model.sha256) == ("grey", "0.1.0", model.card.onnx_sha256)
    assert found.notice == NOTICE


def test_a_path_bytes_and_an_array_are_the_same_image(model, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png(90))
    sources = [path, str(path), png(90), halves(90)]
    found = [model.predict(source) for source in sources]

    assert [prediction.path for prediction in found] == [str(path), str(path), "bytes", "array"]
    assert {prediction.probability for prediction in found} == {found[0].probability}
    assert [prediction.image.format for prediction in found] == ["PNG", "PNG", "PNG", "array"]
    assert model.predict(sources[2], name="upload").path == "upload"


def test_a_path_stays_as_it_was_written(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(png(90))

    assert model.predict("./a.png").path == "./a.png"


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (b"no image", r"cannot read 'bytes': not an image"),
        (np.zeros((4, 4, 3), np.uint8), r"cannot read 'array': pixels are uint8 of shape \(4, 4, 3\)"),
        (np.zeros((4, 4)), r"cannot read 'array': pixels are float64 of shape \(4, 4\)"),
        ("nowhere.png", r"cannot read 'nowhere\.png': No such file"),
    ],
)
def test_one_image_that_cannot_be_read_is_raised(model, image, why):
    with pytest.raises(UnreadableImageError, match=why):
        model.predict(image)


def test_a_large_jpeg_is_decoded_smaller_and_states_its_own_size(model, tmp_path, monkeypatch):
    path = tmp_path / "image.jpeg"
    Image.fromarray(halves(200, 300, 400)).save(path)
    asked = []

    def watch(source, **options):
        asked.append(decode(source, **options))
        return asked[-1]

    monkeypatch.setattr(module, "decode", watch)
    found = model.predict(path)

    assert found.image == ImageInfo(width=400, height=300, format="JPEG")
    assert (asked[0].width, asked[0].height) == (50, 38)  # an eighth; twice the network's side is 32
    assert found.probability == pytest.approx(1 / (1 + np.exp(-(0.8 * 0.05 * (200 - 125) + 0.1))), abs=1e-4)


def test_the_operating_point_decides(bundle):
    """Grey 115: logit -0.5, score 0.3775: above 0.2, below 0.4."""
    image = halves(115)
    found = {name: load_model(bundle, operating_point=name).predict(image) for name in ("", "rule_out", "balanced")}

    assert {name: prediction.decision for name, prediction in found.items()} == {
        "": "no_pneumonia",
        "rule_out": "pneumonia",
        "balanced": "no_pneumonia",
    }
    assert found["rule_out"].threshold < found["balanced"].threshold == found[""].threshold


# --- heatmaps --------------------------------------------------------------------------------------------------------


def test_heatmaps_come_with_the_same_predictions_in_the_same_order(model, tmp_path):
    """The first picture is the one that `render_heatmap` draws of what the network says of that image alone."""
    images = [png(165, 40, 60), b"", png(90), halves(130), tmp_path / "gone.png"]

    explained = list(model.explain_many(images, batch_size=2))

    assert [prediction for prediction, _ in explained] == list(model.predict_many(images))
    assert [picture is None for _, picture in explained] == [False, True, False, False, True]
    image = decode(images[0])
    outputs = model._session.outputs(preprocess(image, model.card.preprocessing)[None], heatmaps=True)
    assert explained[0][1] == render_heatmap(
        image,
        outputs.heatmap[0],
        model.card,
        probability=explained[0][0].probability,
        threshold=model.threshold,
        decision="pneumonia",
    )


def test_a_rejected_image_has_no_probability_and_no_heatmap(model):
    """A blank one, between two that are judged; beside it nothing changes."""
    blank = np.full((SIZE, SIZE), 90, np.uint8)
    (before, drawn), (rejected, picture), (after, drawn_too) = model.explain_many([halves(90), blank, halves(90)])

    assert (rejected.decision, rejected.probability, rejected.interval, picture) == ("rejected", None, None, None)
    assert (rejected.reason, rejected.error) == ("blank: its grey levels lie within 0 of 256", "")
    assert rejected.interval_reason == "the image is rejected"
    assert rejected.threshold == before.threshold
    assert rejected.image == ImageInfo(SIZE, SIZE, "array")
    assert before == after == model.predict(halves(90))
    assert drawn == drawn_too != None  # noqa: E711
    assert model.predict(blank) == rejected == next(model.predict_many([blank]))


def test_what_the_network_sees_is_refused_by_the_limits_on_the_card(maker):
    """The screened network takes grey 51 for an image with 0.2, and grey 204 for one at the distance 2.04."""
    model = load_model(maker.bundle(maker.root / "screened", rejection_limits=LIMITS))

    found = list(model.predict_many([halves(51), halves(120), halves(204)]))

    assert [prediction.decision for prediction in found] == ["rejected", "pneumonia", "rejected"]
    assert found[0].reason == "black and white seem to be exchanged"
    assert "perhaps of another age" in found[2].reason
    assert "(distance 2.04, at most 1.90 is known)" in found[2].reason


def test_a_network_without_heatmaps_is_refused_before_any_image_is_read(maker, monkeypatch):
    model = load_model(maker.bundle(maker.root / "plain"))
    monkeypatch.setattr(model._session, "explains", False)
    with pytest.raises(BundleError, match=r"network of bundle 'grey' .* gives no heatmaps"):
        model.explain_many(iter(lambda: pytest.fail("an image was asked for"), None))


# --- many images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (1, 4), (3, 2), (4, 0), (100, 3)])
def test_many_images_are_what_each_is_alone_and_in_order(model, tmp_path, batch_size, workers):
    paths = images(tmp_path, [7 * place % 256 for place in range(41)])

    assert list(model.predict_many(paths, batch_size=batch_size, workers=workers)) == [
        model.predict(path) for path in paths
    ]


def test_images_that_cannot_be_read_keep_their_places(model, tmp_path):
    paths = images(tmp_path, [10, 250, 10, 250, 10])
    paths[0].write_bytes(b"")
    paths[3].unlink()
    found = list(model.predict_many(paths, batch_size=2))

    assert [prediction.decision for prediction in found] == [None, "pneumonia", "no_pneumonia", None, "no_pneumonia"]
    assert [prediction.path for prediction in found] == list(map(str, paths))
    assert [prediction.error for prediction in found] == [
        "the file is empty (0 bytes)",
        "",
        "",
        "No such file or directory",
        "",
    ]
    failed = found[0]
    assert (failed.probability, failed.threshold, failed.image) == (None, None, None)
    assert (failed.interval_reason, failed.notice, failed.model) == ("the image could not be read", NOTICE, model.facts)


def test_a_failure_says_what_to_do(model):
    assert next(model.predict_many([b"no image"])).error.endswith(". Known: JPEG, PNG, TIFF, BMP, WEBP, DICOM")


def test_a_batch_in_which_no_image_can_be_read(model):
    found = list(model.predict_many([b"", b"", png(250)], batch_size=2))

    assert [prediction.decision for prediction in found] == [None, None, "pneumonia"]


def test_nothing_gives_nothing(model):
    assert list(model.predict_many([])) == []


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({"batch_size": 0}, "batch_size is 0; one image at a time is the least"),
        ({"workers": -1}, "workers is -1; 0 takes"),
    ],
)
def test_impossible_numbers_are_refused_at_once(model, numbers, why):
    with pytest.raises(UsageError, match=why):
        model.predict_many([], **numbers)


def test_images_are_asked_for_only_a_few_batches_ahead(model):
    """2 workers, batches of 3: five batches are asked for until the first is given, then one for each that is taken."""
    asked = []

    def endless():
        while True:
            asked.append(len(asked))
            yield np.full((SIZE, SIZE), 9, np.uint8)

    stream = model.predict_many(endless(), batch_size=3, workers=2)
    assert asked == []
    for taken in range(1, 40):
        next(stream)
        assert len(asked) == 3 * (5 + (taken - 1) // 3)
    stream.close()


def test_a_batch_is_judged_as_its_images_are(model):
    images = [png(1), b"no image", png(200)]
    assert model.predict_batch(images) == list(model.predict_many(images))
    assert model.predict_batch([b"no image"])[0].error
    assert model.predict_batch([]) == []


def test_who_stops_listening_stops_the_work(model, monkeypatch):
    """What was waiting is not begun, and no thread is left."""
    judged = []
    batch = model.predict_batch
    monkeypatch.setattr(model, "predict_batch", lambda images: judged.append(1) or time.sleep(0.3) or batch(images))
    stream = model.predict_many([png(1)] * 50, batch_size=1, workers=1)
    next(stream)
    before = threading.active_count()
    stream.close()

    assert len(judged) == 2  # the one that was given, and the one that had begun
    assert threading.active_count() == before - 1


def test_several_images_are_decoded_at_once(model, monkeypatch):
    """Four workers meet at one barrier: with fewer threads it would break."""
    barrier = threading.Barrier(4)

    def meet(*arguments, **options):
        barrier.wait(10)
        return decode(*arguments, **options)

    monkeypatch.setattr(module, "decode", meet)
    assert len(list(model.predict_many([png(1)] * 8, batch_size=1, workers=4))) == 8


def test_a_failure_that_is_no_images_gets_out(model, monkeypatch):
    monkeypatch.setattr(model._session, "ready", lambda *_: (_ for _ in ()).throw(MemoryError("no more")))
    with pytest.raises(MemoryError, match="no more"):
        list(model.predict_many([png(1)] * 9, batch_size=1))


def test_prepared_images_are_the_only_ones_the_network_sees(model, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70), np.uint8)).save(path)
    logit = model._session.logits(preprocess(decode(path), model.card.preprocessing)[None])

    assert model.predict(path).probability == pytest.approx(float(model._session.probability(logit)[0]), abs=1e-12)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_a_run_is_loaded_by_its_bundle(maker):
    run = maker.run()

    assert pneumoscope.load_model(run).facts == pneumoscope.load_model(str(run / "bundle")).facts


def test_the_package_opens_the_same_door(bundle):
    model = pneumoscope.load_model(bundle, operating_point="rule_in", threads=1)

    assert model.point is model.card.operating_points["rule_in"]
    assert model._session._session.get_session_options().intra_op_num_threads == 1


def test_what_cannot_be_loaded(bundle, maker, tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        load_model(tmp_path)
    with pytest.raises(UnknownNameError, match="no operating point 'best'"):
        load_model(bundle, operating_point="best")
    run = maker.run()
    shutil.rmtree(run / "bundle")
    with pytest.raises(RunError, match="has no bundle"):
        load_model(run)


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import pneumoscope\n"
        "assert callable(pneumoscope.load_model)\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert set(ran.stdout.split()) - {"__future__"} == {"pneumoscope"}


def test_scoring_imports_no_torch_and_dicom_only_for_dicom(bundle):
    code = (
        "import sys, pneumoscope, numpy\n"
        f"pneumoscope.load_model({str(bundle)!r}).predict(numpy.zeros((9, 9), 'uint8'))\n"
        "print(*({'torch', 'scipy', 'pydicom', 'rich', 'filelock'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert ran.stdout == "\n"
