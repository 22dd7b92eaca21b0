"""Restore a network from the ONNX file of its bundle.

The exporter changes the weights: it folds batch norms into the preceding convolutions, transposes dense layers, merges tensors
with equal values, and keeps only some of the names. Each layer is therefore matched to its node on the path to the logit:
convolutions by the name of their weight, other layers by their order. The file lacks two things:

- Folded batch norms. They become the identity plus the bias of the folded convolution, whose weight contains their scale; this
  gives the same logits in evaluation mode. `training.norm_statistics` estimates their statistics before training.
- The number of batches seen by a batch norm, which has no effect.

The result is verified with the logit of the self-test image on the card.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import Card
from pneumoscope.bundle.network_checks import self_test_image
from pneumoscope.core.errors import WeightsError
from pneumoscope.models.base import ClassifierNetwork

__all__ = ["RestoredWeights", "check_self_test", "restore_weights"]

TOLERANCE = 1e-3  # of the self-test logit, relative to its magnitude if above 1
_PREFIXES = ("classifier.head.network.", "classifier.network.")  # see `training.onnx_export`
_LOGIT = "logit"
_HINT = "If the run of the bundle still exists, give its folder, whose weights are complete"
_Array = npt.NDArray[Any]


class RestoredWeights(NamedTuple):
    """Weights restored from an ONNX file.

    Attributes:
        tensors: Tensors by parameter name.
        folded: Names of the batch norms whose statistics are unknown.
    """

    tensors: dict[str, Tensor]
    folded: frozenset[str]


class _Layers(NamedTuple):
    """Layers of a network in the order of a forward pass.

    Attributes:
        convolutions, dense, norms: Names of convolutions, dense layers and layer norms.
        norm_of: Batch norm that follows each convolution.
    """

    convolutions: list[str]
    dense: list[str]
    norms: list[str]
    norm_of: dict[str, str]


def restore_weights(bundle: Path, network: ClassifierNetwork) -> RestoredWeights:
    """Return the weights of a bundle's network.

    Args:
        bundle: Folder of the bundle.
        network: Network of the same architecture and options, with any weights; receives the restored weights.

    Raises:
        BundleError: The bundle cannot be read.
        WeightsError: A tensor cannot be restored, or the logit of the restored network differs from the card.
    """
    card, content = read_bundle(bundle)
    graph = onnx.load_from_string(content).graph
    values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    prefix = next((each for each in _PREFIXES if any(name.startswith(each) for name in values)), None)
    if prefix is None:
        raise WeightsError(f"the network file of {str(bundle)!r} has no named weights", hint=_HINT)
    network.eval()
    layers = _layers(network, card.preprocessing.size)
    found = _restore(network, layers, values, prefix, list(_nodes_of_logit(graph)))
    state = network.state_dict()
    optional = {name for name in state if name.endswith("num_batches_tracked")} | {"offset", "scale"}
    missing = [name for name in state if name not in found.tensors and name not in optional]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise WeightsError(
            f"{missing[0]!r}{more} cannot be restored from the network file of {str(bundle)!r}", hint=_HINT
        )
    for name, tensor in found.tensors.items():
        if tensor.shape != state[name].shape:
            raise WeightsError(
                f"{name!r} has shape {tuple(tensor.shape)} in the network file of {str(bundle)!r}, and {tuple(state[name].shape)}"
                f" in {card.network!r}",
                hint=_HINT,
            )
    network.load_state_dict(found.tensors, strict=False)
    check_self_test(network, card, str(bundle))
    return RestoredWeights({name: value.clone() for name, value in network.state_dict().items()}, found.folded)


def check_self_test(network: ClassifierNetwork, card: Card, source: str) -> None:
    """Raise unless a network in evaluation mode reproduces the self-test logit on a bundle's card.

    Raises:
        WeightsError: Contains both logits.
    """
    image = torch.from_numpy(np.array(self_test_image(card.preprocessing.size)))
    with torch.inference_mode():
        logit = float(network(image).flatten()[0])
    if not abs(logit - card.self_test_logit) <= TOLERANCE * max(1.0, abs(card.self_test_logit)):
        raise WeightsError(
            f"the network that was restored from {source!r} has the logit {logit:.4f} for the self-test image; the card has"
            f" {card.self_test_logit:.4f}",
            hint=_HINT,
        )


def _nodes_of_logit(graph: Any) -> Iterator[Any]:
    """Yield the nodes that the logit depends on, in order, without those of heatmaps and input checks."""
    producer = {output: node for node in graph.node for output in node.output}
    needed, pending = set(), [_LOGIT]
    while pending:
        node = producer.get(pending.pop())
        if node is not None and node.output[0] not in needed:
            needed.add(node.output[0])
            pending += node.input
    for node in graph.node:
        if node.output[0] in needed:
            yield node


def _restore(
    network: ClassifierNetwork, layers: _Layers, values: Mapping[str, _Array], prefix: str, nodes: Sequence[Any]
) -> RestoredWeights:
    state = network.state_dict()
    tensors: dict[str, _Array] = {name: values[prefix + name] for name in state if prefix + name in values}
    used = {prefix + name for name in tensors}
    folded = set()
    by_weight = {node.input[1]: node for node in nodes if node.op_type == "Conv"}
    for name in layers.convolutions:
        node = by_weight.get(f"{prefix}{name}.weight")
        if node is None:
            continue  # reported as missing
        out = len(values[node.input[1]])
        bias = values[node.input[2]] if len(node.input) > 2 else np.zeros(out, np.float32)
        has_bias = f"{name}.bias" in state
        if has_bias:
            tensors[f"{name}.bias"] = bias
        norm = layers.norm_of.get(name)
        if norm is not None and f"{norm}.running_mean" not in tensors:
            folded.add(norm)
            tensors |= _identity(network.get_submodule(norm), norm, np.zeros_like(bias) if has_bias else bias)
    dense = [
        node for node in nodes if node.op_type in ("Gemm", "MatMul") and np.ndim(values.get(node.input[1], 0.0)) == 2
    ]
    if len(dense) == len(layers.dense):
        for name, node in zip(layers.dense, dense, strict=True):
            weight = values[node.input[1]]
            is_transposed = node.op_type == "Gemm" and any(each.name == "transB" and each.i for each in node.attribute)
            tensors[f"{name}.weight"] = weight if is_transposed else weight.T
            bias_name = _bias_of(node, nodes, values)
            used |= {node.input[1], bias_name}
            if f"{name}.bias" in state:  # the exporter omits zero biases
                tensors[f"{name}.bias"] = values.get(bias_name, np.zeros(len(tensors[f"{name}.weight"]), np.float32))
    normalizations = [node for node in nodes if node.op_type == "LayerNormalization"]
    if len(normalizations) == len(layers.norms):
        for name, node in zip(layers.norms, normalizations, strict=True):
            for field, source in zip(("weight", "bias"), node.input[1:], strict=False):
                used.add(source)
                if f"{name}.{field}" in state and source in values:
                    tensors[f"{name}.{field}"] = values[source]
    tensors |= _elementwise(state, tensors, nodes, values, used)
    return RestoredWeights(
        {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, frozenset(folded)
    )


def _bias_of(node: Any, nodes: Sequence[Any], values: Mapping[str, _Array]) -> str:
    """Return the name of a dense layer's bias, or "" if it has none."""
    if node.op_type == "Gemm":
        return str(node.input[2]) if len(node.input) > 2 else ""
    for after in nodes:
        if after.op_type == "Add" and node.output[0] in after.input:
            return next((str(name) for name in after.input if name in values), "")
    return ""


def _elementwise(
    state: Mapping[str, Tensor],
    found: Mapping[str, _Array],
    nodes: Sequence[Any],
    values: Mapping[str, _Array],
    used: set[str],
) -> dict[str, _Array]:
    """Return parameters used in additions and multiplications (position embeddings, layer scales), matched by order."""
    buffers = ("num_batches_tracked", "running_mean", "running_var")
    missing = [
        name for name in state if name not in found and not name.endswith(buffers) and name not in ("offset", "scale")
    ]
    sources = [
        name
        for node in nodes
        if node.op_type in ("Add", "Mul")
        for name in node.input
        if name in values and name not in used and values[name].size > 1
    ]
    if len(sources) != len(missing) or any(
        state[name].numel() != values[source].size for name, source in zip(missing, sources, strict=True)
    ):
        return {}
    return {
        name: values[source].reshape(tuple(state[name].shape)) for name, source in zip(missing, sources, strict=True)
    }


def _identity(norm: nn.Module, name: str, bias: _Array) -> dict[str, _Array]:
    """Return the tensors of a batch norm that only adds a bias."""
    assert isinstance(norm, _BatchNorm)
    return {
        f"{name}.weight": np.full_like(bias, np.sqrt(1 + norm.eps)),
        f"{name}.bias": bias,
        f"{name}.running_mean": np.zeros_like(bias),
        f"{name}.running_var": np.ones_like(bias),
    }


def _layers(network: ClassifierNetwork, image_size: int) -> _Layers:
    """Return the layers in the order of a forward pass."""
    layers = _Layers([], [], [], {})
    producer: dict[int, tuple[str, Tensor]] = {}  # holds the tensor, so that its id is not reused

    def after(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.modules.conv._ConvNd):
            layers.convolutions.append(name)
            producer[id(output)] = (name, output)
        elif isinstance(module, nn.Linear):
            layers.dense.append(name)
        elif isinstance(module, nn.LayerNorm):
            layers.norms.append(name)

    def before(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, _BatchNorm) and id(inputs[0]) in producer:
            layers.norm_of[producer[id(inputs[0])][0]] = name

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_hook(lambda *call, name=name: after(name, *call)))
        handles.append(module.register_forward_pre_hook(lambda *call, name=name: before(name, *call)))
    try:
        with torch.no_grad():
            network(torch.zeros(1, image_size, image_size, dtype=torch.uint8))
    finally:
        for handle in handles:
            handle.remove()
    return layers
