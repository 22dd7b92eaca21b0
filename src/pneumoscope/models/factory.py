"""Create a network by name, with its initial weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm

from pneumoscope.bundle.bundle_folder import CARD_FILE, read_any_card
from pneumoscope.bundle.card import Card, short_hash
from pneumoscope.bundle.multiclass_card import MulticlassCard
from pneumoscope.core.errors import RecipeError, WeightsError
from pneumoscope.data.manifest import LABELS, Manifest
from pneumoscope.models.backbones import Backbone
from pneumoscope.models.base import IMAGENET, UNIT, ClassifierNetwork, Normalization
from pneumoscope.models.onnx_weights import restore_weights
from pneumoscope.models.registry import find_model
from pneumoscope.models.report_networks import VGG19, AlexNet
from pneumoscope.models.weights import LoadedWeights, load_imagenet, load_tensors, load_weights
from pneumoscope.runs.run_folder import (
    BUNDLE_FOLDER,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    find_bundle,
    is_run_folder,
    read_text,
)

__all__ = ["create_initialized", "create_model"]

_MIN_IMAGE_SIZE = {"alexnet": 63, "vgg19": 32}  # pixels; below it, the last pooling has no input
_DEFAULT_IMAGE_SIZE = 224
# Options of a network that change its logits for the same weights.
_OPTIONS = ("image_size", "crop", "output_stride", "border_mask", "flip_averaging")


def create_model(
    name: str,
    *,
    weights: str = "none",
    image_size: int | None = None,
    dropout: float = 0.0,
    output_stride: int = 32,
    border_mask: int = 0,
    flip_averaging: bool = False,
    outputs: int = 1,
) -> ClassifierNetwork:
    """Return a network as a torch module in training mode: gray levels (n, size, size) to logits (n,), or (n, K) of K classes.

    Initial values come from torch's global random generator; set its seed first.

    Args:
        name: Name in `list_models()`, or any other name of timm.
        weights: "none", "imagenet", "default" for the model in the package, or the path of a bundle, a run or a file.
        image_size: Side of the images, pixels; the network's default if None.
        dropout: Dropout rate before the last layer of a timm network; the report's networks have fixed rates.
        output_stride: See `Backbone`; the report's networks have no such option.
        border_mask, flip_averaging: See `ClassifierNetwork`.
        outputs: Number of logits per image: 1 for NORMAL and PNEUMONIA, or the number of classes K, whose last layer is always
            random.

    Raises:
        UnknownNameError: There is no network of that name.
        RecipeError: The images are too small, or the network does not have that option.
        BundleError: The bundle cannot be read.
        WeightsError, MissingExtraError: See `models.weights`.
    """
    options = {
        "image_size": image_size,
        "dropout": dropout,
        "output_stride": output_stride,
        "border_mask": border_mask,
        "flip_averaging": flip_averaging,
        "outputs": outputs,
    }
    return create_initialized(name, weights, options)[0]


def create_initialized(name: str, weights: str, options: Mapping[str, Any]) -> tuple[ClassifierNetwork, LoadedWeights]:
    """Return a network, and a record of its initial weights.

    Args:
        name, weights: See `create_model`.
        options: The other arguments of `create_model`; "crop", with which bundles are compared; and "classes", the names of K
            classes, for which the last layer of a run of the same classes is kept.
    """
    network = _build(name, options, normalization=UNIT if weights == "none" else IMAGENET)
    if weights == "none":
        return network, LoadedWeights(frozenset(network.state_dict()))
    if weights == "imagenet":
        load_imagenet(network, name)
        backbone = {id(parameter) for parameter in network.backbone_parameters()}
        random = (name for name, parameter in network.named_parameters() if id(parameter) not in backbone)
        return network, LoadedWeights(frozenset(random))
    path = Path(weights)
    if weights != "default" and not path.exists():
        raise WeightsError(
            f"there are no weights {weights!r}",
            hint='Give "default" for the model in the package, or the path of a bundle, a run or a file of weights',
        )
    if run := _find_run(path):
        return network, _load_run(network, run, options)
    if path.is_file():
        loaded = load_weights(network, path, other_head=_describe_other_head(None, options))
        note = f"it is unknown which images the weights {weights!r} have seen; `evaluate` cannot refuse these as test images"
        return network, loaded._replace(notes=(*loaded.notes, note))
    return network, _load_bundle(network, name, find_bundle(path), options)


def _find_run(path: Path) -> Path | None:
    """Return the run whose folder or selected weights the path names; None if it names something else."""
    run = path if path.is_dir() else path.resolve().parent.parent
    file = run / WEIGHTS_FILE
    return run if is_run_folder(run) and file.is_file() and (path.is_dir() or path.resolve() == file) else None


def _load_run(network: ClassifierNetwork, run: Path, options: Mapping[str, Any]) -> LoadedWeights:
    """Load the selected weights of a run, whose bundle may be missing."""
    bundle = run / BUNDLE_FOLDER
    if (bundle / CARD_FILE).is_file():
        card = read_any_card(bundle / CARD_FILE)
        classes = card.classes if isinstance(card, MulticlassCard) else LABELS
        loaded = load_weights(network, run / WEIGHTS_FILE, other_head=_describe_other_head(classes, options))
        return _with_card(loaded, card, bundle, options)
    file = run / MANIFEST_FILE
    manifest = Manifest.from_csv(read_text(file), run, str(file))
    loaded = load_weights(network, run / WEIGHTS_FILE, other_head=_describe_other_head(manifest.classes, options))
    seen = (short_hash(image.sha256) for split in ("train", "validation") for image in manifest.split(split))
    note = f"{str(run)!r} has no bundle; of the images that its weights have seen, those of its own initial weights are unknown"
    return loaded._replace(notes=(*loaded.notes, note), seen=frozenset(seen))


def _describe_other_head(classes: Sequence[str] | None, options: Mapping[str, Any]) -> str:
    """Return how the last layer of initial weights differs from that of the network; "" if its shape decides.

    Args:
        classes: The classes of the initial weights; None if they are unknown.
        options: See `create_initialized`.
    """
    if options.get("outputs", 1) == 1 or (classes and tuple(classes) == tuple(options.get("classes", ()))):
        return ""
    return f"is for the classes {', '.join(classes)}" if classes else "is for unknown classes"


def _load_bundle(network: ClassifierNetwork, name: str, bundle: Path, options: Mapping[str, Any]) -> LoadedWeights:
    """Load the weights in the network file of a bundle."""
    if not (bundle / CARD_FILE).is_file():
        raise WeightsError(
            f"{str(bundle)!r} is neither a bundle nor a run with weights",
            hint=f"A bundle has {CARD_FILE}, and a run {WEIGHTS_FILE}",
        )
    card = read_any_card(bundle / CARD_FILE)
    if isinstance(card, MulticlassCard):
        raise WeightsError(
            f"the bundle {str(bundle)!r} has several classes, and weights cannot be restored from the bundle of such a model",
            hint=f"Give the folder of its run, which has {WEIGHTS_FILE}",
        )
    if card.network != name:
        raise WeightsError(
            f"{str(bundle)!r} has the network {card.network!r}, and the recipe {name!r}",
            hint=f"Set the network of the recipe: --set network.name={card.network}",
        )
    recorded = {key: value for key, value in dict(card.recipe.get("network", {})).items() if key in _OPTIONS}
    original = _build(name, {**recorded, "image_size": card.preprocessing.size}, normalization=IMAGENET)
    restored = restore_weights(bundle, original)
    loaded = load_tensors(network, restored.tensors, str(bundle))
    return _with_card(loaded._replace(folded=restored.folded), card, bundle, options)


def _with_card(
    loaded: LoadedWeights, card: Card | MulticlassCard, bundle: Path, options: Mapping[str, Any]
) -> LoadedWeights:
    """Add the images that the model of a bundle has seen, and a note on options that change its logits."""
    recorded = dict(card.recipe.get("network", {}))
    different = [
        f"{key} {recorded[key]} there and {options[key]} here"
        for key in _OPTIONS
        if key in recorded and options.get(key) not in (None, recorded[key])
    ]
    note = f"the network does not start from the scores of {str(bundle)!r}, because of {', '.join(different)}"
    seen = frozenset(each for hashes in card.seen.values() for each in hashes)
    return loaded._replace(notes=(*loaded.notes, *([note] if different else [])), seen=seen)


def _build(name: str, options: Mapping[str, Any], *, normalization: Normalization) -> ClassifierNetwork:
    """Return a network with random weights.

    Args:
        name, options: See `create_initialized`; missing options have their defaults.
        normalization: Normalization of VGG19.
    """
    image_size, output_stride = options.get("image_size"), options.get("output_stride", 32)
    outputs = options.get("outputs", 1)
    size = image_size if image_size is not None else _default_image_size(name)
    minimum = _MIN_IMAGE_SIZE.get(name, 32)
    if size < minimum:
        raise RecipeError(f"network.image_size is {size}; {name!r} needs at least {minimum}")
    if name in _MIN_IMAGE_SIZE and output_stride != 32:
        raise RecipeError(f"network.output_stride: {name!r} has no such option", hint="Leave it out")
    if name in _MIN_IMAGE_SIZE and outputs != 1:
        raise RecipeError(
            f"network.name: {name!r}, a network of the report, has one logit, for NORMAL and PNEUMONIA; the data have {outputs}"
            " classes",
            hint="Choose another network, such as tf_efficientnet_lite0",
        )
    network: ClassifierNetwork
    if name in ("alexnet", "alexnet-fc8"):
        network = AlexNet(size, fc8=name == "alexnet-fc8")
    elif name == "vgg19":
        # ImageNet weights need ImageNet's normalization.
        network = VGG19(size, normalization=normalization)
    else:
        dropout = options.get("dropout", 0.0)
        network = Backbone(name, image_size=size, dropout=dropout, output_stride=output_stride, outputs=outputs)
    network.border_mask = options.get("border_mask", 0)
    network.flip_averaging = options.get("flip_averaging", False)
    return network


def _default_image_size(name: str) -> int:
    if spec := find_model(name):
        return spec.image_size
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return int(config.input_size[-1]) if config is not None else _DEFAULT_IMAGE_SIZE
