"""Train the input classifier and fit the out-of-distribution (OOD) detector on the training images.

Rotated, mirrored, inverted and cropped examples are made from training images, so they differ only in the transform. Rotation
angles between the plausible and the rotated range are not trained on; there the classifier may decide either way.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pneumoscope.bundle.card import INPUT_CLASSES, InputClass
from pneumoscope.models.input_checks import FeatureExtractor, InputChecks, InputClassifier, MahalanobisDetector
from pneumoscope.runs.recipe import AugmentationOptions
from pneumoscope.training.augmentation import augment
from pneumoscope.training.callbacks import track_steps
from pneumoscope.training.data_module import derive_seed
from pneumoscope.training.negative_images import negative_image

__all__ = [
    "ACCEPTED",
    "MAX_CROPPED_AREA",
    "PLAUSIBLE",
    "SIDE",
    "crop_image",
    "draw_examples",
    "fit_input_checks",
    "fit_mahalanobis",
    "train_input_classifier",
    "transform_to_class",
]

# Side of the examples in pixels; the classifier halves it. Small enough to draw new examples at each step.
SIDE = 112
_EXAMPLES_PER_STEP = 64
# Relative class frequencies: upright images are as frequent as three other classes together.
_FREQUENCIES: dict[InputClass, int] = {
    "upright": 6, "inverted": 2, "upside_down": 2, "rotated_90": 2, "mirrored": 2, "cropped": 2, "not_a_chest_radiograph": 3,
}  # fmt: skip
# Plausible variation of radiographs, wider than in clinical practice, so that borderline images are accepted.
PLAUSIBLE = AugmentationOptions(
    rotation=15, translation=0.06, scale=0.3, aspect=0.2, brightness=0.35, contrast=0.4, gamma=0.6, blur=1, noise=0.06
)
# Variation that must be accepted: the limits are fitted on validation images augmented with it, once each. With the
# wider variation above, the distance limit would accept most images of adults.
ACCEPTED = AugmentationOptions(
    rotation=10,
    translation=0.03,
    scale=0.1,
    aspect=0.05,
    brightness=0.2,
    contrast=0.2,
    gamma=0.2,
    blur=0.5,
    noise=0.01,
    jpeg=0.5,
)
_ROTATED = PLAUSIBLE.model_copy(update={"rotation": 30.0})
MAX_CROPPED_AREA = 0.35  # fraction of the image area
_MAX_COMPONENTS = 96
_AUGMENTED_COPIES = 4  # per image; fewer do not cover the plausible variation
_BATCH = 32


def fit_input_checks(
    pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], *, steps: int, seed: int
) -> InputChecks:
    """Return the input classifier and the OOD detector, fitted on the training images.

    The detector is fitted on each image and several augmented copies, so that plausible positioning and exposure count as in
    distribution.

    Args:
        pixels: Preprocessed images, shape (n, size, size).
        rows: Rows of the training images.
        steps, seed: See `train_input_classifier`.

    Raises:
        MissingExtraError: See `FeatureExtractor`.
    """
    extractor = FeatureExtractor()
    features = []
    with torch.no_grad():
        for start in range(0, len(rows), _BATCH):
            images = torch.from_numpy(pixels[rows[start : start + _BATCH]])
            features.append(extractor(images).numpy())
            for copy in range(_AUGMENTED_COPIES):
                seeds = [derive_seed(seed, start + i, copy, 10) for i in range(len(images))]
                features.append(extractor(augment(images, PLAUSIBLE, seeds)).numpy())
    detector = fit_mahalanobis(np.concatenate(features))
    return InputChecks(train_input_classifier(pixels, rows, steps=steps, seed=seed), extractor, detector)


def fit_mahalanobis(features: npt.NDArray[np.float32]) -> MahalanobisDetector:
    """Return the OOD detector fitted on features of shape (images, channels); needs at least three images."""
    from sklearn.decomposition import PCA  # slow import, only needed for input checks

    count = min(_MAX_COMPONENTS, min(features.shape) - 1)
    mean, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    # Constant features would cause a division by zero, here and below.
    scale = np.where(scale > 1e-6 * float(scale.max()) + 1e-12, scale, 1.0)
    with np.errstate(invalid="ignore"):  # the unused explained variance ratio is 0/0 for zero variance
        pca = PCA(count, svd_solver="full").fit((features - mean) / scale)
    min_deviation = 1e-6 * float(np.sqrt(pca.explained_variance_[0])) + 1e-12
    return MahalanobisDetector(
        torch.from_numpy(mean),
        torch.from_numpy(scale),
        torch.from_numpy(pca.components_),
        torch.from_numpy(np.maximum(np.sqrt(pca.explained_variance_), min_deviation)),
        torch.tensor(max(float(np.sqrt(pca.noise_variance_)), min_deviation)),
    )


def train_input_classifier(
    pixels: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    *,
    steps: int,
    seed: int,
) -> InputClassifier:
    """Train an input classifier on the CPU and return it in evaluation mode.

    Args:
        pixels: Preprocessed images, shape (n, size, size).
        rows: Rows of the training images.
        steps: Training steps, each with 64 new examples.
        seed: Seed of the initial weights and the examples.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 7))
        classifier = InputClassifier(len(INPUT_CLASSES))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    classifier.train()
    for step in track_steps(steps, "training the input classifier"):
        images, classes = draw_examples(pixels, rows, _EXAMPLES_PER_STEP, derive_seed(seed, step, 8))
        optimizer.zero_grad()
        F.cross_entropy(classifier(images), classes).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return classifier.eval()


def draw_examples(
    pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return random examples of all input classes.

    Args:
        pixels, rows: See `train_input_classifier`.
        count: Number of examples.
        seed: Random seed.

    Returns:
        Gray levels 0 to 255, float32, shape (count, SIDE, SIDE), and indices into `INPUT_CLASSES`, shape (count,).
    """
    rng = np.random.default_rng(seed)
    frequencies = np.array([_FREQUENCIES[input_class] for input_class in INPUT_CLASSES], dtype=float)
    classes = rng.choice(len(INPUT_CLASSES), count, p=frequencies / frequencies.sum())
    images = pixels[rng.choice(rows, count)]
    cropped = [
        crop_image(image, rng) if INPUT_CLASSES[class_index] == "cropped" else image
        for image, class_index in zip(images, classes, strict=True)
    ]
    resized = torch.stack([_resize(image) for image in cropped])
    for i in np.flatnonzero(classes == INPUT_CLASSES.index("not_a_chest_radiograph")).tolist():
        resized[i] = torch.from_numpy(negative_image(rng, resized[i].numpy()).copy())
    seeds = rng.integers(2**62, size=count).tolist()
    rotated = np.isin(classes, [INPUT_CLASSES.index(name) for name in ("upside_down", "rotated_90")])
    examples = torch.where(
        torch.from_numpy(rotated).view(-1, 1, 1), augment(resized, _ROTATED, seeds), augment(resized, PLAUSIBLE, seeds)
    )
    for i, class_index in enumerate(classes.tolist()):
        examples[i] = transform_to_class(examples[i], INPUT_CLASSES[class_index], rng)
    return examples, torch.from_numpy(classes)


def _resize(image: npt.NDArray[np.uint8]) -> Tensor:
    gray = torch.from_numpy(np.array(image, dtype=np.float32))[None, None]
    resized = F.interpolate(gray, (SIDE, SIDE), mode="bilinear", antialias=True)[0, 0]
    return resized.round().clamp(0, 255).to(torch.uint8)


def crop_image(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return a random crop with 6% to 35% of the area and an aspect ratio from 2:3 to 3:2."""
    area, ratio = rng.uniform(0.06, MAX_CROPPED_AREA), np.exp(rng.uniform(-0.4, 0.4))
    height, width = (int(len(image) * np.sqrt(area * factor)) for factor in (1 / ratio, ratio))
    top, left = (int(rng.integers(len(image) - side + 1)) for side in (height, width))
    return image[top : top + height, left : left + width]


def transform_to_class(image: Tensor, input_class: InputClass, rng: np.random.Generator) -> Tensor:
    """Return an upright image transformed to another class; cropped images and negatives are returned unchanged."""
    mirror = bool(rng.random() < 0.5)
    if input_class == "mirrored":
        return image.flip(1)
    if input_class == "inverted":
        image = torch.rot90(image, int(rng.choice([0, 0, 0, 1, 2, 3])))
        return 255 - (image.flip(1) if mirror else image)
    if input_class in {"upside_down", "rotated_90"}:
        turns = 2 if input_class == "upside_down" else int(rng.choice([1, 3]))
        return torch.rot90(image.flip(1) if mirror else image, turns)
    return image
