"""Orthanc looks at a service by DICOMweb, and a service pulls from Orthanc by C-MOVE and by DICOMweb."""

import io
import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pydicom
import pytest
from tests.processes import free_port, started
from tests.service.conftest import TOKEN, insert_token_of_service, post, predicted, served
from tests.service.dicom.test_pull import expected, instance, ran_pull, study_uid

pytestmark = pytest.mark.pacs
SECONDS = 60
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@contextmanager
def orthanc(folder, port, **options):
    """Orthanc with its DICOMweb plug-in: a client of its API."""
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None or not PLUGIN.exists():
        pytest.skip("Orthanc with DICOMweb is not installed (Debian's packages orthanc and orthanc-dicomweb)")
    http_port = free_port()
    configuration = {
        "StorageDirectory": "orthanc", "IndexDirectory": "orthanc", "Plugins": [str(PLUGIN)], "DicomAet": "ORTHANC",
        "DicomPort": port, "HttpPort": http_port, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
        "DicomAlwaysAllowFind": True, "DicomAlwaysAllowMove": True,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    for name, value in options.items():
        configuration[name] = configuration.get(name, {}) | value
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (
        (folder / "orthanc.log").open("w") as log,
        started([program, "orthanc.json"], deadline=300, cwd=folder, stdout=subprocess.DEVNULL, stderr=log) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=SECONDS) as client,
    ):
        try:
            deadline = time.monotonic() + SECONDS
            while True:
                try:
                    client.get("/system")
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline, (folder / "orthanc.log").read_text()
                    assert process.poll() is None, (folder / "orthanc.log").read_text()
                    time.sleep(0.1)
            yield client
        finally:
            process.kill()


def answered(response):
    assert response.is_success, response.text
    return response.json()


def test_orthanc_retrieves_images_and_results_from_the_service(bundle, tmp_path):
    pytest.importorskip("highdicom", reason="[pacs] is not installed")
    insert_token_of_service(tmp_path, "orthanc", role="reader")
    sent = [instance(90, PatientName="Wang^XiaoDong=王^小東", SpecificCharacterSet="ISO_IR 192"), instance(110)]
    with served(bundle, tmp_path) as (_, client):
        server = {"Url": f"{client.base_url}/dicom-web/", "HttpHeaders": {"Authorization": f"Bearer {TOKEN}"}}
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        post(client, *sent)
        with orthanc(tmp_path, free_port(), DicomWeb={"Servers": {"pneumoscope": server}}) as archive:
            found = answered(archive.post("/dicom-web/servers/pneumoscope/qido", json={"Uri": "/studies"}))
            assert len(found) == 2
            assert all(study_uid(each) in json.dumps(found) for each in sent)
            request = {"Resources": [{"Study": study_uid(each)} for each in sent], "Synchronous": True}
            answered(archive.post("/dicom-web/servers/pneumoscope/retrieve", json=request))
            modalities = [
                each["MainDicomTags"]["Modality"] for each in answered(archive.get("/series", params={"expand": ""}))
            ]
            assert sorted(modalities) == ["DX", "DX", "OT", "OT", "SR", "SR"]
            assert len(answered(archive.get("/studies"))) == len(answered(archive.get("/patients"))) + 1 == 2
            stored = {
                archive.get(f"/instances/{each['ID']}/file").content
                for each in answered(archive.get("/instances", params={"expand": ""}))
            }
            images = {pydicom.dcmread(io.BytesIO(each)).SOPInstanceUID: each for each in stored}
            for each in sent:
                assert images[pydicom.dcmread(io.BytesIO(each)).SOPInstanceUID][128:] == each[128:]


def test_pull_from_orthanc(bundle, tmp_path):
    wanted = [instance(90), instance(110, Modality="CR", AccessionNumber="A1")]
    others = [instance(120, Modality="XA"), instance(130, StudyDate="20250101", AccessionNumber="A2")]
    insert_token_of_service(tmp_path, "puller", role="reader")
    (tmp_path / "token").write_text(TOKEN)
    port, dicom_port = free_port(), free_port()
    modality = {"service": {"AET": "PNEUMOSCOPE", "Host": "127.0.0.1", "Port": dicom_port}}
    with orthanc(tmp_path, port, DicomModalities=modality) as archive:
        for content in wanted + others:
            answered(archive.post("/instances", content=content))
        (tmp_path / "dicom.toml").write_text(
            f"""quiet_seconds = 0
destinations = []
[node]
port = {dicom_port}
[[peers]]
name = "archive"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {port}
[[sources]]
name = "web"
url = "{archive.base_url}/dicom-web"
"""
        )
        with served(bundle, tmp_path, "--dicom-config", "dicom.toml") as (_, client):
            client.headers["Authorization"] = f"Bearer {TOKEN}"
            outcome = ran_pull(tmp_path, "--from", "archive", "--since", "2026-01-01")
            assert outcome[:2] == (0, expected("archive", 3, 2, 2)), outcome
            predicted(client, 2)
            options = "--from", "web", "--service", str(client.base_url), "--token-file", "token"
            outcome = ran_pull(tmp_path, *options, "--accession", "A2")
            assert outcome[:2] == (0, expected("web", 1, 1, 1)), outcome
            found = predicted(client, 3)
            assert {each["identity"]["study_instance_uid"] for each in found} == {
                study_uid(each) for each in (*wanted, others[1])
            }
            outcome = ran_pull(tmp_path, *options, "--since", "2026-01-01")  # the same images by another way
            assert outcome[:2] == (0, expected("web", 3, 2, 2)), outcome
