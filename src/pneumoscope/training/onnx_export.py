"""Export a trained network to a single ONNX file and verify it against PyTorch.

The file computes the logit and the class activation map in one run. The gradient of the head is traced into a separate graph,
because the exporter does not support `torch.func.vjp`. The weights are inputs of that graph, so both outputs share them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pneumoscope.bundle.card import Parity
from pneumoscope.core.errors import ParityError
from pneumoscope.inference.multiclass_session import MulticlassOutputs
from pneumoscope.inference.session import Outputs
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.models.input_checks import InputChecks

__all__ = [
    "LOGIT_TOLERANCE",
    "OUTPUT_TOLERANCE",
    "check_logits",
    "check_outputs",
    "convolution_backward",
    "export_onnx",
]

# Maximum difference of logits, relative to their magnitude if above 1. Scores then agree to 1e-4: x sigmoid'(x) <=
# 0.224.
LOGIT_TOLERANCE = 4e-4
# Maximum difference of the other outputs, relative to their scale: invisible in 256 gray levels or two decimals.
OUTPUT_TOLERANCE = 1e-3
_MAX_OUTLIER = 0.1
_HINT = "This is a fault of the export, not of the training; the checkpoints are kept"


def export_onnx(network: ClassifierNetwork, image_size: int, input_checks: InputChecks | None = None) -> bytes:
    """Return an ONNX file, weights included, that maps "image", uint8 (n, size, size), to the fields of `session.Outputs`.

    For several classes, the outputs are the fields of `multiclass_session.MulticlassOutputs`.

    The heatmap is omitted if the logits do not depend on positions in the last feature map (class-token transformers, networks
    without a spatial grid) or if ONNX cannot express the gradient of the head (attention).

    Args:
        network: Network in evaluation mode, on the CPU.
        image_size: Side of the images in pixels.
        input_checks: Input checks to include in the file.

    Raises:
        ParityError: torch returned no ONNX program.
    """
    # Random, because the gradient is probed with them: on a blank image a whole layer of ReLUs can have zero gradient.
    images = torch.randint(
        0, 256, (2, image_size, image_size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    if _has_class_activation(network, images):
        with contextlib.suppress(torch.onnx.OnnxExporterError):
            return _convert(_ExportModule(_LogitAndHeatmap(network, images), input_checks).eval(), images)
    return _convert(_ExportModule(_Logit(network), input_checks).eval(), images)


def _convert(module: _ExportModule, images: Tensor) -> bytes:
    # Tracing is faster without autograd; the gradient of the head is already traced.
    with _suppress_output(), _out_of_place(module), torch.no_grad():
        program = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            input_names=["image"],
            output_names=module.output_names,
            dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ParityError("torch returned no ONNX program")
    return _serialize(program.model_proto)


def _serialize(model: Any) -> bytes:
    """Return the serialized model without its metadata, which contains local paths in no fixed order."""

    def strip(message: Any) -> None:
        for field, value in message.ListFields():
            if field.name in {"metadata_props", "doc_string"}:
                message.ClearField(field.name)
            elif field.message_type is not None and field.message_type.name != "TensorProto":
                for element in value if isinstance(value, Sequence) or hasattr(value, "add") else [value]:
                    strip(element)

    strip(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _has_class_activation(network: ClassifierNetwork, images: Tensor) -> bool:
    """Return whether positions in the last feature map contribute to the logits of these images."""
    with torch.no_grad():
        activation = network.class_activation(images)
    return activation is not None and bool(activation[1].any())


class _ExportModule(nn.Module):
    """Module that returns all outputs of a bundle, in the order of `output_names`."""

    def __init__(self, classifier: _LogitAndHeatmap | _Logit, input_checks: InputChecks | None) -> None:
        super().__init__()
        self.classifier = classifier
        self.input_classifier = input_checks.classifier if input_checks else None
        self.age_classifier = input_checks.age_classifier if input_checks else None
        self.ood_detector = nn.Sequential(input_checks.extractor, input_checks.detector) if input_checks else None
        self.output_names = [
            "logit" if classifier.network.outputs == 1 else "logits",
            *(["heatmap"] if isinstance(classifier, _LogitAndHeatmap) else []),
            *(["input_classes", "ood_distance"] if input_checks else []),
            *(["age_score"] if self.age_classifier else []),
        ]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.classifier(images)
        if self.input_classifier is None or self.ood_detector is None:
            return outputs
        age_score = () if self.age_classifier is None else (self.age_classifier(images).sigmoid(),)
        return (*outputs, self.input_classifier(images).softmax(1), self.ood_detector(images), *age_score)


class _Logit(nn.Module):
    """Module that maps images to logits."""

    def __init__(self, network: ClassifierNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network(images),)


class _LogitAndHeatmap(nn.Module):
    """Module that maps images to logits and class activation maps with operations the exporter supports."""

    def __init__(self, network: ClassifierNetwork, images: Tensor) -> None:
        super().__init__()
        self.network = network
        self.head = _Head(network)
        # Contiguous, because channels-last would be traced as memory strides, which ONNX does not have.
        with torch.no_grad():
            features = network.forward_features(network.normalize(images)).contiguous()
            is_grid = network.feature_grid(features) is features
            self.average_pooling = is_grid and _is_uniform(network.logits_and_gradients(features)[1])
            if self.average_pooling:
                features = features.mean((2, 3), keepdim=True)
            weights = {name: tensor.detach() for name, tensor in self._weights().items()}
            self.traced = make_fx(
                lambda weights, features: torch.func.functional_call(self.head, weights, (features,)),
                decomposition_table={torch.ops.aten.convolution_backward.default: convolution_backward},
                tracing_mode="symbolic",
            )(weights, features)

    def _weights(self) -> dict[str, Tensor]:
        return {**dict(self.head.named_parameters()), **dict(self.head.named_buffers())}

    def _logits_and_gradients(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits, gradients = self.traced(self._weights(), features)
        return logits, gradients

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor] | None:
        network = self.network
        if not self.average_pooling:
            return network.class_activation(images, self._logits_and_gradients)
        # With average pooling, all positions of a channel share one gradient: the gradient of the mean divided by the
        # number of positions. The maps then cost one matrix product per image; multiplying whole maps takes 3% of
        # lite0's time.
        features = network.forward_features(network.normalize(network.with_flips(images)))
        height, width = features.shape[2:]
        logits, gradients = self._logits_and_gradients(features.mean((2, 3), keepdim=True))
        maps = gradients.flatten(2) @ features.flatten(2) / (height * width)
        maps = maps.reshape(-1, network.outputs, height, width)
        return network.average_flips(network.flatten(logits)), network.average_flips(network.flatten(maps))


class _Head(nn.Module):
    """Module wrapper of `ClassifierNetwork.logits_and_gradients`, which makes its weights usable as inputs."""

    def __init__(self, network: ClassifierNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.logits_and_gradients(features)


def _is_uniform(gradient: Tensor) -> bool:
    return torch.equal(gradient, gradient[..., :1, :1].expand_as(gradient))


def convolution_backward(
    gradient: Tensor, inputs: Tensor, weight: Tensor, bias_sizes: object, stride: list[int], *rest: Any
) -> tuple[Tensor, None, None]:
    """Return the gradient of a convolution's input as a transposed convolution, because ONNX has no operator for it.

    The gradients of weight and bias are not needed.
    """
    padding, dilation, transposed, output_padding, groups, _ = rest
    if transposed or set(stride) != {1}:  # the size of the input is then ambiguous; no head in timm has such a layer
        return NotImplemented  # type: ignore[no-any-return]
    input_gradient: Tensor = torch.ops.aten.convolution.default(
        gradient, weight, None, stride, padding, dilation, True, output_padding, groups
    )
    return input_gradient, None, None


@contextlib.contextmanager
def _out_of_place(module: nn.Module) -> Iterator[None]:
    # Tracing replaces each in-place operation with many simpler ones, which takes a third of the export time.
    in_place = [each for each in module.modules() if getattr(each, "inplace", False)]
    for each in in_place:
        each.inplace = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for each in in_place:
            each.inplace = True  # type: ignore[assignment]


@contextlib.contextmanager
def _suppress_output() -> Iterator[None]:
    # The exporter logs each pass and emits deprecation warnings about its own code.
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_logits(network: ClassifierNetwork, pixels: npt.NDArray[np.uint8], logits: npt.NDArray[np.float32]) -> Parity:
    """Compare logits of the exported network with PyTorch and return the largest difference.

    Both compute in single precision, and a network can amplify rounding errors: one trained on a few hundred images differed by
    8e-5 from its own result in double precision.

    Args:
        network: Network in evaluation mode.
        pixels: Preprocessed images, shape (n, size, size).
        logits: Logits of the exported network, shape (n,) or (n, K).

    Raises:
        ParityError: A logit differs by more than `LOGIT_TOLERANCE`.
    """
    with torch.inference_mode():
        expected = torch.cat([network(torch.from_numpy(np.array(part))) for part in np.array_split(pixels, 2)]).numpy()
    largest = float((np.abs(expected - logits) / np.maximum(1, np.abs(expected))).max())
    if not largest <= LOGIT_TOLERANCE:
        raise ParityError(
            f"the logits of the exported network differ from PyTorch by up to {largest:.2g} of their size on {len(pixels)}"
            f" images (tolerance {LOGIT_TOLERANCE:g})",
            hint=_HINT,
        )
    return Parity(images=len(pixels), largest=largest)


def check_outputs(
    network: ClassifierNetwork,
    pixels: npt.NDArray[np.uint8],
    outputs: Outputs | MulticlassOutputs,
    input_checks: InputChecks | None = None,
) -> None:
    """Compare heatmaps, input classes, age scores and OOD distances of the exported network with PyTorch.

    Heatmap differences are relative to the largest sum of absolute channel contributions: contributions can cancel, and
    rounding errors scale with them. The gradient is discontinuous where the input of a ReLU is zero to within rounding (even
    PyTorch's single and double precision disagree there), so one heatmap in ten may differ by up to `_MAX_OUTLIER`. Distance
    differences are relative to the largest distance.

    Args:
        network: Network in evaluation mode.
        pixels: Preprocessed images, shape (n, size, size).
        outputs: Outputs of the exported network for these images, including heatmaps if it has them.
        input_checks: Exported input checks.

    Raises:
        ParityError: An output differs by more than its tolerance.
    """
    if outputs.heatmap is not None:
        images = torch.from_numpy(np.array(pixels))
        with torch.no_grad():
            features = network.forward_features(network.normalize(images))
            activation = network.class_activation(images)
            assert activation is not None  # the exported network has heatmaps
            scale = 0.0
            for gradient in network.logits_and_gradients(features)[1].unbind(1):
                contributions = network.feature_grid(gradient * features)
                assert contributions is not None
                scale = max(scale, float(contributions.abs().sum(1).max()))
            _check_output("heatmap", activation[1], outputs.heatmap, scale, outliers=math.ceil(len(pixels) / 10))
    if input_checks is None:
        return
    images = torch.from_numpy(np.array(pixels))
    with torch.no_grad():
        _check_output("input_classes", input_checks.classifier(images).softmax(1), outputs.input_classes, 1)
        if input_checks.age_classifier:
            _check_output("age_score", input_checks.age_classifier(images).sigmoid(), outputs.age_score, 1)
        distance = input_checks.detector(input_checks.extractor(images))
        _check_output("ood_distance", distance, outputs.ood_distance, float(distance.max()))


def _check_output(
    name: str, tensor: Tensor, output: npt.NDArray[np.float32] | None, scale: float, outliers: int = 0
) -> None:
    assert output is not None  # the exported network has this output
    expected = tensor.numpy().reshape(len(tensor), -1)
    difference = np.abs(expected - output.reshape(expected.shape)).max(1) / scale
    difference.sort()
    largest, outlier = float(difference[-1 - outliers]), float(difference[-1])
    if not (largest <= OUTPUT_TOLERANCE and outlier <= (_MAX_OUTLIER if outliers else OUTPUT_TOLERANCE)):
        without = f", by {largest:.2g} without the {outliers} largest" if outliers else ""
        raise ParityError(
            f"the output {name!r} of the exported network differs from PyTorch by up to {outlier:.2g} of its scale on"
            f" {len(expected)} images{without} (tolerance {OUTPUT_TOLERANCE:g})",
            hint=_HINT,
        )
