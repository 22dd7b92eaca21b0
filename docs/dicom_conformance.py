"""Write the DICOM conformance statement (PS3.2) from the code and from objects that it writes."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.uid import UID
from pynetdicom import AE, DEFAULT_TRANSFER_SYNTAXES

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.service.dicom.result_objects import HEADERS, PREDICTIONS, image_file, objects

from pneumoscope.service.dicom import commitment, delivery, receiver, results
from pneumoscope.service.dicom.codes import PRIVATE_SCHEME
from pneumoscope.service.dicom.configuration import ResultSettings
from pneumoscope.service.dicom.header import DISPLAY_ELEMENTS, HEADER_ELEMENTS
from pneumoscope.service.dicom.overlays import QUANTITY
from pneumoscope.service.dicom.report import PRIVATE_CODES, STANDARD_CODES
from pneumoscope.service.dicom.settings import (
    CANNOT_UNDERSTAND,
    OUT_OF_RESOURCES,
    PROCESSING_FAILURE,
    SUCCESS,
    DicomSettings,
)
from pneumoscope.service.storage.commitments import MAX_FAILURES

__all__ = ["conformance_page"]

_VERIFICATION = UID("1.2.840.10008.1.1")
_KIND_NAMES = {
    "secondary_capture": "SC",
    "structured_report": "SR",
    "rejection_note": "KO",
    "parametric_map": "PM",
    "presentation_state": "PR",
}


def conformance_page() -> str:
    """Return the conformance statement, in the order of PS3.2 annex A."""
    limits = {field.name: field.default for field in dataclasses.fields(DicomSettings)}
    ae = AE()
    syntaxes = receiver.transfer_syntaxes()
    classes = [_VERIFICATION, *receiver.SOP_CLASSES]
    parts = [
        "# DICOM conformance statement\n",
        "The layout is that of PS3.2. The statement is generated from the code, and the tests compare it with what the node"
        " negotiates. [Connect a PACS](../how-to/pacs.md) describes the configuration.\n",
        "## Overview\n",
        "pneumoscope receives radiographs by C-STORE or STOW-RS, estimates the probability of pneumonia, and returns the"
        " results as DICOM objects of the same study by C-STORE or STOW-RS. It stores images until they are predicted and for"
        " the retention period of the service; it is not an archive.\n",
        _table(
            ("service", "user (SCU)", "provider (SCP)"),
            (
                ("Verification", "no", "yes"),
                ("Storage of images", "no", "yes"),
                ("Storage of results", "yes", "no"),
                ("Storage Commitment Push Model", "yes, results, if configured", "no"),
                ("Query/Retrieve, Worklist, MPPS", "no", "no"),
                ("DICOMweb: STOW-RS", "yes, results", "yes, images"),
            ),
        ),
        "## Networking\n",
        "### Application entity\n",
        "One application entity. It acts on received images when their study is quiet, and sends each result to the configured"
        " destinations until they confirm it.\n",
        "### Storage and verification (SCP)\n",
        _table(("SOP class", "UID", "role"), ((uid.name, f"`{uid}`", "SCP") for uid in classes)),
        f"Transfer syntaxes of every SOP class but Verification, which has {_names(DEFAULT_TRANSFER_SYNTAXES)}. They are those"
        " that the installation can decode; without the packages of `[dicom]`, fewer are accepted. In each presentation"
        " context, the first of this table that the peer proposes is accepted.\n",
        _table(("transfer syntax", "UID"), ((UID(each).name, f"`{each}`") for each in syntaxes)),
        "Results that a PACS sends back are acknowledged, recorded and not predicted. Their SOP classes are accepted in the"
        " uncompressed transfer syntaxes.\n",
        _table(("SOP class", "UID", "role"), ((uid.name, f"`{uid}`", "SCP") for uid in receiver.RESULT_SOP_CLASSES)),
        "Level of conformance: 2 (full) for decoding; private elements are kept in the stored file. An instance is"
        " acknowledged with success when it is on the disk. The same instance is acknowledged again, and not predicted again."
        " Instances for processing are acknowledged, and answered as rejected.\n",
        _table(
            ("status", "meaning"),
            (
                (f"{SUCCESS:04X}", "stored"),
                (f"{OUT_OF_RESOURCES:04X}", "not stored: no space, or the storage is unavailable; send it again later"),
                (f"{CANNOT_UNDERSTAND:04X}", "not stored for prediction: it is not an image, or states no UIDs"),
                (f"{PROCESSING_FAILURE:04X}", "not stored: internal error; send it again later"),
            ),
        ),
        "### Storage of results (SCU)\n",
        _table(
            ("SOP class", "UID", "role", "sent"),
            ((uid.name, f"`{uid}`", "SCU", _sent(kind)) for kind, uid in results.SOP_CLASSES.items()),
        ),
        "Every association proposes one presentation context for each of these SOP classes, with the transfer syntaxes "
        f"{_names(delivery.TRANSFER_SYNTAXES)}. The statuses 0000, 0111 (the instance exists) and Bxxx (warnings) confirm an"
        " object; after any other status, and after a failed association, it is sent again after 5 seconds, and twice as long"
        " each time, up to 15 minutes. A SOP class that the peer does not accept is a failure of its objects only.\n",
        "### Storage commitment (SCU)\n",
        _table(
            ("SOP class", "UID", "role"),
            ((commitment.SOP_CLASS.name, f"`{commitment.SOP_CLASS}`", "SCU"),),
        ),
        "After results were stored at a peer that is configured for it, an N-ACTION (action type 1) on an association of its own"
        f" refers to at most {commitment.MAX_OBJECTS} of them. It proposes the transfer syntaxes"
        f" {_names(commitment.TRANSFER_SYNTAXES)}, without role selection, and stays open for"
        f" {commitment.REPORT_SECONDS:g} seconds for an N-EVENT-REPORT. A peer may also report on an association that it opens"
        " to the node, with SCP/SCU role selection in which it proposes the role SCP, or without it. Retrieve AE Title and"
        " storage media are not used.\n",
        _table(
            ("status of N-EVENT-REPORT", "meaning"),
            (
                (f"{SUCCESS:04X}", "recorded, also if it was before"),
                (f"{commitment.NO_SUCH_INSTANCE:04X}", "the SOP instance is not the well-known one"),
                (f"{commitment.NO_SUCH_EVENT_TYPE:04X}", "the event type is neither 1 nor 2"),
                (
                    f"{commitment.UNKNOWN_REPORT:04X}",
                    "the transaction is not the last one for its objects at this peer, an object was not requested or is in"
                    " both lists, or the information cannot be read",
                ),
                (f"{PROCESSING_FAILURE:04X}", "not recorded: the storage is unavailable"),
            ),
        ),
        f"An object with a failure reason is stored again, and its commitment requested again, up to {MAX_FAILURES} requests in"
        " all. Without a report, a request is repeated with another transaction UID: by default after an hour, then after twice"
        " the time, up to a day. After a failed request, the next one follows as after a failed C-STORE. An N-ACTION to the node"
        " is answered with 0211 (unrecognized operation).\n",
        "### Association policies\n",
        _table(
            ("policy", "value"),
            (
                ("application context", "`1.2.840.10008.3.1.1.1`"),
                ("implementation class UID and version name", "those of the installed pynetdicom"),
                ("maximum PDU received", f"{ae.maximum_pdu_size:,} bytes"),
                (
                    "associations at the same time",
                    f"{limits['max_associations']} as acceptor; as requestor one for each destination, and one for its storage"
                    " commitment",
                ),
                ("size of an instance", f"{limits['max_bytes'] // 2**20} MiB; the association is aborted beyond"),
                ("size of all instances that are being received", f"{limits['max_total_bytes'] // 2**20} MiB"),
                ("timeout", f"{limits['timeout']:g} seconds for an answer, and for a silent peer"),
                ("called AE title", "must be that of the node"),
                ("calling AE title and address", "must be those of a configured peer"),
                ("SCP/SCU role selection", "as acceptor, for Storage Commitment"),
                ("asynchronous operations, SOP class extended negotiation, user identity", "not supported"),
            ),
        ),
        "An unknown calling AE title is rejected (permanent, source: service user, reason: calling AE title not recognized), a"
        " wrong called AE title likewise (called AE title not recognized); a connection from another address is closed.\n",
        "### DICOMweb\n",
        _table(
            ("service", "resource", "details"),
            (
                (
                    "STOW-RS, origin server",
                    "`POST /dicom-web/studies`",
                    '`multipart/related; type="application/dicom"`; response'
                    " `application/dicom+json` with 200, 202 or 409; see the [HTTP API](http-api.md)",
                ),
                (
                    "STOW-RS, user agent",
                    "`POST {url}/studies`",
                    "results, one instance a request, over HTTPS, with basic authentication, a bearer token or neither",
                ),
            ),
        ),
        "### Security\n",
        "TLS by the BCP 195 profile (PS3.15 B.9): TLS 1.2 or newer, with certificates of both sides from the configured"
        " authorities, for received and for sent associations. Host names are not compared. The service authenticates DICOMweb"
        " clients by its tokens; there are no attribute confidentiality profiles and no digital signatures. Predictions and"
        " views are in the audit log, whose format is not that of PS3.15 A.5.\n",
        "## Objects\n",
        "### Attributes that are used\n",
        "Values of images that decide, or that the results copy. A value that its value representation does not allow is left"
        " empty. Further elements are read for prediction; see [Supported inputs](inputs.md).\n",
        _table(
            ("attribute", "tag", "use"),
            (
                *(
                    (dictionary_description(name), _tag(name), "identity, site rules, results")
                    for name in HEADER_ELEMENTS
                ),
                *((dictionary_description(name), _tag(name), "presentation state") for name in DISPLAY_ELEMENTS),
            ),
        ),
        "### Attributes that are written\n",
        "In each kind of object: SC Secondary Capture, SR Comprehensive 3D SR, KO Key Object Selection, PM Parametric Map, PR"
        " Grayscale Softcopy Presentation State. `x` is written, and `o` is written if the image states it or the result has"
        " it.\n",
        _written_attributes(),
        "### Identification\n",
        "UIDs are `2.25.` UUIDs, derived from the image, the prediction, the kind of object and the number of earlier"
        " withdrawals: an object that is sent again is the same. Each object is in a series of its own, with the number "
        f"{ResultSettings().series_number} for SC, and the next ones for SR, KO, PM and PR. `Manufacturer` is"
        f" `{results.MANUFACTURER}`; received objects with it are acknowledged and not predicted.\n",
        "### Templates\n",
        "SR: TID 1500 Imaging Measurement Report, with TID 1204, TID 1001, TID 1501 and TID 4019. KO: TID 2010, titled"
        " Rejected for Quality Reasons. Code meanings are in English.\n",
        "### Codes\n",
        _table(
            ("code", "scheme", "meaning"),
            (
                (f"`{code.value}`", code.scheme_designator, code.meaning)
                for code in sorted(
                    {*STANDARD_CODES, QUANTITY, *PRIVATE_CODES}, key=lambda each: (each.scheme_designator, each.value)
                )
            ),
        ),
        f"Reasons of rejections are codes of the scheme `{PRIVATE_SCHEME}`, too: the rejection codes of the [HTTP"
        " API](http-api.md).\n",
        "## Media\n",
        "No media storage application profiles.\n",
        "## Character sets\n",
        "Received: every character set of PS3.3 C.12.1.1.2 that pydicom decodes, Big5 if it is stated, and UTF-8 where none is"
        " stated. Sent: `ISO_IR 192` (UTF-8).\n",
    ]
    return "\n".join(parts)


def _sent(kind: str) -> str:
    if kind == "rejection_note":
        return "when a result is withdrawn or replaced"
    return "by default" if kind in ResultSettings().objects else "if configured"


def _written_attributes() -> str:
    """Return the attributes of objects with and without a result, at their top level."""
    written: dict[str, dict[str, int]] = {}
    n_of_kind: dict[str, int] = {}
    for decision in ("pneumonia", "no_pneumonia", "rejected"):
        assert decision in PREDICTIONS
        for header in ("complete", "with empty elements", "computed radiography"):
            for kind, content in objects(decision, image_file(**HEADERS[header])).files.items():
                n_of_kind[kind] = n_of_kind.get(kind, 0) + 1
                for element in pydicom.dcmread(io.BytesIO(content)):
                    numbers = written.setdefault(element.keyword, {})
                    numbers[kind] = numbers.get(kind, 0) + 1
    rows = (
        (
            dictionary_description(keyword),
            _tag(keyword),
            *(_mark(written[keyword], kind, n_of_kind) for kind in _KIND_NAMES),
        )
        for keyword in sorted(written, key=lambda each: tag_for_keyword(each) or 0)
    )
    return _table(("attribute", "tag", *_KIND_NAMES.values()), rows)


def _mark(numbers: Mapping[str, int], kind: str, n_of_kind: Mapping[str, int]) -> str:
    return {0: "", n_of_kind[kind]: "x"}.get(numbers.get(kind, 0), "o")


def _tag(keyword: str) -> str:
    tag: Any = tag_for_keyword(keyword)
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _names(uids: Iterable[str]) -> str:
    *names, last = (UID(uid).name for uid in uids)
    return f"{', '.join(names)} and {last}"


def _table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
