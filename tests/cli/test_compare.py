"""`pneumoscope compare`: sentences, files and the report page."""

import json
import shutil

import pytest
from click.testing import CliRunner

from pneumoscope.cli import cli, run_and_exit
from pneumoscope.cli.compare import command
from pneumoscope.evaluation.evaluate import evaluate


@pytest.fixture(scope="module")
def runs(shared_maker):
    images = shared_maker.images("shown", normal=20, pneumonia=30)
    runs = [shared_maker.run("alexnet-adam"), shared_maker.run("other", gain=-0.05)]
    for run in runs:
        evaluate(run, images, ledger=shared_maker.root / "shown.jsonl")
    return runs


def invoke(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_command_prints_sentences_and_writes_the_files(runs, tmp_path):
    out = tmp_path / "out"
    result = invoke(*runs, "--out", out)
    assert result.exit_code == 0, result.output
    data = json.loads((out / "comparison.json").read_text())
    *sentences, page = result.stdout.splitlines()
    assert sentences == data["sentences"]
    assert sentences[0].startswith("alexnet-adam has a higher accuracy than other: +")
    assert page == str(out / "report.html")
    html = (out / "report.html").read_text()
    assert "alexnet-adam" in html
    assert "http://" not in html.replace("http://www.w3.org/", "")
    assert (out / "comparison.csv").is_file()


def test_runs_of_one_recipe_are_compared_under_the_names_of_their_folders(runs, tmp_path):
    folders = [shutil.copytree(runs[0], tmp_path / f"seed-{seed}") for seed in range(2)]
    result = invoke(*folders, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    assert "seed-0 and seed-1 do not differ" in result.stdout
    assert "seed-1" in (tmp_path / "out" / "report.html").read_text()


def test_page_shows_the_evaluation_that_was_named(runs, tmp_path):
    folders = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    for folder in folders:
        (folder / "evaluation" / "test").rename(folder / "evaluation" / "north")
    result = invoke(*folders, "--evaluation", "north", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["evaluation"] == "north"
    assert "<dt>Evaluation</dt><dd>north</dd>" in (tmp_path / "out" / "report.html").read_text()


def test_json_is_one_document_and_equals_the_file(runs, tmp_path):
    out = tmp_path / "out"
    result = invoke(*runs, "--operating-point", "rule_out", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data == json.loads((out / "comparison.json").read_text())
    assert data["operating_point"] == "rule_out"
    assert data["command"] == (f"pneumoscope compare {runs[0]} {runs[1]} --operating-point rule_out --out {out}")


def test_run_without_evaluation_exits_with_2(maker, tmp_path, capsys):
    run = maker.run("lonely")
    with pytest.raises(SystemExit) as stop:
        run_and_exit(cli, ["compare", str(run), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert f"pneumoscope evaluate {run} --data DATA" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_command_without_runs_exits_with_2(tmp_path):
    result = invoke("--out", tmp_path)
    assert result.exit_code == 2
    assert "RUN..." in result.stderr
