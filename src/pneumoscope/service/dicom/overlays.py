"""Create DICOM objects for displaying a heatmap over the image: Parametric Map and Grayscale Softcopy Presentation State."""

from __future__ import annotations

import highdicom
import numpy as np
import numpy.typing as npt
from highdicom import pm, pr
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from pneumoscope import __version__
from pneumoscope.core.messages import join_sentences
from pneumoscope.core.prediction import Prediction
from pneumoscope.core.prediction_messages import age_conflict_message, notice, result_title, warning_note
from pneumoscope.inference.saliency import Heatmap
from pneumoscope.service.dicom.heatmap_region import contours
from pneumoscope.service.dicom.results import Result, patient_orientation
from pneumoscope.service.storage.outbox_records import derive_uid

__all__ = ["QUANTITY", "parametric_map", "presentation_state"]

QUANTITY = codes.DCM.ClassActivation
_NO_UNIT = Code("1", "UCUM", "no units")
_SERIAL_NUMBER = "none"  # required by both objects; software has no serial number
_LAYER = "RESULT"
_MAX_TEXT, _MAX_POINTS = 1024, 1000  # characters of a text object; points of a line, above which it is thinned
# Patient-based coordinate system (PS3.3 C.7.6.2.1.1), by the first letter of a direction.
_AXES = {
    "L": (1.0, 0.0, 0.0), "R": (-1.0, 0.0, 0.0), "P": (0.0, 1.0, 0.0), "A": (0.0, -1.0, 0.0), "H": (0.0, 0.0, 1.0),
    "F": (0.0, 0.0, -1.0),
}  # fmt: skip
_BOX = (0.02, 0.02, 0.98, 0.12)  # of the text, in fractions of the displayed area


def parametric_map(result: Result, heatmap: Heatmap) -> bytes:
    """Return a Parametric Map with each pixel's contribution to the logit as a 32-bit float.

    The map has the image's rows and columns and references it. Radiographs have no frame of reference, so a new one is
    created, and distances are omitted.
    """
    image = heatmap.image
    maximum = heatmap.maximum or 1.0
    source = result.source()
    source.FrameOfReferenceUID = derive_uid(f"frame of reference {source.SOPInstanceUID}")
    source.ImagePositionPatient, source.ImageOrientationPatient = [0.0, 0.0, 0.0], _directions(source)
    source.PixelSpacing, source.SliceThickness = [1.0, 1.0], 1.0
    found = pm.ParametricMap(
        source_images=[source],
        pixel_array=heatmap.resized(image.width, image.height).astype(np.float32),
        manufacturer_model_name=result.prediction.model.name[:64],
        software_versions=__version__,
        device_serial_number=_SERIAL_NUMBER,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[
            pm.RealWorldValueMapping(
                lut_label="CONTRIBUTION",
                lut_explanation="Contribution to the logit of pneumonia",
                unit=_NO_UNIT,
                value_range=(-maximum, maximum),
                slope=1.0,
                intercept=0.0,
                quantity_definition=QUANTITY,
            )
        ],
        voi_lut_transformations=[
            highdicom.VOILUTTransformation(
                window_center=0.0,
                window_width=2 * maximum,
                voi_lut_function=highdicom.VOILUTFunctionValues.LINEAR_EXACT,
            )
        ],
        content_label="HEATMAP",
        content_description="Contributions to the prediction",
        image_flavor=pm.ImageFlavorValues.STATIC,
        **result.identification("parametric_map"),
    )
    shared = found.SharedFunctionalGroupsSequence[0]
    del shared.PixelMeasuresSequence[0].PixelSpacing, shared.PixelMeasuresSequence[0].SliceThickness
    organization = derive_uid(f"dimension organization {result.uid}")  # deterministic, unlike highdicom's
    for item in (*found.DimensionOrganizationSequence, *found.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    # Required elements that highdicom omits.
    shared.FrameAnatomySequence = [_chest()]
    found.ContentCreatorName = ""
    found.ImageComments = result.notice[:10_240]
    return result.encode(found)


def _chest() -> Dataset:
    """Return the item of the Frame Anatomy functional group (PS3.3 C.7.6.16.2.8)."""
    anatomy = Dataset()
    anatomy.FrameLaterality = "U"  # unpaired
    anatomy.AnatomicRegionSequence = [CodedConcept.from_code(codes.SCT.Chest)]
    return anatomy


def _directions(source: Dataset) -> list[float]:
    """Return the direction cosines of rows and columns; those of a frontal radiograph if the header's are invalid."""
    row, column = (_AXES[each[0]] for each in patient_orientation(source))
    if np.dot(row, column):
        row, column = _AXES["L"], _AXES["F"]
    return [*row, *column]


def presentation_state(result: Result, display: Dataset) -> bytes:
    """Return a presentation state with the result as text and, if there is a heatmap, its contour.

    It displays the image as its header specifies: the window, or the lookup table that replaces it, is copied.

    Args:
        result: The result.
        display: Header elements that describe the gray levels; see `imaging.dicom_parts.read_part`.
    """
    source = result.source()
    source.update(display)
    layer = pr.GraphicLayer(_LAYER, order=1, description="Result of pneumonia detection")
    languages = result.settings.languages
    text = "\r\n".join(_text(result.prediction, each) for each in languages)
    lines = contours(result.heatmap) if result.heatmap else []
    annotation = pr.GraphicAnnotation(
        referenced_images=[source],
        graphic_layer=layer,
        text_objects=[
            pr.TextObject(text_value=text[:_MAX_TEXT], units="DISPLAY", bounding_box=_BOX, text_justification="LEFT")
        ],
        graphic_objects=[
            pr.GraphicObject(graphic_type="POLYLINE", graphic_data=_thinned(line), units="PIXEL") for line in lines
        ]
        or None,
    )
    is_inverse = source.PhotometricInterpretation == "MONOCHROME1"
    state = pr.GrayscaleSoftcopyPresentationState(
        referenced_images=[source],
        manufacturer_model_name=result.prediction.model.name[:64],
        software_versions=__version__,
        device_serial_number=_SERIAL_NUMBER,
        content_label="PNEUMONIA",
        content_description="Result of pneumonia detection",
        graphic_annotations=[annotation],
        graphic_layers=[layer],
        presentation_lut_transformation=highdicom.PresentationLUTTransformation(
            presentation_lut_shape="INVERSE" if is_inverse else "IDENTITY"
        ),
        **result.identification("presentation_state"),
    )
    return result.encode(state)


def _text(prediction: Prediction, language: str) -> str:
    """Return the result, its warnings and the notice; kept short, because the text covers the image."""
    parts = (each(prediction, language) for each in (result_title, age_conflict_message, warning_note))
    return join_sentences((*parts, notice(None, language)), language)


def _thinned(line: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return a closed line thinned to about 1,000 points."""
    step = -(-len(line) // _MAX_POINTS)
    return np.vstack([line[:-1:step], line[-1:]])
