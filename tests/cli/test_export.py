"""`pneumoscope export`."""

import json

import pytest
from click.testing import CliRunner

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.cli import cli, run_and_exit
from pneumoscope.cli.export import command
from pneumoscope.core.population import Population


@pytest.fixture
def error_of(capsys):
    """Return a function that runs a command that exits with status 2, and returns its standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            run_and_exit(cli, ["export", *map(str, arguments)])
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    return run


def export(*arguments):
    result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_bundle_of_a_run_is_copied(maker, tmp_path):
    run, out = maker.run(), tmp_path / "there"

    printed = export(run, "--out", out)

    assert read_bundle(out) == read_bundle(run / "bundle")
    card, network = read_bundle(out)
    assert printed == f"{out}: mean-gray, {len(network) / 1e6:.1f} MB, SHA-256 {card.onnx_sha256[:16]}\n"
    assert sorted(path.name for path in out.iterdir()) == ["card.json", "network.onnx"]


def test_bundle_is_copied(maker, tmp_path):
    bundle = maker.bundle(tmp_path / "bundle")

    export(bundle, "--out", tmp_path / "there")

    assert read_bundle(tmp_path / "there") == read_bundle(bundle)


def test_population_of_a_recipe_is_stated(maker, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('name = "mine"\n[network]\nname = "resnet18"\n[population]\nages = [18, 90]\nsites = 2\n')

    export(maker.bundle(tmp_path / "bundle"), "--out", tmp_path / "there", "--population", recipe)

    assert read_bundle(tmp_path / "there")[0].population == Population(ages=(18, 90), sites=2)


def test_nonempty_folder_is_rejected(maker, tmp_path, error_of):
    out = tmp_path / "there"
    out.mkdir()
    (out / "other").write_text("keep")

    assert "there' exists and is not an empty folder. Choose another folder with --out" in error_of(
        maker.run(), "--out", out
    )
    assert [path.name for path in out.iterdir()] == ["other"]


def test_unfinished_run_is_rejected_with_a_hint(maker, tmp_path, error_of):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"schema": 1, "name": "begun", "state": "running"}))

    error = error_of(run, "--out", tmp_path / "there")

    assert f"run {str(run)!r} has no bundle" in error
    assert "--resume" in error
    assert not (tmp_path / "there").exists()


def test_incomplete_bundle_is_rejected(maker, tmp_path, error_of):
    run = maker.run()
    (run / "bundle" / "card.json").unlink()

    assert "is not a bundle" in error_of(run, "--out", tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_missing_run_is_rejected(tmp_path, error_of):
    assert f"{str(tmp_path / 'absent')!r} does not exist" in error_of(tmp_path / "absent", "--out", tmp_path / "there")


def test_out_is_required(maker):
    result = CliRunner().invoke(command, [str(maker.run())])

    assert result.exit_code == 2
    assert "Missing option '--out'" in result.stderr
