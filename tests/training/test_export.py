"""The exported network says what torch says, for any number of films; where it does not, nothing is written."""

import numpy as np
import onnx
import pytest
import torch

from pneumoscope.bundle.card import Calibration, Card, Parity
from pneumoscope.errors import ParityError
from pneumoscope.networks.build import build
from pneumoscope.predictor.predictor import Predictor
from pneumoscope.radiograph.prepare import Preparation
from pneumoscope.training import export as module
from pneumoscope.training.export import check_parity, to_onnx


def predictor(content, size):
    card = Card(
        name="test", network="test", parameters=1, version="0", created="", onnx_sha256="", onnx_bytes=0,
        preparation=Preparation(size=size), calibration=Calibration(slope=1, intercept=0, method="none", n=0),
        points={}, parity=Parity(films=0, largest=0),
        recipe={}, seed=0, manifest_sha256="", split_by="image", counts={}, seen={}, best_epoch=1, machine={},
    )  # fmt: skip
    return Predictor(card, content)


@pytest.mark.parametrize(("name", "size"), [("alexnet", 63), ("vgg19", 64), ("tf_efficientnet_lite0", 64)])
def test_onnx_and_torch_agree_on_64_films(name, size):
    torch.manual_seed(2)
    network = build(name, image_size=size)
    random = np.random.default_rng(1)
    films = (random.integers(0, 256, (64, size, size)) * random.uniform(0, 1, (64, 1, 1))).astype(np.uint8)
    for layer in network.modules():  # batch statistics of these films, so that logits differ from film to film
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0
    with torch.no_grad():
        network(torch.from_numpy(films))
    network.eval()

    logits = predictor(to_onnx(network, size), size).logits(films)

    assert check_parity(network, films, logits).largest <= 1e-4
    assert logits.std() > 0.01


def test_the_file_is_one_and_takes_any_number_of_films():
    network = build("test_efficientnet", image_size=32).eval()
    content = to_onnx(network, 32)

    graph = onnx.load_from_string(content).graph

    assert [(value.name, value.type.tensor_type.elem_type) for value in graph.input] == [
        ("film", onnx.TensorProto.UINT8)
    ]
    assert [value.name for value in graph.output] == ["logit"]
    assert not [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    for count in (1, 2, 5):
        assert predictor(content, 32).logits(np.zeros((count, 32, 32), np.uint8)).shape == (count,)


def test_a_difference_is_refused_with_its_size():
    network = build("test_efficientnet", image_size=32).eval()
    films = np.zeros((4, 32, 32), np.uint8)
    logits = predictor(to_onnx(network, 32), 32).logits(films)

    with pytest.raises(ParityError, match=r"differ from torch's by up to 0.01 .* on 4 films \(at most 0.0001"):
        check_parity(network, films, logits + np.float32(0.01))
    with pytest.raises(ParityError, match="nan"):
        check_parity(network, films, logits * np.float32("nan"))


def test_the_points_on_the_card_are_those_of_the_statistics():
    scores = np.array([0.1, 0.2, 0.6, 0.7, 0.8, 0.9])
    labels = np.array([False, False, False, True, True, True])

    points = module._points(scores, labels, [""] * 6)

    assert points["balanced"].threshold == pytest.approx(0.65)
    assert points["rule-out"].threshold == pytest.approx(0.7)
    assert points["rule-in"].threshold == pytest.approx(0.65)
    assert [point.chosen_on for point in points.values()] == ["fixed", "validation", "validation", "validation"]
    assert "6 validation films" in points["balanced"].rule
    assert "3 validation normals" in points["rule-in"].rule
    # At 0.5 one of three normals, 0.6, is called pneumonia; Wilson's interval of 2 of 3 is [0.208, 0.939].
    specificity = points["half"].specificity
    assert (specificity.value, specificity.n, specificity.method) == (pytest.approx(2 / 3), 3, "wilson")
    assert (specificity.low, specificity.high) == (pytest.approx(0.2077, abs=1e-4), pytest.approx(0.9385, abs=1e-4))
    assert points["half"].sensitivity.value == 1
