"""Training of the age classifier: exchange of styles, sampling of groups, and what is learned."""

import numpy as np
import pytest
import torch

from pneumoscope.imaging.phantom import draw_phantom
from pneumoscope.training import age_classifier
from pneumoscope.training.age_classifier import exchange_styles, train_age_classifier

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def images():
    return np.stack([draw_phantom(seed, seed % 2 == 0, size=112) for seed in range(24)])


def disable_styles(monkeypatch, **enabled):
    names = ("_FREQUENCY_SWAP", "_HISTOGRAM_MATCH", "_BARS", "_LOW_RESOLUTION", "_SHARPENING", "_MAX_MARKERS")
    for name in names:
        monkeypatch.setattr(age_classifier, name, enabled.get(name, 0))


def test_styles_depend_on_the_seed_only(images):
    batch = torch.from_numpy(images)
    first, again, other = (exchange_styles(batch, np.random.default_rng(seed)) for seed in (1, 1, 2))

    assert (first.dtype, first.shape) == (torch.uint8, batch.shape)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_changes_images_stay_as_they_are(images, monkeypatch):
    disable_styles(monkeypatch)
    batch = torch.from_numpy(images)
    styled = exchange_styles(batch, np.random.default_rng(0))
    assert (styled.int() - batch.int()).abs().max() <= 1  # rounding of the Fourier transform


def test_matched_histograms_hide_the_exposure_of_a_class(images, monkeypatch):
    # One class is dark, the other bright; after matching, the mean gray level hardly tells them apart.
    batch, outside = torch.from_numpy(images.copy()), torch.arange(24) < 12
    batch[outside] = batch[outside] // 4
    disable_styles(monkeypatch, _HISTOGRAM_MATCH=1.0)
    monkeypatch.setattr(
        age_classifier, "_draw", lambda rng, n, probability, maximum: torch.full((n,), float(probability))
    )
    styled = [exchange_styles(batch, np.random.default_rng(seed)).float().mean((1, 2)) for seed in range(20)]

    def gap(means):
        return float(means[~outside].mean() - means[outside].mean())

    assert gap(batch.float().mean((1, 2))) > 50
    # Each image takes the histogram of a random image, half of which are of the other class.
    assert abs(np.mean([gap(means) for means in styled])) < 0.25 * gap(batch.float().mean((1, 2)))


def test_exchanged_frequencies_keep_the_mean_and_the_details(images, monkeypatch):
    disable_styles(monkeypatch, _FREQUENCY_SWAP=1.0)
    batch = torch.from_numpy(images)
    styled = exchange_styles(batch, np.random.default_rng(3))

    assert not torch.equal(styled, batch)
    assert (styled.float().mean((1, 2)) - batch.float().mean((1, 2))).abs().max() < 12  # clipping moves it a little

    def high_frequencies(values):
        spectrum = torch.fft.fft2(values.float()).abs()
        return spectrum[:, 20:40, 20:40].flatten(1).mean(1)

    ratio = high_frequencies(styled) / high_frequencies(batch)
    assert ((ratio > 0.7) & (ratio < 1.4)).all()


def test_bars_and_markers_change_most_images(monkeypatch):
    flat = torch.full((200, 32, 32), 120, dtype=torch.uint8)
    disable_styles(monkeypatch, _BARS=0.5, _MAX_MARKERS=2)
    changed = (exchange_styles(flat, np.random.default_rng(0)) != 120).any(2).any(1)
    assert 0.5 < changed.float().mean() < 1


@pytest.fixture(scope="module")
def outside(images):
    """The same images with a bright disc in the middle, which stands for an enlarged heart."""
    y, x = np.mgrid[:112, :112]
    changed = images.copy()
    changed[:, (y - 60) ** 2 + (x - 56) ** 2 < 22**2] = 255
    return changed


def test_difference_of_anatomy_is_learned(images, outside):
    classifier = train_age_classifier(images[:16], outside[:16], ["a"] * 16, steps=25, seed=0, batch=12)

    assert not classifier.training
    with torch.inference_mode():
        scores = classifier(torch.from_numpy(np.concatenate([images[16:], outside[16:]])))
        mirrored = classifier(torch.from_numpy(np.concatenate([images[16:], outside[16:]])).flip(2))
    assert (scores[8:] > scores[:8].max()).all()
    torch.testing.assert_close(scores, mirrored)  # mean of image and mirror image


def test_the_same_seed_gives_the_same_network_and_another_seed_another_one(images, outside):
    first, again, other = (
        train_age_classifier(images[:16], outside[:16], ["a"] * 16, steps=2, seed=seed, batch=12).state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first.values(), again.values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.values(), other.values(), strict=True))


def test_small_groups_are_drawn_more_often_than_their_share(images, monkeypatch):
    drawn = []
    monkeypatch.setattr(age_classifier, "augment", lambda styled, *rest: styled.float())

    def record(batch, rng):
        drawn.append(batch[:, 0, 0].clone())
        return batch

    class TinyClassifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, images):
            return images[:, 0, 0] * self.scale

    monkeypatch.setattr(age_classifier, "exchange_styles", record)
    monkeypatch.setattr(age_classifier, "AgeClassifier", TinyClassifier)
    inside, outside = np.zeros((50, 8, 8), np.uint8), np.full((101, 8, 8), 100, np.uint8)
    outside[100] = 200  # the only image of its group
    train_age_classifier(inside, outside, ["large"] * 100 + ["small"], steps=60, seed=0)
    levels = torch.cat(drawn)

    assert (levels == 0).float().mean() == pytest.approx(0.5, abs=0.05)
    # Roots of 100 and of 1: one in eleven of the images outside.
    assert (levels == 200).float().mean() == pytest.approx(0.5 / 11, abs=0.02)
