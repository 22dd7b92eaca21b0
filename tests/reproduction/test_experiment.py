"""The whole experiment in one call: what runs where, what it writes, and that it goes on where it stopped."""

import json
import shutil

import numpy as np
import pytest

from pneumoscope.cli import cli, run_and_exit
from pneumoscope.core.errors import RunError, UnknownNameError, WeightsError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.imaging.phantom import phantom
from pneumoscope.reproduction import experiment as module
from pneumoscope.reproduction.experiment import recipe_here, reproduce
from pneumoscope.reproduction.published import ERRATUM
from pneumoscope.reproduction.recipes import RUNS, report_recipes
from pneumoscope.runs.recipe import read_recipe
from pneumoscope.runs.record import create_run
from pneumoscope.training.devices import Devices

pytestmark = pytest.mark.training

SMALL = (
    "network.name=test_efficientnet",
    "network.weights=none",
    "network.image_size=32",
    "training.epochs=1",
    "training.batch=8",
)
TWO = ("alexnet-sgd", "vgg19-adam-32")


# --- which recipe ----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_weights(monkeypatch):
    """ImageNet's weights are not on this machine, and there is no network."""

    def find():
        raise WeightsError("they are not on this machine")

    monkeypatch.setattr(module, "find_vgg19", find)


@pytest.fixture
def weights_at_hand(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "find_vgg19", lambda: tmp_path / "vgg19.pth")


@pytest.mark.parametrize("gpu", [False, True])
def test_alexnet_is_the_reports_wherever_it_runs(no_weights, gpu):
    assert recipe_here("alexnet-adam", (), gpu=gpu) == (read_recipe("alexnet-adam", recipes=report_recipes()), [])


def test_vgg19_with_weights_and_a_gpu_is_the_reports(weights_at_hand):
    assert recipe_here("vgg19-adam", (), gpu=True) == (read_recipe("vgg19-adam", recipes=report_recipes()), [])


def test_vgg19_without_either_is_small_and_starts_from_nothing_and_says_so(no_weights):
    recipe, words = recipe_here("vgg19-adam", (), gpu=False)

    assert (recipe.network.weights, recipe.network.image_size) == ("none", 64)
    assert words == [
        "vgg19-adam: starts from random weights, not from ImageNet's: they are not on this machine",
        "vgg19-adam: images of 64 pixels, not 224: no GPU is at hand",
    ]
    changed = recipe.network.model_copy(update={"weights": "imagenet", "image_size": 224})
    assert recipe.model_copy(update={"network": changed}) == read_recipe("vgg19-adam", recipes=report_recipes())


def test_one_of_the_two_changes_only_what_it_must(no_weights):
    recipe, words = recipe_here("vgg19-rmsprop", (), gpu=True)

    assert (recipe.network.weights, recipe.network.image_size) == ("none", 224)
    assert [word.partition(",")[0] for word in words] == ["vgg19-rmsprop: starts from random weights"]


def test_what_the_caller_asks_for_wins(no_weights):
    recipe, words = recipe_here("vgg19-adam", ["network.image_size = 96", "network.weights=imagenet"], gpu=False)

    assert (recipe.network.weights, recipe.network.image_size, words) == ("imagenet", 96, [])


def test_weights_are_not_looked_for_where_nobody_needs_them(monkeypatch):
    """Looking may try to download half a gigabyte."""
    monkeypatch.setattr(module, "find_vgg19", lambda: pytest.fail("looked for"))

    assert recipe_here("vgg19-adam", ["network.weights=none"], gpu=True)[0].network.weights == "none"
    assert recipe_here("vgg19-adam", ["network.name=resnet18"], gpu=False)[0].network.image_size == 224
    assert recipe_here("alexnet-sgd", (), gpu=False)[1] == []


def test_a_run_that_was_begun_goes_on_as_it_was_whatever_is_at_hand_now(weights_at_hand, tmp_path, images):
    begun = read_recipe("vgg19-adam", ["network.weights=none", "network.image_size=64"], report_recipes())
    create_run(tmp_path, begun, load_manifest(images), device="cpu", precision="32", weights_sha256="")

    recipe, words = recipe_here("vgg19-adam", (), gpu=True, run=tmp_path)

    assert recipe == begun
    assert words == [
        "vgg19-adam: was begun with the weights 'none', and goes on so",
        "vgg19-adam: was begun with images of 64 pixels, and goes on so",
    ]
    assert recipe_here("vgg19-adam", ["network.image_size=96"], gpu=True, run=tmp_path)[0].network.image_size == 96
    assert recipe_here("vgg19-adam", (), gpu=True, run=tmp_path / "absent")[0] == read_recipe(
        "vgg19-adam", recipes=report_recipes()
    )


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce") / "images"
    phantom(folder, train=60, test=20, seed=1, size=48)
    return folder


@pytest.fixture(scope="module")
def made(images, tmp_path_factory):
    """Two runs reproduced once; what was told, and the folder."""
    out = tmp_path_factory.mktemp("made") / "reproduction"
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        result = reproduce(
            images, out, only=TWO, overrides=SMALL, devices=Devices("cpu"), ledger=out / "looks.jsonl",
            command="pneumoscope reproduce ...", tell=told.append,
        )  # fmt: skip
    return out, result, told


@pytest.fixture
def copy(made, tmp_path, monkeypatch, tmp_path_factory):
    """The folder with its results, to be changed."""
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return shutil.copytree(made[0], tmp_path / "copy")


def again(images, out, only=TWO, overrides=SMALL, **options):
    return reproduce(
        images, out, only=only, overrides=overrides, devices=Devices("cpu"), ledger=out / "looks.jsonl", **options
    )


def stamps(out):
    """When each file of the runs was written."""
    return {path: path.stat().st_mtime_ns for name in TWO for path in (out / name).rglob("*") if path.is_file()}


def test_comparison_json_has_what_it_must(made, images):
    out, result, _ = made
    data = json.loads((out / "comparison.json").read_text())

    assert {"schema", "images", "runs", "pairs", "reference"} <= set(data)
    assert (data["images"]["n"], data["images"]["counts"]) == (20, {"NORMAL": 8, "PNEUMONIA": 12})
    assert len(data["images"]["sha256"]) == 64
    assert len(list((images / "test").rglob("*.jpeg"))) == 20
    for run, name, optimizer in zip(data["runs"], TWO, ("sgd", "adam"), strict=True):
        assert {key: run[key] for key in ("name", "network", "optimizer", "batch", "image_size", "epochs", "seed")} == {
            "name": name, "network": "test_efficientnet", "optimizer": optimizer, "batch": 8, "image_size": 32,
            "epochs": 1, "seed": 0,
        }  # fmt: skip
        assert (run["device"], run["weights"]) == ("cpu", "none")
        assert 0 <= run["average_train_accuracy"] <= 1
        assert 0 <= run["average_validation_accuracy"] <= 1
        assert run["test"]["n"] == 20
        accuracy = run["test"]["accuracy"]
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
        assert {"sensitivity", "specificity", "precision", "f1", "auroc", "brier"} <= set(run["test"])
        confusion = run["confusion"]
        assert accuracy["value"] == pytest.approx((confusion["tp"] + confusion["tn"]) / 20)
    assert {(pair["a"], pair["b"], pair["metric"]) for pair in data["pairs"]} == {
        (*TWO, "accuracy"),
        (*TWO, "auroc"),
    }
    assert [row["name"] for row in data["reference"]["rows"]] == list(RUNS)
    assert data["reference"]["note"] == ERRATUM
    assert data["command"] == "pneumoscope reproduce ..."
    assert [run.name for run in result.comparison.runs] == list(TWO)


def test_averages_are_those_of_the_epochs(made):
    out, result, _ = made
    for run in result.comparison.runs:
        rows = np.genfromtxt(out / run.name / "epochs.csv", delimiter=",", names=True)
        assert run.average_validation_accuracy == pytest.approx(float(np.mean(rows["validation_accuracy"])))


def test_the_report_is_one_page_that_names_the_runs(made):
    out, result, _ = made

    assert result.page == out / "report.html"
    page = result.page.read_text()
    assert all(name in page for name in TWO)
    assert (out / "comparison.csv").is_file()


def test_whoever_waits_is_told_what_happens(made):
    _, result, told = made

    assert told == [
        "alexnet-sgd: training (1 epochs at 32 pixels)",
        "alexnet-sgd: evaluating on the test images",
        "vgg19-adam-32: training (1 epochs at 32 pixels)",
        "vgg19-adam-32: evaluating on the test images",
    ]
    assert result.notes == ()


def test_each_run_looked_at_the_test_images_once(made):
    looks = [json.loads(line) for line in (made[0] / "looks.jsonl").read_text().splitlines()]

    assert [look["look"] for look in looks] == [1, 2]


def test_called_again_nothing_is_made_and_no_look_is_added(images, copy):
    before, looks = stamps(copy), (copy / "looks.jsonl").read_text()

    result = again(images, copy)

    assert stamps(copy) == before
    assert (copy / "looks.jsonl").read_text() == looks
    assert [run.name for run in result.comparison.runs] == list(TWO)


def test_results_without_weights_are_enough(images, copy, made):
    """As they are committed: numbers, and neither bundles nor checkpoints."""
    for name in TWO:
        for folder in ("bundle", "checkpoints", "tensorboard"):
            shutil.rmtree(copy / name / folder)
    before = stamps(copy)

    result = again(images, copy)

    assert stamps(copy) == before
    assert result.comparison.runs == made[1].comparison.runs
    assert result.comparison.pairs == made[1].comparison.pairs
    assert result.page.is_file()


def test_an_evaluation_that_is_missing_is_made_without_training_again(images, copy):
    shutil.rmtree(copy / "alexnet-sgd" / "evaluation")
    before = stamps(copy)

    result = again(images, copy, only=("alexnet-sgd",))

    assert {path: stamp for path, stamp in stamps(copy).items() if path in before} == before
    assert (copy / "alexnet-sgd" / "evaluation" / "test" / "evaluation.json").is_file()
    assert len((copy / "looks.jsonl").read_text().splitlines()) == 3
    assert [run.name for run in result.comparison.runs] == list(TWO)


def test_runs_finished_before_are_compared_though_others_are_asked_for(images, copy):
    shutil.rmtree(copy / "alexnet-sgd")

    result = again(images, copy, only=("vgg19-adam-32",))

    assert [run.name for run in result.comparison.runs] == ["vgg19-adam-32"]


def test_another_recipe_does_not_pass_for_the_one_that_was_run(images, copy):
    with pytest.raises(RunError, match=r"alexnet-sgd' is a run of another recipe: training.epochs was 1, now 2"):
        again(images, copy, overrides=[*SMALL, "training.epochs=2"])


def test_an_unknown_run_is_refused_before_any_is_made(images, tmp_path):
    with pytest.raises(
        UnknownNameError, match=r"there is no run of the report 'alexnet-sdg'\. Did you mean 'alexnet-sgd'"
    ):
        reproduce(images, tmp_path / "out", only=("vgg19-adam", "alexnet-sdg"))

    assert not (tmp_path / "out").exists()


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_what_was_found_and_records_how_it_was_called(images, copy, capsys):
    settings = [word for pair in SMALL for word in ("--set", pair)]
    ledger = str(copy / "looks.jsonl")
    arguments = ["reproduce", "--data", str(images), "--out", str(copy), "--only", ",".join(TWO), *settings]
    arguments += ["--accelerator", "cpu", "--ledger", ledger]

    run_and_exit(cli, [*arguments, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == " ".join(["pneumoscope", *arguments])
    assert document == json.loads((copy / "comparison.json").read_text())

    run_and_exit(cli, arguments)
    printed, told = capsys.readouterr()
    assert printed.splitlines()[-1] == str(copy / "report.html")
    reference = document["reference"]
    assert printed.splitlines()[:-1] == [
        *document["sentences"],
        *(row["sentence"] for row in reference["rows"]),
        f"Erratum: {reference['note']}",
    ]
    assert told.startswith("alexnet-sgd: ")


def test_an_unknown_name_after_only_exits_with_2(images, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_and_exit(cli, ["reproduce", "--data", str(images), "--out", str(tmp_path / "out"), "--only", "vgg19-adm"])

    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: there is no run of the report 'vgg19-adm'. Did you mean 'vgg19-adam'?\n"


@pytest.mark.parametrize(("given", "expected"), [("", RUNS), ("vgg19-adam,alexnet-sgd", ("vgg19-adam", "alexnet-sgd"))])
def test_all_six_are_made_unless_some_are_named(monkeypatch, made, tmp_path, given, expected, capsys):
    asked = {}

    def caught(data, out, **options):
        asked.update(options, data=data, out=out)
        return made[1]

    monkeypatch.setattr(module, "reproduce", caught)

    run_and_exit(cli, ["reproduce", "--data", "d", "--out", "o", "--only", given, "--devices", "2"])

    assert asked["only"] == expected
    assert asked["devices"] == Devices("auto", 2)
    assert asked["command"].endswith(f"--out o{' --only ' + given if given else ''} --devices 2")
