"""Codes of decisions, rejections and warnings, and the assumptions with which a person overrides rejections.

`core.messages` and `core.rejection_messages` render them as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

__all__ = [
    "ASSUMPTIONS",
    "DECISIONS",
    "OVERRIDES",
    "REJECTION_CODES",
    "AgeRequirement",
    "Assumption",
    "ClassDecision",
    "Decision",
    "RejectionCode",
    "WarningCode",
]

Decision = Literal["no_pneumonia", "pneumonia", "uncertain", "rejected"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
# Multiclass models also use "uncertain" and "rejected"; see `core.multiclass_prediction`.
ClassDecision = Literal["classified"]

RejectionCode = Literal[
    "outside_age_range",
    "outside_age_range_estimated",
    "age_required",
    "age_not_understood",
    "out_of_distribution",
    "not_a_chest_radiograph",
    "inverted",
    "upside_down",
    "rotated_90",
    "mirrored",
    "cropped",
    "modality_not_supported",
    "modality_not_understood",
    "body_part_not_chest",
    "lateral_view",
    "view_not_understood",
    "laterality_not_understood",
    "for_processing",
    "presentation_intent_not_understood",
    "excluded_by_site_rule",
    "too_small",
    "too_narrow",
    "color",
    "blank",
]
REJECTION_CODES: tuple[RejectionCode, ...] = get_args(RejectionCode)

# Images whose age must be known: none, DICOM files, or all.
AgeRequirement = Literal["never", "dicom", "always"]

# Assumptions about all images that override their headers.
Assumption = Literal["chest", "frontal"]
ASSUMPTIONS: tuple[Assumption, ...] = get_args(Assumption)
# Rejections that an assumption disables.
OVERRIDES: Mapping[RejectionCode, Assumption] = {
    "modality_not_understood": "chest",
    "body_part_not_chest": "chest",
    "view_not_understood": "frontal",
    "laterality_not_understood": "frontal",
}

WarningCode = Literal[
    "age_not_stated",
    "modality_not_stated",
    "body_part_not_stated",
    "view_not_stated",
    "one_side_stated",
    "window_ignored",
    "bit_depth_measured",
    "padding_measured",
    "assumed_chest",
    "assumed_frontal",
]
