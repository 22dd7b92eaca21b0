"""Every file of `conformance.CASES` gives its result, and the gray levels of the reference where it is predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.imaging.conformance import CASES, REFERENCE, Case

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.imaging.decode import decode
from pneumoscope.inference.model import Model, load_model


@pytest.fixture(scope="module")
def model(shared_maker: Any) -> Model:
    return load_model(shared_maker.bundle(shared_maker.root / "conformance", age_range=(1, 5)))


def outcome(model: Model, content: bytes) -> str:
    """Return the result of a prediction in the words of `Case.result`."""
    try:
        prediction = model.predict(content)
    except UnreadableImageError as error:
        reason = error.reason
        return (
            f"error: {reason.code} {reason.parameters.get('type', '')}".rstrip() if reason else "error without a reason"
        )
    if prediction.rejection:
        return f"rejected: {prediction.rejection.code}"
    return f"warning: {' '.join(sorted(prediction.warnings))}" if prediction.warnings else "read"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
@pytest.mark.filterwarnings("ignore")  # pydicom warns of values that the standard does not allow
def test_every_file_has_its_result(case: Case, model: Model) -> None:
    content = case.build()
    result = outcome(model, content)
    if case.result.startswith("error"):
        assert result == case.result
        return
    kind, _, codes = case.result.partition(": ")
    assert result == (f"{kind}: {' '.join(sorted(codes.split()))}" if codes else kind)
    if case.same_pixels:
        assert np.abs(decode(content).pixels.astype(int) - REFERENCE).max() <= 1


def test_cases_are_distinct_and_cover_every_kind_of_result() -> None:
    assert len({(case.group, case.what) for case in CASES}) == len(CASES)
    kinds = {case.result.partition(":")[0] for case in CASES}
    assert kinds == {"read", "warning", "rejected", "error"}
