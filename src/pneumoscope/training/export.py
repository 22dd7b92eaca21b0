"""From trained weights to a bundle: one ONNX file, checked against torch film by film, and its card.

The file gives the heatmap in the same run as the logit. What differentiates the layers behind the last feature map is traced into
a graph of its own, which the exporter takes where it would refuse `torch.func.vjp`; the weights are that graph's arguments,
so that both branches share them in the file.

Calibration and operating points are fitted on what the exported file says of the validation films, not on what torch says:
what is described is what is shipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pneumoscope import __version__
from pneumoscope.bundle.card import (
    CARD_FILE,
    FORMAT,
    LABELS,
    NETWORK_FILE,
    Band,
    Calibration,
    Card,
    Intervals,
    OperatingPoint,
    Parity,
    Share,
    short_hash,
)
from pneumoscope.bundle.golden import golden_film
from pneumoscope.dataset.cache import prepare_films
from pneumoscope.dataset.manifest import Manifest
from pneumoscope.errors import ParityError, UndefinedMetricError
from pneumoscope.networks.network import Network
from pneumoscope.predictor.predictor import OUTPUTS, Outputs, Predictor, sigmoid
from pneumoscope.statistics.calibration import fit_platt
from pneumoscope.statistics.conformal import uncertain_band
from pneumoscope.statistics.intervals import proportion
from pneumoscope.statistics.operating_point import at_sensitivity, at_specificity, highest_youden
from pneumoscope.statistics.venn_abers import fit_venn_abers
from pneumoscope.storage import write_atomically
from pneumoscope.training.films import FilmArrays
from pneumoscope.training.recipe import Recipe
from pneumoscope.training.run import machine, now, versions

__all__ = ["COVERAGE", "TOLERANCE", "check_explanations", "check_parity", "export", "to_onnx"]

TOLERANCE = 1e-4
# Of films of either label that are to be called rightly or left uncertain.
COVERAGE = 0.95
_JUMP = 0.1
_PARITY_FILMS = 64
_BATCH = 32


def export(
    network: Network, recipe: Recipe, manifest: Manifest, arrays: FilmArrays, folder: Path, *, best_epoch: int
) -> Card:
    """Write a bundle.

    Args:
        network: with the weights kept, on the CPU, in evaluation mode.
        recipe, manifest, arrays: of the run.
        folder: of the bundle; what is there is replaced.
        best_epoch: counted from 1.
    Raises:
        ParityError: logits, features or heatmaps of the exported network differ from torch's (see `check_parity` and
            `check_explanations`) on the validation films compared: 64, or all where there are fewer.
        StorageError: it cannot be written.
    """
    onnx = to_onnx(network, recipe.network.image_size)
    prepared = prepare_films(arrays.root, (*arrays.train, *arrays.validation), arrays.preparation)
    pixels = prepared.pixels[prepared.rows[len(arrays.train) :]]
    labels = np.array([film.positive for film in arrays.validation])
    card = Card(
        format=FORMAT,
        labels=LABELS,
        name=recipe.name,
        network=recipe.network.name,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        version=__version__,
        created=now(),
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
        onnx_bytes=len(onnx),
        golden_logit=0,
        preparation=arrays.preparation,
        calibration=Calibration(slope=1, intercept=0, method="none", n=0),
        intervals=None,
        points={},
        parity=Parity(films=0, largest=0),
        recipe=recipe.model_dump(mode="json"),
        seed=recipe.training.seed,
        manifest_sha256=manifest.sha256(),
        split_by=manifest.by,
        counts=manifest.counts(),
        seen={
            name: sorted(short_hash(film.sha256) for film in manifest.split(name)) for name in ("train", "validation")
        },
        best_epoch=best_epoch,
        machine=machine() | versions(),
    )
    predictor = Predictor(card, onnx)
    logits = np.concatenate([predictor.logits(pixels[i : i + _BATCH]) for i in range(0, len(pixels), _BATCH)])
    # A manifest is sorted: films from all over it are of both labels.
    spread = np.linspace(0, len(pixels) - 1, min(_PARITY_FILMS, len(pixels))).astype(int)
    if predictor.explains:
        for part in (pixels[spread[i : i + _BATCH]] for i in range(0, len(spread), _BATCH)):
            check_explanations(network, part, predictor.outputs(part))
    card = msgspec.structs.replace(
        card,
        parity=check_parity(network, pixels[spread], logits[spread]),
        golden_logit=float(predictor.logits(golden_film(recipe.network.image_size))[0]),
        calibration=_calibrate(logits, labels),
        intervals=Intervals(**fit_venn_abers(logits, labels)._asdict(), method="venn-abers", n=len(labels)),
        points=_points(sigmoid(logits), labels, [film.patient for film in arrays.validation]),
    )
    write_atomically(folder / NETWORK_FILE, onnx)
    write_atomically(folder / CARD_FILE, card.to_json())
    return card


def to_onnx(network: Network, image_size: int) -> bytes:
    """One ONNX file, weights inside: "film" uint8 (n, size, size) to `OUTPUTS`.

    "logit" is the only output where it does not hang on places of the last feature map (transformers that read a class token,
    networks without a grid), and where the layers behind that map have a gradient that ONNX cannot say (attention).

    Args:
        network: in evaluation mode, on the CPU.
        image_size: side of the films, pixels.
    """
    # Noise, because the gradient is looked at on it: a blank film may leave a whole layer of ReLUs without any.
    films = torch.randint(
        0, 256, (2, image_size, image_size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    if explains(network, films):
        with contextlib.suppress(torch.onnx.OnnxExporterError):
            return _convert(_Explained(network, films).eval(), films, OUTPUTS)
    return _convert(network, films, OUTPUTS[:1])


def _convert(module: nn.Module, films: Tensor, outputs: Sequence[str]) -> bytes:
    with _quiet():
        program = torch.onnx.export(
            module,
            (films,),
            dynamo=True,
            input_names=["film"],
            output_names=list(outputs),
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


def explains(network: Network, films: Tensor) -> bool:
    """Whether places of the last feature map carry any of the logits of these films (n, size, size)."""
    with torch.no_grad():
        explanation = network.explain(films)
    return explanation is not None and bool(explanation[1].any())


class _Explained(nn.Module):
    """Films to logits, heatmaps and pooled features, in operations that the exporter knows."""

    def __init__(self, network: Network, films: Tensor) -> None:
        super().__init__()
        self.head = _Head(network)
        # In channels last the layers in between would be traced as strides in memory, which ONNX does not have.
        with torch.no_grad():
            features = network.features(network.image(films)).contiguous()
            self.pools = network.places(features) is features and _same_everywhere(network.pull(features)[1])
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

    def forward(self, films: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        network = self.head.network
        if not self.pools:
            return network.explain(films, self._pull)
        # The closed form: behind average pooling all places of a channel have one gradient, that of their mean divided by their
        # number. One product of a vector and a matrix a film; the product of two whole maps costs 3% of lite0's time.
        maps = network.features(network.image(films))
        mean = maps.mean((2, 3), keepdim=True)
        logits, gradient = self._pull(mean)
        heatmap = gradient.flatten(1).unsqueeze(1) @ maps.flatten(2) / (maps.shape[2] * maps.shape[3])
        return logits.squeeze(1), heatmap.reshape(-1, maps.shape[2], maps.shape[3]), mean.flatten(1)


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
    """`Network.pull` as a module, whose weights can be given."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.pull(features)


def check_parity(network: Network, pixels: npt.NDArray[np.uint8], logits: npt.NDArray[np.float32]) -> Parity:
    """Compare torch with what the exported network said.

    Logits are compared relative to their size where that is above 1: both compute in single precision. Scores then agree to
    2.5e-5 (the largest x sigmoid'(x) is 0.224).

    Args:
        network: in evaluation mode.
        pixels: shape (n, size, size).
        logits: of the exported network, shape (n,).
    Raises:
        ParityError: they differ by more than `TOLERANCE` on a film.
    """
    with torch.inference_mode():
        own = torch.cat([network(torch.from_numpy(np.array(part))) for part in np.array_split(pixels, 2)]).numpy()
    largest = float((np.abs(own - logits) / np.maximum(1, np.abs(own))).max())
    if not largest <= TOLERANCE:
        raise ParityError(
            f"the exported network's logits differ from torch's by up to {largest:.2g} of their size on {len(pixels)} films"
            f" (at most {TOLERANCE:g} is allowed)",
            advice="This is a fault of the export, not of the training; the checkpoints are kept",
        )
    return Parity(films=len(pixels), largest=largest)


def check_explanations(network: Network, pixels: npt.NDArray[np.uint8], outputs: Outputs) -> None:
    """Compare torch's heatmaps and pooled features with those of the exported network.

    Differences of features are relative to the largest one on these films, those of heatmaps to the largest sum of their terms'
    sizes: a heatmap sums over channels what may cancel down to nothing, and rounding is of the size of the terms. A gradient
    jumps where a ReLU's input is zero to within rounding, on in one program and off in the other (torch's own single and double
    precision differ so): a heatmap in ten may differ by more, up to `_JUMP`.

    Args:
        network: in evaluation mode.
        pixels: shape (n, size, size).
        outputs: of the exported network, for these films.
    Raises:
        ParityError: they differ by more than `TOLERANCE`.
    """
    films = torch.from_numpy(np.array(pixels))
    with torch.no_grad():
        explanation = network.explain(films)
        features = network.features(network.image(films))
        terms = network.places(network.pull(features)[1] * features)
    assert explanation is not None  # the exported network has one
    assert terms is not None
    for name, tensor, sizes in zip(
        OUTPUTS[1:], explanation[1:], (terms.abs().sum(1), explanation[2].abs()), strict=True
    ):
        own = tensor.flatten(1).numpy()
        difference = np.abs(own - getattr(outputs, name).reshape(own.shape)).max(1) / float(sizes.max())
        difference.sort()
        spared = math.ceil(len(pixels) / 10) if name == "heatmap" else 0
        largest, jump = float(difference[-1 - spared]), float(difference[-1])
        if not (largest <= TOLERANCE and jump <= (_JUMP if spared else TOLERANCE)):
            raise ParityError(
                f"output {name!r} of the exported network differs from torch's by up to {jump:.2g} of its scale on {len(pixels)}"
                f" films, by {largest:.2g} without the worst {spared} (at most {TOLERANCE:g} is allowed)",
                advice="This is a fault of the export, not of the training; the checkpoints are kept",
            )


def _calibrate(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.bool_]) -> Calibration:
    slope, intercept = fit_platt(logits, labels)
    return Calibration(slope=slope, intercept=intercept, method="platt", n=len(labels))


def _points(
    scores: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_], patients: Sequence[str]
) -> dict[str, OperatingPoint]:
    n, positives = len(labels), int(labels.sum())
    chosen = {
        "half": (0.5, "score of 0.5, as in the report"),
        "balanced": (highest_youden(scores, labels), f"highest Youden index on {n} validation films"),
        "rule-out": (
            at_sensitivity(scores, labels, 0.99),
            f"highest threshold with sensitivity 0.99 on {positives} validation pneumonias",
        ),
        "rule-in": (
            at_specificity(scores, labels, 0.99),
            f"lowest threshold with specificity 0.99 on {n - positives} validation normals",
        ),
    }

    def share(threshold: float, positive: bool) -> Share:
        places = np.flatnonzero(labels == positive)
        right = (scores[places] >= threshold) == positive
        found = proportion(right, [patients[place] for place in places.tolist()])
        return msgspec.convert({field: getattr(found, field) for field in Share.__struct_fields__}, Share)

    return {
        name: OperatingPoint(
            threshold=threshold,
            rule=rule,
            chosen_on="fixed" if name == "half" else "validation",
            sensitivity=share(threshold, True),
            specificity=share(threshold, False),
            # Whoever asks to rule out or in has said which error is worse: every film is decided.
            band=_band(scores, labels) if name == "balanced" else None,
        )
        for name, (threshold, rule) in chosen.items()
    }


def _band(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_]) -> Band | None:
    """The scores that are left uncertain; None where there are too few films for the coverage."""
    pneumonias = int(labels.sum())
    try:
        band = uncertain_band(scores, labels, COVERAGE)
    except UndefinedMetricError:
        return None
    return Band(
        low=band.low, high=band.high, coverage=COVERAGE, normals=len(labels) - pneumonias, pneumonias=pneumonias
    )


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
