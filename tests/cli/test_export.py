"""A finished run's bundle, copied to where it is used."""

import json

import pytest
from click.testing import CliRunner

from pneumoscope.bundle.card import read_bundle
from pneumoscope.cli import cli, run_and_exit
from pneumoscope.cli.export import command


@pytest.fixture
def refused(capsys):
    """What is printed where the command exits with 2."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            run_and_exit(cli, ["export", *map(str, arguments)])
        assert stop.value.code == 2
        found = capsys.readouterr()
        assert found.out == ""
        return found.err

    return run


def export(*arguments):
    result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_runs_bundle_is_copied_and_can_be_read(maker, tmp_path):
    run, out = maker.run(), tmp_path / "there"

    printed = export(run, "--out", out)

    assert read_bundle(out) == read_bundle(run / "bundle")
    card, network = read_bundle(out)
    assert printed == f"{out}: mean-grey, {len(network) / 1e6:.1f} MB, SHA-256 {card.onnx_sha256[:16]}\n"
    assert sorted(path.name for path in out.iterdir()) == ["card.json", "network.onnx"]


def test_a_bundle_is_copied_as_well(maker, tmp_path):
    bundle = maker.bundle(tmp_path / "bundle")

    export(bundle, "--out", tmp_path / "there")

    assert read_bundle(tmp_path / "there") == read_bundle(bundle)


def test_a_folder_with_anything_in_it_is_refused(maker, tmp_path, refused):
    out = tmp_path / "there"
    out.mkdir()
    (out / "theirs").write_text("keep")

    assert "there' exists and is not an empty folder. Choose another folder with --out" in refused(
        maker.run(), "--out", out
    )
    assert [path.name for path in out.iterdir()] == ["theirs"]


def test_a_run_that_is_not_finished_is_refused_and_says_how_to_finish_it(maker, tmp_path, refused):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"schema": 1, "name": "begun", "state": "running"}))

    told = refused(run, "--out", tmp_path / "there")

    assert f"run {str(run)!r} has no bundle: training is not finished, or the bundle was not copied" in told
    assert "--resume" in told
    assert not (tmp_path / "there").exists()


def test_half_a_bundle_is_refused(maker, tmp_path, refused):
    run = maker.run()
    (run / "bundle" / "card.json").unlink()

    assert "is not a bundle" in refused(run, "--out", tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_what_is_neither_run_nor_bundle_is_refused(tmp_path, refused):
    assert f"{str(tmp_path / 'absent')!r} is not a bundle" in refused(tmp_path / "absent", "--out", tmp_path / "there")


def test_where_to_is_required(maker):
    result = CliRunner().invoke(command, [str(maker.run())])

    assert result.exit_code == 2
    assert "Missing option '--out'" in result.stderr
