"""Models predict one image or many; unreadable images are reported; notebooks get tables and HTML."""

from __future__ import annotations

import hashlib
import html
import io
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from tests.conftest import LIMITS, SIZE, halves
from tests.images import dicom, png

import pneumoscope
from pneumoscope.core.errors import (
    BundleError,
    MissingExtraError,
    RunError,
    UnknownNameError,
    UnreadableImageError,
    UsageError,
)
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.population import Population
from pneumoscope.core.prediction import ImageInfo, PatientAge, Prediction, Rejection
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.preprocess import preprocess
from pneumoscope.inference import image_loader
from pneumoscope.inference.model import Model, load_model
from pneumoscope.inference.saliency import render_heatmap
from pneumoscope.inference.session import BundleSession
from pneumoscope.inference.writers import iter_json, to_dataframe


@pytest.fixture(scope="module")
def bundle(shared_maker):
    """logit = 0.05 x (mean gray - 125); slope 0.8, intercept 0.1."""
    return shared_maker.bundle(shared_maker.root / "model")


@pytest.fixture(scope="module")
def model(bundle):
    return load_model(bundle)


def images(folder, levels):
    """Write one PNG per gray level."""
    paths = [folder / f"{place:03}.png" for place in range(len(levels))]
    for path, level in zip(paths, levels, strict=True):
        path.write_bytes(png(level))
    return paths


def sha256_of(levels):
    """Return the hash of gray levels, as `ImageInfo.pixel_sha256` defines it."""
    return hashlib.sha256(f"{levels.shape[0]} {levels.shape[1]} ".encode() + levels.tobytes()).hexdigest()


def dicom_dataset(pixels):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "AP"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation, dataset.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 127.5, 255, "LINEAR_EXACT"
    dataset.PixelData = pixels.tobytes()
    return dataset


# --- one image --------------------------------------------------------------------------------------------------------


def test_prediction_by_hand(model, tmp_path):
    """Gray 165: logit 0.05 x 40 = 2, probability 1 / (1 + exp(-1.7)) = 0.8455347."""
    path = tmp_path / "image.png"
    path.write_bytes(png(165, 20, 30))
    found = model.predict(path)

    assert (found.path, found.decision) == (str(path), "pneumonia")
    assert (found.rejection, found.uncertainty, found.failure) == (None, None, None)
    assert found.probability == pytest.approx(0.8455347, abs=1e-6)
    assert found.interval is None  # this bundle has none
    levels = np.asarray(Image.open(path).convert("L"))
    assert found.image == ImageInfo(width=30, height=20, format="PNG", pixel_sha256=sha256_of(levels))
    assert (found.model.name, found.model.version, found.model.sha256) == ("gray", "0.1.0", model.card.onnx_sha256)


def test_path_bytes_and_array_give_the_same_prediction(model, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png(90))
    sources = [path, str(path), png(90), halves(90)]
    found = [model.predict(source) for source in sources]

    assert [prediction.path for prediction in found] == [str(path), str(path), "bytes", "array"]
    assert {prediction.probability for prediction in found} == {found[0].probability}
    assert [prediction.image.format for prediction in found] == ["PNG", "PNG", "PNG", "array"]
    assert model.predict(sources[2], name="upload").path == "upload"


def test_path_keeps_its_form(model, tmp_path, monkeypatch):
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
def test_unreadable_image_raises(model, image, why):
    with pytest.raises(UnreadableImageError, match=why):
        model.predict(image)


def test_large_jpeg_is_decoded_at_reduced_size(model, tmp_path, monkeypatch):
    path = tmp_path / "image.jpeg"
    Image.fromarray(halves(200, 300, 400)).save(path)
    asked = []

    def watch(source, **options):
        asked.append(decode(source, **options))
        return asked[-1]

    monkeypatch.setattr(image_loader, "decode", watch)
    found = model.predict(path)

    assert found.image == ImageInfo(400, 300, "JPEG", sha256_of(asked[0].pixels))
    assert (asked[0].width, asked[0].height) == (50, 38)  # an eighth; twice the network's side is 32
    assert found.probability == pytest.approx(1 / (1 + np.exp(-(0.8 * 0.05 * (200 - 125) + 0.1))), abs=1e-4)


def test_operating_point_determines_the_decision(bundle):
    """Gray 115: logit -0.5, score 0.3775: above 0.2, below 0.4."""
    image = halves(115)
    found = {name: load_model(bundle, operating_point=name).predict(image) for name in ("", "rule_out", "balanced")}

    assert {name: prediction.decision for name, prediction in found.items()} == {
        "": "no_pneumonia",
        "rule_out": "pneumonia",
        "balanced": "no_pneumonia",
    }
    assert found["rule_out"].threshold < found["balanced"].threshold == found[""].threshold


def test_a_lateral_view_is_rejected_by_its_dicom_header(model):
    dataset = dicom_dataset(halves(165, 20, 30))
    dataset.ViewPosition = "LL"
    for prediction in (model.predict(dataset), *model.predict_many([dataset] * 9)):
        assert (prediction.decision, prediction.probability, prediction.failure) == ("rejected", None, None)
        assert prediction.rejection == Rejection("lateral_view", {"view": "LL"})
        assert prediction.image.format == "DICOM"
    assert model.explain(dataset).prediction.decision == "rejected"


def test_pil_image_and_dicom_dataset_are_accepted(model, tmp_path):
    pixels = halves(165, 20, 30)
    expected = model.predict(pixels)

    picture = model.predict(Image.fromarray(pixels))
    assert (picture.path, picture.probability) == ("image", expected.probability)
    color = Image.fromarray(pixels).convert("RGB")
    assert model.predict(color, name="scan").path == "scan"
    assert model.predict(color).probability == pytest.approx(expected.probability)

    dataset = dicom_dataset(pixels)
    found = model.predict(dataset)
    assert (found.path, found.image.format) == ("dataset", "DICOM")
    assert found.probability == pytest.approx(expected.probability)
    assert [each.probability for each in model.predict_many([dataset] * 9)] == [found.probability] * 9


def test_unsupported_types_are_reported(model):
    with pytest.raises(UsageError, match=r"type int is not supported\. Pass a path, bytes"):
        model.predict(7)


def test_explanation_shows_picture_decision_and_probability(model):
    explanation = model.explain(png(165, 40, 60))

    assert explanation.prediction == model.predict(png(165, 40, 60))
    assert Image.open(io.BytesIO(explanation.picture)).format == "PNG"
    page = explanation._repr_html_()
    assert "data:image/png;base64," in page
    assert "Pneumonia" in page
    assert f"{explanation.prediction.probability:.3f}" in page


def test_notebooks_show_the_population_of_the_model_and_records_do_not(maker):
    adults = Population(sentence="Trained on adults of two clinics.")
    model = load_model(maker.bundle(maker.root / "adults", population=adults))
    assert "Trained on adults" in model.notice
    for shown in (model.predict(png(165, 40, 60)), model.explain(png(165, 40, 60))):
        assert html.escape(model.notice) in shown._repr_html_()
    prediction = model.predict(png(165, 40, 60))
    assert "Trained on adults" not in "".join(iter_json(prediction.model, [prediction], ""))
    stored = Prediction.from_row(prediction.to_row())
    assert stored.model == prediction.model
    assert NOTICE in stored._repr_html_()


def test_model_has_a_readable_representation(model):
    assert repr(model) == "Model('gray', network='mean-gray', operating_point='balanced', threshold=0.444)"
    assert "Sensitivity (validation)" in model._repr_html_()


def test_predictions_become_a_dataframe(model, tmp_path):
    pandas = pytest.importorskip("pandas")
    paths = [*images(tmp_path, [10, 250]), tmp_path / "missing.png"]

    table = to_dataframe(model.predict_many(paths))

    assert isinstance(table, pandas.DataFrame)
    assert table["path"].tolist() == [str(path) for path in paths]
    assert table["decision"].tolist() == ["no_pneumonia", "pneumonia", None]
    assert table["probability"].tolist()[:2] == [model.predict(path).probability for path in paths[:2]]
    assert table["failure_code"].tolist() == [None, None, "unreadable_image"]
    assert "notice" not in table


# --- heatmaps --------------------------------------------------------------------------------------------------------


def test_explanations_have_the_same_predictions_in_order(model, bundle, tmp_path):
    """The first picture equals that of `render_heatmap` for this image alone."""
    images = [png(165, 40, 60), b"", png(90), halves(130), tmp_path / "gone.png"]

    explained = list(model.explain_many(images, batch_size=2))

    assert [prediction for prediction, _ in explained] == list(model.predict_many(images))
    assert [picture is None for _, picture in explained] == [False, True, False, False, True]
    image = decode(images[0])
    outputs = BundleSession.load(bundle).outputs(preprocess(image, model.card.preprocessing)[None], heatmaps=True)
    assert explained[0][1] == render_heatmap(
        image,
        outputs.heatmap[0],
        model.card,
        probability=explained[0][0].probability,
        threshold=model.threshold,
        decision="pneumonia",
    )


def test_rejected_image_has_no_probability_and_no_heatmap(model):
    """A blank image between two others, which it does not affect."""
    blank = np.full((SIZE, SIZE), 90, np.uint8)
    (before, drawn), (rejected, picture), (after, drawn_too) = model.explain_many([halves(90), blank, halves(90)])

    assert (rejected.decision, rejected.probability, rejected.interval, picture) == ("rejected", None, None, None)
    assert (rejected.rejection.code, rejected.failure) == ("blank", None)
    assert rejected.threshold == before.threshold
    assert rejected.image == ImageInfo(SIZE, SIZE, "array", sha256_of(blank))
    assert before == after == model.predict(halves(90))
    assert drawn == drawn_too != None  # noqa: E711
    assert model.predict(blank) == rejected == next(model.predict_many([blank]))


def test_limits_on_the_card_reject_images(maker):
    """The network gives gray 51 a probability of 0.2 of being upright, and gray 204 the distance 2.04."""
    model = load_model(maker.bundle(maker.root / "screened", rejection_limits=LIMITS))

    found = list(model.predict_many([halves(51), halves(120), halves(204)]))

    assert [prediction.decision for prediction in found] == ["rejected", "pneumonia", "rejected"]
    assert found[0].rejection.code == "inverted"
    assert found[2].rejection.code == "out_of_distribution"
    assert found[2].rejection.parameters == {"distance": pytest.approx(2.04), "limit": 1.9}


def test_missing_heatmaps_are_reported_before_any_image_is_read(maker, monkeypatch):
    session = BundleSession.load(maker.bundle(maker.root / "plain"))
    monkeypatch.setattr(session, "has_heatmaps", False)
    model = Model(session)
    with pytest.raises(BundleError, match=r"network of bundle 'gray' .* has no heatmaps"):
        model.explain_many(iter(lambda: pytest.fail("an image was asked for"), None))


# --- many images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (1, 4), (3, 2), (4, 0), (100, 3)])
def test_many_predictions_equal_single_predictions_in_order(model, tmp_path, batch_size, workers):
    paths = images(tmp_path, [7 * place % 256 for place in range(41)])

    assert list(model.predict_many(paths, batch_size=batch_size, workers=workers)) == [
        model.predict(path) for path in paths
    ]


def test_unreadable_images_keep_their_positions(model, tmp_path):
    paths = images(tmp_path, [10, 250, 10, 250, 10])
    paths[0].write_bytes(b"")
    paths[3].unlink()
    found = list(model.predict_many(paths, batch_size=2))

    assert [prediction.decision for prediction in found] == [None, "pneumonia", "no_pneumonia", None, "no_pneumonia"]
    assert [prediction.path for prediction in found] == list(map(str, paths))
    assert [prediction.failure and prediction.failure.code for prediction in found] == [
        "unreadable_image", None, None, "unreadable_image", None,
    ]  # fmt: skip
    assert "the file is empty (0 bytes)" in found[0].failure.message
    assert "No such file or directory" in found[3].failure.message
    failed = found[0]
    assert (failed.probability, failed.threshold, failed.image) == (None, None, None)
    assert failed.model == model.facts


def test_failure_has_a_hint(model):
    assert "JPEG, PNG, TIFF, BMP, WEBP, DICOM" in next(model.predict_many([b"no image"])).failure.hint


def test_batch_of_unreadable_images(model):
    found = list(model.predict_many([b"", b"", png(250)], batch_size=2))

    assert [prediction.decision for prediction in found] == [None, None, "pneumonia"]


def test_no_images_give_no_predictions(model):
    assert list(model.predict_many([])) == []


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({"batch_size": 0}, "batch_size is 0; the minimum is 1"),
        ({"workers": -1}, "workers is -1; pass 0"),
    ],
)
def test_numbers_out_of_range_are_rejected_at_once(model, numbers, why):
    with pytest.raises(UsageError, match=why):
        model.predict_many([], **numbers)


def test_images_are_read_a_few_batches_ahead(model):
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


def test_batch_predictions_equal_single_predictions(model):
    images = [png(1), b"no image", png(200)]
    assert model.predict_batch(images) == list(model.predict_many(images))
    assert model.predict_batch([b"no image"])[0].failure
    assert model.predict_batch([]) == []


def test_closing_the_stream_cancels_pending_work(model, monkeypatch):
    started = []

    def slow(*arguments, **options):
        started.append(threading.current_thread())
        time.sleep(0.1)
        return decode(*arguments, **options)

    monkeypatch.setattr(image_loader, "decode", slow)
    stream = model.predict_many([png(1)] * 50, batch_size=1, workers=1)
    next(stream)
    stream.close()

    assert len(started) < 6  # one was returned, two threads may each have started another
    assert not any(thread.is_alive() for thread in started)


def test_images_are_decoded_concurrently(model, monkeypatch):
    """Four workers meet at one barrier: with fewer threads it would break."""
    barrier = threading.Barrier(4)

    def meet(*arguments, **options):
        barrier.wait(60)
        return decode(*arguments, **options)

    monkeypatch.setattr(image_loader, "decode", meet)
    assert len(list(model.predict_many([png(1)] * 8, batch_size=1, workers=4))) == 8


def test_other_errors_propagate(bundle, monkeypatch):
    session = BundleSession.load(bundle)

    def fail(*_, **__):
        raise MemoryError("no more")

    monkeypatch.setattr(session, "outputs", fail)
    with pytest.raises(MemoryError, match="no more"):
        list(Model(session).predict_many([png(1)] * 9, batch_size=1))


def test_network_sees_the_preprocessed_image(model, bundle, tmp_path):
    session = BundleSession.load(bundle)
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70), np.uint8)).save(path)
    logit = session.logits(preprocess(decode(path), model.card.preprocessing)[None])

    assert model.predict(path).probability == pytest.approx(float(session.probability(logit)[0]), abs=1e-12)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_run_folder_loads_its_bundle(maker):
    run = maker.run()

    assert pneumoscope.load_model(run).facts == pneumoscope.load_model(str(run / "bundle")).facts


def test_package_exports_load_model(bundle, monkeypatch):
    threads, open_session = [], onnxruntime.InferenceSession

    def note(network, options, **others):
        threads.append(options.intra_op_num_threads)
        return open_session(network, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", note)
    model = pneumoscope.load_model(bundle, operating_point="rule_in", threads=1)

    assert model.point is model.card.operating_points["rule_in"]
    assert threads == [1]


def test_included_model_can_be_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_model("default").facts == load_model().facts


def test_functions_name_their_missing_extra_when_called(monkeypatch):
    monkeypatch.setitem(sys.modules, "pneumoscope.evaluation.comparison.compare", None)
    monkeypatch.delitem(vars(pneumoscope), "compare", raising=False)

    assert callable(pneumoscope.compare)
    with pytest.raises(MissingExtraError, match=r"compare\(\) needs the extra \[evaluate\]"):
        pneumoscope.compare([])


def test_missing_bundles_and_operating_points_are_reported(bundle, maker, tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        load_model(tmp_path)
    with pytest.raises(UnknownNameError, match="no operating point 'best'"):
        load_model(bundle, operating_point="best")
    run = maker.run()
    shutil.rmtree(run / "bundle")
    with pytest.raises(RunError, match="has no bundle"):
        load_model(run)


def test_import_of_the_package_imports_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import pneumoscope\n"
        "assert 'load_model' in dir(pneumoscope)\n"
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


# --- age of the patient ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def child_bundle(shared_maker):
    return shared_maker.bundle(shared_maker.root / "children", age_range=(1, 5))


def code(prediction):
    return prediction.rejection and prediction.rejection.code


def test_image_without_an_age_is_predicted_with_a_warning(child_bundle, model):
    for content in (png(100), dicom(100)):
        prediction = load_model(child_bundle).predict(content)
        assert (prediction.decision, prediction.age, prediction.warnings) == ("no_pneumonia", None, ("age_not_stated",))
    assert load_model(child_bundle).predict(dicom(100, PatientAge="004Y")).warnings == ()
    assert load_model(child_bundle).predict(dicom(100, PatientAge="040Y")).warnings == ()
    assert model.predict(png(100)).warnings == ()  # no age range on its card


@pytest.mark.parametrize(
    ("require_age", "png_code", "dicom_code"),
    [("never", None, None), ("dicom", None, "age_required"), ("always", "age_required", "age_required")],
)
def test_required_age(child_bundle, require_age, png_code, dicom_code):
    required = load_model(child_bundle, require_age=require_age)
    assert (code(required.predict(png(100))), code(required.predict(dicom(100)))) == (png_code, dicom_code)
    assert required.predict(dicom(100, PatientAge="004Y")).decision == "no_pneumonia"
    assert code(required.predict(dicom(100, PatientAge="040Y"))) == "outside_age_range"


# --- what a header states ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "rejection", "assumption"),
    [
        ({"BodyPartExamined": "HAND"}, "body_part_not_chest", "chest"),
        ({"Modality": "OT"}, "modality_not_understood", "chest"),
        ({"ViewPosition": "ZZ"}, "view_not_understood", "frontal"),
        ({"Laterality": "ODD"}, "laterality_not_understood", "frontal"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # pydicom's
def test_assumption_overrides_a_header_and_is_a_warning(bundle, elements, rejection, assumption):
    content = dicom(100, **elements)
    other = {"chest": "frontal", "frontal": "chest"}[assumption]
    assert code(load_model(bundle).predict(content)) == rejection
    assert code(load_model(bundle, assume=[other]).predict(content)) == rejection
    prediction = load_model(bundle, assume=[assumption]).predict(content)
    assert (prediction.decision, prediction.warnings) == ("no_pneumonia", (f"assumed_{assumption}",))
    assert load_model(bundle, assume=["chest", "frontal"]).predict(dicom(100)).warnings == ()


@pytest.mark.parametrize(
    ("elements", "rejection"),
    [({"Modality": "CT"}, "modality_not_supported"), ({"ViewPosition": "LL"}, "lateral_view")],
)
def test_assumption_does_not_override_what_is_understood(bundle, elements, rejection):
    assert code(load_model(bundle, assume=["chest", "frontal"]).predict(dicom(100, **elements))) == rejection


def test_assumption_replaces_the_warning_of_what_is_not_stated(bundle):
    content = dicom(100, BodyPartExamined="", ViewPosition="")
    assert load_model(bundle).predict(content).warnings == ("body_part_not_stated", "view_not_stated")
    assert load_model(bundle, assume=["frontal"]).predict(content).warnings == (
        "body_part_not_stated",
        "assumed_frontal",
    )


def test_first_rejection_that_is_not_overridden_is_reported(bundle):
    content = dicom(100, BodyPartExamined="HAND", ViewPosition="LL")
    assert code(load_model(bundle).predict(content)) == "body_part_not_chest"
    assert code(load_model(bundle, assume=["chest"]).predict(content)) == "lateral_view"


def test_rejected_image_has_no_warnings(bundle):
    assert load_model(bundle).predict(dicom(100, BodyPartExamined="HAND", ViewPosition="")).warnings == ()


def test_unknown_assumption_is_an_error(bundle):
    with pytest.raises(UsageError, match=r"assume has 'abdomen'\. Pass one or more of: chest, frontal"):
        load_model(bundle, assume=["abdomen"])


def test_entered_age_is_used_where_the_file_states_none(child_bundle):
    required = load_model(child_bundle, require_age="always")

    for content in (png(100), dicom(100)):
        entered = required.predict(content, age=3)
        assert (entered.decision, entered.age, entered.warnings) == ("no_pneumonia", PatientAge(3, "entered"), ())
        assert code(required.predict(content, age=30)) == "outside_age_range"
    stated = required.predict(dicom(100, PatientAge="040Y"), age=3)
    assert (code(stated), stated.age) == ("outside_age_range", PatientAge(40))
    # An age that is stated and not understood is not replaced: it may be that of an adult.
    assert code(required.predict(dicom(100, PatientBirthDate="20200101"), age=3)) == "age_not_understood"
    batch = required.predict_batch([png(100), png(100), b"no image"], ages=[3, None, 3])
    assert [code(each) for each in batch] == [None, "age_required", None]


@pytest.mark.parametrize("require_age", ["Always", "", True, None])
def test_unknown_requirement_is_an_error(child_bundle, require_age):
    with pytest.raises(UsageError, match="require_age is"):
        load_model(child_bundle, require_age=require_age)


@pytest.mark.parametrize("age", [-1, 131, float("nan")])
def test_impossible_age_is_an_error(child_bundle, age):
    with pytest.raises(UsageError, match=r"the age is .* years, not from 0 to 130"):
        load_model(child_bundle).predict(png(100), age=age)


def test_age_and_warnings_survive_the_flat_row(child_bundle):
    model = load_model(child_bundle)
    for prediction in (model.predict(png(100)), model.predict(png(100), age=3)):
        again = type(prediction).from_row(prediction.to_row())
        assert (again.age, again.warnings) == (prediction.age, prediction.warnings)
    unclear = model.predict(dicom(100, PatientBirthDate="20200101"))
    assert type(unclear).from_row(unclear.to_row()) == unclear
    row = model.predict(dicom(100, PatientAge="004Y")).to_row()
    assert (row["age"], row["age_source"], row["warnings"]) == (4, "header", "")


def test_warning_is_in_the_messages_of_a_dataframe(child_bundle):
    pytest.importorskip("pandas")
    assert "Age not stated" in to_dataframe([load_model(child_bundle).predict(png(100))]).message[0]


def test_warning_is_in_pages_and_heatmaps(child_bundle):
    model = load_model(child_bundle)
    warned, plain = model.explain(png(100)), model.explain(png(100), age=3)

    assert "Age not stated" in warned._repr_html_()
    assert "Age not stated" not in plain._repr_html_()
    heights = [Image.open(io.BytesIO(each.picture)).height for each in (warned, plain)]
    assert heights[0] > heights[1]  # a line in the legend
