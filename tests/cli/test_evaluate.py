"""`pneumoscope evaluate`."""

import json
import shlex
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from pneumoscope.bundle.card import short_hash
from pneumoscope.bundle.model_card import model_card
from pneumoscope.cli import cli, run_and_exit
from pneumoscope.cli.evaluate import command
from pneumoscope.core.errors import UsageError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.evaluation_target import EvaluationTarget
from pneumoscope.inference.model import load_model
from pneumoscope.runs.evaluations import read_evaluation


def invoke(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_json_is_the_written_document(maker):
    run = maker.run()
    result = invoke(run, "--data", maker.images(), "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["n"] == 32
    assert data == json.loads((run / "evaluation" / "test" / "evaluation.json").read_text())


def test_folder_of_the_results_is_printed(maker):
    run, images = maker.run(), maker.images()
    for options, out in (([], "test"), (["--name", "north"], "north")):
        folder = run / "evaluation" / out
        result = invoke(run, "--data", images, *options)
        assert result.stdout.splitlines()[-1] == f"results {folder}"
        assert (folder / "predictions.csv").is_file()
    result = invoke(run, "--data", images, "--out", maker.root / "out", "--json")
    assert json.loads(result.stdout)["n"] == 32
    assert result.stderr.splitlines()[-1] == f"results {maker.root / 'out'}"
    (run / "manifest.csv").write_text(load_manifest(images).to_csv())
    other = invoke(run, "--data", maker.images("other", seed=1))
    assert other.stdout.splitlines()[-1] == f"results {run / 'evaluation' / 'test-other'}"
    bundle = invoke(maker.bundle(maker.root / "bundle"), "--data", images)
    assert bundle.stderr.splitlines()[-1] == "note: the results are not written; --out FOLDER keeps them"
    assert "results " not in bundle.stdout


def test_the_printed_folder_is_the_one_that_was_written(maker, monkeypatch):
    chosen = maker.root / "chosen"
    monkeypatch.setattr(EvaluationTarget, "results_folder", lambda *_, **__: chosen)
    for run, images in ((maker.run(), maker.images()), (maker.multiclass_run(), maker.classes())):
        result = invoke(run, "--data", images, "--force")
        assert result.stdout.splitlines()[-1] == f"results {chosen}"
        assert json.loads((chosen / "evaluation.json").read_text())["n"] > 0
        shutil.rmtree(chosen)


def test_tables_show_every_number_with_its_interval(maker):
    run = maker.run()
    result = invoke(run, "--data", maker.images())
    evaluation = read_evaluation(run / "evaluation" / "test" / "evaluation.json")
    assert "gray on 32 test images (12 NORMAL, 20 PNEUMONIA; 16 patients)" in result.stdout
    shown = [*evaluation.metrics.values(), *evaluation.auroc_by_etiology.values()]
    for point in evaluation.operating_points.values():
        shown += [*point.metrics.values(), *point.by_etiology.values()]
        cells = point.confusion
        assert (
            f"{point.rule}; predicted as pneumonia: {cells.tp} of 20 PNEUMONIA, {cells.fp} of 12 NORMAL"
            in result.stdout
        )
    for interval in shown:
        assert f"{interval.value:.3f}".replace("-", "\N{MINUS SIGN}") in result.stdout
        assert f"{interval.low:.3f} to {interval.high:.3f}".replace("-", "\N{MINUS SIGN}") in result.stdout
    assert "These test images have been evaluated once so far (test ledger)" in result.stdout
    assert "Not a medical device" in result.stdout


def test_threshold_is_printed_as_in_predict_and_as_a_score(maker):
    run = maker.run()
    result = invoke(run, "--data", maker.images())
    for name in ("half", "balanced", "rule_out", "rule_in"):
        model = load_model(run, operating_point=name)
        title = f"{name}: threshold at probability {model.threshold:.3f}, score before calibration {model.point.threshold:.4g}"
        assert title in result.stdout
    evaluation = read_evaluation(run / "evaluation" / "test" / "evaluation.json")
    assert evaluation.operating_points["rule_in"].threshold_probability == model.threshold


def test_undefined_metrics_are_explained(maker):
    """The network predicts pneumonia for every image, so that the negative predictive value does not exist."""
    run = maker.run(gain=1e-6)
    result = invoke(run, "--data", maker.images(), "--operating-point", "balanced")
    assert result.exit_code == 0
    evaluation = read_evaluation(run / "evaluation" / "test" / "evaluation.json")
    interval = evaluation.operating_points["balanced"].metrics["negative_predictive_value"]
    assert interval.value is None
    assert interval.reason in result.stdout


def test_flat_folder_is_evaluated_and_one_label_is_enough(maker):
    images = maker.images(split=".", normal=0)
    result = invoke(maker.bundle(maker.root / "bundle"), "--data", images, "--split", "all")
    assert result.exit_code == 0, result.exception
    assert result.stdout.startswith("gray on 20 images (0 NORMAL, 20 PNEUMONIA; 10 patients)")
    assert "there is no NORMAL image" in result.stdout
    assert "These test images have been evaluated once so far (test ledger)" in result.stdout


def test_evaluation_is_named_and_replaced_by_force(maker):
    run = maker.run()
    assert invoke(run, "--data", maker.images(), "--name", "north").exit_code == 0
    other = maker.images("other", seed=1)
    assert "has an evaluation of other images" in str(invoke(run, "--data", other, "--name", "north").exception)
    assert invoke(run, "--data", other, "--name", "north", "--force").exit_code == 0
    assert [path.name for path in (run / "evaluation").iterdir()] == ["north"]


def test_options_reach_the_library(maker, tmp_path):
    out, ledger = tmp_path / "out", tmp_path / "ledger.jsonl"
    options = [
        "--operating-point",
        "half",
        "--operating-point",
        "balanced",
        "--out",
        out,
        "--ledger",
        ledger,
        "--seed",
        5,
    ]
    result = invoke(maker.run(), "--data", maker.images(), *options)
    assert result.exit_code == 0, result.output
    evaluation = read_evaluation(out / "evaluation.json")
    assert list(evaluation.operating_points) == ["half", "balanced"]
    assert evaluation.operating_points["half"].metrics["mcc"].seed == 5
    assert json.loads(ledger.read_text())["test_evaluation"] == 1


def test_thresholds_chosen_on_the_same_images_are_rejected(maker, tmp_path):
    """Three thresholds were chosen on the validation images; only the fixed one may be evaluated on them."""
    images = maker.images(split="train")
    manifest = images / "split.csv"
    manifest.write_text(maker.manifest(images, "validation"))
    chosen = [short_hash(image.sha256) for image in load_manifest(manifest).split("validation")]
    run = maker.run(seen={"validation": chosen})
    result = invoke(run, "--data", manifest, "--split", "validation")
    assert "chosen on 16 of these 16 images" in str(result.exception)
    result = invoke(run, "--data", manifest, "--split", "validation", "--operating-point", "half")
    assert result.exit_code == 0, result.output
    assert "16 validation images" in result.stdout
    assert "test ledger" not in result.stdout


def test_missing_split_exits_with_2_and_names_the_existing_ones(maker, capsys):
    with pytest.raises(SystemExit) as stop:
        run_and_exit(cli, ["evaluate", str(maker.run()), "--data", str(maker.images(split="train"))])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no image in the split 'test' (images: train 32)" in captured.err


def predictions(maker, images, column="Pneumonia", scale=1.0):
    """Write a CSV file of another tool for the test images."""
    random = np.random.default_rng(0)
    file = maker.root / "densenet.csv"
    values = [scale * (0.3 + 0.4 * image.positive + 0.2 * random.random()) for image in load_manifest(images)]
    rows = [f"{image.path},{value}" for image, value in zip(load_manifest(images), values, strict=True)]
    file.write_text("\n".join([f"Image Index,{column}", *rows]))
    return file


def test_predictions_of_another_tool_are_evaluated_and_shown(maker):
    images = maker.images()
    columns = ("--path-column", "Image Index", "--probability-column", "Pneumonia")
    result = invoke("--predictions", predictions(maker, images), "--data", images, *columns)
    assert result.exit_code == 0, result.exception
    assert result.stdout.startswith("densenet on 32 test images (12 NORMAL, 20 PNEUMONIA; 16 patients)")
    assert "the only threshold is the fixed one, a probability of 0.5" in result.stdout
    assert "half: threshold at probability 0.5" in result.stdout
    assert "balanced: threshold" not in result.stdout
    assert "These test images have been evaluated once so far (test ledger)" in result.stdout
    data = json.loads(
        invoke(
            "--predictions", maker.root / "densenet.csv", "--data", images, *columns, "--json", "--name", "A v2"
        ).stdout
    )
    assert (data["name"], data["bundle_sha256"], data["test_evaluation"]) == ("A v2", "", 2)
    assert data["remarks"][1].startswith("There are no predictions for validation images")


def test_validation_predictions_choose_the_operating_points(maker):
    images = maker.images()
    other = maker.images("north", split=".", seed=2)
    file = predictions(maker, images).rename(maker.root / "test.csv")
    validation = predictions(maker, other)
    result = invoke(
        *("--predictions", file, "--data", images, "--path-column", "Image Index", "--probability-column", "Pneumonia"),
        *("--validation-predictions", validation, "--validation-data", other, "--calibrate"),
    )
    assert result.exit_code == 0, result.exception
    assert "on 32 validation images" in result.stdout
    assert "calibrated on 32 validation images (Platt scaling)" in result.stdout
    for name in ("half", "balanced", "rule_out", "rule_in"):
        assert f"{name}: threshold at probability" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is nothing to evaluate. Give RUN or BUNDLE, or a CSV file"),
        (("run", "--predictions", "a.csv"), "both RUN or BUNDLE ('run') and --predictions are given"),
        (("--predictions", "a.csv", "--site", "s.json"), "both --site ('s.json') and --predictions are given"),
        (("run", "--logit-column", "x"), "--logit-column is given without --predictions"),
        (("run", "--calibrate"), "--calibrate is given without --predictions"),
    ],
)
def test_options_that_do_not_belong_together_exit_with_2(maker, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run_and_exit(cli, ["evaluate", *arguments, "--data", str(maker.images())])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_file_instead_of_a_run_is_recognized(maker, capsys):
    file = predictions(maker, maker.images())
    with pytest.raises(SystemExit) as stop:
        run_and_exit(cli, ["evaluate", str(file), "--data", str(maker.root / "images")])
    assert stop.value.code == 2
    assert (
        f"is a file, not a run or bundle. If it has predictions, give --predictions {file}" in capsys.readouterr().err
    )


def test_logits_that_are_given_as_probabilities_are_named(maker, capsys):
    images = maker.images()
    file = predictions(maker, images, "probability", scale=-9)
    with pytest.raises(SystemExit) as stop:
        run_and_exit(
            cli, ["evaluate", "--predictions", str(file), "--data", str(images), "--path-column", "Image Index"]
        )
    assert stop.value.code == 2
    assert "If these are logits, give --logit-column 'probability'" in capsys.readouterr().err


def test_subgroups_and_differences_are_shown(maker):
    run, images, north = maker.run(), maker.images(), maker.images("north", normal=20, pneumonia=30, seed=4)
    rows = [f"{image.path},{image.label},test,{'MF'[i % 2]}[/x]" for i, image in enumerate(load_manifest(north))]
    (north / "images.csv").write_text("\n".join(["path,label,split,sex", *rows]))
    assert invoke(run, "--data", images).exit_code == 0
    options = ("--name", "north", "--by", "sex, etiology", "--reference", "test", "--json")
    result = invoke(run, "--data", north / "images.csv", *options)
    assert result.exit_code == 0, result.exception
    data = json.loads(result.stdout)
    assert [group["column"] for group in data["subgroups"]] == ["sex"] * 2 + ["etiology"] * 3
    result = invoke(run, "--data", north / "images.csv", *options[:-1])
    assert "subgroups, at the operating point balanced" in result.stdout
    for group in data["subgroups"]:
        assert f"{group['column']}: {group['value']}" in result.stdout
    for test in data["interactions"]:
        assert test["sentence"] in result.stdout
    assert "these images minus test (32 images)" in result.stdout
    interval = data["difference"]["operating_points"]["rule_out"]["specificity"]
    assert "specificity at rule out" in result.stdout
    assert f"{interval['low']:.3f} to {interval['high']:.3f}".replace("-", "\N{MINUS SIGN}") in result.stdout


def test_own_operating_points_prevalence_and_decision_curve_are_shown(maker):
    images, validation = maker.images(), maker.images("validation", split=".", seed=3)
    options = ("--operating-point", "0.30", "--operating-point", "sens=0.95", "--prevalence", "0.1")
    result = invoke(maker.run(), "--data", images, *options, "--validation-data", validation)
    assert result.exit_code == 0, result.exception
    assert "0.3: threshold at probability 0.300" in result.stdout
    assert "sens=0.95: threshold at probability" in result.stdout
    assert "highest threshold with sensitivity 0.95 on 20 validation images with pneumonia" in result.stdout
    assert "sens=0.95, at a prevalence of 0.1" in result.stdout
    assert "net benefit (0 is to treat no one)" in result.stdout
    for name in ("positive likelihood ratio", "calibration slope", "observed expected ratio"):
        assert name in result.stdout
    data = json.loads((maker.root / "runs" / "gray" / "evaluation" / "test" / "evaluation.json").read_text())
    interval = data["operating_points"]["sens=0.95"]["predictive_values"]["precision"]
    assert f"{interval['low']:.3f} to {interval['high']:.3f}" in result.stdout


def test_folder_of_runs_has_each_run_evaluated(maker):
    images, folder = maker.images(), maker.root / "runs/quick"
    for seed, middle in enumerate((115, 130)):
        maker.run(f"quick/seed-{seed}", recipe="quick", seed=seed, middle=middle)
    result = invoke(folder, "--data", images, "--operating-point", "half")
    assert result.exit_code == 0, result.output
    files = [folder / f"seed-{seed}/evaluation/test/evaluation.json" for seed in range(2)]
    evaluations = [read_evaluation(file) for file in files]
    *lines, counted, notice, first, second, following = result.stdout.splitlines()
    assert [first, second] == [f"results {file.parent}" for file in files]
    assert counted == "These test images have been evaluated 2 times so far (test ledger)"
    accuracies = [each.operating_points["half"].metrics["accuracy"] for each in evaluations]
    assert lines == [
        f"seed-{seed}: accuracy {accuracies[seed]} at half, AUROC {each.metrics['auroc']}, n = 32"
        for seed, each in enumerate(evaluations)
    ]
    assert lines[0] != lines[1].replace("seed-1", "seed-0")
    assert "Not a medical device" in notice
    assert following == f"next    pneumoscope compare {folder} --out DIR"

    result = invoke(folder, "--data", images, "--operating-point", "half", "--json")
    assert result.stderr.splitlines()[-2:] == [first, second]
    assert json.loads(result.stdout) == [json.loads(file.read_text()) for file in files]


def test_folder_of_runs_has_the_subgroups_of_each_run_printed(maker):
    header, *rows = load_manifest(maker.images()).to_csv().splitlines()
    data = maker.root / "images" / "sites.csv"
    data.write_text("\n".join([f"{header},site", *(f"{row},{'AB'[i % 2]}" for i, row in enumerate(rows))]))
    for seed, middle in enumerate((115, 130)):
        maker.run(f"quick/seed-{seed}", recipe="quick", seed=seed, middle=middle)
    folder = maker.root / "runs/quick"
    result = invoke(folder, "--data", data, "--operating-point", "half", "--by", "site")
    assert result.exit_code == 0, result.output
    for seed in range(2):
        evaluation = read_evaluation(folder / f"seed-{seed}/evaluation/test/evaluation.json")
        own = result.stdout.split(f"seed-{seed}: ")[1].split("seed-1: ")[0]
        assert [f"site: {group.value}" in own for group in evaluation.subgroups] == [True, True]
        assert str(evaluation.subgroups[1].metrics["sensitivity"]) in own
        assert all(test.sentence in own for test in evaluation.interactions)
        assert len(evaluation.interactions) == 3


def test_accuracy_above_subgroups_is_at_their_operating_point(maker):
    header, *rows = load_manifest(maker.images()).to_csv().splitlines()
    data = maker.root / "images" / "sites.csv"
    data.write_text("\n".join([f"{header},site", *(f"{row},{'AB'[i % 2]}" for i, row in enumerate(rows))]))
    maker.run("quick/seed-0", recipe="quick")
    folder = maker.root / "runs/quick"
    result = invoke(folder, "--data", data, "--by", "site")
    evaluation = read_evaluation(folder / "seed-0/evaluation/test/evaluation.json")
    half, balanced = (evaluation.operating_points[name].metrics for name in ("half", "balanced"))
    assert half["accuracy"].value != balanced["accuracy"].value
    assert f"accuracy {balanced['accuracy']} at balanced" in result.stdout
    _, table = result.stdout.split("subgroups, at the operating point balanced")
    (overall,) = [line for line in table.splitlines() if "all images" in line]
    for interval in (evaluation.metrics["auroc"], balanced["sensitivity"], balanced["specificity"]):
        assert str(interval) in overall


@pytest.mark.slow
def test_next_step_after_a_folder_of_runs_names_the_evaluation_that_was_saved(maker, tmp_path):
    images = maker.images()
    for seed in range(2):
        run = maker.run(f"quick/seed-{seed}", recipe="quick", seed=seed)
        load_manifest(images).save(run / "manifest.csv")
    folder, other = maker.root / "runs/quick", maker.images("elsewhere", seed=100)
    for options, name in (((), "test-elsewhere"), (("--name", "north"), "north")):
        result = invoke(folder, "--data", other, "--operating-point", "half", *options)
        assert result.exit_code == 0, result.output
        assert (folder / f"seed-0/evaluation/{name}/evaluation.json").is_file()
        *_, following = result.stdout.splitlines()
        assert following == f"next    pneumoscope compare {folder} --evaluation {name} --out DIR"
        words = [str(tmp_path / name) if word == "DIR" else word for word in shlex.split(following)[2:]]
        assert CliRunner().invoke(cli, words).exit_code == 0


def test_no_comparison_is_suggested_for_evaluations_of_different_names(maker):
    """One run was trained with these test images, and another was not."""
    images = maker.images()
    for seed, own in enumerate((images, maker.images("elsewhere", seed=100))):
        load_manifest(own).save(maker.run(f"quick/seed-{seed}", recipe="quick", seed=seed) / "manifest.csv")
    result = invoke(maker.root / "runs/quick", "--data", images, "--operating-point", "half")
    assert result.exit_code == 0, result.output
    assert "next" not in result.stdout


def test_unfinished_run_in_a_folder_of_runs_is_found_before_any_is_evaluated(maker):
    runs = [maker.run(f"runs/seed-{seed}") for seed in range(2)]
    shutil.rmtree(runs[1] / "bundle")
    result = invoke(maker.root / "runs", "--data", maker.images())
    assert "seed-1' has no bundle" in str(result.exception)
    assert not (runs[0] / "evaluation").exists()


def test_folder_of_runs_has_no_common_evaluation_folder(maker):
    maker.run("quick/seed-0", recipe="quick")
    result = CliRunner().invoke(
        cli,
        ["evaluate", str(maker.root / "runs/quick"), "--data", str(maker.images()), "--out", str(maker.root / "out")],
    )
    assert result.exit_code != 0
    assert "--out is given for a folder of runs" in str(result.exception)


def test_folders_of_runs_in_a_folder_are_evaluated_too(maker):
    for seed in range(2):
        maker.run(f"quick/seed-{seed}", recipe="quick", seed=seed)
    maker.run("single")
    result = invoke(maker.root / "runs", "--data", maker.images(), "--operating-point", "half")
    assert result.exit_code == 0, result.output
    labels = [line.partition(":")[0] for line in result.stdout.splitlines() if "accuracy" in line]
    assert labels == ["quick/seed-0", "quick/seed-1", "single"]


@pytest.mark.parametrize("by", ["", ",", " , "])
def test_by_without_a_column_is_an_error(maker, by):
    result = invoke(maker.run(), "--data", maker.images(), "--by", by)
    assert isinstance(result.exception, UsageError)
    assert "names no column" in str(result.exception)


def test_card_of_a_run_has_the_subgroups_of_its_evaluation(maker):
    run, images = maker.run(), maker.images()
    header, *rows = load_manifest(images).to_csv().splitlines()
    data = images / "with-sex.csv"
    data.write_text("\n".join([f"{header},sex", *(f"{row},{'FM'[i % 2]}" for i, row in enumerate(rows))]))
    assert "no subgroups by age or sex" in model_card(run / "bundle", evaluate_run(run, images))
    result = invoke(run, "--data", data, "--by", "sex", "--force")
    assert result.exit_code == 0, result.output
    page = model_card(run / "bundle", run / "evaluation/test/evaluation.json")
    assert "no subgroups by age or sex" not in page
    assert "At the operating point `balanced`:" in page
    for group in read_evaluation(run / "evaluation/test/evaluation.json").subgroups:
        auroc = group.metrics["auroc"]
        assert f"| sex: {group.value} | {group.n} | {auroc.value:.3f} [" in page
    assert "between the 2 groups of sex" in page or "between the groups of sex" in page


def evaluate_run(run, images):
    """Evaluate a run, and return the file of its evaluation."""
    assert invoke(run, "--data", images).exit_code == 0
    return run / "evaluation/test/evaluation.json"
