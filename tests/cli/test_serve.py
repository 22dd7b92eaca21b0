"""`pneumoscope serve`: options that contradict each other."""

import pytest
from click.testing import CliRunner

from pneumoscope.cli.serve import command
from pneumoscope.core.errors import StorageError, UsageError


@pytest.mark.parametrize(
    "options",
    [
        ["--dicom-port", "104"],
        ["--dicom-host", "127.0.0.1"],
        ["--dicom-aet", "PNEUMOSCOPE"],
        ["--dicom-aet", "OTHER"],
        ["--dicom-peer", "PACS=ORTHANC@10.0.0.5:4242"],
        ["--dicom-tls", "node.pem", "node.key", "ca.pem"],
    ],
)
def test_options_of_the_node_are_rejected_beside_its_file_and_without_a_port(options):
    with pytest.raises(UsageError, match="--dicom-config cannot be combined with"):
        CliRunner().invoke(command, ["--dicom-config", "dicom.toml", *options], catch_exceptions=False)
    if options[0] != "--dicom-port":
        with pytest.raises(UsageError, match="need --dicom-port"):
            CliRunner().invoke(command, options, catch_exceptions=False)


def test_service_does_not_start_if_nothing_can_be_stored(monkeypatch, tmp_path):
    def check(_):
        raise StorageError("attempt to write a readonly database")

    monkeypatch.setattr("pneumoscope.service.storage.image_storage.ImageStorage.check_writable", check)
    monkeypatch.setattr("faulthandler.enable", lambda: None)  # the standard error of the test has no descriptor
    options = ["--port", "0", "--data-dir", str(tmp_path / "data")]
    with pytest.raises(StorageError, match="readonly database"):
        CliRunner().invoke(command, options, catch_exceptions=False)
