"""`pneumoscope compare`."""

import json

import pytest
from click.testing import CliRunner

from pneumoscope.cli import cli, run_and_exit
from pneumoscope.cli.compare import command
from pneumoscope.evaluation.evaluate import evaluate


@pytest.fixture(scope="module")
def runs(shared_maker):
    images = shared_maker.images("shown", normal=20, pneumonia=30)
    found = [shared_maker.run("alexnet-adam"), shared_maker.run("other", gain=-0.05)]
    for run in found:
        evaluate(run, images, ledger=shared_maker.root / "shown.jsonl")
    return found


def invoke(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_prints_findings_and_the_path_of_the_report(runs, tmp_path):
    out = tmp_path / "out"
    result = invoke(*runs, "--out", out)
    assert result.exit_code == 0, result.output
    data = json.loads((out / "comparison.json").read_text())
    *sentences, page = result.stdout.splitlines()
    assert sentences == data["sentences"]
    assert sentences[0].startswith("alexnet-adam beats other: accuracy +")
    assert page == str(out / "report.html")
    html = (out / "report.html").read_text()
    assert "alexnet-adam" in html
    assert "http://" not in html.replace("http://www.w3.org/", "")
    assert (out / "comparison.csv").is_file()


def test_json_is_the_written_document(runs, tmp_path):
    out = tmp_path / "out"
    result = invoke(*runs, "--operating-point", "rule_out", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data == json.loads((out / "comparison.json").read_text())
    assert data["operating_point"] == "rule_out"
    assert data["command"] == (f"pneumoscope compare {runs[0]} {runs[1]} --operating-point rule_out --out {out}")


def test_run_without_evaluation_is_refused(maker, tmp_path, capsys):
    run = maker.run("lonely")
    with pytest.raises(SystemExit) as stop:
        run_and_exit(cli, ["compare", str(run), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert f"pneumoscope evaluate {run} --data DATA" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_run_argument_is_required(tmp_path):
    result = invoke("--out", tmp_path)
    assert result.exit_code == 2
    assert "RUN..." in result.stderr
