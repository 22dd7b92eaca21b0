"""`pneumoscope report`: files of a manuscript from evaluated runs."""

import csv
import statistics

import pytest
from click.testing import CliRunner

from pneumoscope.cli import cli, run_and_exit
from pneumoscope.cli.report import command
from pneumoscope.core.errors import UnknownNameError, UsageError
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.reporting.report_files import report


@pytest.fixture(scope="module")
def runs(shared_maker):
    images = shared_maker.images("reported", normal=20, pneumonia=30)
    runs = [shared_maker.run("first"), shared_maker.run("second", gain=-0.05)]
    for run in runs:
        evaluate(run, images, ledger=shared_maker.root / "reported.jsonl", operating_points=["half", "0.3"])
    return runs


def invoke(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_report_of_one_run_has_page_figures_tables_and_checklists(runs, tmp_path):
    out = tmp_path / "out"
    result = invoke(
        runs[0], "--operating-point", "0.30", "--checklist", "claim", "--checklist", "stard-ai", "--out", out
    )
    assert result.exit_code == 0, result.exception
    assert result.stdout.splitlines()[0].startswith("CLAIM 2024: ")
    assert result.stdout.splitlines()[-1] == str(out / "report.html")
    page = (out / "report.html").read_text()
    assert "Decision at 0.3: pneumonia" in page
    assert 'data-point="0.3"' in page
    assert "pneumoscope report" in page
    assert (out / "tables" / "checklist-stard-ai.tex").is_file()
    assert (out / "tables" / "operating_points.md").read_text().count("| 0.3 |") == 1
    for suffix in ("svg", "pdf", "png"):
        assert (out / "figures" / f"roc.{suffix}").is_file()


def test_operating_point_is_that_of_predict_unless_an_evaluation_lacks_it(runs, shared_maker, tmp_path):
    images = shared_maker.root / "reported"
    full = shared_maker.run("full", gain=0.04)
    evaluation, _ = evaluate(full, images, ledger=shared_maker.root / "reported.jsonl")
    assert set(evaluation.operating_points) == {"half", "balanced", "rule_out", "rule_in"}
    for targets, expected in (([full], "balanced"), ([full, runs[0]], "half")):
        out = tmp_path / expected
        result = invoke(*targets, "--out", out)
        assert result.exit_code == 0, result.exception
        assert f"note: the operating point is {expected}; --operating-point chooses another" in result.stderr
        assert f"Confusion matrices at the operating point {expected}." in (out / "report.html").read_text()
    chosen = invoke(full, "--operating-point", "rule_in", "--out", tmp_path / "chosen")
    assert "the operating point is" not in chosen.stderr
    assert report([full]).comparison.operating_point == "balanced"


def test_operating_point_is_the_only_one_that_all_evaluations_have(shared_maker, tmp_path):
    images = shared_maker.images("only", seed=7)
    some, other = shared_maker.run("only-some", gain=0.03), shared_maker.run("only-other", gain=0.02)
    for run, points in ((some, ["rule_in", "balanced"]), (other, ["rule_in"])):
        evaluate(run, images, ledger=shared_maker.root / "only.jsonl", operating_points=points)
    result = invoke(some, other, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    assert "note: the operating point is rule_in; --operating-point chooses another" in result.stderr
    evaluate(other, images, ledger=shared_maker.root / "only.jsonl", operating_points=["rule_out"])
    evaluate(some, images, ledger=shared_maker.root / "only.jsonl", operating_points=["rule_out"])
    ambiguous = invoke(some, other, "--out", tmp_path / "ambiguous")
    assert isinstance(ambiguous.exception, UnknownNameError)
    assert ambiguous.exception.hint.endswith("Give --operating-point rule_in or rule_out")


@pytest.mark.slow
def test_report_of_several_runs_compares_them(runs, tmp_path):
    result = invoke(*runs, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    assert "first has a higher accuracy than second" in (tmp_path / "out" / "report.html").read_text()
    assert "McNemar, exact" in (tmp_path / "out" / "tables" / "pairs.tex").read_text()
    assert not list((tmp_path / "out" / "tables").glob("checklist*"))


def test_bundle_without_an_evaluation_exits_with_2_and_says_what_to_do(runs, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_and_exit(cli, ["report", str(runs[0] / "bundle"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "bundle' is a model without an evaluation, and a report is of evaluations" in err
    assert f"pneumoscope evaluate {runs[0] / 'bundle'} --data DATA --out FOLDER; then report FOLDER" in err


@pytest.mark.parametrize("columns", ["path,probability", "path,probability_a,probability_b"])
def test_report_of_a_file_of_predictions_states_how_to_evaluate_it(maker, columns):
    file = maker.root / "p.csv"
    file.write_text(f"{columns}\n")
    for others in ([], [maker.multiclass_run()]):
        result = invoke(*others, file, "--out", maker.root / "out")
        assert isinstance(result.exception, UsageError)
        assert "p.csv' is a file of predictions without an evaluation" in result.exception.message
        assert f"pneumoscope evaluate --predictions {file} --data DATA --out FOLDER" in result.exception.hint
        assert "compare" not in str(result.exception)


@pytest.mark.slow
def test_report_of_a_folder_of_seeds_has_their_mean_and_spread(shared_maker, tmp_path):
    images = shared_maker.images("seeded", normal=20, pneumonia=30)
    values = []
    for seed, middle in enumerate((120, 131)):
        run = shared_maker.run(f"several/seed-{seed}", recipe="several", seed=seed, middle=middle)
        evaluation, _ = evaluate(run, images, ledger=shared_maker.root / "seeded.jsonl", operating_points=["half"])
        values.append(evaluation.operating_points["half"].metrics["accuracy"].value)
    result = invoke(shared_maker.root / "runs" / "several", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    rows = list(csv.DictReader((tmp_path / "out" / "tables" / "seeds.csv").read_text().splitlines()))
    (accuracy,) = (row for row in rows if row["Metric"] == "Accuracy")
    assert float(accuracy["Mean"]) == pytest.approx(statistics.mean(values))
    assert float(accuracy["Standard deviation"]) == pytest.approx(statistics.stdev(values))
    assert (accuracy["Recipe"], accuracy["Seeds"]) == ("several", "2")
