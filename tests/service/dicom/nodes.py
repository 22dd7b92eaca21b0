"""A service with a DICOM node, and nodes that send images to it."""

import io
import shutil
import subprocess
from contextlib import contextmanager

import pydicom
import pytest
from fastapi.testclient import TestClient
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from tests.images import dicom

from pneumoscope.service.app import create_app
from pneumoscope.service.dicom.configuration import DicomConfiguration
from pneumoscope.service.dicom.node_settings import DicomPeer, DicomSettings
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.repository import PredictionRepository

pynetdicom = pytest.importorskip("pynetdicom", reason="[pacs] is not installed")
receiver = pytest.importorskip("pneumoscope.service.dicom.receiver")

PEER = DicomPeer("PACS", "ORTHANC", "127.0.0.1", 4242)
SECONDS = 60


def instance(level=100, **elements):
    """Return a data set with a new UID, or the stated one."""
    elements = {"SOPInstanceUID": generate_uid()} | elements
    dataset = pydicom.dcmread(io.BytesIO(dicom(level, **{"PatientID": "7", "PatientAge": "003Y"} | elements)))
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


@contextmanager
def node(model, repository=None, **settings):
    """A service with a DICOM node: its client and the node."""
    options = {"host": "127.0.0.1", "port": 0, "ae_title": "PNEUMOSCOPE", "peers": (PEER,), "timeout": 5} | settings
    opened_settings = DicomSettings(**options)
    opened = receiver.DicomReceiver(opened_settings)
    dicom = DicomConfiguration(opened_settings, quiet_seconds=0)
    app = create_app(model, repository or PredictionRepository(None), Settings(dicom=dicom), dicom_receiver=opened)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client, opened


@contextmanager
def association(opened, *, calling="ORTHANC", called="PNEUMOSCOPE", syntaxes=None, **options):
    """An association of a pynetdicom sender, which may be rejected."""
    sender = pynetdicom.AE(calling)
    sender.acse_timeout = sender.dimse_timeout = sender.network_timeout = SECONDS
    sender.add_requested_context("1.2.840.10008.1.1")
    for sop_class in (*receiver.SOP_CLASSES, *receiver.RESULT_SOP_CLASSES):
        sender.add_requested_context(sop_class, syntaxes or [ExplicitVRLittleEndian])
    requested = sender.associate("127.0.0.1", opened.port, ae_title=called, **options)
    try:
        yield requested
    finally:
        if requested.is_established:
            requested.release()
        sender.shutdown()
        if requested.dul.socket and requested.dul.socket.socket:  # left open if the peer has closed the connection
            requested.dul.socket.socket.close()


def storescu(port, *files, called="PNEUMOSCOPE", program="storescu", check=True):
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (Debian's package dcmtk)")
    command = [
        path,
        *(["-aet", "STORESCU"] if program == "echoscu" else []),
        "-aec",
        called,
        "127.0.0.1",
        str(port),
        *map(str, files),
    ]
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=120)
