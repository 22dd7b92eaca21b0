"""Images make the round trip: a real Orthanc sends them to a service, and the results return into their studies."""

import io
import shutil
import subprocess
from contextlib import contextmanager

import pydicom
import pytest
from pydicom.uid import generate_uid
from tests.certificates import make_certificates
from tests.images import dicom
from tests.orthanc import DEADLINE, ROUTE, ROUTE_STOW, ROUTE_STUDIES, USER, Orthanc, wait_until
from tests.processes import free_port
from tests.service.conftest import TOKEN, insert_token_of_service, predicted, served, verified

from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.storage.database import open_database, read_transaction
from pneumoscope.service.storage.outbox import Outbox
from pneumoscope.service.storage.tables import received_instances

pytest.importorskip("pynetdicom", reason="[pacs] is not installed")
pytestmark = [pytest.mark.pacs, pytest.mark.slow]
PATIENT = {"PatientID": "7", "PatientName": "Wang^XiaoMing=王^小明", "SpecificCharacterSet": "ISO_IR 192",
           "PatientAge": "003Y", "PatientSex": "M", "PatientBirthDate": "20200101"}  # fmt: skip
STUDY = {"StudyDate": "20260101", "AccessionNumber": "A1", "StudyDescription": "Chest PA"}
PEER = """
[node]
port = {port}
[[peers]]
name = "PACS"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {orthanc}
"""


class Service:
    """A service that runs as a process; its client, and its data directory."""

    def __init__(self, client, folder):
        self.client = client
        self.engine = open_database(folder / "pneumoscope-data")

    def states(self):
        """The state of each received instance, sorted."""
        with read_transaction(self.engine) as connection:
            return sorted(connection.execute(received_instances.select()).scalars("state").all())

    def results(self, *states):
        return Outbox(self.engine).find(states)


@contextmanager
def service(bundle, folder, configuration, quiet_seconds=0.5):
    (folder / "dicom.toml").write_text(f"quiet_seconds = {quiet_seconds}\n{configuration}")
    with served(bundle, folder, "--dicom-config", "dicom.toml") as (_, client):
        opened = Service(client, folder)
        try:
            yield opened
        finally:
            opened.engine.dispose()


@contextmanager
def round_trip(bundle, folder, script=ROUTE, *, orthanc_options=None, node="", **modality):
    """A service and an Orthanc that send to each other by C-STORE."""
    orthanc, port = Orthanc(folder / "orthanc"), free_port()
    address = {"AET": "PNEUMOSCOPE", "Host": "127.0.0.1", "Port": port} | modality
    options = {"DicomModalities": {"pneumoscope": address}} | (orthanc_options or {})
    configuration = PEER.format(port=f"{port}\n{node}", orthanc=orthanc.port)
    with service(bundle, folder, configuration) as opened, orthanc.running(script, options):
        yield opened, orthanc


def write(folder, number=0, **elements):
    """Write an image of a new study, and return its file."""
    elements = {
        "SOPInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(),
        **PATIENT, **STUDY, **elements,
    }  # fmt: skip
    file = folder / f"{number}.dcm"
    file.write_bytes(dicom(100 + 10 * number, **elements))
    return file


def run_dcmtk(program, *arguments):
    path = shutil.which(program, path="/usr/bin:/usr/local/bin")  # pynetdicom has programs of the same names
    if path is None:
        pytest.skip(f"{program} is not installed (Debian's package dcmtk)")
    return subprocess.run(
        [path, *map(str, arguments)], check=True, capture_output=True, text=True, timeout=DEADLINE
    )  # fmt: skip


def storescu(orthanc, *files):
    run_dcmtk("storescu", "-aec", "ORTHANC", "127.0.0.1", orthanc.port, *files)


def descriptions(series):
    return [(each["Modality"], each.get("SeriesDescription", ""), each["Instances"]) for each in series]


def is_settled(opened, images, own_results):
    """Whether all images are predicted, their results delivered, and the results that returned recognized."""
    predicted_states = images * ["predicted"]
    return opened.states() == own_results * ["own_result"] + predicted_states and not opened.results("waiting")


def wait_for_results(orthanc, count):
    wait_until(lambda: orthanc.count() >= count, "results do not appear in Orthanc")
    assert orthanc.count() == count


def result_object(orthanc, modality):
    """The only instance of a modality in Orthanc."""
    (series,) = (each for each in orthanc.get("/series", expand="") if each["MainDicomTags"]["Modality"] == modality)
    (instance,) = series["Instances"]
    return pydicom.dcmread(io.BytesIO(orthanc.get_bytes(f"/instances/{instance}/file")))


def test_results_appear_in_the_study_of_the_image(bundle, tmp_path):
    file = write(tmp_path)
    sent = pydicom.dcmread(file)
    with round_trip(bundle, tmp_path) as (opened, orthanc):
        storescu(orthanc, file)
        wait_for_results(orthanc, 3)
        (study,) = orthanc.get("/studies", expand="")
        assert len(study["Series"]) == 3
        series = orthanc.series()
        assert descriptions(series) == [
            ("DX", "", 1),
            ("OT", "pneumoscope: No pneumonia detected", 1),
            ("SR", "pneumoscope: No pneumonia detected", 1),
        ]
        for name in ("StudyInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "AccessionNumber"):
            assert {each[name] for each in series} == {str(sent[name].value)}, name
        for modality in ("OT", "SR"):
            result = result_object(orthanc, modality)
            referenced = {each.value for each in result.iterall() if each.keyword == "ReferencedSOPInstanceUID"}
            assert sent.SOPInstanceUID in referenced
            assert result.SeriesInstanceUID != sent.SeriesInstanceUID
        (found,) = predicted(opened.client)
        assert found["path"] == sent.SOPInstanceUID
    status, document = verified(tmp_path)
    assert (status, document["predictions"], document["images"]) == (0, 1, 1)


def test_results_that_orthanc_routes_back_are_recognized_and_not_predicted(bundle, tmp_path):
    with round_trip(bundle, tmp_path) as (opened, orthanc):
        storescu(orthanc, write(tmp_path))
        wait_for_results(orthanc, 3)
        wait_until(lambda: is_settled(opened, images=1, own_results=2), opened.states)
        predicted(opened.client)
        assert opened.client.get("/v1/unreadable").json()["total"] == 0
        assert orthanc.count() == 3
        assert "Unable to send" not in orthanc.log()


def test_study_that_is_routed_again_has_no_second_result(bundle, tmp_path):
    with round_trip(bundle, tmp_path, ROUTE_STUDIES) as (opened, orthanc):
        file = write(tmp_path)
        storescu(orthanc, file)
        wait_for_results(orthanc, 3)
        # The study is stable again after the results: Orthanc routes all of it.
        wait_until(lambda: is_settled(opened, images=1, own_results=2), opened.states)
        (study,) = orthanc.get("/studies")
        for _ in range(2):
            answer = orthanc.post("/modalities/pneumoscope/store", {"Resources": [study], "Synchronous": True})
            assert (answer["InstancesCount"], answer["FailedInstancesCount"]) == (3, 0)
        storescu(orthanc, file)
        later = write(tmp_path, 1, StudyInstanceUID=pydicom.dcmread(file).StudyInstanceUID)
        storescu(orthanc, later)  # the results of the first image travel before it
        wait_for_results(orthanc, 6)
        wait_until(lambda: is_settled(opened, images=2, own_results=4), opened.states)
        assert orthanc.count() == 6
        assert [each["Instances"] for each in orthanc.series()] == 6 * [1]
        assert len(opened.results("delivered")) == 4
        predicted(opened.client, 2)


def test_rejected_image_has_its_results_in_orthanc(bundle, tmp_path):
    with round_trip(bundle, tmp_path) as (_, orthanc):
        storescu(orthanc, write(tmp_path, ViewPosition="LL"))
        wait_for_results(orthanc, 3)
        assert descriptions(orthanc.series())[1:] == [
            ("OT", "pneumoscope: Rejected", 1), ("SR", "pneumoscope: Rejected", 1),
        ]  # fmt: skip
        meanings = {each.value for each in result_object(orthanc, "SR").iterall() if each.keyword == "CodeMeaning"}
        assert {"Not assessed", "Not a frontal view"} <= meanings


def test_findscu_finds_the_series_of_the_results(bundle, tmp_path):
    file = write(tmp_path)
    with round_trip(bundle, tmp_path) as (_, orthanc):
        storescu(orthanc, file)
        wait_for_results(orthanc, 3)
        study = pydicom.dcmread(file).StudyInstanceUID
        keys = ["QueryRetrieveLevel=SERIES", f"StudyInstanceUID={study}", "Modality", "SeriesDescription=pneumoscope*",
                "SeriesNumber"]  # fmt: skip
        found = run_dcmtk(
            "findscu", "-S", "-aec", "ORTHANC", "-X", "-od", tmp_path, *(part for key in keys for part in ("-k", key)),
            "127.0.0.1", orthanc.port,
        )  # fmt: skip
        answers = [pydicom.dcmread(each, force=True) for each in sorted(tmp_path.glob("rsp*.dcm"))]
        assert sorted((each.Modality, each.SeriesNumber) for each in answers) == [("OT", 9101), ("SR", 9102)], found


def test_results_arrive_once_after_orthanc_was_down_during_the_burst(bundle, tmp_path):
    files = [write(tmp_path, number) for number in range(5)]
    orthanc, port = Orthanc(tmp_path / "orthanc"), free_port()
    options = {"DicomModalities": {"pneumoscope": ["PNEUMOSCOPE", "127.0.0.1", port]}}
    # The image of a prediction must wait until Orthanc is down.
    configuration = PEER.format(port=port, orthanc=orthanc.port)
    with service(bundle, tmp_path, configuration, quiet_seconds=4) as opened:
        with orthanc.running(ROUTE, options):
            storescu(orthanc, *files)
            wait_until(lambda: opened.states() == 5 * ["waiting"], opened.states)
        predicted(opened.client, 5)
        wait_until(lambda: all(each.attempts for each in opened.results("waiting")), "no attempt")
        assert [each.error for each in opened.results("waiting")] == 10 * ["connection_refused"]
        with orthanc.running(ROUTE, options):
            assert orthanc.count() == 5
            wait_for_results(orthanc, 15)
            # How many results Orthanc sends back is left open: it does not repeat a routing that fails on a busy machine.
            wait_until(lambda: len(opened.results("delivered")) == 10, opened.states)
            assert sorted(set(opened.states())) in (["own_result", "predicted"], ["predicted"])
            assert opened.states().count("predicted") == 5
            assert orthanc.count() == 15
            studies = orthanc.get("/studies", expand="")
            assert [len(each["Series"]) for each in studies] == 5 * [3]


def test_images_that_arrived_while_the_service_was_down_are_sent_again_on_request(bundle, tmp_path):
    files = [write(tmp_path, number) for number in range(3)]
    orthanc, port = Orthanc(tmp_path / "orthanc"), free_port()
    options = {"DicomModalities": {"pneumoscope": ["PNEUMOSCOPE", "127.0.0.1", port]}}
    configuration = PEER.format(port=port, orthanc=orthanc.port)
    with orthanc.running(ROUTE, options):
        with service(bundle, tmp_path, configuration) as opened:
            storescu(orthanc, files[0])
            wait_until(lambda: is_settled(opened, images=1, own_results=2), opened.states)
        storescu(orthanc, *files[1:])
        wait_until(lambda: orthanc.log().count("Unable to send instance") == 2, orthanc.log)
        with service(bundle, tmp_path, configuration) as opened:
            radiographs = orthanc.post("/tools/find", {"Level": "Series", "Query": {"Modality": "CR\\DX"}})
            assert len(radiographs) == 3
            orthanc.post("/modalities/pneumoscope/store", {"Resources": radiographs})
            # Orthanc may route the results back on the association of the killed service, and does not try again.
            wait_until(lambda: len(opened.results("delivered")) == 6, opened.states)
            assert opened.states().count("predicted") == 3
            assert orthanc.count() == 9


# --- storage commitment ------------------------------------------------------------------------------------------------------


COMMITMENT = """
[[destinations]]
peer = "PACS"
storage_commitment = true
"""


def commitments(opened):
    return sorted((each.kind, each.commitment) for each in opened.results("delivered"))


def test_orthanc_commits_itself_to_the_results(bundle, tmp_path):
    orthanc, port = Orthanc(tmp_path / "orthanc"), free_port()
    options = {"DicomModalities": {"pneumoscope": ["PNEUMOSCOPE", "127.0.0.1", port]}}
    configuration = PEER.format(port=port, orthanc=orthanc.port) + COMMITMENT
    committed = [("secondary_capture", "committed"), ("structured_report", "committed")]
    with service(bundle, tmp_path, configuration) as opened, orthanc.running(ROUTE, options):
        storescu(orthanc, write(tmp_path))
        wait_until(lambda: commitments(opened) == committed, lambda: (opened.results("delivered"), orthanc.log()))
        assert orthanc.count() == 3


def test_orthanc_does_not_commit_itself_to_a_result_that_was_deleted_and_gets_it_again(bundle, tmp_path):
    orthanc, port = Orthanc(tmp_path / "orthanc"), free_port()
    options = {"DicomModalities": {"pneumoscope": ["PNEUMOSCOPE", "127.0.0.1", port]}}
    configuration = PEER.format(port=port, orthanc=orthanc.port) + COMMITMENT
    # What arrives is deleted once, before it is asked for.
    forget = """
    function OnStoredInstance(instanceId, tags, metadata, origin)
      if tags['Modality'] == 'SR' and forgotten == nil then
        forgotten = true
        Delete(instanceId)
      elseif origin['RequestOrigin'] == 'DicomProtocol' and origin['RemoteAet'] ~= 'PNEUMOSCOPE' then
        SendToModality(instanceId, 'pneumoscope')
      end
    end
    """
    committed = [("secondary_capture", "committed"), ("structured_report", "committed")]
    with service(bundle, tmp_path, configuration) as opened, orthanc.running(forget, options):
        storescu(orthanc, write(tmp_path))
        wait_until(lambda: commitments(opened) == committed, lambda: (opened.results("delivered"), orthanc.log()))
        (report,) = [each for each in opened.results("delivered") if each.kind == "structured_report"]
        assert report.commitment_failures == 1
        assert orthanc.count() == 3
        events = [row for row in read_rows(opened.engine) if row.event == "commitment_failed"]
        assert [row.details for row in events] == ['{"object": "structured_report", "reason": "0112"}']


def test_results_stay_delivered_where_orthanc_does_not_allow_storage_commitment(bundle, tmp_path):
    orthanc, port = Orthanc(tmp_path / "orthanc"), free_port()
    address = {"AET": "PNEUMOSCOPE", "Host": "127.0.0.1", "Port": port, "AllowStorageCommitment": False}
    configuration = PEER.format(port=port, orthanc=orthanc.port) + COMMITMENT
    errors = lambda: {(each.commitment, each.error) for each in opened.results("delivered")}  # noqa: E731
    with (
        service(bundle, tmp_path, configuration) as opened,
        orthanc.running(ROUTE, {"DicomModalities": {"pneumoscope": address}}),
    ):
        storescu(orthanc, write(tmp_path))
        wait_until(lambda: errors() == {("pending", "association_aborted")}, lambda: (errors(), orthanc.log()))
        wait_until(lambda: is_settled(opened, images=1, own_results=2), opened.states)
        assert orthanc.count() == 3


# --- DICOMweb ----------------------------------------------------------------------------------------------------------------


WEB = """
[[destinations]]
name = "PACS"
url = "{url}/dicom-web"
user = "orthanc"
password_file = "password"
"""


def test_images_and_results_travel_by_stow_rs(bundle, tmp_path):
    orthanc = Orthanc(tmp_path / "orthanc", plugin=True)
    (tmp_path / "password").write_text(f"{USER[1]}\n")
    insert_token_of_service(tmp_path, "orthanc", role="sender")
    insert_token_of_service(tmp_path, "reader", "another secret", role="reader", id="00000002")
    with service(bundle, tmp_path, WEB.format(url=orthanc.url)) as opened:
        server = {
            "Url": f"{str(opened.client.base_url).rstrip('/')}/dicom-web/",
            "HttpHeaders": {"Authorization": f"Bearer {TOKEN}"},
        }
        with orthanc.running(ROUTE_STOW, {"DicomWeb": {"Servers": {"pneumoscope": server}}}):
            file = write(tmp_path)
            storescu(orthanc, file)
            wait_for_results(orthanc, 3)
            wait_until(lambda: is_settled(opened, images=1, own_results=2), opened.states)
            series = orthanc.series()
            assert [each["Modality"] for each in series] == ["DX", "OT", "SR"]
            assert {each["StudyInstanceUID"] for each in series} == {pydicom.dcmread(file).StudyInstanceUID}
            assert {each["PatientID"] for each in series} == {"7"}
            opened.client.headers["Authorization"] = "Bearer another secret"
            predicted(opened.client)
            assert orthanc.count() == 3
            assert len(opened.results("delivered")) == 2


def test_results_wait_while_orthanc_refuses_the_password(bundle, tmp_path):
    orthanc = Orthanc(tmp_path / "orthanc", plugin=True)
    (tmp_path / "password").write_text("wrong")
    with (
        service(bundle, tmp_path, WEB.format(url=orthanc.url)) as opened,
        orthanc.running(),
    ):
        body, content_type = multipart(write(tmp_path).read_bytes())
        sent = opened.client.post("/dicom-web/studies", content=body, headers={"Content-Type": content_type})
        assert sent.status_code == 200
        wait_until(lambda: any(each.attempts for each in opened.results("waiting")), "no attempt")
        errors = lambda: {each.error for each in opened.results("waiting")}  # noqa: E731
        wait_until(lambda: errors() == {"http_401"}, errors)
        (tmp_path / "password").write_text(USER[1])
        wait_for_results(orthanc, 2)  # the password is read again


def multipart(*files):
    parts = b"".join(b"--X\r\nContent-Type: application/dicom\r\n\r\n" + each + b"\r\n" for each in files)
    return parts + b"--X--\r\n", 'multipart/related; type="application/dicom"; boundary=X'


# --- TLS ---------------------------------------------------------------------------------------------------------------------


def test_round_trip_over_dicom_tls(bundle, tmp_path):
    certificates = make_certificates(tmp_path)
    files = {"DicomTlsCertificate": "orthanc.pem", "DicomTlsPrivateKey": "orthanc.key",
             "DicomTlsTrustedCertificates": "ca.pem"}  # fmt: skip
    options = {name: str(certificates / file) for name, file in files.items()}
    options |= {"DicomTlsEnabled": True, "DicomTlsRemoteCertificateRequired": True}
    node = 'tls_certificate = "server.pem"\ntls_key = "server.key"\ntls_client_ca = "ca.pem"'
    with round_trip(bundle, tmp_path, orthanc_options=options, node=node, UseDicomTls=True) as (opened, orthanc):
        names = ("orthanc.key", "orthanc.pem")
        run_dcmtk(
            "storescu", "+tls", *(certificates / each for each in names), "+cf", certificates / "ca.pem", "-aec", "ORTHANC",
            "127.0.0.1", orthanc.port, write(tmp_path),
        )  # fmt: skip
        wait_for_results(orthanc, 3)
        wait_until(lambda: is_settled(opened, images=1, own_results=2), opened.states)
        with pytest.raises(subprocess.CalledProcessError):
            storescu(orthanc, write(tmp_path, 1))  # plain text
