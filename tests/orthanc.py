"""Start a real Orthanc, a PACS, in tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.processes import free_port, started

__all__ = ["DEADLINE", "ROUTE", "ROUTE_STOW", "ROUTE_STUDIES", "USER", "Orthanc", "wait_until"]

DEADLINE = 60.0  # of each wait, seconds
ORTHANC_SECONDS = 300.0  # after which it is killed; above the time limit of a test
USER = ("orthanc", "s3cret")

# Scripts that send what arrives to the modality or the DICOMweb server `pneumoscope`. They do not except the results of
# pneumoscope, so that these return to it.
ROUTE = """
function OnStoredInstance(instanceId, tags, metadata)
  SendToModality(instanceId, 'pneumoscope')
end
"""
ROUTE_STUDIES = """
function OnStableStudy(studyId, tags, metadata)
  RestApiPost('/modalities/pneumoscope/store', DumpJson({Resources = {studyId}, Asynchronous = true}))
end
"""
ROUTE_STOW = """
function OnStoredInstance(instanceId, tags, metadata)
  RestApiPost('/dicom-web/servers/pneumoscope/stow', DumpJson({Resources = {instanceId}}))
end
"""


def wait_until(condition: Callable[[], Any], what: object) -> None:
    """Wait until a condition holds; after `DEADLINE` seconds, fail with `what`, or with what it returns."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.1)


class Orthanc:
    """An Orthanc with its own folder. It listens for DICOM and for HTTP, the latter on the loopback address only.

    Args:
        folder: For its configuration, database, images and log.
        plugin: Whether it loads the plug-in for DICOMweb.
    """

    def __init__(self, folder: Path, *, plugin: bool = False) -> None:
        self._program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        if self._program is None:
            pytest.skip("Orthanc is not installed (Debian's package orthanc)")
        self._plugins = sorted(map(str, Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so*")))
        if plugin and not self._plugins:
            pytest.skip("Orthanc's plug-in for DICOMweb is not installed (Debian's package orthanc-dicomweb)")
        if not plugin:
            self._plugins = []
        self.folder = folder
        self.folder.mkdir()
        self.port, self.http_port = free_port(), free_port()

    @property
    def url(self) -> str:
        """Address of its REST API."""
        return f"http://127.0.0.1:{self.http_port}"

    @contextmanager
    def running(self, script: str = "", options: Mapping[str, Any] | None = None) -> Iterator[Orthanc]:
        """Start it, and kill it in the end.

        Args:
            script: In Lua.
            options: Of its configuration.
        """
        (self.folder / "route.lua").write_text(script)
        configuration = {
            "Name": "test", "StorageDirectory": "storage", "IndexDirectory": "storage",
            "DicomAet": "ORTHANC", "DicomPort": self.port, "DicomCheckCalledAet": True,
            "HttpPort": self.http_port, "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True, "RegisteredUsers": dict([USER]),
            "DicomAlwaysAllowFind": True, "DicomScuTimeout": int(DEADLINE),
            "StableAge": 1, "LuaScripts": ["route.lua"], "Plugins": self._plugins,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }  # fmt: skip
        for name, value in (options or {}).items():
            before = configuration.get(name)
            configuration[name] = before | value if isinstance(before, dict) else value
        (self.folder / "orthanc.json").write_text(json.dumps(configuration, indent=1))
        with (
            (self.folder / "log").open("a") as log,
            started(
                [self._program, "orthanc.json"], deadline=ORTHANC_SECONDS, cwd=self.folder,
                stdout=subprocess.DEVNULL, stderr=log,
            ) as process,
        ):  # fmt: skip
            try:
                wait_until(lambda: process.poll() is not None or self._is_ready(), "Orthanc does not answer")
                assert process.poll() is None, self.log()
                yield self
            finally:
                process.kill()

    def log(self) -> str:
        """Return what it logged."""
        return (self.folder / "log").read_text()

    def get(self, path: str, **parameters: Any) -> Any:
        """Return a JSON document of the REST API."""
        return json.loads(self.get_bytes(path, **parameters))

    def get_bytes(self, path: str, **parameters: Any) -> bytes:
        """Return a file of the REST API."""
        response = httpx.get(f"{self.url}{path}", auth=USER, params=parameters, timeout=DEADLINE)
        assert response.is_success, response.text
        return response.content

    def post(self, path: str, document: Any) -> Any:
        """Post a document, and return the answer."""
        response = httpx.post(f"{self.url}{path}", auth=USER, json=document, timeout=DEADLINE)
        assert response.is_success, response.text
        return response.json()

    def count(self) -> int:
        """Return the number of stored instances."""
        return int(self.get("/statistics")["CountInstances"])

    def series(self) -> list[dict[str, str]]:
        """Return the main elements of all series, with those of study and patient, and the number of instances."""
        found = []
        for each in self.get("/series", expand=""):
            study = self.get(f"/studies/{each['ParentStudy']}")
            elements = study["PatientMainDicomTags"] | study["MainDicomTags"] | each["MainDicomTags"]
            found.append(elements | {"Instances": len(each["Instances"])})
        return sorted(found, key=lambda each: (each["StudyInstanceUID"], each["Modality"]))

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/system", auth=USER, timeout=DEADLINE).is_success
        except httpx.TransportError:
            return False
