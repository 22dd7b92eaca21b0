"""Train the age classifier by outlier exposure: radiographs of patients outside the age range are the positive examples.

These examples come from other hospitals than the training images. A network that separates the two by contrast, markers,
collimation or compression has learned the hospital, not the age. Both classes therefore get the same strong augmentation, and
images exchange their style within the batch: histograms are matched, and the amplitudes of low spatial frequencies are swapped
(Fourier domain adaptation). Bars at the borders and marker-like rectangles are drawn on images of both classes, and the
resolution is reduced. `benchmarks/outliers.py` measures the remaining bias.

Sources: Hendrycks, Mazeika and Dietterich 2019, "Deep Anomaly Detection with Outlier Exposure". Yang and Soatto 2020, "FDA:
Fourier Domain Adaptation for Semantic Segmentation".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pneumoscope.models.input_checks import EXTRACTOR_SIDE, AgeClassifier, downsample
from pneumoscope.runs.recipe import AugmentationOptions
from pneumoscope.training.augmentation import augment
from pneumoscope.training.callbacks import track_steps
from pneumoscope.training.data_module import derive_seed

__all__ = ["EXPOSURE", "exchange_styles", "train_age_classifier"]

# Wider than the plausible variation, so framing, exposure and compression carry no information about the class.
EXPOSURE = AugmentationOptions(
    flip=True, rotation=20, translation=0.06, scale=0.6, aspect=0.35, brightness=0.35, contrast=0.45, gamma=0.8, blur=1.2,
    noise=0.05, jpeg=0.8,
)  # fmt: skip
_LEARNING_RATE, _WEIGHT_DECAY = 5e-4, 0.02
_LABEL_SMOOTHING = 0.03  # a few ages are unknown or wrong
_AVERAGING = 0.995  # decay of the moving average of the weights
# Probability of each style change per image.
_FREQUENCY_SWAP, _HISTOGRAM_MATCH, _BARS, _LOW_RESOLUTION, _SHARPENING = 0.5, 0.8, 0.4, 0.35, 0.25
_MAX_FREQUENCY = 5  # cycles per image
_MAX_MARKERS = 2  # per image

View = Callable[[Tensor], Tensor]


def train_age_classifier(
    inside: npt.NDArray[np.uint8],
    outside: npt.NDArray[np.uint8],
    groups: Sequence[str],
    *,
    steps: int,
    seed: int,
    batch: int = 48,
    view: View | None = None,
) -> AgeClassifier:
    """Train an age classifier on the CPU and return it in evaluation mode.

    Args:
        inside: Preprocessed images of patients within the age range, shape (n, size, size).
        outside: Preprocessed images of patients outside the age range, shape (m, size, size).
        groups: Group, such as the source, of each image in `outside`. Groups are sampled in proportion to the square root of
            their size, to give small groups more weight.
        steps: Training steps.
        seed: Seed of the initial weights, the sampling and the augmentation.
        batch: Number of augmented images per step, on average half from `outside`.
        view: Transform of gray levels (n, size, size) that hides information from the network, for control experiments.

    Raises:
        MissingExtraError: See `AgeClassifier`.
    """
    pixels = np.concatenate([_network_pixels(inside), _network_pixels(outside)])
    is_outside = np.arange(len(pixels)) >= len(inside)
    sizes = Counter(groups)
    weights = np.array([sizes[group] ** -0.5 for group in groups])
    probabilities = np.concatenate([np.full(len(inside), 0.5 / len(inside)), 0.5 * weights / weights.sum()])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 11))
        classifier = AgeClassifier().to(memory_format=torch.channels_last)
        average = torch.optim.swa_utils.AveragedModel(classifier, avg_fn=_moving_average, use_buffers=True)
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=_LEARNING_RATE, total_steps=steps, pct_start=0.1
        )
        classifier.train()
        for step in track_steps(steps, "training the age classifier"):
            rng = np.random.default_rng(derive_seed(seed, step, 12))
            rows = rng.choice(len(pixels), batch, p=probabilities)
            styled = exchange_styles(torch.from_numpy(pixels[rows]), rng)
            images = augment(styled, EXPOSURE, rng.integers(2**62, size=batch).tolist())
            target = torch.from_numpy(is_outside[rows]).float() * (1 - 2 * _LABEL_SMOOTHING) + _LABEL_SMOOTHING
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(classifier(view(images) if view else images), target)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            average.update_parameters(classifier)
    classifier.load_state_dict(average.module.state_dict())
    return classifier.eval()


def _network_pixels(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the images at the network's input size, which makes augmentation of larger images cheaper."""
    batches = [torch.from_numpy(np.array(pixels[start : start + 256])) for start in range(0, len(pixels), 256)]
    small = [downsample(batch.unsqueeze(1).float(), EXTRACTOR_SIDE).squeeze(1).round() for batch in batches]
    return torch.cat(small).to(torch.uint8).numpy()


def _moving_average(average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
    """Return the exponential moving average after one more step, with a smaller decay during the first steps."""
    decay = min(_AVERAGING, (1 + int(count)) / (10 + int(count)))
    result: Tensor = average + (current - average) * (1 - decay)
    return result


def exchange_styles(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Return images with styles mixed across the batch.

    Args:
        images: Gray levels, uint8, shape (n, size, size).
        rng: Random number generator.

    Returns:
        Gray levels, uint8, shape (n, size, size).
    """
    gray = images.float() / 255
    gray = _swap_low_frequencies(
        gray, _partners(len(gray), rng), _draw(rng, len(gray), _FREQUENCY_SWAP, _MAX_FREQUENCY)
    )
    gray = _match_histograms(gray, _partners(len(gray), rng), _draw(rng, len(gray), _HISTOGRAM_MATCH, 1.0))
    for i in range(len(gray)):
        if rng.random() < _LOW_RESOLUTION:
            gray[i] = _reduce_resolution(gray[i], int(rng.integers(len(gray[i]) * 2 // 5, len(gray[i]))))
        if rng.random() < _SHARPENING:
            gray[i] = _sharpen(gray[i], float(rng.uniform(0, 1.5)))
        if rng.random() < _BARS:
            _draw_bars(gray[i], rng)
        _draw_markers(gray[i], rng)
    return (gray.clamp(0, 1) * 255).round().to(torch.uint8)


def _partners(count: int, rng: np.random.Generator) -> Tensor:
    """Return a random permutation of the image indices; ignoring the class makes style independent of it."""
    return torch.from_numpy(rng.permutation(count))


def _draw(rng: np.random.Generator, count: int, probability: float, maximum: float) -> Tensor:
    """Return random strengths, uniform from 0 to the maximum, or 0 for images left unchanged; shape (n,)."""
    return torch.from_numpy(rng.uniform(0, maximum, count) * (rng.random(count) < probability)).float()


def _swap_low_frequencies(gray: Tensor, partners: Tensor, radius: Tensor) -> Tensor:
    """Return images with the low-frequency amplitudes of their partners, up to `radius` cycles per image; the mean is kept."""
    spectrum = torch.fft.fft2(gray)
    frequency = torch.fft.fftfreq(gray.shape[-1]).abs() * gray.shape[-1]
    distance = torch.maximum(frequency[:, None], frequency[None])
    swapped = (distance <= radius.view(-1, 1, 1)) & (distance > 0)
    amplitude = torch.where(swapped, spectrum.abs()[partners], spectrum.abs())
    swapped_gray: Tensor = torch.fft.ifft2(torch.polar(amplitude, spectrum.angle())).real
    return swapped_gray.clamp(0, 1)


def _match_histograms(gray: Tensor, partners: Tensor, strength: Tensor) -> Tensor:
    """Blend each image with a copy whose gray-level histogram matches its partner."""
    flat = gray.flatten(1)
    order = flat.argsort(dim=1, stable=True)
    matched = torch.empty_like(flat).scatter_(1, order, flat[partners].sort(1).values)
    return (strength.view(-1, 1) * matched + (1 - strength.view(-1, 1)) * flat).view_as(gray)


def _reduce_resolution(image: Tensor, side: int) -> Tensor:
    small = F.interpolate(image[None, None], (side, side), mode="bilinear", antialias=True)
    return F.interpolate(small, image.shape, mode="bilinear")[0, 0]


def _sharpen(image: Tensor, amount: float) -> Tensor:
    blurred = F.avg_pool2d(F.pad(image[None, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0, 0]
    return image + amount * (image - blurred)


def _draw_bars(image: Tensor, rng: np.random.Generator) -> None:
    """Draw uniform bars at the borders, like collimation or black and white margins."""
    size = len(image)
    top, bottom, left, right = rng.integers(0, size // 8, 4).tolist()
    level = float(rng.choice([0.0, 0.0, 1.0, rng.random()]))
    image[:top], image[size - bottom :], image[:, :left], image[:, size - right :] = level, level, level, level


def _draw_markers(image: Tensor, rng: np.random.Generator) -> None:
    size = len(image)
    for _ in range(int(rng.integers(_MAX_MARKERS + 1))):
        height, width = rng.integers(2, size // 8, 2).tolist()
        top, left = rng.integers(0, size, 2).tolist()
        image[top : top + height, left : left + width] = float(rng.random())
