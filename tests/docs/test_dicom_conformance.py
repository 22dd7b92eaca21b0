"""The DICOM conformance statement is fresh, and the node negotiates and answers what it states."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

pynetdicom = pytest.importorskip("pynetdicom", reason="[pacs] is not installed")
pytest.importorskip("highdicom", reason="[pacs] is not installed")

from pneumoscope.core.errors import PullError  # noqa: E402  after the skip
from pneumoscope.service.dicom.matching import ATTRIBUTES  # noqa: E402
from pneumoscope.service.dicom.node_settings import DicomPeer, DicomSettings  # noqa: E402
from pneumoscope.service.dicom.processing import Reception  # noqa: E402
from pneumoscope.service.dicom.pull_move import pull_by_move  # noqa: E402
from pneumoscope.service.dicom.receiver import DicomReceiver  # noqa: E402
from pneumoscope.service.dicom.selection import PullReport, StudySelection  # noqa: E402

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "reference" / "dicom-conformance.md"
SECONDS = 60


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dicom_conformance", DOCS / "dicom_conformance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture
def node():
    peer = DicomPeer("PACS", "SENDER", "127.0.0.1", 104)
    receiver = DicomReceiver(DicomSettings("127.0.0.1", 0, "PNEUMOSCOPE", (peer,), timeout=SECONDS))
    receiver.start(SimpleNamespace(receive=lambda *_, **__: Reception(0)))  # type: ignore[arg-type]  # no instance is sent
    yield receiver
    receiver.stop(SECONDS)


def section(page: str, title: str) -> str:
    return page.partition(f"### {title}\n")[2].partition("\n### ")[0]


def uids(text: str) -> list[str]:
    """Return the UIDs of a table's rows."""
    return re.findall(r"\| `([0-9.]+)`", text)


def associate(node, contexts, called="PNEUMOSCOPE", calling="SENDER"):
    ae = pynetdicom.AE(calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = SECONDS
    for uid, syntaxes in contexts:
        ae.add_requested_context(uid, syntaxes)
    return ae.associate("127.0.0.1", node.port, ae_title=called)


def test_page_is_up_to_date(generator, page):
    assert page.partition("-->\n\n")[2] == generator.conformance_page(), "run make docs"


def test_node_accepts_the_stated_classes_and_transfer_syntaxes_and_no_other(node, page):
    text = section(page, "Storage and verification (SCP)")
    classes, syntaxes, results = (
        uids(part) for part in re.split("Transfer syntaxes of every|Results that a PACS", text)
    )
    assert len(results) == 4
    assert len(classes) == 5
    assert len(syntaxes) > 10
    proposed = [(uid, [syntax]) for uid in classes[1:] for syntax in syntaxes]
    proposed += [(uid, [syntax]) for uid in results for syntax in syntaxes[:3]]
    others = [
        ("1.2.840.10008.5.1.4.1.1.2", [ImplicitVRLittleEndian]),
        (classes[1], ["1.2.840.10008.1.2.4.100"]),
    ]  # CT, MPEG-2
    association = associate(node, [(classes[0], [ImplicitVRLittleEndian]), *proposed, *others])
    try:
        accepted = {(each.abstract_syntax, each.transfer_syntax[0]) for each in association.accepted_contexts}
        assert accepted == {(uid, syntax) for uid, [syntax] in proposed} | {(classes[0], ImplicitVRLittleEndian)}
        assert len(association.rejected_contexts) == 2
    finally:
        association.release()


@pytest.mark.parametrize("order", [1, -1])
def test_node_prefers_the_first_transfer_syntax_of_the_table(node, order):
    syntaxes = [ExplicitVRLittleEndian, ImplicitVRLittleEndian][::order]
    association = associate(node, [("1.2.840.10008.5.1.4.1.1.1", syntaxes)])
    assert association.accepted_contexts[0].transfer_syntax == [ExplicitVRLittleEndian]
    association.release()


@pytest.mark.parametrize(("called", "calling", "reason"), [("OTHER", "SENDER", 7), ("PNEUMOSCOPE", "OTHER", 3)])
def test_node_rejects_other_titles_as_stated(node, page, called, calling, reason):
    association = associate(node, [("1.2.840.10008.1.1", [ImplicitVRLittleEndian])], called, calling)
    assert association.is_rejected
    rejection = association.acceptor.primitive
    assert (rejection.result, rejection.result_source, rejection.diagnostic) == (1, 1, reason)
    assert "AE title not recognized" in section(page, "Association policies")


def test_node_states_the_maximum_pdu(node, page):
    association = associate(node, [("1.2.840.10008.1.1", [ImplicitVRLittleEndian])])
    assert f"maximum PDU received | {association.acceptor.maximum_length:,} bytes" in page
    association.release()


def test_pull_proposes_and_asks_what_is_stated(page):
    """Compare the page with the associations and the identifiers that a peer gets."""
    text = section(page, "Query and retrieve (SCU)")
    contexts, identifiers = {}, []

    def answer(event):
        contexts[event.context.abstract_syntax] = [
            (each.abstract_syntax, sorted(map(str, each.transfer_syntax)))
            for each in event.assoc.requestor.requested_contexts
        ]
        identifiers.append(event.identifier)
        found = pydicom.Dataset()
        found.StudyInstanceUID, found.SeriesInstanceUID, found.Modality = "1.2", "1.2.3", "DX"
        yield 0xFF00, found

    def move(event):
        list(answer(event))
        yield None, None

    ae = pynetdicom.AE("ARCHIVE")
    for uid in uids(text):
        ae.add_supported_context(uid)
    handlers = [(pynetdicom.evt.EVT_C_FIND, answer), (pynetdicom.evt.EVT_C_MOVE, move)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        peer = DicomPeer("PACS", "ARCHIVE", "127.0.0.1", server.server_address[1])
        node = DicomSettings("127.0.0.1", 0, "PNEUMOSCOPE", (peer,), timeout=SECONDS)
        report = PullReport("PACS")
        with pytest.raises(PullError, match="does not know the AE title PNEUMOSCOPE"):
            pull_by_move(peer, node, StudySelection(study_uid="1.2"), report, None)
    finally:
        server.shutdown()
    stated = sorted(map(str, pynetdicom.DEFAULT_TRANSFER_SYNTAXES))
    assert contexts == {uid: [(uid, stated)] for uid in uids(text)}
    assert all(pydicom.uid.UID(each).name in text for each in stated)
    study, series, moved = ({element.keyword for element in each} - {"QueryRetrieveLevel"} for each in identifiers)
    for level, found in (("STUDY", study), ("SERIES", series)):
        row = next(line for line in text.splitlines() if line.startswith(f"| {level} |"))
        assert found == set(re.findall(r"`(\w+)`", row))
    assert moved == {"StudyInstanceUID", "SeriesInstanceUID"}


def test_every_search_and_retrieve_of_the_service_is_listed(page):
    from pneumoscope.service.dicom.web_read import dicom_web_reader_router

    listed = re.findall(r"^\| (?:QIDO|WADO)-RS, origin server \| `GET (\S+)` \|", page, re.MULTILINE)
    assert listed == [route.path for route in dicom_web_reader_router.routes]
    assert len(listed) == 14
    for keyword in (keyword for keywords in ATTRIBUTES.values() for keyword in keywords):
        assert f"`{keyword}`" in section(page, "DICOMweb")


def test_every_code_of_a_report_is_listed(page):
    from tests.service.dicom.result_objects import HEADERS, PREDICTIONS, image_file, objects, read

    listed = set(re.findall(r"\| `([^`]+)` \| (\w+) \|", page.partition("### Codes")[2]))
    for decision in PREDICTIONS:
        report = read(objects(decision, image_file(**HEADERS["complete"])).files["structured_report"])
        found = {
            (each.CodeValue, each.CodingSchemeDesignator)
            for element in report.iterall() if element.keyword == "ConceptCodeSequence"
            for each in element.value
        }  # fmt: skip
        prediction = PREDICTIONS[decision]
        reasons = {
            prediction.rejection.code if prediction.rejection else "",
            prediction.failure.code if prediction.failure else "",
            prediction.failure.reason.code if prediction.failure and prediction.failure.reason else "",
        }
        assert {code for code in found if code[0] not in {*reasons, "en-US", "121007"}} <= listed
        private = {
            each.ConceptNameCodeSequence[0].CodeValue
            for element in report.iterall() if element.keyword == "ContentSequence"
            for each in element.value
            if each.get("ConceptNameCodeSequence") and each.ConceptNameCodeSequence[0].CodingSchemeDesignator == "99PNEUMOSCOPE"
        }  # fmt: skip
        assert {(code, "99PNEUMOSCOPE") for code in private} <= listed


@pytest.mark.parametrize("role", [{"scp_role": True}, {"scp_role": True, "scu_role": True}, None])
def test_node_accepts_reports_of_storage_commitment_with_and_without_the_stated_role(node, page, role):
    (sop_class,) = uids(section(page, "Storage commitment (SCU)"))
    ae = pynetdicom.AE("SENDER")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = SECONDS
    ae.add_requested_context(sop_class, [ImplicitVRLittleEndian])
    roles = [pynetdicom.build_role(sop_class, **role)] if role else []
    association = ae.associate("127.0.0.1", node.port, ae_title="PNEUMOSCOPE", ext_neg=roles)
    (context,) = association.accepted_contexts
    association.release()
    assert (context.as_scu, context.as_scp) == ((False, True) if role else (True, False))
