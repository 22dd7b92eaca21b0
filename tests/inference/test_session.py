"""Sessions score images in order and in batches, apply the card's calibration, and reject unsuitable networks."""

import dataclasses
import json
import os
import subprocess
import sys
import weakref

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from scipy.special import expit
from tests.conftest import LIMITS, SIZE, halves, mean_gray_network

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import Calibration
from pneumoscope.core.errors import BundleError, UsageError
from pneumoscope.core.prediction import PatientAge, Rejection
from pneumoscope.imaging.image import Radiograph
from pneumoscope.imaging.preprocess import preprocess_image
from pneumoscope.inference import BundleSession, network_session
from pneumoscope.inference.decision import sigmoid


@pytest.fixture
def session(maker):
    return BundleSession.load(maker.bundle(maker.root / "bundle", gain=0.05))


def flat(level, size=SIZE):
    return Radiograph(np.full((size, size), level, np.uint8), f"image {level}", "PNG", "L")


def test_logits_are_the_networks(session):
    pixels = np.stack([np.full((SIZE, SIZE), level, np.uint8) for level in (0, 125, 255)])

    logits = session.logits(pixels)

    assert logits.dtype == np.float32
    assert logits.tolist() == pytest.approx([0.05 * (0 - 125), 0, 0.05 * (255 - 125)])


def test_one_run_returns_logits_and_heatmaps(session):
    """Each block of 4 x 4 pixels contributes 0.05 x its mean / 16; together they are the logit but for -125 x 0.05."""
    image = np.zeros((SIZE, SIZE), np.uint8)
    image[4:8, 8:12] = 160  # the block of the second row and the third column
    pixels = np.stack([image, np.full((SIZE, SIZE), 200, np.uint8)])

    outputs = session.outputs(pixels, heatmaps=True)

    expected = np.zeros((2, 4, 4))
    expected[0, 1, 2], expected[1] = 0.05 * 160 / 16, 0.05 * 200 / 16
    assert [part.dtype for part in (outputs.logit, outputs.heatmap)] == [np.float32] * 2
    assert (outputs.input_classes, outputs.ood_distance) == (None, None)
    assert session.outputs(pixels).heatmap is None
    np.testing.assert_allclose(outputs.heatmap, expected, rtol=1e-6)
    assert outputs.logit.tolist() == session.logits(pixels).tolist()
    np.testing.assert_allclose(outputs.heatmap.sum((1, 2)) - 0.05 * 125, outputs.logit, rtol=1e-5)


def test_network_without_heatmaps_still_scores(maker, session):
    card, _ = read_bundle(maker.bundle(maker.root / "other"))
    bare = BundleSession(card, altered(lambda graph: graph.output.pop()))
    pixels = np.full((1, SIZE, SIZE), 225, np.uint8)

    assert (session.has_heatmaps, bare.has_heatmaps) == (True, False)
    assert bare.logits(pixels).tolist() == session.logits(pixels).tolist()
    with pytest.raises(BundleError, match=r"bundle 'gray' \(mean-gray\) has no heatmaps"):
        bare.outputs(pixels, heatmaps=True)
    assert bare.outputs(pixels).logit.tolist() == session.logits(pixels).tolist()


def test_input_classes_and_distances_are_returned(maker):
    session = BundleSession.load(maker.bundle(maker.root / "screened", rejection_limits=LIMITS))
    pixels = np.stack([np.full((SIZE, SIZE), level, np.uint8) for level in (51, 204)])

    outputs = session.outputs(pixels)

    np.testing.assert_allclose(outputs.input_classes, [[0.2, 0.8, 0, 0, 0, 0, 0], [0.8, 0.2, 0, 0, 0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(outputs.ood_distance, [0.51, 2.04], rtol=1e-6)
    images = [Radiograph(halves(level), "image", "PNG", "L") for level in (51, 120, 204)]
    assert [rejection and rejection.code for _, rejection in session.stream(images)] == [
        "inverted",
        None,
        "out_of_distribution",
    ]


def test_age_score_above_the_limit_is_rejected(maker):
    limits = structs.replace(LIMITS, max_age_score=0.5)
    session = BundleSession.load(maker.bundle(maker.root / "aged", rejection_limits=limits, age_range=(1, 5)))
    pixels = np.stack([np.full((SIZE, SIZE), level, np.uint8) for level in (51, 153)])

    np.testing.assert_allclose(session.outputs(pixels).age_score, [0.2, 0.6], rtol=1e-6)
    images = [Radiograph(halves(level), "image", "PNG", "L") for level in (51, 120, 153)]
    rejections = [rejection for _, rejection in session.stream(images)]
    assert [rejection and rejection.code for rejection in rejections] == [
        "inverted",
        None,
        "outside_age_range_estimated",
    ]
    assert rejections[2].parameters == {"score": pytest.approx(0.6), "limit": 0.5, "minimum": 1, "maximum": 5}


def test_stated_age_in_the_range_does_not_overrule_the_age_score(maker):
    limits = structs.replace(LIMITS, max_age_score=0.5)
    session = BundleSession.load(maker.bundle(maker.root / "aged", rejection_limits=limits, age_range=(1, 5)))
    images = [Radiograph(halves(153), "image", "DICOM", "MONOCHROME2", age=PatientAge(age)) for age in (3, 40)]
    codes = [rejection.code for _, rejection in session.stream(images)]
    assert codes == ["outside_age_range_estimated", "outside_age_range"]


def test_age_limit_and_age_score_must_match(maker):
    limits = structs.replace(LIMITS, max_age_score=0.5)
    folder = maker.bundle(maker.root / "aged", rejection_limits=limits, age_range=(1, 5))
    card = json.loads((folder / "card.json").read_text())
    card["rejection_limits"]["max_age_score"] = None
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match="its card has no limits for 'age_score'"):
        BundleSession.load(folder)
    card["rejection_limits"]["max_age_score"], card["age_range"] = 0.5, None
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match="max_age_score needs age_range"):
        BundleSession.load(folder)


def test_outputs_and_limits_on_the_card_must_match(maker):
    bare, screened = maker.bundle(maker.root / "bare"), maker.bundle(maker.root / "screened", rejection_limits=LIMITS)
    cards = {folder: json.loads((folder / "card.json").read_text()) for folder in (bare, screened)}
    key = "rejection_limits"
    cards[bare][key], cards[screened][key] = cards[screened][key], None
    for folder, message in (
        (bare, "its card has limits for 'input_classes'"),
        (screened, "its card has no limits for 'input_classes'"),
    ):
        (folder / "card.json").write_text(json.dumps(cards[folder]))
        with pytest.raises(BundleError, match=message):
            BundleSession.load(folder)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 10, 11, 1000])
def test_stream_yields_the_same_logits_for_any_batch_size(session, batch):
    levels = [200, 3, 90, 255, 0, 125, 17, 18, 19, 64]
    expected = session.logits(np.stack([flat(level).pixels for level in levels])).tolist()

    scored = list(session.stream(map(flat, levels), batch=batch))

    assert [logit for logit, _ in scored] == expected
    assert [rejection.code for _, rejection in scored] == ["blank"] * len(levels)


def test_images_of_any_size_are_preprocessed(session):
    wide = Radiograph(np.tile(np.uint8([0, 200]), (30, 50)), "wide", "PNG", "L")

    logits = [logit for logit, _ in session.stream([wide, flat(100, size=64)])]
    assert logits == pytest.approx([0.05 * (100 - 125)] * 2, abs=0.05)


def test_stream_of_no_images_is_empty(session):
    assert list(session.stream([])) == []


def test_stream_holds_at_most_one_batch(session, monkeypatch):
    """Count the preprocessed images that are alive whenever another one is made."""
    created, alive = [], []

    def preprocess(image, preprocessing):
        image = preprocess_image(image, preprocessing)
        created.append(weakref.ref(image.pixels))
        alive.append(sum(pixels() is not None for pixels in created))
        return image

    monkeypatch.setattr(network_session, "preprocess_image", preprocess)

    assert len(list(session.stream(map(flat, range(50)), batch=4))) == 50
    assert max(alive) == 4


def test_stream_reads_one_batch_at_a_time(session):
    asked = []

    def images():
        for level in range(20):
            asked.append(level)
            yield flat(level)

    stream = session.stream(images(), batch=4)
    assert asked == []
    next(stream)
    assert asked == [0, 1, 2, 3]
    for _ in range(4):
        next(stream)
    assert asked == list(range(8))


@pytest.mark.parametrize("batch", [0, -3])
def test_batch_below_one_is_rejected(session, batch):
    with pytest.raises(UsageError, match=rf"batch is {batch}; the minimum is 1"):
        list(session.stream([flat(1)], batch=batch))


def test_probability_follows_the_card(session):
    """Slope 0.8, intercept 0.1; worked by hand: 1 / (1 + exp(-(0.8 x 2 + 0.1))) = 1 / (1 + 0.1826835) = 0.8455347."""
    found = session.probability(np.float32([2, 0, -0.125]))

    assert found.dtype == np.float64
    assert found.tolist() == pytest.approx([0.8455347, 0.5249792, 0.5], abs=1e-7)


def test_probability_without_calibration_is_the_score(maker):
    card, network = read_bundle(maker.bundle(maker.root / "bundle"))
    plain = structs.replace(card, calibration=Calibration(slope=1, intercept=0, method="none", n=0, prevalence=0.5))
    logits = np.linspace(-5, 5, 11, dtype=np.float32)

    assert BundleSession(plain, network).probability(logits).tolist() == sigmoid(logits).tolist()


@pytest.mark.filterwarnings("error")
def test_sigmoid_does_not_overflow():
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        assert sigmoid(np.array([-1000.0, 1000.0])).tolist() == [0.0, 1.0]
        assert sigmoid(np.float32([-88.8, -700, 700])).tolist() == pytest.approx(
            expit(np.float64(np.float32([-88.8, -700, 700]))).tolist(), rel=1e-12
        )


@given(st.lists(st.floats(-1e308, 1e308)))
def test_sigmoid_equals_scipys(values):
    np.testing.assert_allclose(sigmoid(np.array(values)), expit(np.array(values)), rtol=1e-12, atol=1e-300)


@given(st.floats(-700, 700))
def test_sigmoid_is_symmetric(x):
    left, right = sigmoid(np.array([x, -x]))
    assert left + right == pytest.approx(1, abs=1e-15)


def test_sigmoid_computes_in_double_precision():
    assert sigmoid(np.float32([0.1])).dtype == np.float64


# --- invalid networks -------------------------------------------------------------------------------------------------


def altered(change):
    model = onnx.load_from_string(mean_gray_network(0.05))
    change(model.graph)
    return model.SerializeToString()


@pytest.mark.parametrize("content", [b"", b"no network", mean_gray_network(0.05)[:-40]])
def test_invalid_file_is_rejected(maker, content):
    card, _ = read_bundle(maker.bundle(maker.root / "bundle"))

    with pytest.raises(BundleError, match=r"the network of bundle 'gray' cannot be run: "):
        BundleSession(card, content)


def other_size(graph):
    graph.input[0].type.tensor_type.shape.dim[1].dim_value = 32


def one_image_only(graph):
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def floats(graph):
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def other_name(graph):
    graph.input[0].name = graph.node[0].input[0] = "pixels"


def other_result(graph):
    graph.output[0].name = graph.node[-1].output[0] = "probability"


def unknown_result(graph):
    graph.output[1].name = graph.node[-2].output[0] = "saliency"


def flat_heatmap(graph):
    graph.node[-2].output[0] = "table"
    graph.node.insert(7, onnx.helper.make_node("Flatten", ["table"], ["heatmap"]))
    del graph.output[1].type.tensor_type.shape.dim[2]
    graph.output[1].type.tensor_type.shape.dim[1].dim_value = 16


def another_input(graph):
    graph.input.append(onnx.helper.make_tensor_value_info("age", onnx.TensorProto.FLOAT, []))
    graph.node[-1].input[1] = "age"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_size, r"has inputs \[\('image', 'tensor\(uint8\)', \['n', 32, 16\]\)\]"),
        (one_image_only, r"has inputs \[\('image', 'tensor\(uint8\)', \[1, 16, 16\]\)\]"),
        (floats, r"has inputs \[\('image', 'tensor\(float\)', \['n', 16, 16\]\)\]"),
        (other_name, r"has inputs \[\('pixels', "),
        (other_result, r"outputs \[\('probability', "),
        (
            unknown_result,
            r"outputs \[\('logit', 'tensor\(float\)', 1\), \('saliency', 'tensor\(float\)', 3\)\]; expected",
        ),
        (
            flat_heatmap,
            r"\('heatmap', 'tensor\(float\)', 2\)\]; .* outputs among \[.*\('heatmap', 'tensor\(float\)', 3\)",
        ),
        (another_input, r"\('age', 'tensor\(float\)', \[\]\)\]"),
    ],
)
def test_unexpected_inputs_and_outputs_are_rejected(maker, change, message):
    card, _ = read_bundle(maker.bundle(maker.root / "bundle"))

    with pytest.raises(BundleError, match=rf"bundle 'gray' .*{message}"):
        BundleSession(card, altered(change))


@pytest.mark.parametrize("absolute", [True, False])
def test_external_weights_are_rejected(maker, monkeypatch, absolute):
    """The card's hash does not cover them, and an untrusted file must not read other files."""
    monkeypatch.chdir(maker.root)
    outside = maker.root / "weights.bin"
    outside.write_bytes(np.float32(3).tobytes())

    def elsewhere(graph):
        gain = graph.initializer[2]
        gain.ClearField("float_data")
        gain.data_location = onnx.TensorProto.EXTERNAL
        where = str(outside) if absolute else outside.name
        for key, value in (("location", where), ("length", "4")):
            gain.external_data.add(key=key, value=value)

    card, _ = read_bundle(maker.bundle(maker.root / "bundle"))

    with pytest.raises(BundleError, match=r"the network of bundle 'gray' cannot be run: "):
        BundleSession(card, altered(elsewhere))


def test_load_rejects_what_read_bundle_rejects(maker):
    with pytest.raises(BundleError, match=r"absent' does not exist"):
        BundleSession.load(maker.root / "absent")


def test_scoring_never_imports_torch(maker):
    """In a fresh interpreter where torch cannot be found at all."""
    bundle = maker.bundle(maker.root / "bundle")
    code = f"""
import sys
sys.modules["torch"] = None
from pathlib import Path
import numpy as np
from pneumoscope.inference import BundleSession
print(BundleSession.load(Path({str(bundle)!r}), threads=1).logits(np.full((1, {SIZE}, {SIZE}), 225, np.uint8))[0])
found = {{"torchvision", "lightning", "timm", "scipy", "sklearn", "onnx"}} & set(sys.modules)
assert not found, found
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert float(ran.stdout) == pytest.approx(5.0)


def test_import_does_not_import_onnx_runtime():
    code = "import sys, pneumoscope.inference; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [("logit", [np.nan], "not finite"), ("logit", [1.0, 2.0], "2,"), ("input_classes", [[0.5, 0.5, 0.0]], r"\(1, 3\)")],
)
def test_outputs_of_wrong_shape_or_not_finite_are_rejected(maker, monkeypatch, name, values, message):
    session = BundleSession.load(maker.bundle(maker.root / "bundle", rejection_limits=LIMITS))
    run = onnxruntime.InferenceSession.run

    def run_with_fault(self, names, feed):
        outputs = dict(zip(names, run(self, names, feed), strict=True))
        assert name in outputs
        return list((outputs | {name: np.array(values, np.float32)}).values())

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", run_with_fault)
    with pytest.raises(BundleError, match=message):
        session.outputs(flat(100).pixels[None])


def test_stated_age_outside_the_range_is_rejected(maker):
    session = BundleSession.load(maker.bundle(maker.root / "aged", age_range=(1, 5)))
    image = Radiograph(
        np.tile(np.arange(SIZE, dtype=np.uint8) * 4, (SIZE, 1)), "image", "DICOM", "", age=PatientAge(67)
    )
    (scored,) = session.stream([image])
    assert scored.rejection == Rejection("outside_age_range", {"age": 67.0, "minimum": 1.0, "maximum": 5.0})
    (scored,) = session.stream([dataclasses.replace(image, age=PatientAge(3))])
    assert scored.rejection is None


def test_telemetry_is_disabled_before_onnx_runtime_is_imported(maker):
    """ONNX Runtime reads the variable on import."""
    bundle = maker.bundle(maker.root / "silent")
    seen = subprocess.run(
        [
            sys.executable, "-c",
            "import builtins, os, sys, pathlib\n"
            "real = builtins.__import__\n"
            "def watch(name, *rest):\n"
            "    if name == 'onnxruntime' and name not in sys.modules: print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
            "    return real(name, *rest)\n"
            "builtins.__import__ = watch\n"
            "from pneumoscope.inference.session import BundleSession\n"
            "BundleSession.load(pathlib.Path(sys.argv[1]))\n",
            str(bundle),
        ],
        capture_output=True, text=True, check=True, timeout=60,
        env={name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"},
    )  # fmt: skip
    assert seen.stdout.split() == ["1"]
