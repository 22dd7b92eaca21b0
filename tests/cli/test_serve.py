"""`pneumoscope serve`: options that contradict each other."""

import pytest
from click.testing import CliRunner

from pneumoscope.cli.serve import command
from pneumoscope.core.errors import UsageError


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
