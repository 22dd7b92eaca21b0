"""The golden film is the same everywhere and like no other; a bundle that scores it otherwise is refused."""

import hashlib
import json

import numpy as np
import pytest

from pneumoscope.bundle.golden import golden_film
from pneumoscope.errors import BundleError
from pneumoscope.predictor import Predictor


@pytest.mark.parametrize("size", [16, 95, 224, 1024])
def test_it_fills_the_grey_range_without_wrapping_around(size):
    film = golden_film(size)
    assert (film.shape, film.dtype) == ((1, size, size), np.uint8)
    assert film.min() < 40
    assert 180 < film.max() < 224
    # Nothing of it is lost by turning or mirroring, so that a network that does so to its input is told.
    turned = [np.rot90(film[0], turns) for turns in range(1, 4)] + [film[0][::-1], film[0][:, ::-1]]
    assert all((other != film[0]).mean() > 0.2 for other in turned)


def test_it_never_changes():
    """Every card states its logit."""
    assert hashlib.sha256(golden_film(224).tobytes()).hexdigest()[:16] == "a8cce4fa9befa979"


@pytest.mark.parametrize("change", [0.002, -0.002, float("nan")])
def test_a_bundle_that_scores_it_otherwise_is_refused(maker, change):
    bundle = maker.bundle(maker.root / "bundle")
    logit = Predictor.load(bundle).card.golden_logit
    card = json.loads((bundle / "card.json").read_text())
    (bundle / "card.json").write_text(json.dumps({**card, "golden_logit": logit + change * max(1, abs(logit))}))
    with pytest.raises(BundleError, match=r"golden film the logit .* here; its card says .*onnxruntime|malformed"):
        Predictor.load(bundle)
