"""Recipes: validated settings of a training run; see `recipe_files` for TOML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pneumoscope.core.population import MAX_SENTENCE_LENGTH, Population, View
from pneumoscope.imaging.preprocess import Crop, Preprocessing

__all__ = [
    "AugmentationOptions",
    "DataOptions",
    "NetworkOptions",
    "OptimizerOptions",
    "PopulationOptions",
    "Recipe",
    "RejectionOptions",
    "TrainingOptions",
]


_UNSET = "none"  # TOML has no null


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _unset_fields(cls, data: Any) -> Any:
        """Return the fields with "none" replaced by None where a field is optional; elsewhere "none" is a name."""
        if not isinstance(data, Mapping):
            return data
        optional = {name for name, field in cls.model_fields.items() if type(None) in get_args(field.annotation)}
        return {name: None if value == _UNSET and name in optional else value for name, value in data.items()}


class NetworkOptions(_Table):
    """[network]: the network, its initial weights and its input."""

    name: str
    """A name in `pneumoscope models`, or any other network of timm."""
    weights: str = "none"
    """Initial weights: "none", "imagenet", "default" for the model in the package, or the path of a bundle, a run, or a
    safetensors or PyTorch file with a state dict of the network by timm, torchvision or Hugging Face. The last layer is
    replaced if its classes differ."""
    freeze: Literal["nothing", "convolutions"] = "nothing"
    """"convolutions" freezes the backbone: its features are computed once, and only the head is trained."""
    image_size: int = Field(default=224, ge=32, le=1024)
    """Side of the square input, pixels."""
    crop: Crop = "squash"
    """"squash" stretches the image to a square; "center" crops the central square first."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate before the last layer of a timm network."""
    output_stride: Literal[8, 16, 32] = 32
    """Side of the image divided by the side of the last feature map, which is the side of the heatmap. 16 doubles both
    sides of the heatmap and quadruples the cost of the last stages of the network."""
    border_mask: int = Field(default=0, ge=0, le=128)
    """Width of the border that is set to black, pixels. Image borders can reveal the source of an image."""
    flip_averaging: bool = False
    """Test-time augmentation: after training, predictions are means over the image and its mirror image."""


class DataOptions(_Table):
    """[data]: how the images are split. Splits defined by a manifest are used unchanged."""

    by: Literal["patient", "block", "image", "given"] = "patient"
    """Unit of the split: "patient", "block" (contiguous patient numbers), "image" (as in the report; leaks patients),
    or "given" (the splits that come with the data)."""
    labels: Literal["label", "etiology"] = "label"
    """"etiology" makes the cause of the pneumonia the class: bacteria, virus or normal, as in the public data set. Name
    another column with --label-column."""
    validation: float = Field(default=0.15, gt=0, lt=0.9)
    """Fraction of the training images used for validation."""
    age_range: tuple[float, float] | None = None
    """Minimum and maximum age of the patients, years. The model rejects images with an age outside this range."""


class PopulationOptions(_Table):
    """[population]: the patients and images of the data, described in the model's notice. Unset fields are unknown."""

    ages: tuple[float, float] | None = None
    """Minimum and maximum age of the patients, years; data.age_range if unset."""
    sites: int | None = Field(default=None, ge=1)
    """Number of hospitals that contributed images."""
    view: View | None = None
    """View of the images: "PA", "AP", or "frontal" for either."""
    sentence: str = Field(default="", max_length=MAX_SENTENCE_LENGTH)
    """Custom sentence for the notice, used in every language instead of one generated from the fields above."""


class OptimizerOptions(_Table):
    """[optimizer]: optimizer and learning-rate schedule. Where the report gives no value, defaults follow Keras."""

    name: Literal["sgd", "rmsprop", "adam", "adamw"] = "adam"
    """"adamw" is Adam with decoupled weight decay."""
    learning_rate: float = Field(default=0.001, gt=0, le=10)
    """Learning rate after the warm-up and before the schedule."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum of SGD."""
    decay: float = Field(default=0.9, gt=0, lt=1)
    """Decay of RMSprop's moving average of squared gradients."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's moving average of gradients. The report prints 0.09, a misprint."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of Adam's moving average of squared gradients."""
    epsilon: float = Field(default=1e-7, gt=0, le=1)
    """Epsilon of RMSprop (inside the root) and Adam (outside)."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Weight decay of SGD, Adam (both added to the gradient) and AdamW."""
    schedule: Literal["constant", "cosine", "step", "plateau", "one_cycle"] = "constant"
    """"cosine" decreases the learning rate to zero by the end of the last epoch. "step" multiplies it by step_factor
    after every step_epochs epochs; "plateau" does so after step_epochs epochs without a lower validation loss.
    "one_cycle" raises it from 1/25 of its value in the first 30% of the steps, and then decreases it to almost zero
    (Smith & Topin 2018)."""
    step_epochs: int = Field(default=5, ge=1)
    """Epochs of the schedules "step" and "plateau"."""
    step_factor: float = Field(default=0.1, gt=0, lt=1)
    """Factor of the schedules "step" and "plateau"."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Length of a linear warm-up from zero, epochs."""
    clip: float = Field(default=0.0, ge=0)
    """Maximum norm of the gradient; 0 disables clipping."""


# Optimizer-specific options. A recipe that sets an option of another optimizer is rejected.
_OPTIONS_OF_OPTIMIZER = {
    "sgd": {"momentum", "weight_decay"},
    "rmsprop": {"decay", "epsilon"},
    "adam": {"beta1", "beta2", "epsilon", "weight_decay"},
    "adamw": {"beta1", "beta2", "epsilon", "weight_decay"},
}


class TrainingOptions(_Table):
    """[training]: epochs, batches, model selection and calibration."""

    epochs: int = Field(default=15, ge=1, le=10_000)
    """Number of epochs; the maximum with early stopping."""
    early_stopping: int | None = Field(default=None, ge=1)
    """Stop after this number of epochs without improvement of the metric in `select`. By default, train all epochs."""
    batch: int = Field(default=64, ge=2, le=65_536)
    """Images per step, over all devices together."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of initial weights, order of images, dropout, augmentation, and the split unless the data defines it."""
    select: Literal["accuracy", "auroc", "loss", "last"] = "accuracy"
    """Validation metric that selects the epoch whose weights are exported; the earliest epoch in case of ties. "last"
    selects the last epoch, so that thresholds and calibration are fitted to images that were not used for model
    selection."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """"auto" is bf16 if the processor or GPU supports it natively, and 32 otherwise."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of each label that is replaced by a uniform distribution."""
    class_weights: Literal["none", "balanced"] = "none"
    """"balanced" weights each label by its inverse frequency."""
    calibrate: Literal["images", "augmented"] = "images"
    """Validation images to which calibration, thresholds and uncertainty bands are fitted: unchanged, or each augmented
    once. If framing and exposure differ between labels, unchanged validation images share these differences, and the
    fit is optimistic. "rule_out", "rule_in" and the prediction sets of multiclass models also reach their targets on
    unchanged images."""
    prevalence: float | None = Field(default=None, gt=0, lt=1)
    """Prevalence of pneumonia that probabilities are calibrated for; by default the prevalence of the validation
    images."""
    consistency: float = Field(default=0.0, ge=0, le=100)
    """Weight of a consistency loss: each training image is augmented twice, and the Jensen-Shannon divergence of the
    two predictions is added to the loss (AugMix, Hendrycks 2020). A step costs twice as much. 0 disables it."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay per step of an exponential moving average of the weights, which is then validated and exported; 0 disables
    it."""


class AugmentationOptions(_Table):
    """[augmentation]: random changes of training images. All are off by default, as in the report."""

    border_swap: float = Field(default=0.0, ge=0, le=1)
    """Probability that the border outside a central rectangle, with 0.6 to 0.95 of each side, is replaced by the border
    of another training image of either label, so that the border does not predict the label. Applies to training images
    only: `training.calibrate = "augmented"` does not swap borders."""
    flip: bool = False
    """Horizontal flip with probability one half."""
    rotation: float = Field(default=0.0, ge=0, le=45)
    """Maximum rotation in either direction, degrees."""
    translation: float = Field(default=0.0, ge=0, le=0.5)
    """Maximum translation in either direction, as a fraction of the side."""
    scale: float = Field(default=0.0, ge=0, lt=1)
    """Random crop with 1 - scale to 1 of the area, resized to the square."""
    aspect: float = Field(default=0.0, ge=0, lt=1)
    """Aspect ratio of the crop, from 1 - aspect to its inverse."""
    brightness: float = Field(default=0.0, ge=0, lt=1)
    """Gray levels are multiplied by 1 - brightness to 1 + brightness."""
    contrast: float = Field(default=0.0, ge=0, lt=1)
    """Differences from the mean gray level are multiplied by 1 - contrast to 1 + contrast."""
    gamma: float = Field(default=0.0, ge=0, lt=1)
    """Gray levels from 0 to 1 are raised to a power from 1 / (1 + gamma) to 1 + gamma."""
    blur: float = Field(default=0.0, ge=0, le=5)
    """Maximum standard deviation of a Gaussian blur, pixels."""
    noise: float = Field(default=0.0, ge=0, le=0.5)
    """Maximum standard deviation of Gaussian noise, as a fraction of the gray-level range."""
    jpeg: float = Field(default=0.0, ge=0, le=0.95)
    """JPEG compression with a quality from 100 * (1 - jpeg) to 100."""

    @property
    def any(self) -> bool:
        """True if any augmentation is enabled."""
        return any(bool(value) for value in self.model_dump().values())


class RejectionOptions(_Table):
    """[rejection]: input checks of the bundle."""

    steps: int = Field(default=0, ge=0, le=1_000_000)
    """Training steps of the input classifier. 0 disables the input classifier and the out-of-distribution detector. An
    image_size that is a multiple of 56 works best."""
    classifier_share: float = Field(default=0.01, gt=0, le=0.2)
    """Maximum fraction of the augmented validation images that the input classifier rejects."""
    age_steps: int = Field(default=0, ge=0, le=1_000_000)
    """Training steps of the age classifier, which needs data.age_range and images outside it (--outliers). 0 disables
    it."""
    age_share: float = Field(default=0.01, gt=0, le=0.2)
    """Maximum fraction of the augmented validation images that the age classifier rejects. Scores up to 0.5 always
    pass."""
    distance_share: float = Field(default=0.02, gt=0, le=0.2)
    """Maximum fraction of the augmented validation images that the out-of-distribution detector rejects."""


class Recipe(_Table):
    """Settings of a training run.

    Attributes:
        name: Name of the run: letters, digits, "-" and "_".
        about: One-line description.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    about: str = ""
    network: NetworkOptions
    data: DataOptions = DataOptions()
    population: PopulationOptions = PopulationOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    training: TrainingOptions = TrainingOptions()
    augmentation: AugmentationOptions = AugmentationOptions()
    rejection: RejectionOptions = RejectionOptions()

    @model_validator(mode="after")
    def _check_consistency(self) -> Recipe:
        if self.training.calibrate == "augmented" and not self.augmentation.model_copy(update={"border_swap": 0}).any:
            raise ValueError('training.calibrate: "augmented" needs an [augmentation] table')
        if self.training.consistency and not self.augmentation.any:
            raise ValueError("training.consistency: compares augmented copies; it needs an [augmentation] table")
        for field, ages in (("data.age_range", self.data.age_range), ("population.ages", self.population.ages)):
            if ages and not 0 <= ages[0] <= ages[1]:
                raise ValueError(f"{field}: [{ages[0]:g}, {ages[1]:g}] is not a minimum and a maximum age")
        if not self.population.sentence.isprintable():
            raise ValueError("population.sentence: it contains characters that are not printable, such as line breaks")
        if self.rejection.age_steps and not (self.data.age_range and self.rejection.steps):
            raise ValueError("rejection.age_steps: the age classifier needs data.age_range and rejection.steps")
        if self.network.flip_averaging and not self.augmentation.flip:
            raise ValueError("network.flip_averaging: needs training with mirror images; set augmentation.flip = true")
        if self.network.freeze == "convolutions" and self.augmentation.any:
            raise ValueError(
                "network.freeze: the features of frozen convolutions are computed once, so images cannot be augmented;"
                ' set it to "nothing" or remove [augmentation]'
            )
        if 4 * self.network.border_mask >= self.network.image_size:
            raise ValueError(
                f"network.border_mask: {self.network.border_mask} pixels must be less than a quarter of image_size"
                f" ({self.network.image_size})"
            )
        for field in sorted(set().union(*_OPTIONS_OF_OPTIMIZER.values()) - _OPTIONS_OF_OPTIMIZER[self.optimizer.name]):
            if getattr(self.optimizer, field) != OptimizerOptions.model_fields[field].default:
                raise ValueError(f"optimizer.{field}: {self.optimizer.name!r} has no such option")
        if self.optimizer.schedule not in ("step", "plateau"):
            for field in ("step_epochs", "step_factor"):
                if getattr(self.optimizer, field) != OptimizerOptions.model_fields[field].default:
                    raise ValueError(f"optimizer.{field}: the schedule {self.optimizer.schedule!r} has no such option")
        if self.optimizer.schedule == "one_cycle" and self.optimizer.warmup_epochs:
            raise ValueError('optimizer.warmup_epochs: the schedule "one_cycle" has its own warm-up')
        if self.training.early_stopping and self.training.select == "last":
            raise ValueError('training.early_stopping: needs a metric; training.select is "last"')
        if self.optimizer.warmup_epochs >= self.training.epochs:
            raise ValueError(
                f"optimizer.warmup_epochs: {self.optimizer.warmup_epochs} must be less than training.epochs"
                f" ({self.training.epochs})"
            )
        return self

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the images."""
        return Preprocessing(size=self.network.image_size, crop=self.network.crop)

    def declared_population(self) -> Population:
        """Return the population of the training images, as specified in the recipe."""
        stated = self.population
        return Population(
            ages=stated.ages or self.data.age_range, sites=stated.sites, view=stated.view, sentence=stated.sentence
        )

    def to_toml(self) -> str:
        """Return the recipe as TOML with all defaults; `recipe_files.read_recipe` returns an equal recipe."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
