"""Why a peer or a server cannot be reached: each reason has its own code, which names no one."""

import socket
import ssl
import threading
import time
from contextlib import contextmanager

import pytest
import requests
from tests.certificates import make_certificates

from pneumoscope.service.dicom.node_settings import DicomPeer, DicomSettings, tls_contexts
from pneumoscope.service.dicom.sending import UnreachableError, connection_error_code

pynetdicom = pytest.importorskip("pynetdicom", reason="[pacs] is not installed")
associations = pytest.importorskip("pneumoscope.service.dicom.outgoing_associations")
VERIFICATION, CT = "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.1.2"
SECONDS = 60


def reason(port, host="127.0.0.1", *, title="PACS", context=VERIFICATION, **settings):
    """Return the code of the reason why there is no association; "" if there is one."""
    peer = DicomPeer("PACS", title, host, port)
    node = DicomSettings("127.0.0.1", 0, "PNEUMOSCOPE", (peer,), **{"timeout": SECONDS} | settings)
    try:
        with associations.open_association(peer, node, [pynetdicom.build_context(context)]):
            return ""
    except UnreachableError as error:
        return str(error)


@contextmanager
def peer(*, tls=None, **settings):
    """A DICOM node that offers verification; yields its port."""
    ae = pynetdicom.AE("PACS")
    ae.add_supported_context(VERIFICATION)
    for name, value in settings.items():
        setattr(ae, name, value)
    server = ae.start_server(("127.0.0.1", 0), block=False, ssl_context=tls)
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


@contextmanager
def listener(serve=lambda connection: None):
    """A socket that accepts connections; yields its port."""
    ended = threading.Event()

    def run():
        while not ended.is_set():
            try:
                connection, _ = opened.accept()
            except TimeoutError:
                continue
            serve(connection)
            connections.append(connection)

    connections = []
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        opened.listen()
        opened.settimeout(0.1)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield opened.getsockname()[1]
        finally:
            ended.set()
            thread.join(SECONDS)
            for each in connections:
                each.close()


def answer_and_close(connection):
    connection.settimeout(SECONDS)
    connection.recv(100)
    connection.close()


def closed_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def test_peer_that_answers_is_reached():
    with peer() as port:
        assert reason(port) == ""


def test_closed_port_is_reported_as_connection_refused():
    assert reason(closed_port()) == "connection_refused"


@pytest.mark.parametrize("name", ["pacs.invalid", "pacs..example"])
def test_name_without_an_address_is_not_resolved(name):
    assert reason(104, name) == "name_not_resolved"


def test_silent_peer_is_a_timeout():
    with listener() as port:
        assert reason(port, timeout=2) == "timeout"


def test_peer_that_closes_the_connection_aborts_the_association():
    with listener(answer_and_close) as port:
        assert reason(port) == "association_aborted"


@pytest.mark.parametrize(
    ("rejection", "expected"),  # result, source and reason, as PS3.8 9.3.4 encodes them
    [
        ((1, 1, 3), "calling_ae_title_not_recognized"),
        ((1, 1, 7), "called_ae_title_not_recognized"),
        ((1, 1, 2), "association_rejected"),
        ((1, 2, 2), "association_rejected"),
        ((2, 3, 1), "association_rejected_for_now"),
        ((2, 3, 2), "association_rejected_for_now"),
    ],
)
def test_rejection_states_its_reason(rejection, expected):
    def reject(connection):
        connection.settimeout(SECONDS)
        connection.recv(10_000)
        connection.sendall(bytes([3, 0, 0, 0, 0, 4, 0, *rejection]))
        connection.recv(100)  # until the requestor closes the connection

    with listener(reject) as port:
        assert reason(port) == expected


def test_rejection_that_arrives_at_once_states_its_reason(monkeypatch):
    """The thread that negotiates may wait for the connection until the answer was read and the connection closed."""

    class SlowEvent(threading.Event):
        def wait(self, timeout=None):
            is_set = super().wait(timeout)
            time.sleep(0.5)
            return is_set

    def create(*arguments, **options):
        transport = associations.AssociationSocket(*arguments, **options)
        transport._ready = SlowEvent()
        return transport

    with peer(require_called_aet=True) as port:
        monkeypatch.setattr(associations, "_Socket", create)
        assert reason(port, title="OTHER") == "called_ae_title_not_recognized"


def test_title_that_is_not_that_of_the_peer_is_stated():
    with peer(require_called_aet=True) as port:
        assert reason(port, title="OTHER") == "called_ae_title_not_recognized"


def test_peer_that_rejects_the_sop_class_is_not_reported_as_unreachable():
    with peer() as port:
        assert reason(port, context=CT) == "sop_class_not_accepted"


def test_failed_handshake_is_an_error_of_tls(tmp_path):
    folder = make_certificates(tmp_path)
    _, client = tls_contexts(folder / "server.pem", folder / "server.key", folder / "ca.pem")
    server, _ = tls_contexts(folder / "orthanc.pem", folder / "orthanc.key", folder / "ca.pem")
    with peer(tls=server) as port:
        assert reason(port, client_tls=client) == ""
        assert reason(port, client_tls=ssl.create_default_context()) == "tls_failed"
    with listener(answer_and_close) as port:
        assert reason(port, client_tls=client) == "tls_failed"


def http_reason(url):
    with pytest.raises(requests.RequestException) as error:
        requests.get(url, timeout=SECONDS)
    return connection_error_code(error.value)


def test_codes_of_http_are_those_of_dicom():
    assert http_reason(f"http://127.0.0.1:{closed_port()}/") == "connection_refused"
    assert http_reason("http://pacs.invalid/") == "name_not_resolved"
    with listener(lambda connection: connection.sendall(b"no handshake")) as port:
        assert http_reason(f"https://127.0.0.1:{port}/") == "tls_failed"


def test_other_errors_are_unreachable():
    assert connection_error_code(OSError(113, "No route to host")) == "unreachable"
    assert connection_error_code(ConnectionResetError()) == "unreachable"
