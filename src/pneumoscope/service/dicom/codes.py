"""Codes used in both DICOM Structured Reports and FHIR resources."""

from __future__ import annotations

from collections.abc import Mapping

from pydicom.sr.coding import Code

from pneumoscope.core.prediction_codes import Decision

__all__ = [
    "CERTAINTY",
    "LOWER_LIMIT",
    "MODEL_HASH",
    "OPERATING_POINT",
    "PNEUMONIA",
    "PRESENCE_VALUES",
    "PRIVATE_SCHEME",
    "PROCEDURE",
    "THRESHOLD",
    "UPPER_LIMIT",
]

PRIVATE_SCHEME = "99PNEUMOSCOPE"  # coding scheme for terms missing from the others
PNEUMONIA = Code("233604007", "SCT", "Pneumonia")
PROCEDURE = Code("399208008", "SCT", "Plain chest X-ray")
# Presence of pneumonia by decision.
PRESENCE_VALUES: Mapping[Decision, Code] = {
    "pneumonia": Code("52101004", "SCT", "Present"),
    "no_pneumonia": Code("2667000", "SCT", "Absent"),
    "uncertain": Code("82334004", "SCT", "Indeterminate"),
    "rejected": Code("not-assessed", PRIVATE_SCHEME, "Not assessed"),
}
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
LOWER_LIMIT = Code("certainty-lower", PRIVATE_SCHEME, "Lower limit of certainty of finding")
UPPER_LIMIT = Code("certainty-upper", PRIVATE_SCHEME, "Upper limit of certainty of finding")
OPERATING_POINT = Code("operating-point", PRIVATE_SCHEME, "Operating point")
THRESHOLD = Code("threshold", PRIVATE_SCHEME, "Threshold of the certainty of finding")
MODEL_HASH = Code("model-sha256", PRIVATE_SCHEME, "SHA-256 of the model")
