"""Models of several classes: probabilities, prediction sets, decisions, rejections, and the forms of predictions."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from html import escape
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from PIL import Image, ImageDraw
from scipy.special import softmax
from tests.conftest import GRAY_CLASSES, LIMITS, SIZE, halves

from pneumoscope.bundle.bundle_folder import read_multiclass_bundle
from pneumoscope.core.errors import BundleError, MulticlassBundleError, UsageError
from pneumoscope.core.multiclass_prediction import MulticlassPrediction
from pneumoscope.core.prediction_codes import DECISIONS
from pneumoscope.core.prediction_messages import prediction_message
from pneumoscope.inference.model import load_model
from pneumoscope.inference.multiclass_decision import decide_class
from pneumoscope.inference.multiclass_model import MulticlassModel, load_multiclass_model, relative_to_others
from pneumoscope.inference.multiclass_session import MulticlassSession
from pneumoscope.inference.writers import iter_csv, iter_json, to_dataframe


@pytest.fixture(scope="module")
def bundle(shared_maker):
    return shared_maker.multiclass_bundle(shared_maker.root / "multiclass")


@pytest.fixture(scope="module")
def model(bundle):
    return load_multiclass_model(bundle)


@pytest.fixture
def written(monkeypatch):
    """The lines of text that are drawn into pictures."""
    lines = []
    write = ImageDraw.ImageDraw.text

    def record(self, place, text, *arguments, **options):
        lines.append(text)
        write(self, place, text, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return lines


def expected(level):
    return softmax(np.array([0.05 * (level - 145), 0.05 * (105 - level), 0.0]) / 0.8)


@pytest.mark.parametrize(("level", "name"), [(200, "bright"), (50, "dark"), (125, "mid")])
def test_a_prediction_has_the_calibrated_softmax_of_the_logits(model, level, name):
    prediction = model.predict(halves(level))
    assert prediction.predicted_class == name
    assert list(prediction.class_probabilities) == list(GRAY_CLASSES)
    assert list(prediction.class_probabilities.values()) == pytest.approx(expected(level).tolist(), abs=1e-5)
    assert prediction.probability is None
    assert prediction.decision == ("classified" if name != "mid" else prediction.decision)


def test_many_images_are_predicted_in_order(model):
    levels = [60, 200, 125, 90, 180]
    predictions = list(model.predict_many([halves(level) for level in levels]))
    assert [each.predicted_class for each in predictions] == ["dark", "bright", "mid", "dark", "bright"]
    assert predictions == model.predict_batch([halves(level) for level in levels])


def test_explanation_shows_the_predicted_class_against_the_others(model, written):
    image = halves(200)
    prediction, picture = model.explain(image)
    assert prediction == model.predict(image)
    assert Image.open(io.BytesIO(picture)).width == 640
    text = " ".join(written)
    assert "bright: probability 97%" in text
    assert "against bright" in text
    assert "towards bright" in text
    assert (
        "4 x 4 positions to the logit of bright in levels, minus the mean of those to the logits of the other" in text
    )
    assert "pneumonia" not in text.replace(model.notice, "")
    assert 'src="data:image/png' in model.explain(image)._repr_html_()


def test_long_name_of_a_class_does_not_overlap_on_the_scale(maker, written):
    folder = maker.multiclass_bundle(maker.root / "long")
    card = json.loads((folder / "card.json").read_text())
    long = ["enlarged cardiomediastinum and consolidation", "dark", "mid"]
    sets = {"coverage": 0.95, "classes": {name: {"threshold": 0.3, "n": 20} for name in long}}
    (folder / "card.json").write_text(json.dumps(card | {"classes": long, "prediction_sets": sets}))
    load_multiclass_model(folder).explain(halves(200))
    assert f"{long[0]}: probability 97%" in " ".join(written)
    assert {"against", "towards"} < set(written)


def test_explanations_of_many_images_are_those_of_each(model):
    explained = list(model.explain_many([halves(60), b"no image", halves(200)]))
    assert [each.prediction.predicted_class for each in explained] == ["dark", None, "bright"]
    assert explained[0] == model.explain(halves(60))
    assert explained[1].picture is None
    assert explained[1].prediction.failure.code == "unreadable_image"


@pytest.mark.parametrize("image", ["image.png", b"content", Path("image.png")])
def test_single_image_is_not_a_list_of_images(model, image):
    for call in (model.predict_many, model.explain_many):
        with pytest.raises(UsageError, match="images is one image"):
            list(call(image))


def test_explanation_is_printed_without_the_bytes_of_its_picture(model):
    explained = model.explain(halves(200))
    assert repr(explained) == f"Explanation({explained.prediction!r}, picture={len(explained.picture):,} bytes)"


def test_rejected_image_has_no_heatmap(maker):
    model = load_multiclass_model(maker.multiclass_bundle(maker.root / "screened", rejection_limits=LIMITS))
    prediction, picture = model.explain(halves(40))
    assert (prediction.decision, picture) == ("rejected", None)


def test_contribution_to_all_logits_alike_is_none():
    maps = np.random.default_rng(0).normal(size=(3, 2, 2)).astype(np.float32)
    common = np.float32([[5, 0], [0, -5]])
    np.testing.assert_allclose(relative_to_others(maps + common, 1), relative_to_others(maps, 1), atol=1e-6)
    np.testing.assert_allclose(relative_to_others(maps, 1), maps[1] - (maps[0] + maps[2]) / 2, atol=1e-6)
    np.testing.assert_array_equal(relative_to_others(maps[:2], 0), maps[0] - maps[1])  # two classes: the log odds


def test_missing_heatmaps_are_an_error(bundle, monkeypatch):
    session = MulticlassSession.load(bundle)
    monkeypatch.setattr(session, "has_heatmaps", False)
    with pytest.raises(BundleError, match="has no heatmaps"):
        MulticlassModel(session).explain(halves(200))


@pytest.mark.parametrize(
    ("thresholds", "decision", "possible"),
    [
        ((0.9, 0.9, 0.5), "uncertain", ()),  # no class is possible
        ((0.9, 0.9, 0.2), "classified", ("mid",)),
        ((0.1, 0.9, 0.2), "uncertain", ("bright", "mid")),
        ((0.1, 0.9, 0.9), "uncertain", ("bright",)),  # possible, but not the most probable class
        (None, "classified", None),
    ],
)
def test_an_image_is_classified_if_only_the_predicted_class_is_possible(maker, thresholds, decision, possible):
    card, _ = read_multiclass_bundle(maker.multiclass_bundle(maker.root / "sets", thresholds=thresholds))
    result = decide_class(card, 0.8 * np.log([0.3, 0.25, 0.45]))
    assert (result.decision, result.predicted_class, result.prediction_set) == (decision, "mid", possible)


def test_the_explanation_names_the_possible_classes(model):
    prediction = dataclasses.replace(model.predict(halves(125)), decision="uncertain")

    def explained(*possible):
        return prediction_message(dataclasses.replace(prediction, prediction_set=possible))

    assert explained("dark", "mid") == "Several classes are possible: dark, mid. Read the image without the prediction"
    assert explained() == "The image is atypical of every class. Read it without the prediction"
    assert explained("dark").startswith("Only dark is possible, but mid is more probable")


def test_rejected_images_have_no_probabilities(maker):
    folder = maker.multiclass_bundle(maker.root / "screened", rejection_limits=LIMITS, age_range=(1, 5))
    model = load_multiclass_model(folder)
    accepted, inverted, unlike, adult = (
        model.predict(halves(125), age=3),
        model.predict(halves(60), age=3),
        model.predict(halves(200), age=3),
        model.predict(halves(125), age=40),
    )
    assert accepted.decision in {"classified", "uncertain"}
    assert [each.rejection.code for each in (inverted, unlike, adult)] == [
        "inverted",
        "out_of_distribution",
        "outside_age_range",
    ]
    for each in (inverted, unlike, adult):
        assert (each.decision, each.class_probabilities, each.predicted_class) == ("rejected", None, None)


def test_unreadable_images_are_failures(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    (prediction,) = model.predict_many([str(tmp_path / "a.png")])
    assert (prediction.decision, prediction.class_probabilities) == (None, None)
    assert prediction.failure.code == "unreadable_image"


def test_rows_can_be_read_back(model):
    for prediction in (
        model.predict(halves(125)),
        dataclasses.replace(model.predict(halves(60)), prediction_set=()),
        dataclasses.replace(model.predict(halves(60)), prediction_set=None),
        dataclasses.replace(
            model.predict(halves(60)), decision="rejected", class_probabilities=None, predicted_class=None
        ),
    ):
        row = prediction.to_row()
        assert MulticlassPrediction.from_row(row) == prediction
    assert row["probability_dark"] is None
    assert row.keys() >= {
        "predicted_class",
        "prediction_set",
        "probability_bright",
        "probability_dark",
        "probability_mid",
    }


def test_csv_has_a_column_for_each_class(model):
    failed: list[Exception] = []
    predictions = list(model.predict_many([halves(60), halves(200)]))
    text = b"".join(iter_csv(predictions, "notice", failed, GRAY_CLASSES)).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["predicted_class"] for row in rows] == ["dark", "bright"]
    for row, prediction in zip(rows, predictions, strict=True):
        assert {name: float(row[f"probability_{name}"]) for name in GRAY_CLASSES} == prediction.class_probabilities
    assert not failed


def test_json_has_the_classes(model):
    predictions = list(model.predict_many([halves(60)]))
    data = json.loads("".join(iter_json(model.facts, predictions, "notice", GRAY_CLASSES)))
    assert data["classes"] == list(GRAY_CLASSES)
    assert data["predictions"][0]["class_probabilities"] == predictions[0].class_probabilities
    assert data["predictions"][0]["predicted_class"] == "dark"


def test_data_frames_have_the_classes(model):
    pytest.importorskip("pandas")
    frame = to_dataframe(model.predict_many([halves(60), halves(200)]))
    assert frame["predicted_class"].tolist() == ["dark", "bright"]
    assert frame[[f"probability_{name}" for name in GRAY_CLASSES]].sum(axis=1).tolist() == pytest.approx([1, 1])


def test_predictions_for_pneumonia_have_no_columns_of_classes(shared_maker):
    prediction = load_model(shared_maker.bundle(shared_maker.root / "binary")).predict(halves(125))
    assert not {name for name in prediction.to_row() if name.startswith(("probability_", "predicted_class"))}
    data = json.loads("".join(iter_json(prediction.model, [prediction], "notice")))
    assert "classes" not in data
    assert "class_probabilities" not in data["predictions"][0]


def test_the_decisions_of_the_service_are_those_of_pneumonia():
    assert DECISIONS == ("no_pneumonia", "pneumonia", "uncertain", "rejected")


def test_notebooks_show_classes_and_probabilities(model):
    html = model.predict(halves(60))._repr_html_()
    assert "Classified: dark" in html
    assert f"{expected(60)[1]:.3f}" in html
    assert escape(model.notice) in html
    assert "bright, dark, mid" in model._repr_html_()
    assert "predicted_class='dark'" in repr(model.predict(halves(60)))


# --- what is refused ------------------------------------------------------------------------------------------------------


def test_a_model_for_pneumonia_is_refused(shared_maker, bundle):
    binary = shared_maker.bundle(shared_maker.root / "binary")
    with pytest.raises(BundleError, match="one for NORMAL and PNEUMONIA"):
        load_multiclass_model(binary)
    with pytest.raises(MulticlassBundleError, match="bright, dark, mid"):
        load_model(bundle)


def test_another_number_of_logits_is_refused(bundle):
    card, network = read_multiclass_bundle(bundle)
    four = structs.replace(card, classes=(*GRAY_CLASSES, "other"), self_test_logits=(0.0,) * 4, prediction_sets=None)
    with pytest.raises(BundleError, match="'logits' of shape"):
        MulticlassSession(four, network).logits(np.zeros((1, SIZE, SIZE), np.uint8))


def test_other_logits_of_the_self_test_are_refused(maker):
    folder = maker.multiclass_bundle(maker.root / "changed")
    data = json.loads((folder / "card.json").read_text())
    data["self_test_logits"][1] += 0.5
    (folder / "card.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="self-test"):
        load_multiclass_model(folder)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("classes", ["a", "a", "b"], "unique"),
        ("classes", ["bright", "dark"], "3 logits of 2 classes"),
        ("self_test_logits", [0.0, 0.0], "2 logits of 3 classes"),
        ("activation", "sigmoid", "activation"),
        ("labels", ["NORMAL", "PNEUMONIA"], "labels"),
        (
            "prediction_sets",
            {"coverage": 0.9, "classes": {"bright": {"threshold": 0.5, "n": 3}}},
            "one threshold for each",
        ),
        ("network", "m\x1b[2Jid", "not printable"),
    ],
)
def test_malformed_cards_are_refused(maker, field, value, reason):
    folder = maker.multiclass_bundle(maker.root / "malformed")
    data = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**data, field: value}))
    with pytest.raises(BundleError, match=reason):
        read_multiclass_bundle(folder)
