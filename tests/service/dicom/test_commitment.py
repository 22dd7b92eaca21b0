"""A PACS commits itself to results, or does not: Storage Commitment with a node that reports at once, later, or never."""

import io
import itertools
import ssl
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pydicom
import pytest
from fastapi.testclient import TestClient
from pydicom.uid import generate_uid
from tests.benchmarks.loading import load_benchmark
from tests.certificates import make_certificates

from pneumoscope.service.app import create_app
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.dicom.configuration import Destination, DicomConfiguration
from pneumoscope.service.dicom.node_settings import DicomPeer, DicomSettings, tls_contexts
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.commitments import Commitments
from pneumoscope.service.storage.database import write_transaction
from pneumoscope.service.storage.outbox import Outbox
from pneumoscope.service.storage.outbox_records import ResultSubject
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.results import enqueue

pynetdicom = pytest.importorskip("pynetdicom", reason="[pacs] is not installed")
delivery_tests = pytest.importorskip("tests.service.dicom.test_delivery")
Archive = delivery_tests.Archive
receive = delivery_tests.receive
wait_for_delivery = delivery_tests.wait_for_delivery
wait_until = delivery_tests.wait_until
receiver = pytest.importorskip("pneumoscope.service.dicom.receiver")
commitment = pytest.importorskip("pneumoscope.service.dicom.commitment")
pytestmark = pytest.mark.slow  # objects are exchanged with another node
SECONDS = 60
MAX_PARSE_SECONDS = 0.3  # processor time for a report, in the service's process
bombs = load_benchmark("dicom_bombs")
MODEL, INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
HOUR = timedelta(hours=1)


class CommittingArchive(Archive):
    """A DICOM node that is asked for storage commitment.

    Attributes:
        reports: Where it reports: "same" association, one that it opens "later", or "never".
        refuses: Number of requests in which it refuses the first object.
        node_port: Port to which it reports.
        requests: The data sets of N-ACTION.
        answers: Statuses of N-EVENT-REPORT.
        on_association: Called when an association is requested.
        tls: Contexts of its server and of its client; None without TLS.
        encryption: Version of TLS of the connection of each N-ACTION; None without TLS.
    """

    def __init__(self, reports="same"):
        super().__init__()
        self.tls, self.encryption = None, []
        self.reports, self.refuses, self.node_port, self.action_status = reports, 0, 0, 0x0000
        self.requests, self.answers, self.threads = [], [], []
        self.offers, self.on_association = True, lambda: None
        self.refuses_requests_with_first, self.refused = False, ""

    def start(self):
        ae = pynetdicom.AE("ARCHIVE")
        for sop_class in (*self.sop_classes(), *([MODEL] if self.offers else [])):
            ae.add_supported_context(sop_class)
        handlers = [
            (pynetdicom.evt.EVT_C_STORE, self._store), (pynetdicom.evt.EVT_N_ACTION, self._act),
            (pynetdicom.evt.EVT_REQUESTED, lambda _: self.on_association()),
        ]  # fmt: skip
        context = self.tls and self.tls[0]
        self._server = ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=handlers, ssl_context=context
        )
        return self

    @staticmethod
    def sop_classes():
        from pneumoscope.service.dicom.results import SOP_CLASSES

        return SOP_CLASSES.values()

    def stop(self):
        super().stop()
        for thread in self.threads:
            thread.join(SECONDS)

    def _act(self, event):
        request = event.action_information
        self.requests.append(request)
        self.encryption.append(tls_version(event.assoc))
        assert (event.action_type, event.request.RequestedSOPInstanceUID) == (1, INSTANCE)
        uids = [str(each.ReferencedSOPInstanceUID) for each in request.ReferencedSOPSequence]
        self.refused = self.refused or uids[0]
        if self.refuses_requests_with_first and self.refused in uids:
            return 0x0110, None
        if self.action_status == 0x0000 and self.reports != "never":
            thread = threading.Thread(target=self._report, args=(event.assoc, request), daemon=True)
            self.threads.append(thread)
            thread.start()
        return self.action_status, None

    def _report(self, association, request):
        items = list(request.ReferencedSOPSequence)
        assert {str(each.ReferencedSOPInstanceUID) for each in items} <= set(self.stored)
        n_failed, self.refuses = min(self.refuses, 1), max(0, self.refuses - 1)
        information = report(request.TransactionUID, items[n_failed:], items[:n_failed])
        if self.reports == "same":
            threading.Event().wait(0.2)  # until the response is sent
            self.send_report(association, information)
        else:
            wait_until(lambda: association.is_released, "the association of the request is not released")
            with reporting(self.node_port, tls=self.tls and self.tls[1]) as opened:
                self.send_report(opened, information)

    def send_report(self, association, information):
        event_type = 2 if "FailedSOPSequence" in information else 1
        status, _ = association.send_n_event_report(information, event_type, MODEL, INSTANCE)
        self.answers.append(status.get("Status"))


def report(transaction_uid, committed=(), failed=(), reason=0x0112):
    information = pydicom.Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = [item(each) for each in committed]
    if failed:
        information.FailedSOPSequence = [item(each, reason) for each in failed]
    return information


def item(reference, reason=None):
    copied = pydicom.Dataset()
    for name in ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID"):
        setattr(copied, name, reference[name].value)
    if reason is not None:
        copied.FailureReason = reason
    return copied


def tls_version(association):
    """Version of TLS of a connection; None without TLS."""
    connection = association.dul.socket.socket
    return connection.version() if isinstance(connection, ssl.SSLSocket) else None


@contextmanager
def reporting(port, *, calling="ARCHIVE", has_role=True, tls=None):
    """An association that a PACS opens to report: it is the SCP."""
    ae = pynetdicom.AE(calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = SECONDS
    ae.add_requested_context(MODEL)
    roles = [pynetdicom.build_role(MODEL, scp_role=True)] if has_role else []
    options = {"tls_args": (tls, None)} if tls else {}
    association = ae.associate("127.0.0.1", port, ae_title="PNEUMOSCOPE", ext_neg=roles, **options)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()
        if association.dul.socket and association.dul.socket.socket:  # left open if the node has closed the connection
            association.dul.socket.socket.close()


@pytest.fixture
def archive():
    opened = CommittingArchive().start()
    yield opened
    opened.stop()


@pytest.fixture
def at_once(monkeypatch):
    """Without the delays before requests and repetitions; the first request is about all results of an image."""
    monkeypatch.setattr("pneumoscope.service.storage.outbox_records._FIRST_DELAY", timedelta(milliseconds=50))
    monkeypatch.setattr("pneumoscope.service.storage.outbox._COMMITMENT_DELAY", timedelta(0))
    begin = Commitments.begin

    def begin_when_nothing_waits(commitments, *arguments):
        waits = any(each.waiting for each in Outbox(commitments.engine).status())
        return None if waits else begin(commitments, *arguments)

    monkeypatch.setattr(Commitments, "begin", begin_when_nothing_waits)


def configuration(archive, tls=(None, None), **options):
    peers = (DicomPeer("PACS", "ARCHIVE", "127.0.0.1", archive.port),)
    destinations = (Destination(peer="sender", storage_commitment=True),)
    server, client = tls
    node = DicomSettings("127.0.0.1", 0, "PNEUMOSCOPE", peers, timeout=5, tls=server, client_tls=client)
    return DicomConfiguration(node, **{"quiet_seconds": 0, "destinations": destinations} | options)


@contextmanager
def service(model, archive, repository=None, **options):
    """A service that delivers results, with its receiver; its client and its repository."""
    settings = configuration(archive, **options)
    repository, opened = repository or PredictionRepository(None), receiver.DicomReceiver(settings.node)
    archive.node_port = opened.port
    app = create_app(model, repository, Settings(dicom=settings), dicom_receiver=opened, delivery=True)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client, repository


def commitments(repository):
    return sorted(each.commitment for each in repository.outbox.find(("waiting", "delivered")))


def wait_for_commitment(repository, expected):
    wait_until(lambda: commitments(repository) == expected, lambda: commitments(repository))


@pytest.mark.parametrize("reports", ["same", "later"])
def test_results_are_committed(model, archive, at_once, reports):
    archive.reports = reports
    with service(model, archive) as (client, repository):
        receive(client)
        wait_for_commitment(repository, ["committed", "committed"])
        sent = {
            str(each.ReferencedSOPInstanceUID): each.ReferencedSOPClassUID
            for request in archive.requests
            for each in request.ReferencedSOPSequence
        }
        assert sent == {uid: copies[0].SOPClassUID for uid, copies in archive.stored.items()}
        wait_until(lambda: len(archive.answers) == len(archive.requests), "a report was not answered")
        assert set(archive.answers) == {0x0000}
        (status,) = client.get("/v1/exchange").json()["outbox"]
        assert (status["delivered"], status["committed"], status["uncommitted"]) == (2, 2, 0)


@pytest.mark.parametrize("reports", ["same", "later"])
def test_result_that_is_not_committed_is_sent_again(model, archive, at_once, reports):
    archive.reports, archive.refuses = reports, 1
    with service(model, archive) as (client, repository):
        receive(client)
        wait_for_commitment(repository, ["committed", "committed"])
        assert sorted(len(copies) for copies in archive.stored.values()) == [1, 2]
        for copies in archive.stored.values():
            assert all(pydicom.Dataset(each) == pydicom.Dataset(copies[0]) for each in copies)
        assert [row.event for row in read_rows(repository.engine)].count("commitment_failed") == 1


def test_result_that_is_never_committed_is_shown_as_failing(model, archive, at_once, caplog):
    archive.refuses = 1000
    with service(model, archive) as (client, repository):
        receive(client)
        wait_until(lambda: "failed" in commitments(repository), "it is sent for ever")
        wait_until(lambda: len(archive.requests) >= 3, "too few requests")
        (failed, *_) = [each for each in repository.outbox.find(("delivered",)) if each.commitment == "failed"]
        assert (failed.error, failed.commitment_failures) == ("not_committed_0112", 3)
        assert len(archive.stored[failed.result_uid]) == 3
        page = client.get("/dashboard").text
        assert "Not committed" in page
        metrics = client.get("/metrics").text
        assert 'pneumoscope_outbox_commitment_failing_results{destination="PACS"}' in metrics
    assert "Storage commitment of 1 results failed at PACS: 0112" in caplog.text


def test_peer_without_storage_commitment_keeps_results_as_delivered(model, archive, at_once, caplog):
    archive.stop()
    archive.offers = False
    archive.start()
    with service(model, archive) as (client, repository):
        receive(client)
        wait_for_delivery(repository, 2)
        wait_until(lambda: "does not support storage commitment" in caplog.text, "no warning")
        wait_until(
            lambda: {each.error for each in repository.outbox.find(("delivered",))} == {"commitment_not_offered"}, ""
        )
        (status,) = repository.outbox.status()
        assert (status.delivered, status.waiting, status.uncommitted, status.commitment_failing) == (2, 0, 2, 2)
        archive.stop()
        archive.offers = True
        archive.start()
        wait_for_commitment(repository, ["committed", "committed"])
    assert [len(copies) for copies in archive.stored.values()] == [1, 1]


def test_refused_request_is_repeated(model, archive, at_once):
    archive.action_status = 0x0213
    with service(model, archive) as (client, repository):
        receive(client)
        wait_until(lambda: len(archive.requests) >= 2, "no second request")
        wait_until(lambda: "status_0213" in {each.error for each in repository.outbox.find(("delivered",))}, "no error")
        archive.action_status = 0x0000
        wait_for_commitment(repository, ["committed", "committed"])
        transactions = [each.TransactionUID for each in archive.requests]
        assert len(set(transactions)) == len(transactions)


def test_peer_that_is_not_asked_gets_no_request(model, archive, at_once):
    with service(model, archive, destinations=(Destination(peer="PACS"),)) as (client, repository):
        receive(client)
        wait_for_delivery(repository, 2)
        threading.Event().wait(2.5)  # longer than the interval of requests
        assert archive.requests == []
        assert commitments(repository) == ["", ""]


def test_commitment_is_not_awaited_after_the_last_destination_was_removed(model, archive, at_once, tmp_path):
    archive.reports = "never"
    with service(model, archive, PredictionRepository(tmp_path / "data")) as (client, repository):
        receive(client)
        wait_for_commitment(repository, ["requested", "requested"])
    repository = PredictionRepository(tmp_path / "data")
    settings = Settings(dicom=configuration(archive, destinations=()))
    with TestClient(create_app(model, repository, settings, delivery=False), base_url="http://127.0.0.1:8000"):
        assert commitments(repository) == ["", ""]


def test_result_for_which_a_request_is_refused_delays_no_other(model, archive, at_once, monkeypatch, caplog):
    archive.refuses_requests_with_first = True
    monkeypatch.setattr(commitment, "_POLL_SECONDS", 0.05)
    with service(model, archive) as (client, repository):
        receive(client)

        def is_one_refused():
            outcomes = {
                each.result_uid: (each.commitment, each.error) for each in repository.outbox.find(("delivered",))
            }
            refused = outcomes.pop(archive.refused, None)
            return refused == ("pending", "status_0110") and list(outcomes.values()) == [("committed", "")]

        wait_until(is_one_refused, lambda: commitments(repository))
        archive.refuses_requests_with_first = False
        wait_for_commitment(repository, ["committed", "committed"])
    place = f"PACS (ARCHIVE at 127.0.0.1, port {archive.port})"
    assert f"{place} rejected a request for storage commitment of 1 results: status_0110" in caplog.text


def test_report_after_a_restart_is_recorded(model, archive, at_once, tmp_path):
    archive.reports = "never"
    with service(model, archive, PredictionRepository(tmp_path / "data")) as (client, repository):
        receive(client)
        wait_until(lambda: archive.requests, "no request")
        wait_for_commitment(repository, ["requested", "requested"])
    (request,) = archive.requests
    with service(model, archive, PredictionRepository(tmp_path / "data")) as (_, repository):
        with reporting(archive.node_port) as association:
            archive.send_report(association, report(request.TransactionUID, request.ReferencedSOPSequence))
        assert archive.answers == [0x0000]
        assert commitments(repository) == ["committed", "committed"]
    assert len(archive.requests) == 1


# --- reports that are not ours, or that are hostile -------------------------------------------------------------------------


@contextmanager
def requested(model, archive, **options):
    """A service that awaits a report; its repository and the request."""
    archive.reports = "never"
    with service(model, archive, **options) as (client, repository):
        receive(client)
        wait_until(lambda: archive.requests, "no request")
        wait_for_commitment(repository, ["requested", "requested"])
        yield repository, archive.requests[0]


def other_reference():
    reference = pydicom.Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
    return reference


def hostile_reports(request):
    """Reports that must change nothing, with the event type, the instance and the expected status."""
    items = list(request.ReferencedSOPSequence)
    good = report(request.TransactionUID, items)
    without_transaction = report(request.TransactionUID, items)
    del without_transaction.TransactionUID
    without_instance = report(request.TransactionUID, items)
    del without_instance.ReferencedSOPSequence[1].ReferencedSOPInstanceUID
    return {
        "unknown transaction": (report(generate_uid(), items), 1, INSTANCE, 0x0115),
        "a transaction UID that is none": (report(f"1.2\\{request.TransactionUID}", items), 1, INSTANCE, 0x0115),
        "no transaction": (without_transaction, 1, INSTANCE, 0x0115),
        "an object that was not requested": (report(request.TransactionUID, [*items, other_reference()]), 1, INSTANCE, 0x0115),
        "an object without a UID": (without_instance, 1, INSTANCE, 0x0115),
        "an object in both lists": (report(request.TransactionUID, items, items[:1]), 2, INSTANCE, 0x0115),
        "too many objects": (report(request.TransactionUID, 600 * items), 1, INSTANCE, 0x0115),
        "another event type": (good, 3, INSTANCE, 0x0113),
        "another instance": (good, 1, "1.2.3", 0x0112),
    }  # fmt: skip


def test_reports_that_are_not_understood_are_refused_and_change_nothing(model, archive, at_once):
    with requested(model, archive) as (repository, request):
        for name, (information, event_type, instance, expected) in hostile_reports(request).items():
            with reporting(archive.node_port) as association:
                status, _ = association.send_n_event_report(information, event_type, MODEL, instance)
            assert status.get("Status") == expected, name
            assert commitments(repository) == ["requested", "requested"], name
        assert statuses_of_undecodable_report(archive.node_port) == [0x0115]
        assert commitments(repository) == ["requested", "requested"]


def statuses_of_undecodable_report(port):
    """Report with bytes that are not a data set, on an association without role selection; return the statuses of responses."""
    request, statuses = pynetdicom.dimse_primitives.N_EVENT_REPORT(), []
    request.MessageID, request.EventTypeID = 1, 1
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = MODEL, INSTANCE
    request.EventInformation = io.BytesIO(b"\xff" * 100)
    with reporting(port, has_role=False) as association:
        association.bind(pynetdicom.evt.EVT_DIMSE_RECV, lambda event: statuses.append(event.message.command_set.Status))
        association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
        wait_until(lambda: statuses, "no response")
    return statuses


def received_report(information, *, is_implicit=True):
    """The event of a report that was received, with these bytes as its data set."""
    request = pynetdicom.dimse_primitives.N_EVENT_REPORT()
    request.MessageID, request.EventTypeID = 1, 1
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = MODEL, INSTANCE
    request.EventInformation = io.BytesIO(information)
    syntax = pydicom.uid.ImplicitVRLittleEndian if is_implicit else pydicom.uid.ExplicitVRLittleEndian
    context = pynetdicom.presentation.PresentationContextTuple(1, MODEL, syntax)
    return pynetdicom.events.Event(None, pynetdicom.evt.EVT_N_EVENT_REPORT, {"request": request, "context": context})


@pytest.fixture(scope="module")
def no_requests():
    """Commitments without a request: no report is about one."""
    return Commitments(PredictionRepository(None).engine)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("size", [commitment.MAX_REPORT_BYTES, 2**20])
@pytest.mark.parametrize("name", list(bombs.report_bombs(2**16)))
def test_report_that_takes_long_to_parse_is_refused_at_once(no_requests, name, size):
    bomb = bombs.report_bombs(size)[name]
    assert 0.8 * size < len(bomb) <= size
    start = time.process_time()
    status = commitment.answer_report(received_report(bomb), "PACS", no_requests, datetime.now(UTC))
    assert time.process_time() - start < MAX_PARSE_SECONDS
    assert status == 0x0115


@pytest.mark.parametrize("is_implicit", [True, False])
def test_longest_report_of_a_request_is_recorded(repository, is_implicit):
    now = datetime(2026, 1, 1, 1, tzinfo=UTC)
    for number in range(commitment.MAX_OBJECTS):
        deliver(repository, f"1.2.{number + 1}", now)
    requests = Commitments(repository.engine)
    request = requests.begin("PACS", now + HOUR, HOUR, commitment.MAX_OBJECTS)
    failed = []
    for delivery in request.deliveries:
        each = pydicom.Dataset()
        each.ReferencedSOPClassUID = each.StorageMediaFileSetUID = "1." + 62 * "2"
        each.ReferencedSOPInstanceUID, each.FailureReason = delivery.result_uid, 0x0112
        each.RetrieveAETitle, each.StorageMediaFileSetID = 16 * "A", 16 * "B"
        each.is_undefined_length_sequence_item = True
        each.add_new(0x00110010, "LO", 64 * "V")  # of the peer's vendor
        each.add_new(0x00111001, "LO", 64 * "V")
        failed.append(each)
    information = pydicom.Dataset()
    information.TransactionUID, information.FailedSOPSequence = request.transaction_uid, failed
    encoded = pynetdicom.dsutils.encode(information, is_implicit, True)
    assert len(encoded) > commitment.MAX_REPORT_BYTES / 2
    event = received_report(encoded, is_implicit=is_implicit)
    assert commitment.answer_report(event, "PACS", requests, now + HOUR) == 0x0000
    assert {each.error for each in repository.outbox.find(("waiting",))} == {"not_committed_0112"}


def test_report_of_another_ae_is_refused(model, archive, at_once):
    with requested(model, archive) as (repository, _):
        with reporting(archive.node_port, calling="STRANGER") as association:
            assert association.is_rejected
        assert commitments(repository) == ["requested", "requested"]


def test_report_of_another_peer_changes_nothing(model, archive, at_once):
    other = DicomPeer("OTHER", "OTHER", "127.0.0.1", 104)
    archive.reports = "never"
    node = configuration(archive).node
    both = DicomSettings("127.0.0.1", 0, "PNEUMOSCOPE", (*node.peers, other), timeout=5)
    settings = DicomConfiguration(both, 0, destinations=(Destination(peer="PACS", storage_commitment=True),))
    opened, repository = receiver.DicomReceiver(both), PredictionRepository(None)
    app = create_app(model, repository, Settings(dicom=settings), dicom_receiver=opened, delivery=True)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        receive(client)
        wait_until(lambda: archive.requests, "no request")
        wait_for_commitment(repository, ["requested", "requested"])
        (request,) = archive.requests
        with reporting(opened.port, calling="OTHER") as association:
            archive.send_report(association, report(request.TransactionUID, request.ReferencedSOPSequence))
        assert archive.answers == [0x0115]
        assert commitments(repository) == ["requested", "requested"]


def test_node_does_not_commit_itself(model, archive):
    with service(model, archive):
        ae = pynetdicom.AE("ARCHIVE")
        ae.add_requested_context(MODEL)
        association = ae.associate("127.0.0.1", archive.node_port, ae_title="PNEUMOSCOPE")
        status, _ = association.send_n_action(report(generate_uid(), [other_reference()]), 1, MODEL, INSTANCE)
        association.release()
        assert status.Status == 0x0211


# --- TLS ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def contexts(certificates, name):
    """The contexts of a node with a certificate, which requires one from others."""
    return tls_contexts(certificates / f"{name}.pem", certificates / f"{name}.key", certificates / "ca.pem")


@pytest.mark.parametrize("reports", ["same", "later"])
def test_results_are_committed_over_tls(model, archive, at_once, certificates, reports):
    restart_with_tls(archive, certificates)
    archive.reports = reports
    with service(model, archive, tls=contexts(certificates, "server")) as (client, repository):
        receive(client)
        wait_for_commitment(repository, ["committed", "committed"])
        wait_until(lambda: len(archive.answers) == len(archive.requests), "a report was not answered")
    assert set(archive.answers) == {0x0000}
    assert set(archive.encryption) == {"TLSv1.3"}


def restart_with_tls(archive, certificates):
    archive.stop()
    archive.tls = contexts(certificates, "orthanc")
    archive.start()


def test_report_without_tls_or_certificate_is_not_accepted_by_a_node_with_tls(
    model, archive, at_once, certificates, caplog
):
    restart_with_tls(archive, certificates)
    without_certificate = ssl.create_default_context(cafile=certificates / "ca.pem")
    without_certificate.check_hostname = False
    with requested(model, archive, tls=contexts(certificates, "server")) as (repository, request):
        information = report(request.TransactionUID, request.ReferencedSOPSequence)
        for count, tls in enumerate((None, without_certificate), start=1):
            with reporting(archive.node_port, tls=tls) as association:
                assert not association.is_established
            wait_until(lambda: caplog.text.count("TLS handshake failed") == count, "no warning")  # noqa: B023
            assert commitments(repository) == ["requested", "requested"]
        with reporting(archive.node_port, tls=archive.tls[1]) as association:
            assert tls_version(association) == "TLSv1.3"
            archive.send_report(association, information)
        assert archive.answers == [0x0000]
        assert commitments(repository) == ["committed", "committed"]


# --- errors of connections --------------------------------------------------------------------------------------------------


def test_peer_that_does_not_offer_commitment_is_asked_every_15_minutes_at_most(archive, repository):
    """However many results are delivered meanwhile."""
    archive.stop()
    archive.offers = False
    archive.start()
    asked, clock = [], [datetime(2026, 1, 1, 1, tzinfo=UTC)]
    settings = configuration(archive)
    requester = commitment.CommitmentRequester(settings, repository.engine, threading.Event(), now=lambda: clock[0])
    archive.on_association = lambda: asked.append(clock[0])
    for minute in range(60):
        if minute % 5 == 0:
            deliver(repository, f"1.2.{minute + 1}", clock[0])
        for _ in range(2):
            assert not requester.request_due(*settings.peers)
            clock[0] += timedelta(seconds=30)
    waits = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert waits == sorted(waits)
    assert waits[-1] == timedelta(minutes=15)
    count = len(asked)
    clock[0] -= timedelta(days=3)  # the clock is set back
    assert not requester.request_due(*settings.peers)
    assert len(asked) == count + 1


def deliver(repository, sop_instance_uid, time):
    """Record that a result was delivered to a destination that is asked for commitment."""
    subject = ResultSubject("ab" * 16, "", "cd" * 32, "balanced", sop_instance_uid, "{}")
    with write_transaction(repository.engine) as connection:
        enqueue(connection, subject, ["PACS"], ["structured_report"], time.isoformat())
    repository.outbox.record_delivered(repository.outbox.due("PACS", time, 1), time, requests_commitment=True)


def test_silent_peer_is_asked_again_with_another_transaction(archive, repository):
    from tests.service.storage.test_commitments import Sent

    archive.reports, clock = "never", [datetime(2026, 1, 1, 1, tzinfo=UTC)]
    Sent(repository.engine)
    settings = configuration(
        archive, destinations=(Destination(peer="PACS", storage_commitment=True, commitment_seconds=60),)
    )
    stopped = threading.Event()
    stopped.set()  # do not wait for a report
    requester = commitment.CommitmentRequester(settings, repository.engine, stopped, now=lambda: clock[0])
    (peer,) = settings.peers
    for minutes in (0, 1, 2, 4):
        clock[0] += timedelta(minutes=minutes)
        assert requester.request_due(peer)
        assert not requester.request_due(peer)
    assert len({each.TransactionUID for each in archive.requests}) == 4
    assert Commitments(repository.engine).begin("PACS", clock[0] + timedelta(minutes=7), HOUR, 10) is None
