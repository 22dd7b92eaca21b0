"""The golden image is the same everywhere and like no other; a bundle that scores it otherwise is refused."""

import hashlib
import json

import numpy as np
import pytest

from pneumoscope.bundle.self_test import self_test_image
from pneumoscope.core.errors import BundleError
from pneumoscope.inference import BundleSession


@pytest.mark.parametrize("size", [16, 95, 224, 1024])
def test_it_fills_the_grey_range_without_wrapping_around(size):
    image = self_test_image(size)
    assert (image.shape, image.dtype) == ((1, size, size), np.uint8)
    assert image.min() < 40
    assert 180 < image.max() < 224
    # Nothing of it is lost by turning or mirroring, so that a network that does so to its input is told.
    turned = [np.rot90(image[0], turns) for turns in range(1, 4)] + [image[0][::-1], image[0][:, ::-1]]
    assert all((other != image[0]).mean() > 0.2 for other in turned)


def test_it_never_changes():
    """Every card states its logit."""
    assert hashlib.sha256(self_test_image(224).tobytes()).hexdigest()[:16] == "a8cce4fa9befa979"


@pytest.mark.parametrize("change", [0.002, -0.002, float("nan")])
def test_a_bundle_that_scores_it_otherwise_is_refused(maker, change):
    bundle = maker.bundle(maker.root / "bundle")
    logit = BundleSession.load(bundle).card.self_test_logit
    card = json.loads((bundle / "card.json").read_text())
    (bundle / "card.json").write_text(json.dumps({**card, "self_test_logit": logit + change * max(1, abs(logit))}))
    with pytest.raises(BundleError, match=r"golden image the logit .* here; its card says .*onnxruntime|malformed"):
        BundleSession.load(bundle)
