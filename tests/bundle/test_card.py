"""A bundle is read whole or refused, and what is refused is named."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pneumoscope.bundle.card import Calibration, Card, OperatingPoint, Parity, Share, read_bundle, short_hash
from pneumoscope.errors import BundleError
from pneumoscope.radiograph.prepare import PREPARE_VERSION, Preparation


@pytest.fixture
def bundle(maker):
    return maker.bundle(maker.root / "bundle")


SHARE = Share(value=1, low=0.2, high=1, n=1, method="wilson")


def change(bundle, **fields):
    """The card with other fields, as another hand would write it."""
    data = json.loads((bundle / "card.json").read_text())
    (bundle / "card.json").write_text(json.dumps({**data, **fields}))


def test_a_bundle_comes_back_as_it_was_written(bundle):
    written = (bundle / "card.json").read_text()

    card, network = read_bundle(bundle)

    assert network == (bundle / "network.onnx").read_bytes()
    assert hashlib.sha256(network).hexdigest() == card.onnx_sha256
    assert card.to_json() == written
    assert (card.format, card.labels, card.name, card.preparation.size) == (1, ("NORMAL", "PNEUMONIA"), "grey", 16)
    point = card.points["rule-out"]
    assert (point.threshold, point.rule, point.chosen_on) == (
        0.2,
        "sensitivity 0.99 on 8 validation films",
        "validation",
    )
    assert (point.specificity.value, point.specificity.low, point.specificity.n) == (1, 0.438, 3)
    assert card.calibration == Calibration(slope=0.8, intercept=0.1, method="platt", n=8)


@pytest.mark.parametrize("name", ["card.json", "network.onnx"])
def test_a_file_that_is_missing_is_named(bundle, name):
    (bundle / name).unlink()

    with pytest.raises(BundleError, match=rf"bundle' is no bundle: .*{name}.* a finished run has one in RUN/bundle"):
        read_bundle(bundle)


def test_a_card_that_is_no_text_is_refused(bundle):
    (bundle / "card.json").write_bytes(b"\xff\xfe{")

    with pytest.raises(BundleError, match=r"is no bundle: 'utf-8' codec can't decode byte 0xff"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ('{"format": 1', "Expecting ',' delimiter: line 1 column 13"),
        ("[1, 2]", "card: Input should be a valid dictionary"),
        ("[" * 100_000, "recursion"),
        (f'{{"format": {"1" * 5000}}}', "5000 digits"),
    ],
)
def test_a_card_that_is_no_json_object_is_refused(bundle, text, why):
    (bundle / "card.json").write_text(text)

    with pytest.raises(BundleError, match=rf"card.json' is malformed: .*{why}.*\. Export it again"):
        read_bundle(bundle)


def test_an_unknown_field_is_refused_wherever_it_stands(bundle):
    change(bundle, owner="us")
    with pytest.raises(BundleError, match=r"malformed: owner: Extra inputs are not permitted"):
        read_bundle(bundle)

    change(bundle, owner="us", preparation={"size": 16, "crop": "squash", "version": PREPARE_VERSION, "gamma": 2})
    with pytest.raises(BundleError, match=r"malformed: preparation.gamma: Extra inputs are not permitted"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", Card.model_fields)
def test_a_field_that_is_missing_is_named_also_where_a_default_exists(bundle, name):
    data = json.loads((bundle / "card.json").read_text())
    del data[name]
    (bundle / "card.json").write_text(json.dumps(data))

    with pytest.raises(BundleError, match=rf"malformed: {name}: Field required"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", Preparation.model_fields)
def test_how_films_are_prepared_is_never_guessed(bundle, name):
    data = {"size": 16, "crop": "squash", "version": PREPARE_VERSION}
    del data[name]
    change(bundle, preparation=data)

    with pytest.raises(BundleError, match=rf"malformed: preparation.{name}: Field required"):
        read_bundle(bundle)


def test_a_newer_format_asks_for_a_newer_version_whatever_else_is_new(bundle):
    change(bundle, format=7, invention="unknown here")

    with pytest.raises(
        BundleError, match=r"bundle' has format 7; this version reads up to 1\. Upgrade: pip install -U"
    ):
        read_bundle(bundle)


@pytest.mark.parametrize("number", [0, -1, None, "one"])
def test_a_format_that_never_was_is_refused(bundle, number):
    change(bundle, format=number)

    with pytest.raises(BundleError, match=r"malformed: format: Input should be"):
        read_bundle(bundle)


def test_films_prepared_in_another_way_are_refused(bundle):
    change(bundle, preparation={"size": 16, "crop": "squash", "version": PREPARE_VERSION + 3})

    with pytest.raises(
        BundleError,
        match=rf"prepared by version {PREPARE_VERSION + 3}, here it is {PREPARE_VERSION}\. Train and export",
    ):
        read_bundle(bundle)


def test_labels_in_another_order_are_refused(bundle):
    change(bundle, labels=["PNEUMONIA", "NORMAL"])

    with pytest.raises(BundleError, match=r"malformed: labels.0: Input should be 'NORMAL'"):
        read_bundle(bundle)


@pytest.mark.parametrize("place", [0, 100, -1])
def test_one_altered_byte_of_the_network_is_noticed(bundle, place):
    content = bytearray((bundle / "network.onnx").read_bytes())
    content[place] ^= 1
    (bundle / "network.onnx").write_bytes(content)

    with pytest.raises(BundleError, match=r"network.onnx' is not the network that its card describes"):
        read_bundle(bundle)


@pytest.mark.parametrize("left", [0, 10])
def test_a_network_that_was_cut_short_is_noticed(bundle, left):
    size = (bundle / "network.onnx").stat().st_size
    (bundle / "network.onnx").write_bytes((bundle / "network.onnx").read_bytes()[:left])

    with pytest.raises(
        BundleError, match=rf"\({left} bytes, expected {size}, or another hash\)\. It was altered or cut"
    ):
        read_bundle(bundle)


def test_a_size_that_does_not_fit_the_hash_is_noticed(bundle):
    change(bundle, onnx_bytes=1)

    with pytest.raises(BundleError, match=r"expected 1, or another hash"):
        read_bundle(bundle)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        ('"slope": 0.8', '"slope": {}', "calibration.slope"),
        ('"intercept": 0.1', '"intercept": {}', "calibration.intercept"),
        ('"largest": 0.0', '"largest": {}', "parity.largest"),
        ('"threshold": 0.4', '"threshold": {}', "points.balanced.threshold"),
        ('"recipe": {', '"recipe": {{"rate": {},', "recipe.rate"),
    ],
)
def test_a_number_that_is_none_is_refused(bundle, word, before, after, field):
    text = (bundle / "card.json").read_text()
    assert before in text
    (bundle / "card.json").write_text(text.replace(before, after.format(word)))

    with pytest.raises(BundleError, match=rf"malformed: {field}.*: Input should be a finite number"):
        read_bundle(bundle)


@pytest.mark.parametrize("slope", [0.0, -0.5])
def test_a_calibration_that_turns_the_order_round_is_refused(slope):
    with pytest.raises(ValidationError, match="slope"):
        Calibration(slope=slope, intercept=0, method="platt", n=1)


def test_a_method_of_calibration_that_is_unknown_is_refused(bundle):
    change(bundle, calibration={"slope": 1, "intercept": 0, "method": "isotonic", "n": 3})

    with pytest.raises(BundleError, match=r"calibration.method: Input should be 'platt' or 'none'"):
        read_bundle(bundle)


@given(st.floats(allow_nan=True, allow_infinity=True) | st.floats(-0.1, 1.1))
def test_a_threshold_is_a_score(threshold):
    """On the card a threshold is between 0 and 1, both included, and nothing else."""
    if 0 <= threshold <= 1:
        point = OperatingPoint(threshold=threshold, rule="", chosen_on="fixed", sensitivity=SHARE, specificity=SHARE)
        assert OperatingPoint.model_validate_json(point.model_dump_json()) == point
    else:
        with pytest.raises(ValidationError, match="threshold"):
            OperatingPoint(threshold=threshold, rule="", chosen_on="fixed", sensitivity=SHARE, specificity=SHARE)


def test_a_point_that_test_films_chose_cannot_be_written():
    with pytest.raises(ValidationError, match="chosen_on"):
        OperatingPoint(threshold=0.5, rule="best", chosen_on="test", sensitivity=SHARE, specificity=SHARE)


def test_a_card_cannot_be_changed_in_place():
    with pytest.raises(ValidationError, match="frozen"):
        Parity(films=1, largest=0.0).films = 2


def test_a_short_hash_is_64_bits():
    sha256 = hashlib.sha256(b"film").hexdigest()

    assert sha256.startswith(short_hash(sha256))
    assert len(bytes.fromhex(short_hash(sha256))) * 8 == 64
