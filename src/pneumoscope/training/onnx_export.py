"""From a trained network to one ONNX file that needs no torch.

The file gives the heatmap in the same run as the logit. What differentiates the layers behind the last feature map is traced into
a graph of its own, which the exporter takes where it would refuse `torch.func.vjp`; the weights are that graph's arguments,
so that both branches share them in the file.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pneumoscope.core.errors import ParityError
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.models.input_checks import InputChecks

__all__ = ["to_onnx"]


def to_onnx(network: ClassifierNetwork, image_size: int, screen: InputChecks | None = None) -> bytes:
    """One ONNX file, weights inside: "image" uint8 (n, size, size) to what `session.Outputs` holds.

    There is no heatmap where the logit does not depend on places of the last feature map (transformers that read a class token,
    networks without a grid), and where the layers behind that map have a gradient that ONNX cannot say (attention).

    Args:
        network: in evaluation mode, on the CPU.
        image_size: side of the images, pixels.
        screen: what looks at images beside it.
    """
    # Noise, because the gradient is looked at on it: a blank image may leave a whole layer of ReLUs without any.
    images = torch.randint(
        0, 256, (2, image_size, image_size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    if explains(network, images):
        with contextlib.suppress(torch.onnx.OnnxExporterError):
            return _convert(_Whole(_Explained(network, images), screen).eval(), images)
    return _convert(_Whole(_Unexplained(network), screen).eval(), images)


def _convert(module: _Whole, images: Tensor) -> bytes:
    with _quiet():
        program = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            input_names=["image"],
            output_names=module.names,
            dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ParityError("torch made no ONNX program")
    return _without_origins(program.model_proto)


def _without_origins(model: Any) -> bytes:
    """The file without notes on where in the source each operation came from: paths of this machine, in no fixed order."""

    def strip(part: Any) -> None:
        for field, value in part.ListFields():
            if field.name in {"metadata_props", "doc_string"}:
                part.ClearField(field.name)
            elif field.message_type is not None and field.message_type.name != "TensorProto":
                for inner in value if isinstance(value, Sequence) or hasattr(value, "add") else [value]:
                    strip(inner)

    strip(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def explains(network: ClassifierNetwork, images: Tensor) -> bool:
    """Whether places of the last feature map carry any of the logits of these images (n, size, size)."""
    with torch.no_grad():
        explanation = network.class_activation(images)
    return explanation is not None and bool(explanation[1].any())


class _Whole(nn.Module):
    """All that a bundle gives, in the order of `names`."""

    def __init__(self, reader: _Explained | _Unexplained, screen: InputChecks | None) -> None:
        super().__init__()
        self.reader = reader
        self.gate = screen.classifier if screen else None
        self.distance = nn.Sequential(screen.extractor, screen.detector) if screen else None
        self.names = [
            "logit",
            *(["heatmap"] if isinstance(reader, _Explained) else []),
            *(["input_classes", "ood_distance"] if screen else []),
        ]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.reader(images)
        if self.gate is None or self.distance is None:
            return outputs
        return (*outputs, self.gate(images).softmax(1), self.distance(images))


class _Unexplained(nn.Module):
    """Images to logits."""

    def __init__(self, network: ClassifierNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network(images),)


class _Explained(nn.Module):
    """Images to logits and heatmaps, in operations that the exporter knows."""

    def __init__(self, network: ClassifierNetwork, images: Tensor) -> None:
        super().__init__()
        self.head = _Head(network)
        # In channels last the layers in between would be traced as strides in memory, which ONNX does not have.
        with torch.no_grad():
            features = network.forward_features(network.normalize(images)).contiguous()
            self.pools = network.feature_grid(features) is features and _same_everywhere(
                network.logits_and_gradient(features)[1]
            )
            if self.pools:
                features = features.mean((2, 3), keepdim=True)
            weights = {name: tensor.detach() for name, tensor in self._weights().items()}
            self.traced = make_fx(
                lambda weights, features: torch.func.functional_call(self.head, weights, (features,)),
                decomposition_table={torch.ops.aten.convolution_backward.default: _convolve_back},
                tracing_mode="symbolic",
            )(weights, features)

    def _weights(self) -> dict[str, Tensor]:
        return {**dict(self.head.named_parameters()), **dict(self.head.named_buffers())}

    def _pull(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits, gradient = self.traced(self._weights(), features)
        return logits, gradient

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor] | None:
        network = self.head.network
        if not self.pools:
            return network.class_activation(images, self._pull)
        # The closed form: behind average pooling all places of a channel have one gradient, that of their mean divided by their
        # number. One product of a vector and a matrix an image; the product of two whole maps costs 3% of lite0's time.
        maps = network.forward_features(network.normalize(network.with_flips(images)))
        mean = maps.mean((2, 3), keepdim=True)
        logits, gradient = self._pull(mean)
        heatmap = gradient.flatten(1).unsqueeze(1) @ maps.flatten(2) / (maps.shape[2] * maps.shape[3])
        heatmap = heatmap.reshape(-1, maps.shape[2], maps.shape[3])
        return network.average_flips(logits.squeeze(1)), network.average_flips(heatmap)


def _same_everywhere(gradient: Tensor) -> bool:
    return torch.equal(gradient, gradient[..., :1, :1].expand_as(gradient))


def _convolve_back(
    gradient: Tensor, inputs: Tensor, weight: Tensor, bias_sizes: object, stride: list[int], *rest: Any
) -> tuple[Tensor, None, None]:
    """The gradient of a convolution's input, which ONNX has no operator for, as the transposed convolution that it is.

    The gradients of weight and bias are never asked for here.
    """
    padding, dilation, transposed, output_padding, groups, _ = rest
    if transposed or set(stride) != {1}:  # whose output's size is not told by its input's; no head of timm's has one
        return NotImplemented  # type: ignore[no-any-return]
    back: Tensor = torch.ops.aten.convolution.default(
        gradient, weight, None, stride, padding, dilation, True, output_padding, groups
    )
    return back, None, None


class _Head(nn.Module):
    """`ClassifierNetwork.logits_and_gradient` as a module, whose weights can be given."""

    def __init__(self, network: ClassifierNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.logits_and_gradient(features)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporter logs each of its passes and warns of its own future.
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
