"""The DICOM node receives images: associations, statuses, limits, duplicates, TLS, and a killed process."""

import hashlib
import io
import logging
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid
from tests.benchmarks.loading import load_benchmark
from tests.service.conftest import predicted, served, verified
from tests.service.dicom.nodes import PEER, SECONDS, association, instance, node, storescu

from pneumoscope.core.errors import BusyError, StorageError, UsageError
from pneumoscope.imaging.decode import decode
from pneumoscope.inference.model import load_model
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.dicom.node_settings import DicomPeer, DicomSettings, image_name, parse_peer, tls_contexts
from pneumoscope.service.storage.repository import PredictionRepository

pynetdicom = pytest.importorskip("pynetdicom", reason="[pacs] is not installed")
receiver = pytest.importorskip("pneumoscope.service.dicom.receiver")
benchmark = load_benchmark("dicom_hostile")


def connection(opened):
    """A bare connection to a node."""
    return socket.create_connection(("127.0.0.1", opened.port), timeout=SECONDS)


def received(bare):
    """The next bytes of a bare connection; empty at its end."""
    bare.settimeout(SECONDS)
    return bare.recv(4096)


@pytest.mark.parametrize(("manufacturer", "status"), [("pneumoscope", 0x0000), ("another", 0xC000)])
@pytest.mark.parametrize("sop_class", ["1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.88.59"])
def test_results_of_pneumoscope_are_acknowledged_and_others_are_refused(model, sop_class, manufacturer, status):
    report = pydicom.Dataset()
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    report.SOPClassUID, report.SOPInstanceUID, report.StudyInstanceUID = sop_class, generate_uid(), "1.2.3"
    report.Manufacturer = manufacturer
    with node(model) as (client, opened), association(opened) as sender:
        assert sender.send_c_store(report).Status == status
        assert client.get("/v1/predictions").json()["total"] == 0
        assert client.get("/v1/unreadable").json()["total"] == (status != 0x0000)


def test_instance_is_predicted_stored_and_acknowledged(model):
    with node(model) as (client, opened), association(opened) as sender:
        assert sender.send_c_echo().Status == 0x0000
        sent = instance(AccessionNumber="A1", StudyInstanceUID="1.2.3")
        assert sender.send_c_store(sent).Status == 0x0000
        (found,) = predicted(client)
        assert (found["path"], found["identity"]["patient_id"], found["identity"]["accession_number"]) == (
            sent.SOPInstanceUID, "7", "A1"
        )  # fmt: skip
        assert found["decision"] in ("pneumonia", "no_pneumonia")
        (row,) = read_rows(client.app.state.service.repository.engine)
        assert (row.event, row.user) == ("predicted", "PACS")


def test_stored_file_is_the_instance_that_was_sent(model):
    repository = PredictionRepository(None)
    with node(model, repository) as (client, opened), association(opened) as sender:
        sent = instance()
        sender.send_c_store(sent)
        (found,) = predicted(client)
        stored = pydicom.dcmread(io.BytesIO(repository.image(repository.get(found["id"]))))
        assert stored == sent
        assert stored.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_duplicate_is_acknowledged_and_not_predicted_again(model):
    with node(model) as (client, opened), association(opened) as sender:
        for sent in (instance(), instance(ViewPosition="LL")):
            assert sender.send_c_store(sent).Status == 0x0000
            predicted(client, 1 + (sent.ViewPosition == "LL"))
            assert sender.send_c_store(sent).Status == 0x0000
            assert client.app.state.service.repository.inbox.status().instances == 0


def test_instance_is_predicted_again_with_other_settings_of_the_service(shared_maker, model, tmp_path):
    sent = instance(PatientAge="")
    for point, count in (("balanced", 1), ("balanced", 1), ("rule_out", 2)):
        repository = PredictionRepository(tmp_path / "data")
        served_model = load_model(shared_maker.root / "served", threads=1, operating_point=point)
        with node(served_model, repository) as (client, opened), association(opened) as sender:
            assert sender.send_c_store(sent).Status == 0x0000
            predicted(client, count)


def test_instance_is_predicted_again_after_its_prediction_was_deleted(model):
    with node(model) as (client, opened), association(opened) as sender:
        sent = instance()
        sender.send_c_store(sent)
        (found,) = predicted(client)
        assert client.delete(f"/v1/predictions/{found['id']}").status_code == 204
        assert sender.send_c_store(sent).Status == 0x0000
        assert predicted(client)[0]["id"] == found["id"]


@pytest.mark.parametrize("invalid", ["1.2\0003", "Doe Anna", "1.2\n\x1b[31mX"])
def test_invalid_uid_is_not_used_as_an_image_name(invalid):
    assert image_name(invalid) == "DICOM instance"
    assert image_name("1.2.840.1") == "1.2.840.1"


def test_peer_that_sends_further_instances_meanwhile_holds_no_more_than_the_limit(model, monkeypatch, caplog):
    storing, release = threading.Event(), threading.Event()
    with node(model, max_bytes=100_000) as (client, opened):
        inbox = type(client.app.state.service.repository.inbox)

        def wait(*_, **__):
            storing.set()
            release.wait(SECONDS)
            raise StorageError("full")

        monkeypatch.setattr(inbox, "submit", wait)
        with association(opened) as sender:
            thread = threading.Thread(target=lambda: sender.send_c_store(instance()))
            thread.start()
            assert storing.wait(SECONDS)
            sender.dul.socket.socket.sendall(benchmark.store_request(bytes(200_000)))
            deadline = time.monotonic() + SECONDS
            while "more than 100000 bytes that are not stored" not in caplog.text:
                assert time.monotonic() < deadline, "the association was not aborted"
                time.sleep(0.02)
            release.set()
            thread.join(SECONDS)
            deadline = time.monotonic() + SECONDS
            while not sender.is_aborted and time.monotonic() < deadline:
                time.sleep(0.02)
            assert sender.is_aborted


def test_rejected_image_is_acknowledged_with_its_reason_on_record(model):
    with node(model) as (client, opened), association(opened) as sender:
        assert sender.send_c_store(instance(ViewPosition="LL")).Status == 0x0000
        (found,) = predicted(client)
        assert found["rejection"]["code"] == "lateral_view"


def color_jpeg(photometric):
    """Return a data set of color pixels compressed as JPEG, as capture stations send it."""
    options = {
        "RGB": {"keep_rgb": True}, "YBR_FULL": {"subsampling": "4:4:4"}, "YBR_FULL_422": {"subsampling": "4:2:2"},
    }[photometric]  # fmt: skip
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 100, 50)).save(file, "JPEG", quality=95, **options)
    sent = instance(StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.4", SamplesPerPixel=3, PlanarConfiguration=0)
    sent.Rows = sent.Columns = 64
    sent.PhotometricInterpretation = photometric
    sent.PixelData = encapsulate([file.getvalue()])
    sent["PixelData"].is_undefined_length = True
    sent.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return sent


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422"])
def test_color_jpeg_is_acknowledged_shown_with_its_reason_and_answered_as_not_assessed(model, photometric):
    sent = color_jpeg(photometric)
    assert sent.pixel_array.shape == (64, 64, 3)  # another decoder reads it: the image is valid
    with node(model) as (client, opened), association(opened, syntaxes=[JPEGBaseline8Bit]) as sender:
        assert sender.send_c_store(sent).Status == 0x0000
        (found,) = predicted(client, 1, "/v1/unreadable")
        reason = f"it is in color ({photometric}, 3 samples per pixel)"
        assert (found["path"], found["failure"]["code"]) == (sent.SOPInstanceUID, "unreadable_image")
        assert reason in found["failure"]["message"]
        page = client.get("/unreadable").text
        assert sent.SOPInstanceUID in page
        assert reason in page
        assert re.search(r'href="/unreadable[^"]*"[^>]*>[^<]*<[^>]*>\s*1\s*<', client.get("/").text)
        waiting = {each.kind: each for each in client.app.state.service.repository.outbox.find()}
        assert {each.destination for each in waiting.values()} == {"PACS"}
        assert set(waiting) == {"secondary_capture", "structured_report"}
        report = pydicom.dcmread(io.BytesIO(client.app.state.renderer.result_object(waiting["structured_report"])))
    meanings = [str(each.value) for each in report.iterall() if each.keyword == "CodeMeaning"]
    codes = [str(each.value) for each in report.iterall() if each.keyword == "CodeValue"]
    assert "unreadable_image" in codes
    assert "Not assessed" in meanings
    assert (report.StudyInstanceUID, report.PatientID) == ("1.2.3", "7")


@pytest.mark.parametrize("fault", ["no rows", "long header"])
def test_instance_whose_header_is_not_understood_is_refused_and_leaves_a_record(model, fault):
    sent = instance()
    if fault == "no rows":
        del sent.Rows
    else:
        sent.add_new(0x00091001, "OB", bytes(5 * 2**20))  # before the elements that are needed
    with node(model) as (client, opened), association(opened) as sender:
        answer = sender.send_c_store(sent)
        assert (answer.Status, answer.ErrorComment) == (0xC000, "unreadable_image")
        assert client.get("/v1/unreadable").json()["total"] == 1
        assert sender.send_c_store(instance()).Status == 0x0000


def test_instance_that_cannot_be_decoded_leaves_a_record(model):
    sent = instance()
    sent.PixelData = sent.PixelData[:100]
    with node(model) as (client, opened), association(opened) as sender:
        assert sender.send_c_store(sent).Status == 0x0000
        predicted(client, 1, "/v1/unreadable")
        assert sender.send_c_store(sent).Status == 0x0000
        assert client.app.state.service.repository.inbox.status().instances == 0


@pytest.mark.parametrize(
    ("error", "status", "comment"),
    [(StorageError("the disk is full"), 0xA700, "storage"), (RuntimeError("with a name"), 0x0110, "internal_error")],
)
def test_failure_is_never_acknowledged_with_success(model, monkeypatch, caplog, error, status, comment):
    def fail(*_, **__):
        raise error

    with node(model) as (client, opened), association(opened) as sender, caplog.at_level(logging.INFO):
        with monkeypatch.context() as patched:
            patched.setattr(type(client.app.state.service.repository.inbox), "submit", fail)
            answer = sender.send_c_store(instance())
        assert (answer.Status, answer.ErrorComment) == (status, comment)
        assert sender.send_c_store(instance()).Status == 0x0000  # the node continues
        predicted(client)
    assert "with a name" not in caplog.text


@pytest.mark.parametrize(
    ("error", "attempts"), [(StorageError("locked"), 5), (BusyError("full"), 5), (RuntimeError("with a name"), 1)]
)
def test_instance_waits_until_it_can_be_predicted(model, monkeypatch, caplog, error, attempts):
    monkeypatch.setattr("pneumoscope.service.dicom.processing._SECOND_ATTEMPT_SECONDS", 0)
    with node(model) as (client, opened), association(opened) as sender:
        service = type(client.app.state.service)
        predict, failures = service.predict_received, []

        async def fail(*arguments, **options):
            if len(failures) < attempts:
                failures.append(error)
                raise error
            await predict(*arguments, **options)

        monkeypatch.setattr(service, "predict_received", fail)
        assert sender.send_c_store(instance()).Status == 0x0000
        predicted(client)
        assert len(failures) == attempts
    assert "with a name" not in caplog.text


def test_instance_whose_prediction_always_fails_becomes_an_unreadable_file(model, monkeypatch):
    monkeypatch.setattr("pneumoscope.service.dicom.processing._SECOND_ATTEMPT_SECONDS", 0)

    async def fail(*_, **__):
        raise RuntimeError

    with node(model) as (client, opened), association(opened) as sender:
        monkeypatch.setattr(type(client.app.state.service), "predict_received", fail)
        assert sender.send_c_store(instance()).Status == 0x0000
        (found,) = predicted(client, 1, "/v1/unreadable")
        assert found["failure"]["code"] == "internal_error"


@pytest.mark.parametrize(
    ("titles", "reason", "logged"),
    [
        ({"calling": "INTRUDER"}, 3, "association of 'INTRUDER' from 127.0.0.1: not a configured peer"),
        ({"called": "ANOTHER"}, 7, "association of PACS: it calls 'ANOTHER', not PNEUMOSCOPE"),
    ],
)
def test_unknown_ae_title_is_rejected(model, caplog, titles, reason, logged):
    with node(model) as (client, opened), association(opened, **titles) as sender:
        assert sender.is_rejected
        assert sender.acceptor.primitive.diagnostic == reason
        assert logged in caplog.text
        assert client.get("/v1/predictions").json()["total"] == 0


def test_ae_title_of_a_peer_at_another_address_is_rejected(model, caplog):
    peers = DicomPeer("PACS", "ORTHANC", "192.0.2.1", 4242), DicomPeer("CT", "CT1", "127.0.0.1", 4242)
    with node(model, peers=peers) as (_, opened):
        with association(opened) as sender:
            assert sender.is_rejected
        with association(opened, calling="CT1") as sender:
            assert sender.is_established
    assert "Rejected a DICOM association of 'ORTHANC' from 127.0.0.1" in caplog.text


def test_instance_beyond_the_limit_aborts_the_association(model):
    with node(model, max_bytes=20_000) as (client, opened):
        with association(opened) as sender:
            assert sender.send_c_store(instance()).Status == 0x0000
            assert sender.send_c_store(instance(110)).Status == 0x0000  # the limit is that of one instance
            large = instance()
            large.add_new(0x00091001, "OB", bytes(200_000))
            assert "Status" not in sender.send_c_store(large)
        with association(opened) as sender:
            assert sender.is_established
        predicted(client, 2)


def test_number_of_associations_is_limited(model):
    with (
        node(model, max_associations=2) as (_, opened),
        association(opened),
        association(opened),
        association(opened) as third,
    ):
        assert third.is_rejected


def test_silent_peer_is_disconnected(model):
    with node(model, timeout=3) as (_, opened):  # enough for the association on a busy machine
        with connection(opened) as silent:
            assert received(silent) == b""
        with association(opened) as sender:
            assert sender.send_c_echo().Status == 0x0000


@pytest.mark.parametrize("content", [b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\xff\xff\xff\xff" + bytes(100), bytes(500)])
def test_bytes_other_than_a_pdu_end_only_their_connection(model, content):
    with node(model) as (_, opened):
        with connection(opened) as hostile:
            hostile.sendall(content)
            hostile.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                while received(hostile):
                    pass
        with association(opened) as sender:
            assert sender.send_c_store(instance()).Status == 0x0000


def test_pdu_that_states_a_huge_length_is_not_read(model):
    with node(model, timeout=2 * SECONDS) as (_, opened), connection(opened) as hostile:
        hostile.sendall(b"\x01\x00\xff\xff\xff\xff")
        assert received(hostile)[:1] in (b"", b"\x07")  # closed or aborted at once, without waiting for 4 GB


def test_unfinished_pdu_ends_its_connection(model):
    with node(model, timeout=0.5) as (_, opened), connection(opened) as slow:
        slow.sendall(b"\x01\x00\x00\x00\x10\x00" + bytes(10))
        assert received(slow)[:1] in (b"", b"\x07")


def test_connection_from_an_unknown_address_is_closed_unread(model, caplog):
    peer = DicomPeer("PACS", "ORTHANC", "192.0.2.1", 4242)
    with node(model, peers=(peer,)) as (_, opened), connection(opened) as unknown:
        assert received(unknown) == b""
    assert "Rejected a DICOM connection from 127.0.0.1" in caplog.text


def test_only_transfer_syntaxes_that_can_be_decoded_are_accepted(model):
    assert receiver.transfer_syntaxes()[:3] == ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"]
    deflated, video = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.102"
    assert not {deflated, video} & set(receiver.transfer_syntaxes())
    with node(model) as (_, opened):
        with association(opened, syntaxes=[deflated]) as sender:
            assert [context.abstract_syntax for context in sender.accepted_contexts] == ["1.2.840.10008.1.1"]
        with association(opened, syntaxes=[JPEGBaseline8Bit]) as sender:
            assert len(sender.accepted_contexts) == 1 + len(receiver.SOP_CLASSES)


def compressed(syntax):
    """Return a file of a gradient in a transfer syntax, written by other programs than those that decode it, and the gradient."""
    codecs = pytest.importorskip("imagecodecs", reason="the extra [dicom] is not installed")
    encoders = {
        uid.JPEGBaseline8Bit: lambda pixels: codecs.jpeg8_encode(pixels, level=98),
        uid.JPEGExtended12Bit: lambda pixels: codecs.jpeg8_encode(pixels, level=98),
        uid.JPEGLossless: lambda pixels: codecs.jpeg8_encode(pixels, lossless=True, predictor=2),
        uid.JPEGLosslessSV1: lambda pixels: codecs.jpeg8_encode(pixels, lossless=True, predictor=1),
        uid.JPEGLSLossless: codecs.jpegls_encode,
        uid.JPEGLSNearLossless: lambda pixels: codecs.jpegls_encode(pixels, level=2),
        uid.JPEG2000Lossless: lambda pixels: codecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True),
        uid.JPEG2000: lambda pixels: codecs.jpeg2k_encode(pixels, level=60, codecformat="j2k"),
        uid.HTJ2KLossless: lambda pixels: codecs.htj2k_encode(pixels, reversible=True),
        uid.HTJ2KLosslessRPCL: lambda pixels: codecs.htj2k_encode(pixels, reversible=True),
        uid.HTJ2K: lambda pixels: codecs.htj2k_encode(pixels, reversible=True),
    }
    pixels = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    sent = instance(WindowCenter=128, WindowWidth=256)
    sent.Rows = sent.Columns = 64
    sent.PixelData = pixels.tobytes()
    if syntax == uid.RLELossless:
        sent.compress(syntax)
    elif syntax in encoders:
        sent.PixelData = encapsulate([encoders[syntax](pixels)])
        sent["PixelData"].VR, sent["PixelData"].is_undefined_length = "OB", True
    sent.file_meta.TransferSyntaxUID = syntax
    file = io.BytesIO()
    big, implicit = syntax == uid.ExplicitVRBigEndian, syntax == uid.ImplicitVRLittleEndian
    pydicom.dcmwrite(file, sent, little_endian=not big, implicit_vr=implicit, enforce_file_format=True)
    return file.getvalue(), pixels


@pytest.mark.parametrize("syntax", receiver.transfer_syntaxes())
def test_image_in_each_accepted_transfer_syntax_is_decoded(syntax):
    file, pixels = compressed(syntax)
    difference = np.abs(decode(file, name="a").pixels.astype(int) - pixels)
    lossy = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000)
    assert difference.max() <= (4 if syntax in lossy else 0)


def test_transfer_syntax_without_an_installed_decoder_is_not_accepted(monkeypatch):
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: uid.RLELossless == self.UID))
    assert receiver.transfer_syntaxes()[3:] == [uid.RLELossless]


def test_stop_waits_for_the_instance_in_progress(model, monkeypatch):
    repository, begun, release = PredictionRepository(None), threading.Event(), threading.Event()
    with node(model, repository) as (client, opened):
        submit = repository.inbox.submit

        def slow(*arguments, **options):
            begun.set()
            release.wait(SECONDS)
            return submit(*arguments, **options)

        monkeypatch.setattr(repository.inbox, "submit", slow)
        with association(opened) as sender:
            answers = []
            thread = threading.Thread(target=lambda: answers.append(sender.send_c_store(instance())))
            thread.start()
            assert begun.wait(SECONDS)
            stopper = threading.Thread(target=opened.stop, args=(SECONDS,))
            stopper.start()
            release.set()
            thread.join(SECONDS)
            stopper.join(SECONDS)
            assert answers[0].Status == 0x0000
        predicted(client)


# --- settings ------------------------------------------------------------------------------------------------------------


def test_peer_is_parsed():
    assert parse_peer("PACS=ORTHANC@10.0.0.5:4242") == DicomPeer("PACS", "ORTHANC", "10.0.0.5", 4242)
    assert parse_peer("a.b=AE 1@[::1]:104") == DicomPeer("a.b", "AE 1", "::1", 104)


@pytest.mark.parametrize(
    "text",
    ["", "ORTHANC@10.0.0.5:4242", "P=A@10.0.0.5", "P=A@h:0", "P=A@h:70000", "P=A@h:x", "P=@h:1", "a b=A@h:1",
     "local=A@h:1", "P=A\\B@h:1", "P=" + 17 * "A" + "@h:1", "P= A@h:1"],
)  # fmt: skip
def test_wrong_peer_is_rejected(text):
    with pytest.raises(UsageError):
        parse_peer(text)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"peers": ()}, "--dicom-peer"), ({"ae_title": ""}, "AE title")],
)
def test_wrong_settings_are_rejected(changes, words):
    with pytest.raises(UsageError, match=words):
        DicomSettings(**{"host": "127.0.0.1", "port": 0, "ae_title": "A", "peers": (PEER,)} | changes)


def test_port_in_use_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(UsageError, match="cannot listen for DICOM"):
        receiver.DicomReceiver(DicomSettings("127.0.0.1", other.getsockname()[1], "A", (PEER,)))


# --- TLS -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """PEM files of an authority, a server, and a client; and of a client of another authority."""
    openssl, folder = shutil.which("openssl"), tmp_path_factory.mktemp("certificates")
    if openssl is None:
        pytest.skip("openssl is not installed")

    def run(*arguments):
        subprocess.run([openssl, *arguments], check=True, capture_output=True, cwd=folder, timeout=60)

    for authority, names in (("ca", ("server", "client")), ("other-ca", ("stranger",))):
        run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={authority}", "-keyout", f"{authority}.key",
            "-out", f"{authority}.pem")  # fmt: skip
        for name in names:
            run(
                "req",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-subj",
                "/CN=localhost",
                "-keyout",
                f"{name}.key",
                "-out",
                "csr",
            )
            run("x509", "-req", "-in", "csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial",
                "-out", f"{name}.pem")  # fmt: skip
    return folder


def client_context(folder, name):
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    context.check_hostname = False
    if name:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def test_tls_requires_a_certificate_of_the_authority(model, certificates):
    tls, _ = tls_contexts(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem")
    with node(model, tls=tls) as (client, opened):
        for name in ("stranger", ""):
            with association(opened, tls_args=(client_context(certificates, name), "localhost")) as sender:
                assert not sender.is_established
        with association(opened) as plain:
            assert not plain.is_established
        context = client_context(certificates, "client")
        with (
            connection(opened),  # silent: delays no one
            association(opened, tls_args=(context, "localhost")) as sender,
        ):
            assert sender.send_c_store(instance()).Status == 0x0000
        predicted(client)


def test_wrong_tls_files_are_rejected(certificates):
    for files, words in (
        (("server.pem", "client.key", "ca.pem"), "cannot be used"),
        (("nowhere", "server.key", "ca.pem"), "cannot read the TLS file .*nowhere"),
        (("server.pem", "server.key", "csr"), "cannot be used"),
    ):
        with pytest.raises(UsageError, match=words):
            tls_contexts(*(certificates / name for name in files))


# --- real processes: dcmtk sends to a service ------------------------------------------------------------------------------


CONFIGURATION = """
quiet_seconds = 0
destinations = []
[node]
port = 0
[[peers]]
name = "CT-1"
ae_title = "STORESCU"
host = "127.0.0.1"
port = 4242
"""


@contextmanager
def dicom_service(bundle, folder, *options):
    """A service with a DICOM node; its process, client and DICOM port."""
    configuration = folder / "dicom.toml"
    configuration.write_text(CONFIGURATION)
    with served(bundle, folder, "--dicom-config", str(configuration), *options) as (process, client):
        yield process, client, announced_port(process)


def announced_port(process, title="PNEUMOSCOPE"):
    """Return the port of the node that a service announces."""
    text = process.stderr.read()
    deadline = time.monotonic() + SECONDS
    while not (found := re.search(rf"DICOM node {title} on 127.0.0.1, port (\d+)", text)):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
        text += process.stderr.read()
    return int(found[1])


@pytest.mark.slow
def test_dcmtk_sends_images_to_the_service(bundle, tmp_path):
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.dcm")
        instance(90 + 10 * number).save_as(files[-1])
    with dicom_service(bundle, tmp_path) as (process, client, port):
        storescu(port, program="echoscu")
        storescu(port, *files)
        storescu(port, *files)  # again
        predicted(client, 3)
        rejected = storescu(port, files[0], called="ANOTHER", check=False)
        assert "Called AE Title Not Recognized" in rejected.stderr
        process.terminate()
        assert process.wait(60) == 0
    status, document = verified(tmp_path)
    assert (status, document["predictions"], document["images"]) == (0, 3, 3)


@pytest.mark.slow
def test_options_of_the_command_set_the_node_and_its_peers(bundle, tmp_path):
    file = tmp_path / "image.dcm"
    instance().save_as(file)
    options = "--dicom-port", "0", "--dicom-aet", "SCOPE 1", "--dicom-peer", "PACS=STORESCU@127.0.0.1:4242"
    with served(bundle, tmp_path, *options) as (process, client):
        port = announced_port(process, "SCOPE 1")
        assert "Called AE Title Not Recognized" in storescu(port, file, check=False).stderr
        storescu(port, file, called="SCOPE 1")
        client.post("/v1/inbox/release", json={})
        predicted(client)


def stored_paths(client):
    paths, after = set(), ""
    while True:
        page = client.get("/v1/predictions", params={"limit": 200, "after": after}).json()
        paths |= {each["path"] for each in page["predictions"]}
        after = page["next"]
        if not after:
            return paths


@pytest.mark.slow
def test_kill_loses_no_acknowledged_instance(bundle, tmp_path):
    acknowledged = {}
    for turn in range(3):
        with dicom_service(bundle, tmp_path) as (process, _, port):
            sender = pynetdicom.AE("STORESCU")
            sender.acse_timeout = sender.dimse_timeout = sender.network_timeout = SECONDS
            sender.add_requested_context(receiver.SOP_CLASSES[1], [ExplicitVRLittleEndian])
            requested = sender.associate("127.0.0.1", port, ae_title="PNEUMOSCOPE")
            assert requested.is_established
            threading.Timer(0.3 + 0.3 * turn, process.kill).start()
            for number in range(10_000):
                sent = instance(StudyDescription=str(number), InstanceNumber=number)
                sent.PixelData = hashlib.sha256(sent.SOPInstanceUID.encode()).digest() * (len(sent.PixelData) // 32)
                try:
                    answer = requested.send_c_store(sent)
                except RuntimeError:  # the association is gone
                    break
                if "Status" not in answer:
                    break
                assert answer.Status == 0x0000
                acknowledged[sent.SOPInstanceUID] = sent
            sender.shutdown()
            transport = requested.dul.socket.socket
            if transport:  # left open, since the peer has closed the connection
                transport.close()
    assert acknowledged
    with dicom_service(bundle, tmp_path) as (_, client, port):
        stored, deadline = stored_paths(client), time.monotonic() + 2 * SECONDS
        while not set(acknowledged) <= stored and time.monotonic() < deadline:
            time.sleep(0.2)
            stored = stored_paths(client)
        assert set(acknowledged) <= stored
        assert len(stored) <= len(acknowledged) + 3  # in each turn, one response may not have arrived
    assert verified(tmp_path)[0] == 0
