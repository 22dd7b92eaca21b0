"""`pneumoscope pull`: images come from a Q/R SCP by C-MOVE, or from a DICOMweb server, into the running service."""

import dataclasses
import http.server
import io
import itertools
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import date
from urllib.parse import parse_qsl

import pydicom
import pytest
from pydicom.uid import generate_uid
from tests.images import dicom
from tests.processes import free_port, started
from tests.service.conftest import TOKEN, insert_token_of_service, post, predicted, served
from tests.service.dicom.nodes import storescu

from pneumoscope.core.errors import PullError, UnknownNameError, UsageError
from pneumoscope.service.dicom.configuration import DicomConfiguration, Source
from pneumoscope.service.dicom.configuration_file import read_configuration
from pneumoscope.service.dicom.node_settings import DicomPeer, DicomSettings

pynetdicom = pytest.importorskip("pynetdicom", reason="[pacs] is not installed")
from pneumoscope.service.dicom.pull import pull  # noqa: E402
from pneumoscope.service.dicom.selection import StudySelection  # noqa: E402

SECONDS = 60
FIND, MOVE = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.2"
NOWHERE = "http://127.0.0.1:1"


def instance(level=100, **elements):
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
    return dicom(level, **uids | {"PatientID": "7", "PatientName": "Doe^Jane", "StudyDate": "20260131"} | elements)


def study_uid(content):
    return str(pydicom.dcmread(io.BytesIO(content)).StudyInstanceUID)


def ran_pull(folder, *arguments):
    """Run the command and return its exit status, JSON document and messages."""
    ran = subprocess.run(
        [sys.executable, "-m", "pneumoscope", "pull", "--dicom-config", "dicom.toml", "--json", *arguments],
        capture_output=True, text=True, cwd=folder, check=False, timeout=120,
    )  # fmt: skip
    return ran.returncode, json.loads(ran.stdout) if ran.stdout else None, ran.stderr


# --- a peer of pynetdicom --------------------------------------------------------------------------------------------------


@contextmanager
def archive(studies, *, moved=(), status=0x0000, find_status=0x0000, calling="PNEUMOSCOPE", moves=1000):
    """A Q/R SCP that ignores all keys of a search but the level and the study, and answers C-MOVE with these statuses.

    Args:
        studies: Modalities by Study Instance UID.
        moved: Statuses of the instances of each series.
        status: Of a C-MOVE.
        find_status: Of a C-FIND.
        moves: Number of moves after which it accepts no association.
    """
    ae = pynetdicom.AE("ARCHIVE")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = SECONDS
    for sop_class in (FIND, MOVE):
        ae.add_supported_context(sop_class)
    ae.require_calling_aet = [calling]
    requests = []

    def find(event):
        query = event.identifier
        if find_status:
            yield find_status, None
            return
        for uid, modalities in studies.items():
            if query.QueryRetrieveLevel == "STUDY":
                found = pydicom.Dataset()
                found.StudyInstanceUID, found.StudyDate, found.AccessionNumber = uid, "20260131", f"A{uid[-1]}"
                yield 0xFF00, found
            elif query.StudyInstanceUID == uid:
                for modality in modalities:
                    found = pydicom.Dataset()
                    found.SeriesInstanceUID, found.Modality = f"{uid}.{len(modality)}", modality
                    yield 0xFF00, found

    def move(event):
        requests.append(
            (event.move_destination, event.identifier.QueryRetrieveLevel, event.identifier.StudyInstanceUID)
        )
        if len(requests) == moves:
            ae.require_calling_aet = ["ANOTHER"]
        if status:
            yield None, None
            return
        yield "127.0.0.1", sink.server_address[1]
        yield len(moved)
        for number in range(len(moved)):
            yield 0xFF00, pydicom.dcmread(io.BytesIO(dicom(100 + number, SOPInstanceUID=generate_uid())))

    answers = itertools.cycle(moved)
    receiver = pynetdicom.AE("PNEUMOSCOPE")
    receiver.add_supported_context("1.2.840.10008.5.1.4.1.1.1.1")
    sink = receiver.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(pynetdicom.evt.EVT_C_STORE, lambda _: next(answers))]
    )
    ae.add_requested_context("1.2.840.10008.5.1.4.1.1.1.1")
    server = ae.start_server(
        ("127.0.0.1", 0), block=False,
        evt_handlers=[(pynetdicom.evt.EVT_C_FIND, find), (pynetdicom.evt.EVT_C_MOVE, move)],
    )  # fmt: skip
    peer = DicomPeer("PACS", "ARCHIVE", "127.0.0.1", server.server_address[1])
    settings = DicomSettings("127.0.0.1", 0, "PNEUMOSCOPE", (peer,), timeout=SECONDS)
    try:
        yield DicomConfiguration(settings), requests
    finally:
        server.shutdown()
        sink.shutdown()


def pulled(configuration, name="PACS", **selection):
    return pull(configuration, name, StudySelection(**selection), service_url=NOWHERE)


def test_series_of_cr_and_dx_are_sent_to_the_service():
    progress = []
    with archive({"1.1": ["DX", "MR"], "1.2": ["CR"], "1.3": ["SR"]}, moved=[0, 0, 0, 0]) as (configuration, requests):
        report = pull(
            configuration, "PACS", StudySelection(since=date(2026, 1, 1)), service_url=NOWHERE,
            progress=lambda *counts: progress.append(counts),
        )  # fmt: skip
    assert requests == [("PNEUMOSCOPE", "SERIES", "1.1"), ("PNEUMOSCOPE", "SERIES", "1.2")]
    assert (report.studies, report.series, report.instances, report.failed_series) == (3, 2, 8, 0)
    assert progress == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"study_uid": "1.2"}, ["1.2"]),
        ({"accession_number": "A1"}, ["1.1"]),
        ({"since": date(2026, 1, 31)}, ["1.1", "1.2"]),
        ({"since": date(2026, 2, 1)}, []),
    ],
)
def test_node_that_ignores_keys_sends_no_other_study(selection, expected):
    with archive({"1.1": ["DX"], "1.2": ["DX"]}, moved=[0, 0]) as (configuration, requests):
        report = pulled(configuration, **selection)
    assert [uid for _, _, uid in requests] == expected
    assert report.studies == len(expected)


def test_instances_that_the_service_does_not_store_are_counted():
    with archive({"1.1": ["DX"]}, moved=[0, 0xA700, 0xB000]) as (configuration, _):
        report = pulled(configuration, study_uid="1.1")
    assert (report.instances, report.failed_instances, report.failed_series) == (2, 1, 0)


def with_node(configuration, **settings):
    return dataclasses.replace(configuration, node=dataclasses.replace(configuration.node, **settings))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_pull_without_an_image_says_whether_the_service_is_down(host):
    with archive({"1.1": ["DX"], "1.2": ["DX"]}, moved=[0xA700]) as (configuration, requests):
        stopped = with_node(configuration, host=host, port=free_port())
        with pytest.raises(PullError, match=f"PACS sent no image, and no program listens for DICOM on {host}") as error:
            pulled(stopped, since=date(2026, 1, 1))
        assert "Start the service" in error.value.hint
        assert len(requests) == 2  # the service may run on another machine: the other series are tried
        with socket.create_server(("127.0.0.1", 0)) as server:
            running = with_node(configuration, host=host, port=server.getsockname()[1])
            assert pulled(running, since=date(2026, 1, 1)).failed_instances == 2


def test_images_that_were_sent_to_a_service_elsewhere_are_not_an_error():
    with archive({"1.1": ["DX"]}, moved=[0, 0xA700]) as (configuration, _):
        report = pulled(with_node(configuration, port=free_port()), study_uid="1.1")
    assert (report.instances, report.failed_instances) == (1, 1)


def test_node_that_goes_away_leaves_the_other_series_as_failed():
    with archive({"1.1": ["DX"], "1.2": ["DX"], "1.3": ["DX"]}, moved=[0], moves=1) as (configuration, _):
        report = pulled(configuration, since=date(2026, 1, 1))
    assert (report.instances, report.failed_series) == (1, 2)
    assert report.error.startswith("PACS (ARCHIVE at 127.0.0.1, port ")


def test_node_that_does_not_know_the_service_says_where_to_add_it():
    with archive({"1.1": ["DX"]}, status=0xA801) as (configuration, _), pytest.raises(PullError) as error:
        pulled(configuration, study_uid="1.1")
    assert "PACS does not know the AE title PNEUMOSCOPE" in error.value.message
    assert "DICOM port of the service" in error.value.hint


def test_unknown_study_is_an_error_without_its_number():
    with archive({}) as (configuration, _):
        with pytest.raises(PullError, match="PACS has no study with this AccessionNumber") as error:
            pulled(configuration, accession_number="SECRET")
        assert "SECRET" not in str(error.value)
        assert pulled(configuration, since=date(2026, 1, 1)).studies == 0


def test_failed_search_is_an_error():
    with archive({}, find_status=0xA700) as (configuration, _), pytest.raises(PullError, match=r"C-FIND.*status a700"):
        pulled(configuration, study_uid="1.1")


def test_node_that_is_away_or_rejects_the_service_is_an_error():
    peer = DicomPeer("PACS", "ARCHIVE", "127.0.0.1", free_port())
    configuration = DicomConfiguration(DicomSettings("127.0.0.1", 0, "PNEUMOSCOPE", (peer,), timeout=5))
    with pytest.raises(PullError, match="cannot reach PACS"):
        pulled(configuration, study_uid="1.1")
    with archive({}, calling="ANOTHER") as (configuration, _), pytest.raises(PullError, match="rejected") as error:
        pulled(configuration, study_uid="1.1")
    assert "Add the AE title PNEUMOSCOPE" in error.value.hint


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", 70 * "a"])
def test_node_of_an_unknown_host_name_is_an_error(host):
    peer = DicomPeer("PACS", "ARCHIVE", host, 104)
    configuration = DicomConfiguration(DicomSettings("127.0.0.1", 0, "PNEUMOSCOPE", (peer,), timeout=5))
    with pytest.raises(PullError, match=r"cannot reach PACS .*: name_not_resolved"):
        pulled(configuration, study_uid="1.1")


@pytest.mark.parametrize(
    "selection",
    [{}, {"study_uid": "1", "accession_number": "2"}, {"study_uid": "x"}, {"accession_number": "A*"}, {"accession_number": "å"}],
)  # fmt: skip
def test_wrong_selection_is_rejected(selection):
    with pytest.raises(UsageError):
        StudySelection(**selection)


def test_unknown_source_lists_the_known_ones():
    configuration = DicomConfiguration(sources=(Source(name="archive", url="https://pacs.example/dicom-web"),))
    with pytest.raises(UnknownNameError, match="archiv"):
        pulled(configuration, "archiv", study_uid="1.1")
    assert list(configuration.pull_sources) == ["archive"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[sources]]\nname = "a"', "a source needs a name and a url"),
        ('[[sources]]\nname = "a"\nurl = "http://pacs.example"', "https"),
        ('[[sources]]\nname = "a"\nurl = "https://p"\nuser = "u"', "password_file"),
        ('[[sources]]\nname = "a"\nurl = "https://p"\npeer = "x"', "unknown name"),
        ('[[sources]]\nname = "a"\nurl = "https://p"\n[[sources]]\nname = "a"\nurl = "https://q"', "two peers"),
    ],
)  # fmt: skip
def test_wrong_source_is_rejected(tmp_path, text, words):
    (tmp_path / "dicom.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_configuration(tmp_path / "dicom.toml")


# --- a DICOMweb server -----------------------------------------------------------------------------------------------------


@contextmanager
def web_server(responses):
    """A server that answers requests by the end of their path; 404 for others.

    Args:
        responses: (status, Content-Type, body), perhaps with further headers, or a function of the parameters that returns it;
            the body of a redirect is where it leads.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path, _, parameters = self.path.partition("?")
            answer = next((value for key, value in responses.items() if path.endswith(key)), (404, "text/plain", b""))
            status, content_type, body, *headers = answer(dict(parse_qsl(parameters))) if callable(answer) else answer
            if self.command == "POST":
                self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", body.decode())
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(SECONDS)


def document(**elements):
    dataset = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return 200, "application/dicom+json", json.dumps([dataset.to_json_dict()]).encode()


STUDY = document(StudyInstanceUID="1.1", StudyDate="20260131")
SERIES = document(SeriesInstanceUID="1.2", Modality="DX")
INSTANCE = document(SOPInstanceUID="1.3")
FILE = 200, "multipart/related; boundary=b", b"--b\r\nContent-Type: application/dicom\r\n\r\ncontent\r\n--b--\r\n"
FOUND = {"/studies": STUDY, "/1.1/series": SERIES, "/1.2/instances": INSTANCE}


def pulled_by_web(url, service=NOWHERE, **selection):
    configuration = DicomConfiguration(sources=(Source(name="archive", url=url),))
    return pull(configuration, "archive", StudySelection(**selection or {"study_uid": "1.1"}), service_url=service)


@pytest.mark.parametrize(
    ("file", "stored", "instances"),
    [
        (FILE, 200, 1),
        (FILE, 409, 0),
        (FILE, 500, 0),
        ((404, "text/plain", b""), 200, 0),
        ((200, "text/plain", b"content"), 200, 0),
        ((200, "multipart/related; boundary=b", b"--b\r\n\r\nnever ends"), 200, 0),
    ],
)
def test_instance_of_a_web_server_is_stored_or_counted_as_failed(file, stored, instances):
    with (
        web_server(FOUND | {"/1.3": file}) as url,
        web_server({"/dicom-web/studies": (stored, "application/dicom+json", b"{}")}) as service,
    ):
        report = pulled_by_web(url, service)
    assert (report.studies, report.series, report.instances, report.failed_instances) == (
        1,
        1,
        instances,
        1 - instances,
    )


@pytest.mark.parametrize(
    ("responses", "words"),
    [
        ({"/studies": (401, "text/plain", b"")}, "QIDO-RS.: HTTP status 401"),
        ({"/studies": (200, "text/html", b"<html>")}, "not DICOM JSON"),
        ({"/studies": (200, "application/json", b"[1]")}, "not DICOM JSON"),
        ({"/studies": (200, "application/json", b'[{"0020000D": {"vr": "UI", "Value": [".."]}}]')}, "invalid UID"),
        ({}, "HTTP status 404"),
        ({"/studies": document(StudyInstanceUID="1.9")}, "no study with this StudyInstanceUID"),
        (FOUND | {"/1.3": FILE}, "cannot reach the service at http://127.0.0.1:1"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_web_server_that_fails_is_an_error(responses, words):
    with web_server(responses) as url, pytest.raises(PullError, match=words):
        pulled_by_web(url)


@pytest.mark.parametrize(("status", "words"), [(401, "--token-file"), (403, "--token-file"), (404, "--service")])
def test_service_that_does_not_accept_the_token_is_an_error(status, words):
    with (
        web_server(FOUND | {"/1.3": FILE}) as url,
        web_server({"/dicom-web/studies": (status, "text/plain", b"")}) as service,
        pytest.raises(PullError, match=f"HTTP status {status}") as error,
    ):
        pulled_by_web(url, service)
    assert words in error.value.hint


@pytest.mark.parametrize("cap", [7, 100])
def test_server_that_caps_pages_sends_all_instances(cap):
    datasets = [pydicom.Dataset() for _ in range(105)]
    for number, dataset in enumerate(datasets):
        dataset.SOPInstanceUID = f"1.3.{number}"

    def page(parameters):
        start = int(parameters.get("offset", 0))
        found = datasets[start : start + min(cap, int(parameters["limit"]))]
        if not found:
            return 204, "application/dicom+json", b""
        return 200, "application/dicom+json", json.dumps([each.to_json_dict() for each in found]).encode()

    files = {f"/1.3.{number}": FILE for number in range(105)}
    with (
        web_server(FOUND | {"/1.2/instances": page} | files) as url,
        web_server({"/dicom-web/studies": (200, "application/dicom+json", b"{}")}) as service,
    ):
        report = pulled_by_web(url, service)
    assert (report.instances, report.failed_instances) == (105, 0)


MORE = "Warning", '299 archive "There are 5 additional results that can be requested"'


@pytest.mark.parametrize("level", ["/studies", "/1.1/series", "/1.2/instances"])
def test_search_that_the_server_ends_early_is_reported(level):
    limited = {level: (*FOUND[level], MORE)}  # whatever `offset` says
    with (
        web_server(FOUND | limited | {"/1.3": FILE}) as url,
        web_server({"/dicom-web/studies": (200, "application/dicom+json", b"{}")}) as service,
    ):
        report = pulled_by_web(url, service)
    assert (report.instances, report.failed_instances, report.incomplete_searches) == (1, 0, 1)


def test_warning_of_a_page_before_the_last_is_not_an_error():
    def page(parameters):
        number = int(parameters.get("offset", 0))
        found = ("1.3", "1.4")[number : number + 1]
        answer = document(SOPInstanceUID=found[0]) if found else (204, "application/dicom+json", b"")
        return (*answer, MORE) if number == 0 else answer

    with (
        web_server(FOUND | {"/1.2/instances": page, "/1.3": FILE, "/1.4": FILE}) as url,
        web_server({"/dicom-web/studies": (200, "application/dicom+json", b"{}")}) as service,
    ):
        report = pulled_by_web(url, service)
    assert (report.instances, report.incomplete_searches) == (2, 0)


def test_command_fails_if_a_search_was_incomplete(tmp_path):
    with (
        web_server(FOUND | {"/studies": (*STUDY, MORE), "/1.3": FILE}) as url,
        web_server({"/dicom-web/studies": (200, "application/dicom+json", b"{}")}) as service,
    ):
        (tmp_path / "dicom.toml").write_text(f'[[sources]]\nname = "archive"\nurl = "{url}"\n')
        status, document, message = ran_pull(tmp_path, "--from", "archive", "--study", "1.1", "--service", service)
    assert (status, document["instances"], document["incomplete_searches"]) == (3, 1, 1)
    assert (
        "did not return all results of 1 of the searches (HTTP header Warning 299, or pages that repeat results)"
        in message
    )


def test_redirects_are_not_followed():
    with web_server(FOUND | {"/1.3": FILE, "/dicom-web/studies": (200, "text/plain", b"")}) as elsewhere:
        moved = (307, "text/plain", f"{elsewhere}/studies".encode())
        with web_server({"/studies": moved}) as url, pytest.raises(PullError, match="HTTP status 307"):
            pulled_by_web(url)
        file = (302, "text/plain", f"{elsewhere}/1.3".encode())
        with web_server(FOUND | {"/1.3": file}) as url:
            report = pulled_by_web(url, elsewhere)
        assert (report.instances, report.failed_instances) == (0, 1)
        service = {"/dicom-web/studies": (307, "text/plain", f"{elsewhere}/dicom-web/studies".encode())}
        with (
            web_server(FOUND | {"/1.3": FILE}) as url,
            web_server(service) as redirecting,
            pytest.raises(PullError, match="HTTP status 307"),
        ):
            pulled_by_web(url, redirecting)


def test_web_server_that_is_away_is_an_error():
    with pytest.raises(PullError, match="cannot reach archive"):
        pulled_by_web(f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize("setting", ["token_file", "ca_file"])
def test_file_of_a_source_that_does_not_exist_is_an_error_that_names_it(tmp_path, setting):
    source = Source(name="archive", url="https://127.0.0.1:1", **{setting: tmp_path / "nowhere"})
    with pytest.raises(UsageError, match=rf"nowhere' \({setting} of archive\): No such file"):
        pulled(DicomConfiguration(sources=(source,)), "archive", study_uid="1.1")


def test_token_is_sent_to_no_other_machine_in_plain_text():
    with pytest.raises(UsageError, match="--service must be an https"):
        pulled_by_web("http://127.0.0.1:1", "http://service.example")
    with pytest.raises(UsageError, match="--service must not contain a user name"):
        pulled_by_web("http://127.0.0.1:1", "https://u:s@service.example")


# --- real processes --------------------------------------------------------------------------------------------------------


@contextmanager
def dcmqrscp(folder, move_port):
    """dcmtk's archive, with the service as a node to which it sends; its port."""
    path = shutil.which("dcmqrscp")
    if path is None:
        pytest.skip("dcmqrscp is not installed (Debian's package dcmtk)")
    port = free_port()
    (folder / "archive").mkdir()
    (folder / "dcmqrscp.cfg").write_text(
        f"""NetworkTCPPort = {port}
MaxPDUSize = 16384
MaxAssociations = 16
HostTable BEGIN
service = (PNEUMOSCOPE, 127.0.0.1, {move_port})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
ARCHIVE {folder / "archive"} RW (200, 1024mb) ANY
AETable END
"""
    )
    with started(
        [path, "-c", folder / "dcmqrscp.cfg"], deadline=300, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:  # fmt: skip
        try:
            yield port
        finally:
            process.kill()


@pytest.mark.slow
def test_pull_from_dcmtk(bundle, tmp_path):
    wanted = [instance(90), instance(110, Modality="CR", AccessionNumber="A1")]
    others = [instance(120, Modality="SC"), instance(130, StudyDate="20250101")]
    for number, content in enumerate(wanted + others):
        (tmp_path / f"{number}.dcm").write_bytes(content)
    dicom_port = free_port()
    with dcmqrscp(tmp_path, dicom_port) as archive_port:
        (tmp_path / "dicom.toml").write_text(
            f"""quiet_seconds = 0
destinations = []
[node]
port = {dicom_port}
[[peers]]
name = "archive"
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {archive_port}
"""
        )
        deadline = time.monotonic() + SECONDS
        while storescu(archive_port, program="echoscu", called="ARCHIVE", check=False).returncode:
            assert time.monotonic() < deadline, "the archive does not answer"
        for number in range(4):
            storescu(archive_port, tmp_path / f"{number}.dcm", called="ARCHIVE")
        status, _, message = ran_pull(tmp_path, "--from", "archive", "--study", study_uid(wanted[0]))
        assert status == 2, message  # the service does not run
        assert f"no program listens for DICOM on 127.0.0.1, port {dicom_port}" in message
        with served(bundle, tmp_path, "--dicom-config", "dicom.toml") as (_, client):
            assert ran_pull(tmp_path, "--from", "archive", "--accession", "A1")[:2] == (0, expected("archive", 1, 1, 1))
            predicted(client, 1)
            for _ in range(2):
                outcome = ran_pull(tmp_path, "--from", "archive", "--since", "2026-01-01")
                assert outcome[:2] == (0, expected("archive", 3, 2, 2)), outcome
            found = predicted(client, 2)
            assert {each["identity"]["study_instance_uid"] for each in found} == set(map(study_uid, wanted))


def expected(source, studies, series, instances):
    counts = {
        "studies": studies,
        "series": series,
        "instances": instances,
        "failed_instances": 0,
        "failed_series": 0,
        "incomplete_searches": 0,
        "error": "",
    }
    return {"source": source} | counts


@pytest.mark.slow
def test_pull_from_a_web_server(bundle, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        folder.mkdir()
    insert_token_of_service(source, "reader", role="reader")
    insert_token_of_service(target, "puller", secret="e" * 16, role="sender")
    (target / "reader").write_text(TOKEN)
    (target / "sender").write_text("e" * 16)
    sent = [instance(90), instance(110, Modality="CR", AccessionNumber="A1"), instance(120, StudyDate="20250101")]
    with served(bundle, source) as (_, archive_client), served(bundle, target) as (_, client):
        archive_client.headers["Authorization"] = f"Bearer {TOKEN}"
        client.headers["Authorization"] = f"Bearer {'e' * 16}"
        post(archive_client, *sent)
        (target / "dicom.toml").write_text(
            f'[[sources]]\nname = "archive"\nurl = "{archive_client.base_url}/dicom-web"\ntoken_file = "reader"\n'
        )
        options = "--from", "archive", "--service", str(client.base_url), "--token-file", "sender"
        assert ran_pull(target, *options, "--accession", "A1")[:2] == (0, expected("archive", 1, 1, 1))
        for _ in range(2):
            outcome = ran_pull(target, *options, "--since", "2026-01-01")
            assert outcome[:2] == (0, expected("archive", 2, 2, 2)), outcome
        status, _, message = ran_pull(target, *options[:-2], "--since", "2026-01-01")
        assert (status, "--token-file" in message) == (2, True)
        status, _, message = ran_pull(target, *options, "--accession", "NONE")
        assert (status, "no study with this AccessionNumber" in message) == (2, True)
