"""A bundle is read whole or refused, and what is refused is named."""

import hashlib
import json
import math
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests.conftest import LIMITS

from pneumoscope.bundle.card import Calibration, Card, Intervals, OperatingPoint, Parity, Share, read_bundle, short_hash
from pneumoscope.core.errors import BundleError
from pneumoscope.imaging.preprocess import PREPROCESSING_VERSION, Preprocessing


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
    assert (card.format, card.labels, card.name, card.preprocessing.size) == (1, ("NORMAL", "PNEUMONIA"), "grey", 16)
    point = card.operating_points["rule_out"]
    assert (point.threshold, point.rule, point.chosen_on) == (
        0.2,
        "sensitivity 0.99 on 8 validation images",
        "validation",
    )
    assert (point.specificity.value, point.specificity.low, point.specificity.n) == (1, 0.438, 3)
    assert card.calibration == Calibration(slope=0.8, intercept=0.1, method="platt", n=8, prevalence=0.5)


@pytest.mark.parametrize("name", ["card.json", "network.onnx"])
def test_a_file_that_is_missing_is_named(bundle, name):
    (bundle / name).unlink()

    with pytest.raises(BundleError, match=rf"bundle' is no bundle: .*{name}.* a finished run has one in RUN/bundle"):
        read_bundle(bundle)


def test_a_card_that_is_no_text_is_refused(bundle):
    (bundle / "card.json").write_bytes(b"\xff\xfe{")

    with pytest.raises(BundleError, match=r"is no bundle: card\.json is no text in UTF-8"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Input data was truncated"),
        ('{"format": 1', "Input data was truncated"),
        ('{"format": 1]', "JSON is malformed: .* .byte 12"),
        ("[1, 2]", "Expected `object`, got `array`"),
        ("[" * 100_000, "recursion"),
        (f'{{"format": {"1" * 5000}}}', "Integer value out of range"),
    ],
)
def test_a_card_that_is_no_json_object_is_refused(bundle, text, why):
    (bundle / "card.json").write_text(text)

    with pytest.raises(BundleError, match=rf"card.json' is malformed: .*{why}.*\. Export it again"):
        read_bundle(bundle)


def test_an_unknown_field_is_refused_wherever_it_stands(bundle):
    change(bundle, owner="us")
    with pytest.raises(BundleError, match=r"malformed: Object contains unknown field `owner`"):
        read_bundle(bundle)

    change(
        bundle, owner="us", preprocessing={"size": 16, "crop": "squash", "version": PREPROCESSING_VERSION, "gamma": 2}
    )
    with pytest.raises(BundleError, match=r"malformed: Object contains unknown field `gamma` - at `\$\.preprocessing`"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", Card.__struct_fields__)
def test_a_field_that_is_missing_is_named_also_where_a_default_exists(bundle, name):
    data = json.loads((bundle / "card.json").read_text())
    del data[name]
    (bundle / "card.json").write_text(json.dumps(data))

    with pytest.raises(BundleError, match=rf"malformed: Object missing required field `{name}`"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", Preprocessing.__struct_fields__)
def test_how_images_are_prepared_is_never_guessed(bundle, name):
    data = {"size": 16, "crop": "squash", "version": PREPROCESSING_VERSION}
    del data[name]
    change(bundle, preprocessing=data)

    with pytest.raises(
        BundleError, match=rf"malformed: Object missing required field `{name}` - at `\$\.preprocessing`"
    ):
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

    with pytest.raises(BundleError, match=r"malformed: Expected `int`.* - at `\$\.format`"):
        read_bundle(bundle)


def test_images_prepared_in_another_way_are_refused(bundle):
    change(bundle, preprocessing={"size": 16, "crop": "squash", "version": PREPROCESSING_VERSION + 3})

    with pytest.raises(
        BundleError,
        match=rf"prepared by version {PREPROCESSING_VERSION + 3}, here it is {PREPROCESSING_VERSION}\. Train and export",
    ):
        read_bundle(bundle)


def test_labels_in_another_order_are_refused(bundle):
    change(bundle, labels=["PNEUMONIA", "NORMAL"])

    with pytest.raises(BundleError, match=r"malformed: Invalid enum value 'PNEUMONIA' - at `\$\.labels\[0\]`"):
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
    ("before", "after"),
    [
        ('"slope": 0.8', '"slope": {}'),
        ('"intercept": 0.1', '"intercept": {}'),
        ('"largest": 0.0', '"largest": {}'),
        ('"threshold": 0.4', '"threshold": {}'),
        ('"recipe": {', '"recipe": {{"rate": {},'),
    ],
)
def test_a_number_that_is_none_is_refused(bundle, word, before, after):
    text = (bundle / "card.json").read_text()
    assert before in text
    (bundle / "card.json").write_text(text.replace(before, after.format(word)))

    with pytest.raises(BundleError, match=r"card.json' is malformed: (JSON is malformed|Number out of range)"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("part", "wrong", "why"),
    [
        ("calibration", {"slope": 0.0}, r"Expected `float` > 0.0 - at `\$\.calibration\.slope`"),
        ("calibration", {"slope": -0.5}, r"Expected `float` > 0.0 - at `\$\.calibration\.slope`"),
        ("calibration", {"slope": math.nan}, r"`\$\.calibration\.slope`"),
        ("calibration", {"intercept": math.inf}, "not JSON compliant"),
        ("calibration", {"method": "isotonic"}, r"Invalid enum value 'isotonic' - at `\$\.calibration\.method`"),
        ("parity", {"largest": math.nan}, "not JSON compliant"),
    ],
)
def test_what_would_be_refused_is_not_written(bundle, part, wrong, why):
    card, _ = read_bundle(bundle)
    spoilt = structs.replace(card, **{part: structs.replace(getattr(card, part), **wrong)})

    with pytest.raises(BundleError, match=rf"the card of 'grey' cannot be written: .*{why}"):
        spoilt.to_json()


def test_a_method_of_calibration_that_is_unknown_is_refused(bundle):
    change(bundle, calibration={"slope": 1, "intercept": 0, "method": "isotonic", "n": 3})

    with pytest.raises(BundleError, match=r"Invalid enum value 'isotonic' - at `\$\.calibration\.method`"):
        read_bundle(bundle)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.floats(-0.1, 1.1))
def test_a_threshold_is_a_score(threshold):
    """On the card a threshold is between 0 and 1, both included, and nothing else."""
    point = OperatingPoint(threshold=threshold, rule="", chosen_on="fixed", sensitivity=SHARE, specificity=SHARE)
    written = msgspec.json.encode(point)
    if 0 <= threshold <= 1:
        assert msgspec.json.decode(written, type=OperatingPoint) == point
    else:
        with pytest.raises(msgspec.ValidationError, match="threshold"):
            msgspec.json.decode(written, type=OperatingPoint)


def test_a_point_that_test_images_chose_is_refused(bundle):
    data = json.loads((bundle / "card.json").read_text())
    data["operating_points"]["balanced"]["chosen_on"] = "test"
    (bundle / "card.json").write_text(json.dumps(data))

    with pytest.raises(BundleError, match=r"Invalid enum value 'test' - at `\$\.points\[\.\.\.\]\.chosen_on`"):
        read_bundle(bundle)


def test_a_card_cannot_be_changed_in_place():
    with pytest.raises(AttributeError, match="immutable"):
        Parity(images=1, largest=0.0).images = 2


def test_a_short_hash_is_64_bits():
    sha256 = hashlib.sha256(b"image").hexdigest()

    assert sha256.startswith(short_hash(sha256))
    assert len(bytes.fromhex(short_hash(sha256))) * 8 == 64


def test_steps_that_do_not_fit_together_are_refused(bundle):
    with pytest.raises(ValueError, match="1 edges, 1 lower and 2 upper probabilities"):
        Intervals(edges=(0.0,), low=(0.1,), high=(0.2, 0.3), method="venn-abers", n=3)
    change(bundle, intervals={"edges": [0], "low": [0.1], "high": [0.2, 0.3], "method": "venn-abers", "n": 3})
    with pytest.raises(
        BundleError, match=r"malformed: 1 edges, 1 lower and 2 upper probabilities - at `\$\.intervals`"
    ):
        read_bundle(bundle)


@pytest.mark.parametrize("file", ["card.json", "network.onnx"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(maker, file):
    folder = maker.bundle(maker.root / "piped")
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises(BundleError, match="it is no file"):
        read_bundle(folder)


def test_a_file_without_end_is_not_read(maker):
    folder = maker.bundle(maker.root / "long")
    with (folder / "card.json").open("ab") as file:
        file.truncate(10_000_001)
    with pytest.raises(BundleError, match="10,000,001 bytes are more than"):
        read_bundle(folder)


def test_words_that_would_move_a_terminals_cursor_are_refused(maker):
    folder = maker.bundle(maker.root / "escaping")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "name": "x\x1b]0;taken\x07"}))
    with pytest.raises(BundleError, match="cannot be printed"):
        read_bundle(folder)


def test_kinds_in_another_order_are_refused(maker):
    folder = maker.bundle(maker.root / "reversed", rejection_limits=LIMITS)
    card = json.loads((folder / "card.json").read_text())
    card["refusal"]["input_classes"].reverse()
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match="in this order"):
        read_bundle(folder)
