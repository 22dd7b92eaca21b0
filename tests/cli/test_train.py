"""`pneumoscope train`: output, options, errors and interruption."""

import json
import shutil
import signal
import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest
import torch
from tests.processes import started
from tests.training.conftest import small

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.evidence import EVIDENCE
from pneumoscope.bundle.model_card import model_card
from pneumoscope.cli import cli, run_and_exit
from pneumoscope.cli.train import run_summary
from pneumoscope.core.errors import DatasetError
from pneumoscope.data.phantoms import write_phantoms
from pneumoscope.runs.recipe_files import read_recipe
from pneumoscope.runs.record import read_run
from pneumoscope.training import run_series
from pneumoscope.training import train as train_module
from pneumoscope.training.trainer import Devices

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "images"
    write_phantoms(folder, train=60, test=20, seed=1, size=48)
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(small(training={"epochs": 1}).to_toml())
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def train(capfd):
    """Run the command; return its exit status, standard output and standard error, including the output of libraries."""

    def run(*arguments):
        status = 0
        try:
            run_and_exit(cli, ["train", *map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run


def test_command_prints_the_record_or_a_summary(train, recipe, images, tmp_path):
    run = tmp_path / "run"
    status, out, err = train(recipe, "--data", images, "--out", run, "--json")

    assert status == 0, err
    record = json.loads(out)
    assert record == json.loads((run / "run.json").read_text())
    assert record["state"] == "finished"
    assert "epoch 1/1" in err
    assert read_bundle(run / "bundle")[0].name == "small"

    status, out, err = train(recipe, "--data", images, "--out", run, "--resume")

    assert (status, err) == (0, "")
    accuracy = record["best_validation_accuracy"]
    first, *lines = out.splitlines()
    assert first.startswith(
        f"small: best epoch 1 of 1 (training.select = accuracy), validation accuracy {accuracy:.4f}, 0."
    )
    assert lines == [
        f"bundle  {run / 'bundle'}",
        f"curves  {run / 'curves.svg'}",
        f"next    pneumoscope evaluate {run} --data {images}",
    ]
    assert (run / "curves.svg").is_file()

    status, out, err = train(recipe, "--data", images, "--out", run)

    assert (status, out) == (2, "")
    assert "run' already has a run. Resume it with --resume" in err


def test_evidence_completes_the_model_card(train, recipe, images, tmp_path):
    run = tmp_path / "run"
    status, out, err = train(recipe, "--data", images, "--out", run, "--set", "network.image_size=96", "--evidence")

    assert status == 0, err
    assert out.splitlines()[-1] == f"next    pneumoscope evaluate {run} --data {images}"
    assert "The training is finished" not in err
    evidence = run / "bundle/evidence"
    assert {path.stem for path in evidence.iterdir()} == {"audit", "robustness", "shortcuts", "saliency_check"}
    result = json.loads((evidence / "saliency_check.json").read_text())
    assert result["command"].endswith(f"--out {run} --set network.image_size=96 --evidence")
    missing = [line for line in model_card(run / "bundle").splitlines() if "Not measured yet" in line]
    others = ("evaluation", "phantom_saliency_check")  # no test image is scored
    assert missing == [f"Not measured yet: `{EVIDENCE[name]}`." for name in others]

    status, _, err = train(
        recipe, "--data", images, "--out", run, "--set", "network.image_size=96", "--evidence", "--resume"
    )
    assert (status, err) == (0, "model card: checking the data\n")


def test_finished_training_is_printed_before_a_measurement_that_fails(train, recipe, images, tmp_path, monkeypatch):
    def fails(runs, *_, **__):
        raise DatasetError(f"{len(runs)} runs: no space for {runs[1].name}")

    monkeypatch.setattr(train_module, "export", lambda *_, **__: None)
    monkeypatch.setattr("pneumoscope.evaluation.evidence.measure_evidence", fails)
    status, out, err = train(recipe, "--data", images, "--out", tmp_path / "runs", "--seeds", "2", "--evidence")

    assert status == 2
    assert "mean validation accuracy" in out
    assert "error: 2 runs: no space for seed-4" in err
    assert "To measure again, repeat the command with --resume --evidence." in err


def test_notes_on_the_data_go_to_standard_error(train, recipe, images, tmp_path):
    renamed = tmp_path / "images"
    shutil.copytree(images, renamed)
    image = next((renamed / "train" / "NORMAL").iterdir())
    image.rename(image.with_name(f"unknown{image.suffix}"))

    status, out, err = train(recipe, "--data", renamed, "--out", tmp_path / "run", "--json")

    assert status == 0, err
    assert json.loads(out)["state"] == "finished"
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert notes[0].startswith(
        "note: the patient of 1 of 80 images is unknown, because neither file names nor DICOM headers contain it."
    )
    assert notes[1:] == ["note: split 1 image without a known patient as if each were a patient"]


def test_options_are_passed_to_train(train, images, maker, tmp_path, monkeypatch):
    arguments = {}

    def caught(recipe, data, out, **options):
        arguments.update(options, recipe=recipe, data=data, out=out)
        return read_run(maker.run("x"))

    monkeypatch.setattr(train_module, "train_run", caught)
    options = ["--set", "training.epochs=3", "--set", "training.seed=9", "--resume", "--accelerator", "cpu"]
    status, out, err = train("quick", "--data", images, "--out", tmp_path, *options, "--devices", 2, "--nodes", 3)

    assert status == 0, err
    assert arguments["recipe"] == read_recipe("quick", ["training.epochs=3", "training.seed=9"])
    assert (arguments["data"], arguments["out"], arguments["resume"]) == (images, tmp_path, True)
    assert arguments["devices"] == Devices("cpu", 2, 3)
    assert arguments["progress"] is None
    assert out.startswith("x: best epoch 2 of 2 (training.select = accuracy), validation accuracy 0.7800, 0.1 min\n")


def test_selected_epoch_is_stated_with_the_reason(maker):
    record = read_run(maker.run("x"))
    last = msgspec.structs.replace(record, recipe={"name": "x", "training": {"seed": 0, "select": "last"}})
    assert run_summary(record, "").startswith("x: best epoch 2 of 2 (training.select = accuracy), validation accuracy")
    assert run_summary(last, "").startswith(
        "x: last epoch, 2 of 2 (training.select = last), validation accuracy 0.7800"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "training.epoch=3"], "there is no field 'training.epoch'. Did you mean 'training.epochs'?"),
        (["--set", "training.epochs=0"], "training.epochs: Input should be greater than or equal to 1 (it is 0)"),
        (["--set", "training.epochs"], "--set 'training.epochs' is not KEY=VALUE"),
        (["--set", "network.name=resnet81"], "there is no network 'resnet81'. Did you mean 'resnet18'?"),
        (["--set", "data.validation=0.01"], "the validation split would have 0 NORMAL"),
        (["--devices", "5", "--accelerator", "cpu"], "training.batch is 8 on 5 devices"),
    ],
)
def test_invalid_options_exit_with_2_and_write_nothing(train, recipe, images, tmp_path, options, message):
    status, out, err = train(recipe, "--data", images, "--out", tmp_path / "run", "--json", *options)

    assert (status, out) == (2, "")
    assert message in err
    assert not (tmp_path / "run").exists()


def test_folder_with_other_files_is_an_error_before_training(train, recipe, images, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "pneumoscope.training.inputs.create_initialized", lambda *_, **__: pytest.fail("a network was built")
    )
    (tmp_path / "other").write_text("keep")

    status, out, err = train(recipe, "--data", images, "--out", tmp_path)

    assert (status, out) == (2, "")
    assert f"{str(tmp_path)!r} is not empty and has no run. Choose another folder with --out" in err
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_unknown_recipe_and_missing_data_exit_with_2(train, recipe, images, tmp_path):
    status, _, err = train("quik", "--data", images, "--out", tmp_path / "run")
    assert (status, err) == (2, "error: there is no recipe 'quik'. Did you mean 'quick'?\n")

    status, _, err = train(recipe, "--data", tmp_path / "absent", "--out", tmp_path / "run")
    assert status == 2
    assert repr(str(tmp_path / "absent")) in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("available", "options", "message"),
    [
        (0, ["--accelerator", "gpu"], "training on 1 GPU was requested; torch finds 0 on this machine"),
        (2, ["--devices", "3"], "training on 3 GPUs was requested; torch finds 2 on this machine"),
        (
            2,
            ["--accelerator", "gpu", "--devices", "3", "--nodes", "2"],
            "training on 3 GPUs was requested; torch finds 2",
        ),
    ],
)
def test_unavailable_gpus_exit_with_2(train, recipe, images, tmp_path, monkeypatch, available, options, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: available)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available > 0)

    status, _, err = train(recipe, "--data", images, "--out", tmp_path / "run", *options)

    assert status == 2
    assert message in err
    assert "--accelerator cpu" in err
    assert not (tmp_path / "run").exists()


def test_ctrl_c_exits_with_130_and_keeps_complete_epochs(recipe, images, tmp_path):
    run = tmp_path / "run"
    arguments = [recipe, "--data", images, "--out", run, "--set", "training.epochs=3000"]
    with started(
        [sys.executable, "-m", "pneumoscope", "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        deadline=200,
    ) as process:
        limit = time.monotonic() + 120
        while not (run / "epochs.csv").exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (130, ""), err
    assert "Complete epochs are saved. To continue, repeat the command with --resume." in err.splitlines()
    assert "Traceback" not in err
    assert json.loads((run / "run.json").read_text())["state"] == "running"
    assert (run / "checkpoints" / "last.ckpt").is_file()


def test_several_seeds_are_summarized_with_mean_and_spread(train, recipe, images, tmp_path):
    out = tmp_path / "runs"
    status, printed, err = train(recipe, "--data", images, "--out", out, "--seeds", 2, "--set", "training.seed=5")

    assert status == 0, err
    records = [read_run(out / f"seed-{seed}") for seed in (5, 6)]
    accuracies = [record.best_validation_accuracy for record in records]
    first, second, mean, following = printed.splitlines()
    assert first.startswith(
        f"small, seed 5: best epoch 1 of 1 (training.select = accuracy), validation accuracy {accuracies[0]:.4f}"
    )
    assert second.startswith(
        f"small, seed 6: best epoch 1 of 1 (training.select = accuracy), validation accuracy {accuracies[1]:.4f}"
    )
    spread = f"{np.mean(accuracies):.4f}, standard deviation {np.std(accuracies, ddof=1):.4f}"
    assert mean == f"mean validation accuracy {spread}, n = 2 seeds"
    assert following == f"next    pneumoscope evaluate {out} --data {images}"

    status, printed, err = train(
        recipe, "--data", images, "--out", out, "--seeds", 2, "--set", "training.seed=5", "--resume", "--json"
    )

    assert status == 0, err
    assert json.loads(printed) == [json.loads((out / f"seed-{seed}/run.json").read_text()) for seed in (5, 6)]


def test_sweep_prints_the_combinations_with_the_best_first(recipe, images, tmp_path, capfd):
    settings = ["--set", "optimizer.learning_rate=0.002,0.00001", "--set", "training.epochs=1"]
    command = ["sweep", str(recipe), "--data", str(images), "--out", str(tmp_path / "sweep"), *settings]
    run_and_exit(cli, command)
    printed, err = capfd.readouterr()
    assert "optimizer.learning_rate" in printed
    assert "0.00001" in printed
    assert f"table   {tmp_path / 'sweep/sweep.csv'}" in printed
    assert "optimizer.learning_rate=0.002 (1 of 2 combinations)" in err
    run_and_exit(cli, [*command, "--resume", "--json"])
    rows = json.loads(capfd.readouterr().out)
    assert [row["seeds"] for row in rows] == [1, 1]
    assert rows[0]["accuracy"] >= rows[1]["accuracy"]


def test_folds_are_trained_and_their_spread_is_printed(train, images, maker, tmp_path, monkeypatch):
    record = read_run(maker.run("x"))
    found = [
        msgspec.structs.replace(record, fold=number, folds=3, best_validation_accuracy=accuracy)
        for number, accuracy in ((1, 0.8), (2, 0.7), (3, 0.9))
    ]
    arguments = {}

    def caught(recipe, data, out, count, **options):
        arguments.update(options, out=out, count=count)
        return found

    monkeypatch.setattr(run_series, "train_folds", caught)
    status, out, err = train("quick", "--data", images, "--out", tmp_path / "cv", "--folds", 3, "--resume")
    assert status == 0, err
    assert (arguments["out"], arguments["count"], arguments["resume"]) == (tmp_path / "cv", 3, True)
    assert out.startswith("x, fold 1: best epoch 2 of 2 (training.select = accuracy), validation accuracy 0.8000")
    assert "mean validation accuracy 0.8000, standard deviation 0.1000, n = 3 folds\n" in out

    status, _, err = train("quick", "--data", images, "--out", tmp_path / "cv", "--folds", 3, "--seeds", 2)
    assert status == 2
    assert "both --seeds and --folds are given" in err
