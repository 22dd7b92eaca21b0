"""`pneumoscope serve`: options that contradict each other."""

from types import SimpleNamespace

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


def configuration(tmp_path, requirement):
    file = tmp_path / "dicom.toml"
    file.write_text(f'require_age = "{requirement}"\n')
    return ["--dicom-config", str(file)]


@pytest.mark.parametrize(("option", "stated"), [("never", "always"), ("dicom", "never")])
def test_age_requirement_that_contradicts_the_file_is_an_error(tmp_path, option, stated):
    options = [*configuration(tmp_path, stated), "--require-age", option, "--ephemeral"]
    with pytest.raises(UsageError, match=rf'--require-age {option} contradicts require_age = "{stated}"'):
        CliRunner().invoke(command, options, catch_exceptions=False)


@pytest.mark.parametrize(
    ("stated", "option", "expected"),
    [("never", (), "never"), ("always", (), "always"), ("always", ("--require-age", "always"), "always")],
)
def test_age_requirement_of_the_file_holds_for_the_model(monkeypatch, tmp_path, stated, option, expected):
    loaded = {}
    model = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr("pneumoscope.inference.model.load_model", lambda **options: loaded.update(options) or model)
    monkeypatch.setattr("pneumoscope.service.server.serve", lambda *_, **__: None)
    arguments = [*configuration(tmp_path, stated), *option, "--ephemeral"]
    assert CliRunner().invoke(command, arguments, catch_exceptions=False).exit_code == 0
    assert loaded["require_age"] == expected


def test_service_does_not_start_if_nothing_can_be_stored(monkeypatch, tmp_path):
    def check(_):
        raise StorageError("attempt to write a readonly database")

    monkeypatch.setattr("pneumoscope.service.storage.image_storage.ImageStorage.check_writable", check)
    monkeypatch.setattr("faulthandler.enable", lambda: None)  # the standard error of the test has no descriptor
    options = ["--port", "0", "--data-dir", str(tmp_path / "data")]
    with pytest.raises(StorageError, match="readonly database"):
        CliRunner().invoke(command, options, catch_exceptions=False)
