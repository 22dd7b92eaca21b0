"""The report's experiment in one call: recipes for this machine, results, and continuation."""

import json
import shutil

import numpy as np
import pytest

from pneumoscope.cli import cli, run_and_exit
from pneumoscope.core.errors import RunError, UnknownNameError, UsageError, WeightsError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.phantoms import write_phantoms
from pneumoscope.reproduction import experiment as module
from pneumoscope.reproduction.experiment import adapt_recipe, reproduce
from pneumoscope.reproduction.published import ERRATUM
from pneumoscope.reproduction.recipes import RUNS
from pneumoscope.runs.recipe_files import read_recipe
from pneumoscope.runs.record import create_run
from pneumoscope.training.trainer import Devices

pytestmark = pytest.mark.training

SMALL = (
    "network.name=test_efficientnet",
    "network.weights=none",
    "network.image_size=32",
    "training.epochs=1",
    "training.batch=8",
)
TWO = ("alexnet-sgd", "vgg19-adam-32")


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_weights(monkeypatch):
    """ImageNet weights are not available."""

    def find():
        raise WeightsError("cannot find the weights")

    monkeypatch.setattr(module, "find_vgg19", find)


@pytest.fixture
def weights_available(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "find_vgg19", lambda: tmp_path / "vgg19.pth")


@pytest.mark.parametrize("gpu", [False, True])
def test_alexnet_recipe_is_unchanged_on_any_machine(no_weights, gpu):
    assert adapt_recipe("alexnet-adam", (), gpu=gpu) == (read_recipe("alexnet-adam"), [])


def test_vgg19_recipe_is_unchanged_with_weights_and_a_gpu(weights_available):
    assert adapt_recipe("vgg19-adam", (), gpu=True) == (read_recipe("vgg19-adam"), [])


def test_vgg19_without_weights_and_gpu_uses_small_images_and_random_weights(no_weights):
    recipe, reasons = adapt_recipe("vgg19-adam", (), gpu=False)

    assert (recipe.network.weights, recipe.network.image_size) == ("none", 64)
    assert reasons == [
        "vgg19-adam: random initial weights instead of ImageNet weights: cannot find the weights",
        "vgg19-adam: images of 64 pixels instead of 224, because there is no GPU",
    ]
    changed = recipe.network.model_copy(update={"weights": "imagenet", "image_size": 224})
    assert recipe.model_copy(update={"network": changed}) == read_recipe("vgg19-adam")


def test_only_the_missing_resource_changes_the_recipe(no_weights):
    recipe, reasons = adapt_recipe("vgg19-rmsprop", (), gpu=True)

    assert (recipe.network.weights, recipe.network.image_size) == ("none", 224)
    assert [reason.partition(" instead")[0] for reason in reasons] == ["vgg19-rmsprop: random initial weights"]


def test_overrides_take_precedence(no_weights):
    recipe, reasons = adapt_recipe("vgg19-adam", ["network.image_size = 96", "network.weights=imagenet"], gpu=False)

    assert (recipe.network.weights, recipe.network.image_size, reasons) == ("imagenet", 96, [])


def test_weights_are_searched_only_if_needed(monkeypatch):
    """The search may download half a gigabyte."""
    monkeypatch.setattr(module, "find_vgg19", lambda: pytest.fail("searched for weights"))

    assert adapt_recipe("vgg19-adam", ["network.weights=none"], gpu=True)[0].network.weights == "none"
    assert adapt_recipe("vgg19-adam", ["network.name=resnet18"], gpu=False)[0].network.image_size == 224
    assert adapt_recipe("alexnet-sgd", (), gpu=False)[1] == []


def test_started_run_keeps_its_settings(weights_available, tmp_path, images):
    started = read_recipe("vgg19-adam", ["network.weights=none", "network.image_size=64"])
    create_run(tmp_path, started, load_manifest(images), device="cpu", precision="32", weights_sha256="")

    recipe, reasons = adapt_recipe("vgg19-adam", (), gpu=True, run=tmp_path)

    assert recipe == started
    assert reasons == [
        "vgg19-adam: continues with weights 'none', as the run was started",
        "vgg19-adam: continues with images of 64 pixels, as the run was started",
    ]
    assert adapt_recipe("vgg19-adam", ["network.image_size=96"], gpu=True, run=tmp_path)[0].network.image_size == 96
    assert adapt_recipe("vgg19-adam", (), gpu=True, run=tmp_path / "absent")[0] == read_recipe("vgg19-adam")


# --- reproduce -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce") / "images"
    write_phantoms(folder, train=60, test=20, seed=1, size=48)
    return folder


@pytest.fixture(scope="module")
def made(images, tmp_path_factory):
    """Two runs reproduced once: folder, result and log messages."""
    out = tmp_path_factory.mktemp("made") / "reproduction"
    messages = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        result = reproduce(
            images, out, only=TWO, overrides=SMALL, devices=Devices("cpu"), ledger=out / "ledger.jsonl",
            command="pneumoscope reproduce ...", log=messages.append,
        )  # fmt: skip
    return out, result, messages


@pytest.fixture
def copy(made, tmp_path, monkeypatch, tmp_path_factory):
    """A copy of the folder that a test may change."""
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return shutil.copytree(made[0], tmp_path / "copy")


def again(images, out, only=TWO, overrides=SMALL, **options):
    return reproduce(
        images, out, only=only, overrides=overrides, devices=Devices("cpu"), ledger=out / "ledger.jsonl", **options
    )


def stamps(out):
    """Modification time of each file of the runs."""
    return {path: path.stat().st_mtime_ns for name in TWO for path in (out / name).rglob("*") if path.is_file()}


def test_comparison_json_has_runs_pairs_and_reference(made, images):
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
        (*TWO, "sensitivity"),
        (*TWO, "specificity"),
    }
    assert [row["name"] for row in data["reference"]["rows"]] == list(RUNS)
    assert data["reference"]["note"] == ERRATUM
    assert data["command"] == "pneumoscope reproduce ..."
    assert [run.name for run in result.comparison.runs] == list(TWO)


def test_averages_are_means_over_the_epochs(made):
    out, result, _ = made
    for run in result.comparison.runs:
        rows = np.genfromtxt(out / run.name / "epochs.csv", delimiter=",", names=True)
        assert run.average_validation_accuracy == pytest.approx(float(np.mean(rows["validation_accuracy"])))


def test_report_page_names_the_runs(made):
    out, result, _ = made

    assert result.page == out / "report.html"
    page = result.page.read_text()
    assert all(name in page for name in TWO)
    assert (out / "comparison.csv").is_file()


def test_each_step_is_logged(made):
    _, result, messages = made

    assert messages == [
        "alexnet-sgd: training (1 epoch at 32 pixels)",
        "alexnet-sgd: evaluating on the test images",
        "vgg19-adam-32: training (1 epoch at 32 pixels)",
        "vgg19-adam-32: evaluating on the test images",
    ]
    assert result.notes == ()


def test_each_run_has_one_ledger_entry(made):
    entries = [json.loads(line) for line in (made[0] / "ledger.jsonl").read_text().splitlines()]

    assert [entry["test_evaluation"] for entry in entries] == [1, 2]


def test_second_call_trains_and_evaluates_nothing(images, copy):
    before, ledger = stamps(copy), (copy / "ledger.jsonl").read_text()

    result = again(images, copy)

    assert stamps(copy) == before
    assert (copy / "ledger.jsonl").read_text() == ledger
    assert [run.name for run in result.comparison.runs] == list(TWO)


def test_results_without_weights_are_compared(images, copy, made):
    """Results in version control have neither bundles nor checkpoints."""
    for name in TWO:
        for folder in ("bundle", "checkpoints", "tensorboard"):
            shutil.rmtree(copy / name / folder)
    before = stamps(copy)

    result = again(images, copy)

    assert stamps(copy) == before
    assert result.comparison.runs == made[1].comparison.runs
    assert result.comparison.pairs == made[1].comparison.pairs
    assert result.page.is_file()


def test_missing_evaluation_is_repeated_without_training(images, copy):
    shutil.rmtree(copy / "alexnet-sgd" / "evaluation")
    before = stamps(copy)

    result = again(images, copy, only=("alexnet-sgd",))

    assert {path: stamp for path, stamp in stamps(copy).items() if path in before} == before
    assert (copy / "alexnet-sgd" / "evaluation" / "test" / "evaluation.json").is_file()
    assert len((copy / "ledger.jsonl").read_text().splitlines()) == 3
    assert [run.name for run in result.comparison.runs] == list(TWO)


def test_only_existing_runs_are_compared(images, copy):
    shutil.rmtree(copy / "alexnet-sgd")

    result = again(images, copy, only=("vgg19-adam-32",))

    assert [run.name for run in result.comparison.runs] == ["vgg19-adam-32"]


def test_finished_run_of_another_recipe_is_an_error(images, copy):
    with pytest.raises(RunError, match=r"alexnet-sgd' has a run of another recipe: training.epochs was 1, now 2"):
        again(images, copy, overrides=[*SMALL, "training.epochs=2"])


def test_unknown_run_is_an_error_before_training(images, tmp_path):
    with pytest.raises(
        UnknownNameError, match=r"there is no run of the report 'alexnet-sdg'\. Did you mean 'alexnet-sgd'"
    ):
        reproduce(images, tmp_path / "out", only=("vgg19-adam", "alexnet-sdg"))

    assert not (tmp_path / "out").exists()


# --- the command -----------------------------------------------------------------------------------------------------


def test_command_prints_the_findings_and_records_its_command_line(images, copy, capsys):
    settings = [word for pair in SMALL for word in ("--set", pair)]
    ledger = str(copy / "ledger.jsonl")
    arguments = ["reproduce", "--data", str(images), "--out", str(copy), "--only", ",".join(TWO), *settings]
    arguments += ["--accelerator", "cpu", "--ledger", ledger]

    run_and_exit(cli, [*arguments, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == " ".join(["pneumoscope", *arguments])
    assert document == json.loads((copy / "comparison.json").read_text())

    run_and_exit(cli, arguments)
    printed, err = capsys.readouterr()
    assert printed.splitlines()[-1] == str(copy / "report.html")
    reference = document["reference"]
    assert printed.splitlines()[:-1] == [
        *document["sentences"],
        *(row["sentence"] for row in reference["rows"]),
        f"Erratum: {reference['note']}",
    ]
    assert err.startswith("alexnet-sgd: ")


def test_unknown_run_exits_with_2(images, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_and_exit(cli, ["reproduce", "--data", str(images), "--out", str(tmp_path / "out"), "--only", "vgg19-adm"])

    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: there is no run of the report 'vgg19-adm'. Did you mean 'vgg19-adam'?\n"


@pytest.mark.parametrize(("given", "expected"), [("", RUNS), ("vgg19-adam,alexnet-sgd", ("vgg19-adam", "alexnet-sgd"))])
def test_only_selects_the_runs(monkeypatch, made, tmp_path, given, expected, capsys):
    arguments = {}

    def caught(data, out, **options):
        arguments.update(options, data=data, out=out)
        return made[1]

    monkeypatch.setattr(module, "reproduce", caught)

    run_and_exit(cli, ["reproduce", "--data", "d", "--out", "o", "--only", given, "--devices", "2"])

    assert arguments["only"] == expected
    assert arguments["devices"] == Devices("auto", 2)
    assert arguments["command"].endswith(f"--out o{' --only ' + given if given else ''} --devices 2")


# --- several seeds ---------------------------------------------------------------------------------------------------

ALEXNETS = ("alexnet-sgd", "alexnet-adam")
MIDDLES = {"alexnet-sgd": 150, "alexnet-adam": 125}  # of the decision, in gray levels; 125 is the best


@pytest.fixture
def seeded(maker, monkeypatch):
    """Images, folder and trained (name, seed): `train` makes a run folder whose network is a mean gray level."""
    images, out, trained = maker.images("seeded", normal=40, pneumonia=60), maker.root / "runs", []

    def make(recipe, data, run, *, resume, devices, log):
        assert resume
        if not run.exists():
            seed = recipe.training.seed
            maker.run(
                f"{recipe.name}/seed-{seed}", recipe=recipe.name, seed=seed, middle=MIDDLES[recipe.name] + 2 * seed
            )
            trained.append((recipe.name, seed))

    monkeypatch.setattr(module, "train_run", make)
    return images, out, trained


def test_seeds_are_trained_in_turn_and_compared_by_their_means(seeded):
    images, out, trained = seeded
    messages = []
    result = again(images, out, only=ALEXNETS, overrides=(), seeds=2, log=messages.append)

    assert trained == [(name, seed) for seed in (0, 1) for name in ALEXNETS]
    assert messages[0] == "alexnet-sgd, seed 0 (1 of 2): training (15 epochs at 224 pixels)"
    assert [(group.name, group.seeds) for group in result.comparison.groups] == [(name, (0, 1)) for name in ALEXNETS]
    sgd, adam = (group.metrics["accuracy"].mean.value for group in result.comparison.groups)
    ranking, pairs, verdict = result.comparison.sentences[:3]
    assert f"the means over seeds rank alexnet-adam ({adam:.3f}) > alexnet-sgd ({sgd:.3f})" in ranking
    assert pairs.startswith("Of 1 pair, ")
    assert "ranking" in verdict
    assert result.page.is_file()

    entries = (out / "ledger.jsonl").read_text()
    messages.clear()
    again(images, out, only=ALEXNETS, overrides=(), seeds=3, log=messages.append)
    assert messages[0] == "alexnet-sgd, seed 0 (1 of 3): already trained"
    assert "alexnet-adam, seed 2 (3 of 3): training (15 epochs at 224 pixels)" in messages
    assert trained[4:] == [(name, 2) for name in ALEXNETS]
    assert (out / "ledger.jsonl").read_text().startswith(entries)
    assert len((out / "ledger.jsonl").read_text().splitlines()) == 6


def test_seeds_and_single_runs_do_not_share_a_folder(seeded, copy):
    images, out, _ = seeded
    again(images, out, only=ALEXNETS, overrides=(), seeds=1)
    with pytest.raises(RunError, match="has runs with several seeds, and single runs were requested"):
        again(images, out, only=ALEXNETS, overrides=())
    with pytest.raises(RunError, match="has a single run, and several seeds were requested"):
        again(images, copy, seeds=2)
    with pytest.raises(UsageError, match="number of seeds is 0"):
        again(images, out, seeds=0)
