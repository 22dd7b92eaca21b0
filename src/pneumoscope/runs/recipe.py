"""Recipes: validated settings of a training run, read from TOML and saved as TOML in the run folder."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pneumoscope.core.errors import RecipeError, UnknownNameError
from pneumoscope.imaging.preprocess import Crop, Preprocessing

__all__ = [
    "Augmentation",
    "Data",
    "NetworkChoice",
    "Optimizer",
    "Recipe",
    "Training",
    "check",
    "read_recipe",
    "shipped",
]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class NetworkChoice(_Table):
    """[network]: what is trained and from where."""

    name: str
    """In `pneumoscope models`, or any other network of timm's."""
    weights: str = "none"
    """"none", "imagenet", or the path of a file with tensors alone."""
    freeze: Literal["nothing", "convolutions"] = "nothing"
    """"convolutions" holds them still: their features are computed once and the rest trains on those."""
    image_size: int = Field(default=224, ge=32, le=1024)
    """Side of the square image, pixels."""
    crop: Crop = "squash"
    """"squash" stretches the image to the square; "centre" cuts the central square of the short side first."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Before the last layer of a timm network."""
    border_mask: int = Field(default=0, ge=0, le=128)
    """Pixels at each edge of the square that the network sees as black: how an image ends tells where it comes from."""
    flip_averaging: bool = False
    """Once trained, it reads every image and its mirror image, and says the mean."""


class Data(_Table):
    """[data]: how images that are not split yet are split; ignored for a manifest."""

    by: Literal["patient", "block", "image", "given"] = "patient"
    """"patient" keeps patients whole, "block" takes contiguous ids, "image" is the report's, "given" takes the data's own."""
    validation: float = Field(default=0.15, gt=0, lt=0.9)
    """Share of the training images set apart for validation."""
    age_range: tuple[float, float] | None = None
    """Least and greatest age of the patients, years; the bundle refuses an image whose header states another one."""


class Optimizer(_Table):
    """[optimizer]: how weights move. Defaults are Keras's where the report is silent."""

    name: Literal["sgd", "rmsprop", "adam", "adamw"] = "adam"
    """"adamw" is adam with weight decay apart from the gradient."""
    learning_rate: float = Field(default=0.001, gt=0, le=10)
    """Of every step after the warm-up, before the schedule."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Of sgd."""
    decay: float = Field(default=0.9, gt=0, lt=1)
    """Of rmsprop's running mean of squares."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Of adam; the report prints 0.09, a misprint."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Of adam's running mean of squares."""
    epsilon: float = Field(default=1e-7, gt=0, le=1)
    """Of rmsprop (inside the root) and adam (outside)."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Of sgd, adam (added to the gradient) and adamw."""
    schedule: Literal["constant", "cosine"] = "constant"
    """"cosine" falls to zero at the end of the last epoch."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """A linear rise from zero at the start."""
    clip: float = Field(default=0.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""


# Fields that only some optimizers have; a recipe that sets one for another is mistaken about what it trains with.
_OWN_FIELDS = {
    "sgd": {"momentum", "weight_decay"},
    "rmsprop": {"decay", "epsilon"},
    "adam": {"beta1", "beta2", "epsilon", "weight_decay"},
    "adamw": {"beta1", "beta2", "epsilon", "weight_decay"},
}


class Training(_Table):
    """[training]: how long, how much at once, and what is kept."""

    epochs: int = Field(default=15, ge=1, le=10_000)
    """Times that every training image is seen."""
    batch: int = Field(default=64, ge=2, le=65_536)
    """Images a step, over all devices together."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the starting weights, the order of images, dropout, augmentation, and the split where the images have none."""
    select: Literal["accuracy", "auroc", "loss", "last"] = "accuracy"
    """The epoch kept is the one whose validation figure is best, the earlier one at a tie. "last" keeps the last, so that the
    validation images have chosen nothing when thresholds and calibration are fitted on them."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """"auto" is bf16 where the processor or GPU computes in it, 32 elsewhere."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each label that is replaced by one half."""
    class_weights: Literal["none", "balanced"] = "none"
    """"balanced" weighs each label by the inverse of its share."""
    calibrate: Literal["images", "augmented"] = "images"
    """What calibration, thresholds and bands are fitted on: validation images as they are, or each once as a training image may
    look. Where the labels differ in how their images are framed and lit, plain validation images do too, and flatter."""
    prevalence: float | None = Field(default=None, gt=0, lt=1)
    """Share of pneumonia that probabilities are stated for; by default that of the validation images."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay a step of an exponential mean of the weights, which is then what is validated and kept; 0 has none."""


class Augmentation(_Table):
    """[augmentation]: what a training image may look like instead. All off by default, as in the report."""

    flip: bool = False
    """Left and right, half of the time."""
    rotation: float = Field(default=0.0, ge=0, le=45)
    """Degrees to either side."""
    translation: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the side, in either direction."""
    scale: float = Field(default=0.0, ge=0, lt=1)
    """A crop of 1 - scale to 1 of the area is stretched to the square."""
    aspect: float = Field(default=0.0, ge=0, lt=1)
    """The crop's aspect ratio moves within 1 - aspect and its inverse."""
    brightness: float = Field(default=0.0, ge=0, lt=1)
    """Grey levels are multiplied by 1 - brightness to 1 + brightness."""
    contrast: float = Field(default=0.0, ge=0, lt=1)
    """Distances from the image's mean grey are multiplied by 1 - contrast to 1 + contrast."""
    gamma: float = Field(default=0.0, ge=0, lt=1)
    """Grey levels of 0 to 1 are raised to a power between 1 / (1 + gamma) and 1 + gamma."""
    blur: float = Field(default=0.0, ge=0, le=5)
    """Largest deviation of a Gaussian blur, pixels."""
    noise: float = Field(default=0.0, ge=0, le=0.5)
    """Largest deviation of added noise, share of the grey range."""
    jpeg: float = Field(default=0.0, ge=0, le=0.95)
    """Written as JPEG and read again, with a quality between 100 * (1 - jpeg) and 100."""

    @property
    def any(self) -> bool:
        """True where a training image may differ from the image on disk."""
        return any(bool(value) for value in self.model_dump().values())


class RejectionOptions(_Table):
    """[rejection]: what the bundle says nothing of."""

    steps: int = Field(default=0, ge=0, le=1_000_000)
    """Batches that a second, small network learns from, which tells images as they should be from other pictures. With 0
    there is none, and the bundle does not know what it has never seen either. Best where image_size is a multiple of 56."""
    classifier_share: float = Field(default=0.01, gt=0, le=0.2)
    """Of validation images, each once a little askew and lit otherwise, that may be refused as such pictures."""
    distance_share: float = Field(default=0.02, gt=0, le=0.2)
    """Of the same, that may be refused as too unlike the training images."""


class Recipe(_Table):
    """One recipe.

    Attributes:
        name: of the run, letters, digits, "-" and "_".
        about: one line for a person who chooses.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    about: str = ""
    network: NetworkChoice
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    training: Training = Training()
    augmentation: Augmentation = Augmentation()
    rejection: RejectionOptions = RejectionOptions()

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if self.training.calibrate == "augmented" and not self.augmentation.any:
            raise ValueError("training.calibrate: images cannot be calibrated augmented without an [augmentation]")
        if self.data.age_range and not 0 <= self.data.age_range[0] <= self.data.age_range[1]:
            raise ValueError("data.age_range: the least and the greatest age, in this order")
        if self.network.flip_averaging and not self.augmentation.flip:
            raise ValueError("network.flip_averaging: it never saw a mirrored image; set augmentation.flip")
        if self.network.freeze == "convolutions" and self.augmentation.any:
            raise ValueError(
                "network.freeze: features of frozen convolutions are computed once, so images cannot be augmented:"
                " set it to nothing or leave [augmentation] out"
            )
        if 4 * self.network.border_mask >= self.network.image_size:
            raise ValueError(
                f"network.border_mask: {self.network.border_mask} pixels at each edge leave too little of {self.network.image_size}"
            )
        every = set().union(*_OWN_FIELDS.values())
        for field in sorted(every - _OWN_FIELDS[self.optimizer.name]):
            if getattr(self.optimizer, field) != Optimizer.model_fields[field].default:
                raise ValueError(f"optimizer.{field}: {self.optimizer.name!r} has no such field")
        if self.optimizer.warmup_epochs >= self.training.epochs:
            raise ValueError(
                f"optimizer.warmup_epochs: {self.optimizer.warmup_epochs} leaves nothing of {self.training.epochs} epochs"
            )
        return self

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input."""
        return Preprocessing(size=self.network.image_size, crop=self.network.crop)

    def to_toml(self) -> str:
        """Return the recipe as TOML, with every field that has a value; `read_recipe` reads it back to an equal recipe."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def shipped(package: str = "pneumoscope.recipes") -> dict[str, str]:
    """Return the recipes inside a package as {name: TOML text}, sorted by name."""
    found = {item.name.removesuffix(".toml"): item for item in files(package).iterdir() if item.name.endswith(".toml")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


def read_recipe(source: str, overrides: Iterable[str] = (), recipes: Mapping[str, str] | None = None) -> Recipe:
    """Return a recipe by name or from a file, with single fields overridden.

    Args:
        source: The name of a known recipe, or the path of a TOML file.
        overrides: "training.epochs=3" each; the value is parsed as TOML, and taken as a string where that fails.
        recipes: Known recipes as {name: TOML text}; those of `shipped()` by default.
    Raises:
        UnknownNameError: Neither a known recipe nor a file.
        RecipeError: Not TOML, an unknown field (the nearest is named), or an invalid value.
    """
    recipes = shipped() if recipes is None else recipes
    if source in recipes:
        text, where = recipes[source], f"recipe {source}"
    elif Path(source).is_file():
        try:
            text, where = Path(source).read_text(encoding="utf-8"), source
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                f"cannot read {source!r} as a recipe: {error}", hint="A recipe is TOML in UTF-8"
            ) from error
    else:
        raise UnknownNameError("recipe", source, recipes, hint="List them with: pneumoscope recipes; or give a file")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where} is not TOML: {error}") from error
    for override in overrides:
        _override(data, override)
    return check(data, where)


def check(data: Mapping[str, Any], where: str) -> Recipe:
    """Data as a recipe.

    Raises:
        RecipeError: naming the field, what it was, and the nearest valid field where it is unknown.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "recipe"
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(field, _fields(), n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(_fields())}"
            raise RecipeError(f"{where}: there is no field {field!r}", hint=hint) from error
        if first["type"] == "value_error":
            raise RecipeError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
        found = "" if first["type"] == "missing" else f" (it is {first['input']!r})"
        raise RecipeError(f"{where}: {field}: {first['msg']}{found}") from error


def _fields() -> list[str]:
    names = []
    for name, field in Recipe.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += [f"{name}.{inner}" for inner in kind.model_fields]
        else:
            names.append(name)
    return names


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override!r} is not key=value", hint="Example: --set training.epochs=3")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *tables, last = key.strip().split(".")
    place = data
    for table in tables:
        place = place.setdefault(table, {})
        if not isinstance(place, dict):
            raise RecipeError(f"--set {override!r}: {table!r} is a value, not a table")
    place[last] = parsed
