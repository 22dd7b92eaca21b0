"""Codes are rendered as sentences; every code has one."""

from __future__ import annotations

import pytest

from pneumoscope.core.messages import (
    decision_label,
    operating_point_rule,
    prediction_message,
    rejection_message,
    uncertainty_message,
)
from pneumoscope.core.prediction import (
    DECISIONS,
    REJECTION_CODES,
    Failure,
    ModelInfo,
    Prediction,
    Rejection,
    Uncertainty,
)

MODEL = ModelInfo("grey", "0.1.0", "ab" * 32)
PARAMETERS = {
    "outside_age_range": {"age": 67.25, "minimum": 1.0, "maximum": 5.0},
    "out_of_distribution": {"distance": 3.249, "limit": 1.9},
    "too_small": {"width": 300, "height": 111, "minimum": 112},
    "too_narrow": {"width": 521, "height": 130, "max_aspect": 4.0},
    "color": {"chroma": 12.1, "limit": 12.0},
    "blank": {"levels": 5, "minimum": 12},
}


@pytest.mark.parametrize("code", REJECTION_CODES)
def test_every_rejection_code_has_a_message(code):
    message = rejection_message(Rejection(code, PARAMETERS.get(code, {"probability": 0.2, "limit": 0.3})))
    assert message
    assert "{" not in message
    assert not message.endswith(".")


def test_messages_show_the_value_and_the_limit():
    assert rejection_message(Rejection("outside_age_range", PARAMETERS["outside_age_range"])) == (
        "The stated age of 67.2 years is outside the model's range of 1 to 5 years"
    )
    assert "(distance 3.25, limit 1.90)" in rejection_message(
        Rejection("out_of_distribution", PARAMETERS["out_of_distribution"])
    )
    assert "300 x 111 pixels; each side needs at least 112" in rejection_message(
        Rejection("too_small", PARAMETERS["too_small"])
    )


def test_every_decision_has_a_label_and_none_says_normal():
    labels = {decision: decision_label(decision) for decision in DECISIONS}
    assert labels["no_pneumonia"] == "No pneumonia detected"
    assert not any("normal" in label.lower() for label in labels.values())


def test_uncertainty_states_the_coverage():
    assert uncertainty_message(Uncertainty(0.4, 0.6, 0.95)) == ("The score lies in the uncertainty band (95% coverage)")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (("fixed", None, None, False), "fixed score of 0.5"),
        (("youden", None, 782, True), "highest Youden index on 782 validation images, augmented"),
        (
            ("sensitivity", 0.99, 581, False),
            "highest threshold with sensitivity 0.99 on 581 validation images with pneumonia",
        ),
        (
            ("specificity", 0.99, 201, True),
            "lowest threshold with specificity 0.99 on 201 validation images without pneumonia, augmented",
        ),
    ],
)
def test_operating_point_rules(rule, text):
    assert operating_point_rule(*rule) == text


def test_prediction_message_explains_what_needs_an_explanation():
    def message(**fields):
        return prediction_message(Prediction(path="a", operating_point="half", model=MODEL, **fields))

    assert message(decision="pneumonia", probability=0.9) == ""
    assert message(decision="rejected", rejection=Rejection("inverted")) == rejection_message(Rejection("inverted"))
    assert message(decision=None, failure=Failure("unreadable_image", "no such file", "Check it")) == (
        "no such file. Check it"
    )
    uncertainty = Uncertainty(0.4, 0.6, 0.95)
    assert message(decision="uncertain", uncertainty=uncertainty) == uncertainty_message(uncertainty)
