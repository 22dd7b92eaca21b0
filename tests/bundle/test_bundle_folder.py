"""Reading, checking and copying bundles."""

import errno
import hashlib
import json
import math
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests.conftest import LIMITS

from pneumoscope.bundle import bundle_folder as module
from pneumoscope.bundle.bundle_folder import export_bundle, read_bundle
from pneumoscope.bundle.card import Calibration, Card, Intervals, OperatingPoint, Parity, Proportion, short_hash
from pneumoscope.core.errors import BundleError, StorageError, UsageError
from pneumoscope.core.population import Population
from pneumoscope.imaging.preprocess import PREPROCESSING_VERSION, Preprocessing


@pytest.fixture
def bundle(maker):
    return maker.bundle(maker.root / "bundle")


PROPORTION = Proportion(value=1, low=0.2, high=1, n=1, method="wilson")


def change(bundle, **fields):
    """Overwrite fields of the card."""
    data = json.loads((bundle / "card.json").read_text())
    (bundle / "card.json").write_text(json.dumps({**data, **fields}))


def test_bundle_is_read_as_it_was_written(bundle):
    written = (bundle / "card.json").read_text()

    card, network = read_bundle(bundle)

    assert network == (bundle / "network.onnx").read_bytes()
    assert hashlib.sha256(network).hexdigest() == card.onnx_sha256
    assert card.to_json() == written
    assert (card.format, card.labels, card.name, card.preprocessing.size) == (2, ("NORMAL", "PNEUMONIA"), "gray", 16)
    point = card.operating_points["rule_out"]
    assert (point.threshold, point.rule, point.target, point.n) == (0.2, "sensitivity", 0.99, 8)
    assert point.rule_text() == "highest threshold with sensitivity 0.99 on 8 validation images with pneumonia"
    assert (point.specificity.value, point.specificity.low, point.specificity.n) == (1, 0.438, 3)
    assert card.calibration == Calibration(slope=0.8, intercept=0.1, method="platt", n=8, prevalence=0.5)


def test_population_that_is_not_one_is_rejected(bundle):
    for field, value, reason in (
        ("sites", 0, "Expected `int` >= 1"),
        ("view", "lateral", "Invalid enum value 'lateral'"),
        ("sentence", "x" * 301, "Expected `str` of length <= 300"),
        ("sentence", "line\nbreak", "not printable"),
        ("country", "", "unknown field `country`"),
    ):
        change(bundle, population={field: value})
        with pytest.raises(BundleError, match=reason):
            read_bundle(bundle)


def test_export_states_another_population(bundle, tmp_path):
    population = Population(ages=(18, 90), sites=2, view="PA")

    export_bundle(bundle, tmp_path / "out", population)

    card, network = read_bundle(tmp_path / "out")
    original, same = read_bundle(bundle)
    assert (card, network) == (structs.replace(original, population=population), same)


@pytest.mark.parametrize("name", ["card.json", "network.onnx"])
def test_missing_file_is_named(bundle, name):
    (bundle / name).unlink()

    with pytest.raises(BundleError, match=rf"bundle' is not a bundle: .*{name}.* a finished run has one in RUN/bundle"):
        read_bundle(bundle)


def test_card_that_is_not_text_is_rejected(bundle):
    (bundle / "card.json").write_bytes(b"\xff\xfe{")

    with pytest.raises(BundleError, match=r"is not a bundle: card\.json is not UTF-8 text"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Input data was truncated"),
        ('{"format": 1', "Input data was truncated"),
        ('{"format": 1]', "JSON is malformed: .* .byte 12"),
        ("[1, 2]", "Expected `object`, got `array`"),
        ("[" * 100_000, "recursion"),
        (f'{{"format": {"1" * 5000}}}', "Integer value out of range"),
    ],
)
def test_card_that_is_not_a_json_object_is_rejected(bundle, text, reason):
    (bundle / "card.json").write_text(text)

    with pytest.raises(BundleError, match=rf"card.json' is malformed: .*{reason}.*\. Export the bundle again"):
        read_bundle(bundle)


def test_unknown_field_at_any_depth_is_rejected(bundle):
    change(bundle, owner="us")
    with pytest.raises(BundleError, match=r"malformed: Object contains unknown field `owner`"):
        read_bundle(bundle)

    change(
        bundle, owner="us", preprocessing={"size": 16, "crop": "squash", "version": PREPROCESSING_VERSION, "gamma": 2}
    )
    with pytest.raises(BundleError, match=r"malformed: Object contains unknown field `gamma` - at `\$\.preprocessing`"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", Card.__struct_fields__)
def test_missing_field_is_rejected_even_if_it_has_a_default(bundle, name):
    data = json.loads((bundle / "card.json").read_text())
    del data[name]
    (bundle / "card.json").write_text(json.dumps(data))

    with pytest.raises(BundleError, match=rf"malformed: Object missing required field `{name}`"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", Preprocessing.__struct_fields__)
def test_missing_field_of_the_preprocessing_is_rejected(bundle, name):
    data = {"size": 16, "crop": "squash", "version": PREPROCESSING_VERSION}
    del data[name]
    change(bundle, preprocessing=data)

    with pytest.raises(
        BundleError, match=rf"malformed: Object missing required field `{name}` - at `\$\.preprocessing`"
    ):
        read_bundle(bundle)


def test_newer_format_asks_for_an_upgrade_despite_unknown_fields(bundle):
    change(bundle, format=7, invention="unknown here")

    with pytest.raises(
        BundleError, match=r"bundle' has format 7; this version reads formats up to 3\. Upgrade: pip install -U"
    ):
        read_bundle(bundle)


@pytest.mark.parametrize("number", [1, 0, -1, None, "one"])
def test_invalid_format_number_is_rejected(bundle, number):
    change(bundle, format=number)

    with pytest.raises(BundleError, match=r"malformed: Expected `int`.* - at `\$\.format`"):
        read_bundle(bundle)


def test_other_preprocessing_version_is_rejected(bundle):
    change(bundle, preprocessing={"size": 16, "crop": "squash", "version": PREPROCESSING_VERSION + 3})

    with pytest.raises(
        BundleError,
        match=rf"needs version {PREPROCESSING_VERSION + 3} .* is version {PREPROCESSING_VERSION}\. Train and export",
    ):
        read_bundle(bundle)


def test_labels_in_another_order_are_rejected(bundle):
    change(bundle, labels=["PNEUMONIA", "NORMAL"])

    with pytest.raises(BundleError, match=r"malformed: Invalid enum value 'PNEUMONIA' - at `\$\.labels\[0\]`"):
        read_bundle(bundle)


@pytest.mark.parametrize("position", [0, 100, -1])
def test_altered_byte_of_the_network_is_detected(bundle, position):
    content = bytearray((bundle / "network.onnx").read_bytes())
    content[position] ^= 1
    (bundle / "network.onnx").write_bytes(content)

    with pytest.raises(BundleError, match=r"network.onnx' does not match its card"):
        read_bundle(bundle)


@pytest.mark.parametrize("length", [0, 10])
def test_truncated_network_is_detected(bundle, length):
    size = (bundle / "network.onnx").stat().st_size
    (bundle / "network.onnx").write_bytes((bundle / "network.onnx").read_bytes()[:length])

    with pytest.raises(
        BundleError, match=rf"it has {length} bytes, expected {size}, or another hash\. It was altered or truncated"
    ):
        read_bundle(bundle)


def test_wrong_size_on_the_card_is_detected(bundle):
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
def test_non_finite_number_is_rejected(bundle, word, before, after):
    text = (bundle / "card.json").read_text()
    assert before in text
    (bundle / "card.json").write_text(text.replace(before, after.format(word)))

    with pytest.raises(BundleError, match=r"card.json' is malformed: (JSON is malformed|Number out of range)"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("part", "invalid", "reason"),
    [
        ("calibration", {"slope": 0.0}, r"Expected `float` > 0.0 - at `\$\.calibration\.slope`"),
        ("calibration", {"slope": -0.5}, r"Expected `float` > 0.0 - at `\$\.calibration\.slope`"),
        ("calibration", {"slope": math.nan}, r"`\$\.calibration\.slope`"),
        ("calibration", {"intercept": math.inf}, "not JSON compliant"),
        ("calibration", {"method": "isotonic"}, r"Invalid enum value 'isotonic' - at `\$\.calibration\.method`"),
        ("parity", {"largest": math.nan}, "not JSON compliant"),
    ],
)
def test_card_that_could_not_be_read_is_not_written(bundle, part, invalid, reason):
    card, _ = read_bundle(bundle)
    card = structs.replace(card, **{part: structs.replace(getattr(card, part), **invalid)})

    with pytest.raises(BundleError, match=rf"the card of 'gray' cannot be written: .*{reason}"):
        card.to_json()


def test_unknown_calibration_method_is_rejected(bundle):
    change(bundle, calibration={"slope": 1, "intercept": 0, "method": "isotonic", "n": 3})

    with pytest.raises(BundleError, match=r"Invalid enum value 'isotonic' - at `\$\.calibration\.method`"):
        read_bundle(bundle)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.floats(-0.1, 1.1))
def test_threshold_is_between_0_and_1(threshold):
    point = OperatingPoint(threshold=threshold, rule="fixed", sensitivity=PROPORTION, specificity=PROPORTION)
    written = msgspec.json.encode(point)
    if 0 <= threshold <= 1:
        assert msgspec.json.decode(written, type=OperatingPoint) == point
    else:
        with pytest.raises(msgspec.ValidationError, match="threshold"):
            msgspec.json.decode(written, type=OperatingPoint)


def test_unknown_threshold_rule_is_rejected(bundle):
    data = json.loads((bundle / "card.json").read_text())
    data["operating_points"]["balanced"]["rule"] = "highest accuracy on test images"
    (bundle / "card.json").write_text(json.dumps(data))

    with pytest.raises(BundleError, match=r"Invalid enum value .* - at `\$\.operating_points\[\.\.\.\]\.rule`"):
        read_bundle(bundle)


def test_card_records_are_immutable():
    with pytest.raises(AttributeError, match="immutable"):
        Parity(images=1, largest=0.0).images = 2


def test_short_hash_has_64_bits():
    sha256 = hashlib.sha256(b"image").hexdigest()

    assert sha256.startswith(short_hash(sha256))
    assert len(bytes.fromhex(short_hash(sha256))) * 8 == 64


def test_step_functions_of_unequal_length_are_rejected(bundle):
    with pytest.raises(ValueError, match="1 edges, 1 lower and 2 upper probabilities"):
        Intervals(edges=(0.0,), low=(0.1,), high=(0.2, 0.3), method="venn-abers", n=3)
    change(bundle, intervals={"edges": [0], "low": [0.1], "high": [0.2, 0.3], "method": "venn-abers", "n": 3})
    with pytest.raises(
        BundleError, match=r"malformed: 1 edges, 1 lower and 2 upper probabilities - at `\$\.intervals`"
    ):
        read_bundle(bundle)


@pytest.mark.parametrize("file", ["card.json", "network.onnx"])
def test_pipe_instead_of_a_file_is_rejected_without_blocking(maker, file):
    folder = maker.bundle(maker.root / "piped")
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises(BundleError, match="not a regular file"):
        read_bundle(folder)


def test_oversized_card_is_not_read(maker):
    folder = maker.bundle(maker.root / "long")
    with (folder / "card.json").open("ab") as file:
        file.truncate(10_000_001)
    with pytest.raises(BundleError, match="it has 10,000,001 bytes, at most"):
        read_bundle(folder)


def test_control_characters_are_rejected(maker):
    folder = maker.bundle(maker.root / "escaping")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "name": "x\x1b]0;taken\x07"}))
    with pytest.raises(BundleError, match="not printable"):
        read_bundle(folder)


def test_input_classes_in_another_order_are_rejected(maker):
    folder = maker.bundle(maker.root / "reversed", rejection_limits=LIMITS)
    card = json.loads((folder / "card.json").read_text())
    card["rejection_limits"]["input_classes"].reverse()
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match="in this order"):
        read_bundle(folder)


# --- copies ----------------------------------------------------------------------------------------------------------


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_export_copies_card_and_network_only(bundle, tmp_path):
    (bundle / "notes.txt").write_text("not part of the bundle")
    out = tmp_path / "new" / "copy"

    card = export_bundle(bundle, out)

    assert read_bundle(out) == read_bundle(bundle)
    assert card == read_bundle(bundle)[0]
    assert contents(out) == {name: (bundle / name).read_bytes() for name in ("card.json", "network.onnx")}


def test_export_accepts_an_empty_folder(bundle, tmp_path):
    out = tmp_path / "out"
    out.mkdir()

    export_bundle(bundle, out)

    assert read_bundle(out) == read_bundle(bundle)


def test_export_leaves_a_folder_with_files_unchanged(bundle, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "other").write_text("keep")

    with pytest.raises(UsageError, match=r"out' exists and is not an empty folder\. Choose another folder with --out"):
        export_bundle(bundle, out)

    assert contents(out) == {"other": b"keep"}


def test_export_does_not_replace_a_file(bundle, tmp_path):
    (tmp_path / "out").write_text("keep")

    with pytest.raises(UsageError, match=r"out' exists and is not an empty folder"):
        export_bundle(bundle, tmp_path / "out")

    assert (tmp_path / "out").read_text() == "keep"


def test_bundle_is_not_exported_onto_itself(bundle):
    before = contents(bundle)

    with pytest.raises(UsageError, match=r"bundle' exists and is not an empty folder"):
        export_bundle(bundle, bundle)

    assert contents(bundle) == before


def test_damaged_bundle_is_not_exported(bundle, tmp_path):
    (bundle / "network.onnx").write_bytes(b"other")

    with pytest.raises(BundleError, match="does not match its card"):
        export_bundle(bundle, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_interrupted_export_is_not_a_bundle(bundle, tmp_path, monkeypatch):
    out = tmp_path / "out"
    replace = Path.replace

    def full(self, target):
        if target.name == "card.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)

    with pytest.raises(StorageError, match=r"cannot write '.*card.json': No space left on device"):
        export_bundle(bundle, out)

    assert set(contents(out)) == {"network.onnx"}
    with pytest.raises(BundleError, match=r"is not a bundle: .*card.json"):
        read_bundle(out)


def test_export_writes_the_network_before_the_card(bundle, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(module, "write_atomically", lambda path, content: written.append(path.name))

    export_bundle(bundle, tmp_path / "out")

    assert written == ["network.onnx", "card.json"]
