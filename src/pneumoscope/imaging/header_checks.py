"""Check the modality, body part, view, laterality and processing in a DICOM header.

Values are accepted as the standard defines them and as other software writes them, in several languages. A value that is
present but not understood rejects the image; a missing value causes a warning. `core.prediction_codes.OVERRIDES` lists the
rejections that a user can override.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from pydicom import Dataset
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.multival import MultiValue
from pydicom.uid import UID

from pneumoscope.core.prediction import Rejection
from pneumoscope.core.prediction_codes import WarningCode

__all__ = ["CHECKED_ELEMENTS", "HeaderFindings", "check_header", "element_text"]

CHECKED_ELEMENTS = (
    *("Modality", "SOPClassUID", "BodyPartExamined", "AnatomicRegionSequence"),
    *("ViewPosition", "ViewCodeSequence", "PatientOrientation"),
    *("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription"),
    *("Laterality", "ImageLaterality", "PresentationIntentType"),
)
_LATIN_1_VRS = frozenset({"AS", "CS", "DA", "DT", "UI"})  # pydicom ignores the character set for these
_MAX_QUOTED = 16  # characters of a value quoted in a message, the length of a code string

_NOT_STATED = frozenset({"", "UNKNOWN", "UNK", "N/A", "NA", "NONE", "NOT SPECIFIED", "UNSPECIFIED"})

# --- Modality (PS3.3 C.7.3.1.1.1) ---
# Computed, digital and other radiography, fluoroscopy, angiography; and nonstandard terms for them.
_RADIOGRAPHY = frozenset({"CR", "DX", "RF", "RG", "XA", "DR", "XR", "XRAY", "X-RAY", "X RAY", "RX", "RAD", "RADIOGRAPHY"}) | {
    "COMPUTED RADIOGRAPHY", "DIGITAL RADIOGRAPHY", "DIGITAL X-RAY", "CXR", "DF", "RTG", "RONTGEN", "ROENTGEN", "X線", "X线",
}  # fmt: skip
# All other modalities. Further terms, such as OT, may be a radiograph.
_OTHER_MODALITIES = frozenset(
    {
        "AR", "AS", "ASMT", "AU", "BDUS", "BI", "BMD", "CD", "CP", "CS", "CT", "CTPROTOCOL", "DD", "DMS", "DOC", "DS", "EC",
        "ECG", "EEG", "EMG", "EOG", "EPS", "ES", "FA", "FID", "FS", "GM", "HD", "IO", "IOL", "IVOCT", "IVUS", "KER", "KO", "LEN",
        "LP", "LS", "M3D", "MA", "MG", "MR", "MS", "NM", "OAM", "OCT", "OP", "OPM", "OPR", "OPT", "OPTBSV", "OPTENF", "OPV",
        "OSS", "PA", "PET", "PLAN", "POS", "PR", "PT", "PX", "REG", "RESP", "RTDOSE", "RTIMAGE", "RTINTENT", "RTPLAN", "RTRAD",
        "RTRECORD", "RTSEGANN", "RTSTRUCT", "RWV", "SEG", "SM", "SMR", "SR", "SRF", "ST", "STAIN", "TEXTUREMAP", "TG", "US",
        "VA", "VF", "XAPROTOCOL", "XC",
    }
)  # fmt: skip
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_FOR_PROCESSING = _STORAGE + "1.1.1"  # Digital X-Ray Image Storage - For Processing
# Computed radiography, digital X-ray, angiography and fluoroscopy, including enhanced objects.
_RADIOGRAPHY_CLASSES = frozenset(
    _STORAGE + end for end in ("1", "1.1", "1.1.1", "12.1", "12.1.1", "12.2", "12.2.1", "12.3")
)
_SECONDARY_CAPTURE = _STORAGE + "7"  # may show anything

# --- Body part (PS3.3 C.7.3.1.1.1, PS3.16 annex L): parts of words in upper case without accents ---
_CHEST = (
    "CHEST", "CHST", "THORA", "THX", "TORAX", "TORAC", "TORAK", "LUNG", "PULM", "POUMON", "POLMON", "PECHO", "PEITO", "PETTO",
    "BROSTKORG", "BRUSTKORB", "BRUSTORGAN", "BRYSTKASS", "BORSTKAS", "LONGEN", "CXR", "KLATKA P", "KLATKI P", "HRUDNI", "GRUDN",
    "PŁUC", "PLUC", "PLICE", "PLAMAN", "PLAUC", "MELLKAS", "KEUHKO", "RINTAKEHA", "AKCIGER", "GOGUS", "PARU", "NGUC", "PHOI",
    "ΘΩΡΑΚ", "ΠΝΕΥΜΟΝ", "ТОРАКС", "ГРУД", "ЛЕГК", "ОГК", "ФЛЮОРО", "ปอด", "ทรวงอก", "חזה", "ריאות", "صدر",  # noqa: RUF001
    "قفسه سینه", "छाती", "胸", "肺", "흉부", "폐", "가슴",
)  # fmt: skip
# Arabic and Persian for the lung, matched as whole words because many adjectives end in the same letters.
_CHEST_WORDS = re.compile(r"(?<!\w)(ال)?(رية|ريت|ریه)")
# Words that, next to a word for the chest, indicate its spine, bones or vessels, or the breast.
_NOT_CHEST = (
    "SPIN", "VERTEB", "WIRBEL", "COLUMN", "COLUNA", "COLONN", "RACHIS", "LUMB", "KREGOSL", "PATER", "CHRBT", "GERINC", "WERVEL",
    "RYGG", "RYGS", "HVIRV", "RANKA", "OMURGA", "COT SONG", "ΜΟΙΡΑ", "ΣΠΟΝΔ", "ПОЗВ", "ХРЕБ", "ОТДЕЛ", "척추", "椎", "脊",  # noqa: RUF001
    "فقر", "שדרה", "สันหลัง", "腰", "髄", "髓", "STERN", "ГРУДИН", "胸鎖", "胸锁", "骨", "AORT", "ARTER", "VEIN", "VESSEL",
    "DUCT", "ESOPH", "OUTLET", "INLET", "WALL", "BREAST", "ЖЕЛЕЗ",
)  # fmt: skip
_NOT_CHEST_WORDS = re.compile(r"(?<!\w)(WS|BWS|COL|T[- ]?SP|D[- ]?SP)(?!\w)|胸\s*\d")

# --- View (PS3.3 C.8.1.2.1.1, C.8.11.5.1.1, CID 4010) ---
View = Literal["frontal", "other", "unstated", "unknown"]
_ABBREVIATED = re.compile(r"(?<!\w)([AP])[\s.\-/]*([AP])(?!\w)\.?")  # A.P., P-A, P/A
_SPELLED_OUT = (
    (re.compile(r"ANTERO?(IOR)?[\s\-]*POSTERIOR"), " AP "),
    (re.compile(r"POSTERO?(IOR)?[\s\-]*ANTERIOR"), " PA "),
    (re.compile(r"DORS[OA]L?[\s\-]*VENTRAL"), " PA "),
    (re.compile(r"VENTR[OA]L?[\s\-]*DORSAL"), " AP "),
    (re.compile(r"ZADO[\s\-]*PREDN\w*|TYLNO[\s\-]*PRZEDN\w*|ARKA[\s\-]*ON(?!\w)"), " PA "),
    (re.compile(r"PREDO[\s\-]*ZADN\w*|PRZEDNIO[\s\-]*TYLN\w*|ON[\s\-]*ARKA"), " AP "),
    (re.compile(r"(CROSS|X)[\s\-]*TABLE"), " CROSSTABLE "),
    (re.compile(r"(?<!\w)L[.\-]L(?!\w)\.?"), " LL "),
    (re.compile(r"(?<!\w)(AP|PA)(?=\d)"), r" \1 "),
)
_FRONTAL = ("AP", "PA", "DV", "VD", "FRONT", "FRENTE", "FACE")  # the first four must be whole words
_FRONTAL_FOREIGN = ("正位", "正面", "前後", "前后", "後前", "后前", "정면", "ПРЯМ", "ФРОНТ", "ПЕРЕДН", "ΠΡΟΣΘΙ")
_OTHER_VIEWS = frozenset(
    {"LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAT", "LATL", "LPO", "RPO", "LAO", "RAO", "XTL", "OBL", "MLO", "YAN"}
)
_OTHER_VIEW_LETTERS = frozenset({"L", "R", "AX", "CC", "ML", "LM"})  # views only if the text contains nothing else
_OTHER_STEMS = (
    "LATER", "SEITL", "SEITENAUF", "PROFIL", "PERFIL", "BOCZN", "BOCN", "ZIJDEL", "SIDEBIL", "SIVUKUV", "OLDALIR",
    "NGHIENG",
    "OBLI", "SCHRAG", "SKOSN", "AXIAL", "LORDO", "APICAL", "TANGENT", "SAGITT", "SWIMMER", "CROSSTABLE",
)  # fmt: skip
_OTHER_ENDINGS = ("LAT", "LATERAL")  # LLAT, ChestLAT
_OTHER_FOREIGN = ("側", "侧", "斜", "측면", "БОК", "КОС", "ΠΛΑΓΙ", "جانبي", "ด้านข้าง")  # noqa: RUF001
# Words that carry no information about the view.
_NEUTRAL = frozenset(
    {
        "BED", "BEDSIDE", "CHEST", "CHILD", "CXR", "ERECT", "EXP", "EXPIRATION", "GRID", "INFANT", "INSP", "INSPIRATION", "LUNG",
        "LUNGS", "MOBILE", "PED", "PEDIATRIC", "PORT", "PORTABLE", "PROJECTION", "PRONE", "RX", "SEMI", "SITTING", "STAND",
        "STANDING", "SUPINE", "SEMIERECT", "THORAX", "TORAX", "UPRIGHT", "VIEW", "VIEWS", "XR", "XRAY", "X", "RAY", "胸部",
    }
)  # fmt: skip
# A frontal and a lateral view, such as "PA and lateral": describes a series or request, not a single image.
_BOTH_VIEWS = re.compile(
    r"(?<!\w)(PA|AP|FRONTAL\w*|P\.?A\.?|A\.?P\.?)\s*(AND|UND|ET|Y|E|W|WITH|&|\+|/|,)\s*"
    r"(LEFT\s+|RIGHT\s+|LT?\.?\s+|RT?\.?\s+)?(LAT\w*\.?|SEITL\w*|PERFIL|PROFIL\w*|L{1,2}(?!\w))(?!\s*:)|正側|正侧|正・側|정측"
)
# Free text, ignored unless it contains a word about the view.
_DESCRIPTIONS = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription", "BodyPartExamined")
# CID 4010 in SNOMED CT and in its older SRT codes: frontal, antero-posterior and postero-anterior; lateral and oblique views.
_FRONTAL_CODES = frozenset({"399033003", "R-10202", "399348003", "R-10206", "272479007", "R-40888", "R-10214"})
_OTHER_CODES = frozenset(
    {
        "399067008", "R-102CD", "399173006", "R-10236", "399198007", "R-10232", "399352003", "R-10228", "399260004", "R-10224",
        "260427002", "R-40783", "399099002", "R-10230", "399368009", "R-10226", "30730003", "G-A145",
        "399135007", "R-10220", "399184004", "R-10238", "399006002", "R-10212", "399356000", "R-40985", "399236003", "R-10234",
        "399038007", "R-10210", "399182000", "R-102C1", "399312000", "R-10208", "399059000", "R-10216", "399160007", "R-10204",
        "260426006", "R-40782", "399061009", "R-10241", "399004004", "R-10246", "399110001", "R-102C2",
    }
)  # fmt: skip
_DIRECTIONS = {"LEFT": "L", "RIGHT": "R", "FOOT": "F", "HEAD": "H", "ANTERIOR": "A", "POSTERIOR": "P"}
_ORIENTATION = re.compile(r"[ALRPHF]{1,3}")

# --- Laterality (PS3.3 C.7.3.1, C.8.11.7) ---
_BOTH_SIDES = _NOT_STATED | {
    "B",
    "U",
    "BOTH",
    "BILATERAL",
    "BIL",
    "BILAT",
    "UNPAIRED",
    "L/R",
    "LR",
    "R/L",
    "RL",
    "L\\R",
    "R\\L",
    "BEIDE",
    "BEIDSEITS",
    "両側",
    "雙側",
    "双侧",
}
_ONE_SIDE = frozenset({"L", "R", "LEFT", "RIGHT", "LT", "RT", "LEFT SIDE", "RIGHT SIDE", "LINKS", "RECHTS", "左", "右"}) | {
    "GAUCHE", "DROIT", "DROITE", "IZQUIERDA", "IZQUIERDO", "DERECHA", "DERECHO", "ESQUERDA", "ESQUERDO", "DIREITA", "DIREITO",
}  # fmt: skip

# --- Presentation intent (PS3.3 C.8.11.1.1.2) ---
_PRESENTATION = frozenset(
    {"FOR PRESENTATION", "PRESENTATION", "FORPRESENTATION", "FOR PRES", "FOR DISPLAY", "PROCESSED"}
)


class HeaderFindings(NamedTuple):
    """Findings in a header that rule out or qualify a prediction.

    Attributes:
        rejections: Rejections in order of precedence; the first one that is not overridden is reported.
        warnings: Warning codes.
    """

    rejections: tuple[Rejection, ...]
    warnings: tuple[WarningCode, ...]


def check_header(header: Dataset) -> HeaderFindings:
    """Return the rejections and warnings of a DICOM header with at least `CHECKED_ELEMENTS`.

    Messages quote up to 16 characters of code strings, which contain no names, but only the relevant word of a description.
    """
    findings = [
        _check_modality(header),
        _check_body_part(header),
        _check_view(header),
        _check_laterality(header),
        _check_presentation_intent(header),
    ]
    rejections = tuple(finding for finding in findings if isinstance(finding, Rejection))
    return HeaderFindings(rejections, tuple(finding for finding in findings if isinstance(finding, str)))


def _check_modality(header: Dataset) -> Rejection | WarningCode | None:
    modality, sop_class = element_text(header, "Modality"), str(header.get("SOPClassUID") or "").strip()
    if modality in _RADIOGRAPHY or _RADIOGRAPHY.issuperset(re.split(r"[\\/_,;+ -]+", modality.strip("."))):  # CR\DX
        return None
    if modality in _OTHER_MODALITIES:
        return Rejection("modality_not_supported", {"modality": modality})
    if modality:
        return Rejection("modality_not_understood", {"modality": modality[:_MAX_QUOTED]})
    if sop_class in _RADIOGRAPHY_CLASSES:
        return None
    if not sop_class or f"{sop_class}.".startswith(f"{_SECONDARY_CAPTURE}."):
        return "modality_not_stated"
    name = UID(sop_class).name
    if name == sop_class:  # not in the standard; its value is arbitrary text
        return Rejection("modality_not_understood", {"modality": "of the SOP class"})
    return Rejection("modality_not_supported", {"modality": name})


def _check_body_part(header: Dataset) -> Rejection | WarningCode | None:
    # Enhanced objects code the region, and some devices only fill in the series description.
    texts = element_text(header, "BodyPartExamined"), *_meanings(header, "AnatomicRegionSequence")
    stated = [text for text in texts if text not in _NOT_STATED]
    for part in stated:
        if not _is_chest(part):
            return Rejection("body_part_not_chest", {"part": part[:_MAX_QUOTED]})
    if stated:
        return None
    return None if _is_chest(element_text(header, "SeriesDescription")) else "body_part_not_stated"


def _is_chest(text: str) -> bool:
    is_part = any(word in text for word in _NOT_CHEST) or _NOT_CHEST_WORDS.search(text)
    return bool(any(word in text for word in _CHEST) or _CHEST_WORDS.search(text)) and not is_part


def _check_view(header: Dataset) -> Rejection | WarningCode | None:
    statements = [*_view_statements(header)]
    for view, text, _ in statements:
        if view == "other":
            return Rejection("lateral_view", {"view": text[:_MAX_QUOTED]})
    if any(view == "frontal" for view, _, _ in statements):
        return None
    for view, text, element in statements:
        if view == "unknown":
            return Rejection("view_not_understood", {"view": text[:_MAX_QUOTED], "element": element})
    return "view_not_stated"


def _view_statements(header: Dataset) -> Iterable[tuple[View, str, str]]:
    """Yield the view according to each element, with the text and keyword for messages."""
    position = element_text(header, "ViewPosition")
    yield "unstated" if position in _NOT_STATED else _classify_view(position), position, "ViewPosition"
    for item in header.get("ViewCodeSequence") or ():
        code, meaning = str(item.get("CodeValue") or "").strip(), element_text(item, "CodeMeaning", header)
        view: View = "other" if code in _OTHER_CODES else _classify_view(meaning)
        if view != "other" and code in _FRONTAL_CODES:
            view = "frontal"
        yield "unknown" if view == "unstated" else view, meaning or code, "ViewCodeSequence"
        for modifier in _meanings(item, "ViewModifierCodeSequence", header):
            if _classify_view(modifier) == "other":
                yield "other", modifier, "ViewModifierCodeSequence"
    orientation = header.get("PatientOrientation")
    if orientation:
        values = [orientation] if isinstance(orientation, str) else orientation
        directions = [_DIRECTIONS.get(value, value) for value in (str(each).upper().strip() for each in values)]
        if any(directions):
            yield _classify_orientation(directions), "\\".join(directions), "PatientOrientation"
    for keyword in _DESCRIPTIONS:
        description = _BOTH_VIEWS.sub(" ", element_text(header, keyword))
        words = _view_words(description)
        if _has_other_word(words, description):
            yield "other", next(filter(_is_other_word, words), "LATERAL"), keyword
        elif _has_frontal_word(words, description):
            yield "frontal", "", keyword


def _classify_view(text: str) -> View:
    if not text:
        return "unstated"
    words = _view_words(text)
    if text in _OTHER_VIEW_LETTERS or _has_other_word(words, text):
        return "other"
    if _has_frontal_word(words, text):
        return "frontal"
    return "unstated" if all(word in _NEUTRAL or word.isdigit() for word in words) else "unknown"


def _view_words(text: str) -> list[str]:
    """Return the words of a normalized text, with all forms of AP and PA reduced to these two words."""
    text = text.replace("_", " ")
    for pattern, replacement in _SPELLED_OUT:
        text = pattern.sub(replacement, text)
    text = _ABBREVIATED.sub(lambda match: f" {match[1]}{match[2]} " if match[1] != match[2] else match[0], text)
    return [word for word in re.split(r"[^\w]+", text) if word]


def _is_other_word(word: str) -> bool:
    return word in _OTHER_VIEWS or word.startswith(_OTHER_STEMS) or word.endswith(_OTHER_ENDINGS)


def _has_other_word(words: Iterable[str], text: str) -> bool:
    return any(map(_is_other_word, words)) or any(part in text for part in _OTHER_FOREIGN)


def _has_frontal_word(words: Iterable[str], text: str) -> bool:
    return any(word in _FRONTAL[:4] or word.startswith(_FRONTAL[4:]) for word in words) or any(
        part in text for part in _FRONTAL_FOREIGN
    )


def _classify_orientation(directions: list[str]) -> View:
    """Return the view from the directions of rows and columns; the first letter is the main direction (PS3.3 C.7.6.1.1.1)."""
    if len(directions) != 2 or not all(map(_ORIENTATION.fullmatch, directions)):
        return "unknown"
    main = {direction[0] for direction in directions}
    if main & {"A", "P"}:  # the image plane contains the anterior-posterior axis
        return "other"
    return "frontal" if main & {"L", "R"} and main & {"H", "F"} else "unknown"


def _check_laterality(header: Dataset) -> Rejection | WarningCode | None:
    stated = {element_text(header, "Laterality"), element_text(header, "ImageLaterality")}
    for laterality in sorted(stated - _BOTH_SIDES - _ONE_SIDE):
        return Rejection("laterality_not_understood", {"laterality": laterality[:_MAX_QUOTED]})
    return "one_side_stated" if stated & _ONE_SIDE else None


def _check_presentation_intent(header: Dataset) -> Rejection | None:
    intent = re.sub(r"[\s_\-]+", " ", element_text(header, "PresentationIntentType"))
    if "PROCESSING" in intent or intent == "RAW" or str(header.get("SOPClassUID") or "").strip() == _FOR_PROCESSING:
        return Rejection("for_processing")
    if intent not in _NOT_STATED | _PRESENTATION:
        return Rejection("presentation_intent_not_understood", {"intent": intent[:_MAX_QUOTED]})
    return None


def _meanings(dataset: Dataset, sequence: str, header: Dataset | None = None) -> list[str]:
    """Return the meanings of a code sequence; `header` provides the character set if the data set is itself an item."""
    return [element_text(item, "CodeMeaning", header or dataset) for item in dataset.get(sequence) or ()]


def element_text(dataset: Dataset, keyword: str, header: Dataset | None = None) -> str:
    """Return the text of an element in upper case without accents or extra spaces, or "" if it is missing or empty.

    pydicom decodes code strings, ages and dates as Latin-1, as the standard requires, but other software writes them in the
    header's character set or in UTF-8.

    Args:
        dataset: Header, or an item of a sequence.
        keyword: Keyword of the element.
        header: Header that provides the character set if `dataset` is an item.
    """
    value: Any = dataset.get(keyword)
    if value is None:
        return ""
    text = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
    if dataset[keyword].VR in _LATIN_1_VRS and (not text.isascii() or "\x1b" in text):
        with contextlib.suppress(UnicodeEncodeError):  # already decoded by pydicom
            text = _decode(text.encode("latin-1"), dataset if header is None else header)
    text = "".join(mark for mark in unicodedata.normalize("NFKD", text) if not unicodedata.combining(mark))
    return " ".join(unicodedata.normalize("NFKC", text).replace("\0", " ").upper().split())


def _decode(data: bytes, header: Dataset) -> str:
    try:
        if b"\x1b" in data:  # an escape sequence of ISO 2022
            raise UnicodeError
        return data.decode("utf-8")
    except UnicodeError:
        text = str(decode_bytes(data, convert_encodings(header.get("SpecificCharacterSet")), set()))
        return data.decode("latin-1") if "\N{REPLACEMENT CHARACTER}" in text else text
