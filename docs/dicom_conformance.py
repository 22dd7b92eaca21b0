"""Write the DICOM conformance statement (PS3.2) from the code and from objects that it writes."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pydicom
from fastapi.routing import APIRoute
from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.uid import UID
from pynetdicom import AE, DEFAULT_TRANSFER_SYNTAXES

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.service.dicom.result_objects import HEADERS, PREDICTIONS, image_file, objects

from pneumoscope.dicomweb.client import ANY_SYNTAX, MAX_BYTES, MODALITIES, PAGE
from pneumoscope.imaging.dicom_parts import DISPLAY_ELEMENTS, MAX_INLINE
from pneumoscope.service.dicom import (
    commitment,
    delivery,
    pull_move,
    receiver,
    results,
    stored_instances,
)
from pneumoscope.service.dicom.codes import PRIVATE_SCHEME
from pneumoscope.service.dicom.configuration import ResultSettings
from pneumoscope.service.dicom.header import HEADER_ELEMENTS
from pneumoscope.service.dicom.matching import ATTRIBUTES, COUNTS, DEFAULT_LIMIT, MAX_LIMIT
from pneumoscope.service.dicom.media_types import JSON_TYPES
from pneumoscope.service.dicom.node_settings import (
    CANNOT_UNDERSTAND,
    OUT_OF_RESOURCES,
    PROCESSING_FAILURE,
    SUCCESS,
    DicomSettings,
)
from pneumoscope.service.dicom.overlays import QUANTITY
from pneumoscope.service.dicom.report import PRIVATE_CODES, STANDARD_CODES
from pneumoscope.service.dicom.selection import StudySelection
from pneumoscope.service.dicom.web_read import dicom_web_reader_router
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
            ("DICOM service", "user (SCU)", "provider (SCP)"),
            (
                ("Verification", "no", "yes"),
                ("Storage of images", "no", "yes"),
                ("Storage of results", "yes", "no"),
                ("Storage Commitment Push Model", "yes, results, if configured", "no"),
                ("Query/Retrieve, study root: FIND and MOVE", "yes, by the command `pull`", "no"),
                ("Modality Worklist, MPPS", "no", "no"),
            ),
        ),
        _table(
            ("DICOMweb service", "user agent", "origin server"),
            (
                ("STOW-RS", "yes, results; images by the command `pull`", "yes, images"),
                ("QIDO-RS", "yes, by the commands `pull` and `archive score`", "yes, stored images and their results"),
                ("WADO-RS", "yes, by the commands `pull` and `archive score`", "yes, stored images and their results"),
                ("WADO-URI, UPS-RS, deletion", "no", "no"),
            ),
        ),
        "## Networking\n",
        "### Application entity\n",
        "One application entity. It acts on received images when their study is quiet, and sends each result to the configured"
        " destinations until they confirm it.\n",
        "### Storage and verification (SCP)\n",
        _table(("SOP class", "UID", "role"), ((uid.name, f"`{uid}`", "SCP") for uid in classes)),
        f"Transfer syntaxes of every SOP class but Verification, which has {_names(DEFAULT_TRANSFER_SYNTAXES)}. They are those"
        " that the installation can decode. In each presentation context, the first of this table that the peer proposes is"
        " accepted.\n",
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
        "After results were stored at a peer that is configured for it, an N-ACTION (action type 1) on a separate association"
        f" refers to at most {commitment.MAX_OBJECTS} of them. It proposes the transfer syntaxes"
        f" {_names(commitment.TRANSFER_SYNTAXES)}, without role selection, and stays open for"
        f" {commitment.REPORT_SECONDS:g} seconds for an N-EVENT-REPORT. A peer may also report on an association that it opens"
        " to the node, with SCP/SCU role selection in which it proposes the role SCP, or without it. Retrieve AE Title and"
        " storage media are not used.\n",
        _table(
            ("status of N-EVENT-REPORT", "meaning"),
            (
                (f"{SUCCESS:04X}", "recorded, even if repeated"),
                (f"{commitment.NO_SUCH_INSTANCE:04X}", "the SOP instance is not the well-known one"),
                (f"{commitment.NO_SUCH_EVENT_TYPE:04X}", "the event type is neither 1 nor 2"),
                (
                    f"{commitment.UNKNOWN_REPORT:04X}",
                    "the transaction is not the last one for its objects at this peer, an object was not requested or is in"
                    f" both lists, or the information cannot be read, is longer than {commitment.MAX_REPORT_BYTES // 1024} KiB or"
                    f" is about more than {commitment.MAX_OBJECTS} objects",
                ),
                (f"{PROCESSING_FAILURE:04X}", "not recorded: the storage is unavailable"),
            ),
        ),
        f"An object with a failure reason is stored again, and its commitment requested again, up to {MAX_FAILURES} requests in"
        " all. Without a report, a request is repeated with another transaction UID: by default after an hour, then after twice"
        " the time, up to a day. After a failed request, the next one follows as after a failed C-STORE. An N-ACTION to the node"
        " is answered with 0211 (unrecognized operation).\n",
        *_query_retrieve(),
        "### Association policies\n",
        _table(
            ("policy", "value"),
            (
                ("application context", "`1.2.840.10008.3.1.1.1`"),
                ("implementation class UID and version name", "those of the installed pynetdicom"),
                ("maximum PDU received", f"{ae.maximum_pdu_size:,} bytes"),
                (
                    "associations at the same time",
                    f"{limits['max_associations']} as acceptor; as requestor one for each destination, one for its storage"
                    " commitment, and one for each running `pull`",
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
                *_web_resources(),
                (
                    "STOW-RS, user agent",
                    "`POST {url}/studies`",
                    "results, one instance a request, over HTTPS, with basic authentication, a bearer token or neither",
                ),
                (
                    "QIDO-RS, user agent",
                    "`GET {url}/studies`, `…/series` and `…/instances` below a study and a series",
                    f"by `pull`: studies by one of the keys above, then their series, then the instances of the series of"
                    f" modality {' and '.join(MODALITIES)}; with `limit={PAGE}` and `offset`. By `archive score` likewise, with"
                    " the keys of the user, and `GET {url}/series` and `{url}/instances`",
                ),
                (
                    "WADO-RS, user agent",
                    "`GET {url}/studies/{study}/series/{series}/instances/{instance}`",
                    f"by `pull` and `archive score`; `Accept: {ANY_SYNTAX}`; at most {MAX_BYTES // 2**20} MiB by `pull`",
                ),
            ),
        ),
        *_web_limits(),
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
        " withdrawals: an object that is sent again is the same. Each object is in its own series, with the number "
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
        " API](http-api.md), and the [reasons of unreadable images](errors.md#reasons-of-unreadable-images).\n",
        "## Media\n",
        "No media storage application profiles.\n",
        "## Character sets\n",
        "Received: every character set of PS3.3 C.12.1.1.2 that pydicom decodes, Big5 if it is stated, and UTF-8 where none is"
        " stated. Sent: `ISO_IR 192` (UTF-8).\n",
    ]
    return "\n".join(parts)


def _query_retrieve() -> list[str]:
    """Return the section about the searches and moves of the command `pull`."""
    selections = (
        StudySelection(study_uid="1.2.3"),
        StudySelection(accession_number="A-17"),
        StudySelection(since=date(2026, 1, 31)),
    )
    keys = [keyword for selection in selections for keyword in selection.keys]
    searches = (
        ("STUDY", f"one of {_codes(keys)}; `StudyDate` as a range without an end", pull_move.STUDY_KEYS),
        ("SERIES", "`StudyInstanceUID`", pull_move.SERIES_KEYS),
    )
    return [
        "### Query and retrieve (SCU)\n",
        "The command `pull` searches for studies at a configured peer, then for their series, and has each series of modality"
        f" {' and '.join(MODALITIES)} sent to the node. It is another process than the service.\n",
        _table(
            ("SOP class", "UID", "role"),
            ((UID(uid).name, f"`{uid}`", "SCU") for uid in (pull_move.FIND, pull_move.MOVE)),
        ),
        f"An association proposes one of them, with the transfer syntaxes {_names(DEFAULT_TRANSFER_SYNTAXES)}. The calling AE"
        " title is that of the node, and so is the move destination. There is one association for all searches, and one for"
        " each C-MOVE. Extended negotiation, relational queries and C-CANCEL are not used.\n",
        _table(
            ("C-FIND, level", "matching keys", "return keys"),
            ((level, matching, _codes(returned)) for level, matching, returned in searches),
        ),
        "A C-MOVE states the level `SERIES` with `StudyInstanceUID` and `SeriesInstanceUID`, and waits"
        f" {pull_move.MOVE_SECONDS} seconds for each response. Studies that do not match the key are left out, even if the peer"
        " ignores it.\n",
        _table(
            ("status", "meaning"),
            (
                ("C-FIND 0000", "the search is complete"),
                (f"C-FIND {', '.join(f'{each:04X}' for each in pull_move.PENDING)}", "a result"),
                ("C-FIND, any other", "the search failed, and nothing is pulled"),
                ("C-MOVE 0000, B000", "the numbers of completed, failed and warning sub-operations are counted"),
                (f"C-MOVE {pull_move.UNKNOWN_DESTINATION:04X}", "the peer does not know the node: the pull ends"),
                ("C-MOVE, any other", "the failed sub-operations are counted; the series failed if none are stated"),
            ),
        ),
    ]


def _web_resources() -> Iterable[tuple[str, str, str]]:
    """Return a row for each search and retrieve transaction of the service, from its routes."""
    for route in dicom_web_reader_router.routes:
        assert isinstance(route, APIRoute)
        service = "QIDO-RS" if "(QIDO-RS)" in str(route.summary) else "WADO-RS"
        media_types = route.responses[200]["content"]
        details = f"response {_codes(media_types)}"
        yield f"{service}, origin server", f"`GET {route.path}`", details


def _web_limits() -> list[str]:
    """Return what the searches and retrieves of the service take, and their limits."""
    return [
        "Parameters of searches (QIDO-RS): an attribute by its keyword or its tag, `limit`, `offset`, `includefield` (all"
        " attributes are always returned), `fuzzymatching` (answered with a `Warning`: only literal matching is done) and"
        " `accept`. Unknown, repeated and malformed parameters are answered with 422.\n",
        _table(
            ("level", "attributes; those of the levels above, too"),
            ((level, _codes(keywords)) for level, keywords in ATTRIBUTES.items()),
        ),
        f"All of them can be matched, except {_codes(COUNTS)}: a single value, a value with the wildcards `*` and `?`, a range of"
        " dates or times, or a list of UIDs or code strings. Names match without regard to case.\n",
        _table(
            ("limit", "value"),
            (
                (
                    "results of a search",
                    f"{DEFAULT_LIMIT} by default, {MAX_LIMIT} at most; a `Warning` if there are more",
                ),
                (
                    "files of which a search reads the headers",
                    f"{stored_instances.MAX_FILES:,}; a `Warning` if the results are incomplete",
                ),
                ("searches at the same time", f"{stored_instances.MAX_SEARCHES}; others wait"),
                ("images of a retrieve", f"{stored_instances.MAX_RETRIEVED:,}, each with its results; 413 beyond"),
                (
                    "binary values in `/metadata`",
                    f"{MAX_INLINE:,} bytes; longer ones and pixels are left out",
                ),
            ),
        ),
        "Files are not transcoded: a client that accepts no transfer syntax of a file gets 406. `/frames` has frame 1 only. The"
        " parameters of `/rendered` (window, viewport, quality) are not supported. Responses of searches are"
        f" {_codes(JSON_TYPES)}; XML is not offered.\n",
    ]


def _codes(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


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
