"""`pneumoscope compare`: sentences, files and the report page."""

import json
import shutil

import pytest
from click.testing import CliRunner

from pneumoscope.cli import cli, run_and_exit
from pneumoscope.cli.compare import command
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.runs.evaluations import read_evaluation, read_predictions


@pytest.fixture(scope="module")
def runs(shared_maker):
    images = shared_maker.images("shown", normal=20, pneumonia=30)
    runs = [shared_maker.run("alexnet-adam"), shared_maker.run("other", gain=-0.05)]
    ledger = shared_maker.root / "shown.jsonl"
    ledger.unlink(missing_ok=True)  # a fixture of a module may be set up twice in one process
    for run in runs:
        evaluate(run, images, ledger=ledger)
    return runs


def invoke(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.mark.slow
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


@pytest.mark.slow
def test_runs_of_one_recipe_are_compared_under_the_names_of_their_folders(runs, tmp_path):
    folders = [shutil.copytree(runs[0], tmp_path / f"copy-{seed}") for seed in range(2)]
    result = invoke(*folders, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    assert "copy-0 and copy-1 do not differ" in result.stdout
    assert "copy-1" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_page_shows_the_evaluation_that_was_named(runs, tmp_path):
    folders = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    for folder in folders:
        (folder / "evaluation" / "test").rename(folder / "evaluation" / "north")
    result = invoke(*folders, "--evaluation", "north", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["evaluation"] == "north"
    assert "<dt>Evaluation</dt><dd>north</dd>" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_json_is_one_document_and_equals_the_file(runs, tmp_path):
    out = tmp_path / "out"
    result = invoke(*runs, "--operating-point", "rule_out", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data == json.loads((out / "comparison.json").read_text())
    assert data["operating_point"] == "rule_out"
    assert data["command"] == (f"pneumoscope compare {runs[0]} {runs[1]} --operating-point rule_out --out {out}")


def test_note_names_the_operating_point_if_it_is_not_half(runs, shared_maker, tmp_path):
    other = shared_maker.run("without-half", gain=0.03)
    images, ledger = shared_maker.root / "shown", shared_maker.root / "without-half.jsonl"
    evaluate(other, images, ledger=ledger, operating_points=["balanced", "0.3"])
    note = "note: the operating point is balanced; --operating-point chooses another"
    result = invoke(runs[0], other, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    assert note in result.stderr
    chosen = invoke(runs[0], other, "--operating-point", "balanced", "--out", tmp_path / "chosen")
    assert "note: the operating point" not in chosen.stderr
    assert "note: the operating point" not in invoke(*runs, "--out", tmp_path / "half").stderr


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
    assert "RUN|BUNDLE|FILE..." in result.stderr


@pytest.mark.slow
def test_predictions_and_bundle_are_shown_on_the_page(runs, shared_maker, tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOSCOPE_LEDGER", str(tmp_path / "ledger.jsonl"))
    images = shared_maker.root / "shown"
    scores = tmp_path / "torchxrayvision.csv"
    own = read_predictions(runs[0] / "evaluation" / "test" / "predictions.csv")
    rows = [f"{image.path},{image.probability / 2}" for image in own]
    scores.write_text("\n".join(["Image,Pneumonia", *rows]))
    bundle = shared_maker.bundle(tmp_path / "shipped", name="shipped")
    columns = ("--path-column", "Image", "--probability-column", "Pneumonia")
    out = tmp_path / "out"
    result = invoke(runs[0], scores, bundle, "--data", images, *columns, "--out", out)
    assert result.exit_code == 0, result.exception
    assert "alexnet-adam has a higher accuracy than torchxrayvision" in result.stdout
    assert "significant if its corrected p-value is below 0.05 and its interval does not contain 0." in result.stdout
    html = (out / "report.html").read_text()
    assert "<strong>torchxrayvision:</strong> It is unknown whether the model was trained" in html
    assert "the only threshold is the fixed one" in html
    assert "which were not used for training" not in html
    times = html.partition("Scoring time of the images</th>")[2].partition("</tr>")[0].split("</td>")[:-1]
    assert [time.endswith(">–") for time in times] == [False, True, False]
    data = json.loads((out / "comparison.json").read_text())
    assert data["command"].endswith(f"--data {images} --path-column Image --probability-column Pneumonia --out {out}")
    sha256 = read_evaluation(out / "evaluations" / "torchxrayvision" / "evaluation.json").predictions_sha256
    assert sha256 in html
    assert html.count("<dt>bundle SHA-256</dt>") == 2


@pytest.mark.slow
@pytest.mark.usefixtures("runs")  # with their images
def test_rejected_images_and_both_scales_of_a_threshold_are_shown(shared_maker, tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOSCOPE_LEDGER", str(tmp_path / "ledger.jsonl"))
    out = tmp_path / "out"
    result = invoke("default", "--data", shared_maker.root / "shown", "--out", out)
    assert result.exit_code == 0, result.exception
    evaluation = read_evaluation(out / "evaluations" / "default" / "evaluation.json")
    sentence = f"{evaluation.rejected.sentence()}."
    assert sentence.startswith("`predict` rejects ")
    assert f"{evaluation.name}: {sentence}" in result.stdout
    html = (out / "report.html").read_text()
    assert f"<strong>{evaluation.name}:</strong> {sentence.replace('`predict`', '<code>predict</code>')}" in html
    point = evaluation.operating_points["rule_out"]
    assert point.threshold_probability != point.threshold
    assert f'<data value="{point.threshold}">{point.threshold_text()}</data>' in html


@pytest.mark.slow
def test_page_of_predictions_alone_has_no_training(runs, shared_maker, tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOSCOPE_LEDGER", str(tmp_path / "ledger.jsonl"))
    scores = tmp_path / "scores.csv"
    own = read_predictions(runs[0] / "evaluation" / "test" / "predictions.csv")
    scores.write_text("\n".join(["path,logit", *(f"{image.path},{image.logit}" for image in own)]))
    out = tmp_path / "out"
    result = invoke(scores, "--data", shared_maker.root / "shown", "--out", out)
    assert result.exit_code == 0, result.exception
    html = (out / "report.html").read_text()
    assert 'id="training"' not in html
    assert "#training" not in html
    assert "training time:" not in html
    assert "Run scores on 50 test images" in html


@pytest.mark.slow
def test_page_shows_the_subgroups_of_an_evaluation(runs, shared_maker, tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOSCOPE_LEDGER", str(tmp_path / "ledger.jsonl"))
    run = shutil.copytree(runs[0], tmp_path / "run")
    evaluation, _ = evaluate(run, shared_maker.root / "shown", by=["etiology"])
    result = invoke(run, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    html = (tmp_path / "out" / "report.html").read_text()
    section = html[html.index('<section id="subgroups">') :].partition("</section>")[0]
    for group in evaluation.subgroups:
        assert f"etiology: {group.value}<small>balanced</small>" in section
        shown = group.metrics["specificity" if group.value == "normal" else "sensitivity"]
        assert f'<data value="{shown.value}">' in section
    assert "alexnet-adam: The sensitivity" in section
    assert 'href="#subgroups"' in html


@pytest.mark.parametrize("command", ["compare", "report"])
def test_results_are_not_written_among_other_files(runs, tmp_path, command):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"image")
    result = CliRunner().invoke(cli, [command, str(runs[0]), "--out", str(tmp_path / "images")])
    assert result.exit_code != 0
    assert "images' has other files" in str(result.exception)
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["a.png"]
