"""Resuming runs: after a kill at any time, with other initial weights, and on other machines; locks of the run folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.processes import started
from tests.training.conftest import small

from pneumoscope.core.errors import RunError, WeightsError
from pneumoscope.models.factory import create_initialized, create_model
from pneumoscope.models.weights import weights_sha256
from pneumoscope.runs.record import lock_run, read_run
from pneumoscope.runs.run_folder import CHECKPOINT_FILE, EPOCHS_FILE, WEIGHTS_FILE
from pneumoscope.training import train as train_module
from pneumoscope.training import trainer
from pneumoscope.training.callbacks import completed_epochs
from pneumoscope.training.train import train_run

pytestmark = pytest.mark.training

EPOCHS = 4
RECIPE = small(training={"epochs": EPOCHS, "ema": 0.9})
# Runs `train`, and kills itself in the step or the write that the environment states.
CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from pneumoscope.training import classifier
from pneumoscope.training.train import train_run
from tests.training.test_resume import RECIPE

step, save = classifier.Classifier.training_step, torch.save
count = {"step": 0, "save": 0}

def killed_step(self, batch, number):
    count["step"] += 1
    if count["step"] == int(os.environ.get("KILL_IN_STEP", 0)):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, number)

def killed_save(checkpoint, file):
    count["save"] += 1
    if count["save"] == int(os.environ.get("KILL_IN_SAVE", 0)):
        file.write(b"half of a checkpoint")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return save(checkpoint, file)

classifier.Classifier.training_step, torch.save = killed_step, killed_save
train_run(RECIPE, Path(sys.argv[1]), Path(sys.argv[2]), resume=True)
"""


def child(phantoms, out, **environment):
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(phantoms), str(out)],
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


@pytest.fixture(scope="module")
def uninterrupted(phantoms, tmp_path_factory):
    """A run that was not interrupted."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    train_run(RECIPE, phantoms, out)
    return out


def comparable(out):
    table = [line.rpartition(",")[0] for line in (out / EPOCHS_FILE).read_text().splitlines()]  # without seconds
    return {
        "weights": (out / WEIGHTS_FILE).read_bytes(),
        "network": (out / "bundle/network.onnx").read_bytes(),
        "epochs": table,
        "best": json.loads((out / "run.json").read_text())["best_epoch"],
    }


# An epoch of 45 images has 6 steps: step 15 is the third of epoch 3.
@pytest.mark.parametrize(
    ("kill", "epochs"), [({"KILL_IN_STEP": 15}, 2), ({"KILL_IN_SAVE": 3}, 2), ({"KILL_IN_SAVE": 1}, 0)]
)
def test_killed_run_is_resumed_with_the_same_result(uninterrupted, phantoms, tmp_path, kill, epochs):
    out = tmp_path / "run"
    process = child(phantoms, out, **kill)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not (out / "bundle").exists()
    assert json.loads((out / "run.json").read_text())["state"] == "running"
    state = torch.load(out / CHECKPOINT_FILE, weights_only=True) if epochs else {"history": []}
    assert len(state["history"]) == epochs
    assert (out / CHECKPOINT_FILE).exists() == bool(epochs)

    train_run(RECIPE, phantoms, out, resume=True)

    assert comparable(out) == comparable(uninterrupted)


def test_run_interrupted_before_the_export_is_resumed_with_the_same_result(
    uninterrupted, phantoms, tmp_path, monkeypatch
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    monkeypatch.setattr(train_module, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_run(RECIPE, phantoms, out)
    monkeypatch.undo()

    train_run(RECIPE, phantoms, out, resume=True)

    assert comparable(out) == comparable(uninterrupted)


ONE = small(training={"epochs": 1})
TWO = small(training={"epochs": 2})
# Trains until its second epoch starts, then waits.
WAITING_CHILD = """
import sys, time
from pathlib import Path
from pneumoscope.training.classifier import Classifier
from pneumoscope.training.train import train_run
from tests.training.test_resume import TWO

step = Classifier.training_step

def waiting(self, batch, number):
    if self.current_epoch == 1:
        Path(sys.argv[3]).touch()
        time.sleep(600)
    return step(self, batch, number)

Classifier.training_step = waiting
train_run(TWO, Path(sys.argv[1]), Path(sys.argv[2]))
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def record(run):
    return json.loads((run / "run.json").read_text())


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    """A finished run of two epochs, without its bundle."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "export", lambda *_, **__: None)
        train_run(TWO, phantoms, out)
    return out


def interrupt(monkeypatch, recipe, phantoms, out, *, before="export", resume=False):
    """Interrupt a run before a function of the training module."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_module, before, stop)
        with pytest.raises(KeyboardInterrupt):
            train_run(recipe, phantoms, out, resume=resume)


# --- locks -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_bundle")
def test_folder_is_locked_until_the_process_is_killed_and_its_temporary_files_are_deleted(finished, phantoms, tmp_path):
    out, reached = tmp_path / "run", tmp_path / "reached"
    command = [sys.executable, "-c", WAITING_CHILD, str(phantoms), str(out), str(reached)]
    with started(command, deadline=200, stderr=subprocess.PIPE, text=True) as child:
        try:
            limit = time.monotonic() + 120
            while not reached.exists() and child.poll() is None and time.monotonic() < limit:
                time.sleep(0.02)
            assert reached.exists(), child.communicate(timeout=60)[1]
            before = (out / "run.json").read_bytes()
            with pytest.raises(
                RunError, match=rf"another process is training in '{out}'\. Wait for it or stop it, then"
            ):
                train_run(TWO, phantoms, out, resume=True)
            assert (out / "run.json").read_bytes() == before
        finally:
            child.send_signal(signal.SIGKILL)
    (out / "bundle").mkdir()
    temporary = [out / ".run.json-0123456789abcdef", out / "checkpoints/.last.ckpt-0123456789abcdef",
            out / "bundle/.network.onnx-0123456789abcdef"]  # fmt: skip
    other = [out / ".notes-0123456789abcdef", out / "checkpoints/.last.ckpt-mine", out / "bundle/.network.onnx"]
    for path in (*temporary, *other):
        path.write_text("half")
    assert (out / ".run.lock").exists()  # the file of a dead process, not locked

    result = train_run(TWO, phantoms, out, resume=True)

    assert [entry.epoch for entry in result.resumed] == [1]
    assert (out / WEIGHTS_FILE).read_bytes() == (finished / WEIGHTS_FILE).read_bytes()
    assert not any(path.exists() for path in temporary)
    assert all(path.read_text() == "half" for path in other)
    assert not (out / ".run.lock").exists()


def test_failed_start_leaves_neither_a_lock_nor_a_folder(phantoms, tmp_path):
    recipe = small(network={"weights": str(tmp_path / "absent.safetensors")})
    (tmp_path / "mine").mkdir()

    for out in (tmp_path / "new", tmp_path / "mine"):
        with pytest.raises(WeightsError, match=r"absent\.safetensors"):
            train_run(recipe, phantoms, out)

    assert names(tmp_path) == ["mine"]
    assert names(tmp_path / "mine") == []


@pytest.mark.usefixtures("without_bundle")
def test_folder_of_a_process_killed_before_the_start_is_usable(phantoms, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".run.lock").touch()

    assert train_run(ONE, phantoms, out).state == "finished"


def test_finished_run_is_read_while_its_folder_is_locked(finished, phantoms):
    with lock_run(finished):
        assert train_run(TWO, phantoms, finished, resume=True).state == "finished"


def test_run_finished_by_another_process_is_not_trained_again(finished, phantoms, tmp_path, monkeypatch):
    # The run is finished by another process between the first check and the lock.
    def lock_finished(out):
        shutil.copytree(finished, out, dirs_exist_ok=True)
        return lock_run(out)

    monkeypatch.setattr(train_module, "lock_run", lock_finished)
    monkeypatch.setattr(train_module, "run_trainer", lambda *_, **__: pytest.fail("trained again"))

    assert train_run(TWO, phantoms, tmp_path / "run", resume=True) == read_run(finished)


# --- initial weights -------------------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path):
    torch.manual_seed(5)
    save_file(create_model("test_efficientnet", image_size=32).state_dict(), tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


def change_weights(start, part):
    tensors = load_file(start)
    name = next(name for name in sorted(tensors) if part in name and tensors[name].is_floating_point())
    tensors[name] = tensors[name] + 1
    save_file(tensors, start)


@pytest.mark.usefixtures("without_bundle")
@pytest.mark.parametrize("part", ["conv_stem", "classifier"])
def test_resuming_with_other_initial_weights_is_an_error(phantoms, tmp_path, monkeypatch, start, part):
    recipe, out = small(network={"weights": str(start)}, training={"epochs": 1}), tmp_path / "run"
    interrupt(monkeypatch, recipe, phantoms, out, before="run_trainer")
    recorded, original = record(out)["weights_sha256"], start.read_bytes()
    change_weights(start, part)

    with pytest.raises(
        RunError,
        match=rf"started with weights of SHA-256 {recorded[:16]}; .* now has SHA-256 (?!{recorded[:16]})[0-9a-f]{{16}}\.",
    ):
        train_run(recipe, phantoms, out, resume=True)
    assert read_run(out).resumed == ()

    start.write_bytes(original)
    assert train_run(recipe, phantoms, out, resume=True).weights_sha256 == recorded


@pytest.mark.usefixtures("without_bundle")
def test_random_initial_weights_are_not_compared(finished, phantoms, tmp_path, monkeypatch):
    out = tmp_path / "run"
    interrupt(monkeypatch, TWO, phantoms, out)
    data = record(out)
    assert data["weights_sha256"] == record(finished)["weights_sha256"]
    (out / "run.json").write_text(json.dumps({**data, "weights_sha256": "0" * 64}))

    assert train_run(TWO, phantoms, out, resume=True).weights_sha256 == "0" * 64


def test_hash_of_imagenet_weights_excludes_random_layers():
    network, loaded = create_initialized("tf_efficientnet_lite0", "imagenet", {"image_size": 32})
    first = weights_sha256(network, without=loaded.random)
    with torch.no_grad():
        network.model.classifier.weight += 1
    assert weights_sha256(network, without=loaded.random) == first
    with torch.no_grad():
        network.model.conv_stem.weight += 1
    assert weights_sha256(network, without=loaded.random) != first


# --- other machines ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_bundle")
def test_each_resumption_is_recorded_with_its_environment(phantoms, tmp_path, monkeypatch):
    out = tmp_path / "run"
    interrupt(monkeypatch, TWO, phantoms, out, before="run_trainer")
    before = read_run(out)
    assert (before.resumed, completed_epochs(out)) == ((), 0)
    monkeypatch.setattr(train_module, "device_name", lambda devices: "another device")

    interrupt(monkeypatch, TWO, phantoms, out, resume=True)
    result = train_run(TWO, phantoms, out, resume=True)

    assert [entry.epoch for entry in result.resumed] == [0, 2]
    first = result.resumed[0]
    assert (first.device, first.precision) == ("another device", before.precision)
    assert (first.machine, first.versions) == (before.machine, before.versions)
    assert first.when >= before.started
    assert result.device == "cpu"
    assert train_run(TWO, phantoms, out, resume=True) == result  # not resumed again


@pytest.mark.usefixtures("without_bundle")
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_resumed_run_keeps_its_precision_on_another_machine(phantoms, tmp_path, monkeypatch, precision):
    out, messages, used = tmp_path / "run", [], []
    monkeypatch.setattr(trainer, "bf16_is_native", lambda *, gpu: precision == "bf16")
    interrupt(monkeypatch, ONE, phantoms, out, before="run_trainer")
    monkeypatch.setattr(trainer, "bf16_is_native", lambda *, gpu: precision != "bf16")
    original = trainer.pl.Trainer
    monkeypatch.setattr(
        trainer.pl, "Trainer", lambda **options: used.append(options["precision"]) or original(**options)
    )

    result = train_run(ONE, phantoms, out, resume=True, log=messages.append)

    other = "32" if precision == "bf16" else "bf16"
    assert messages == [
        f"note: the run continues in precision {precision}, as it was started; a new run here would use {other}"
    ]
    assert used == [{"32": "32-true", "bf16": "bf16-mixed"}[precision]]
    assert (result.precision, result.resumed[0].precision) == (precision, precision)
    assert (out / CHECKPOINT_FILE).exists()


@pytest.mark.usefixtures("without_bundle")
def test_run_recorded_before_a_recipe_field_existed_is_resumed_with_its_default(phantoms, tmp_path):
    out = tmp_path / "run"
    result = train_run(ONE, phantoms, out)
    before = record(out)
    del before["recipe"]["rejection"]
    (out / "run.json").write_text(json.dumps(before))

    assert train_run(ONE, phantoms, out, resume=True).finished == result.finished
    with pytest.raises(RunError, match=r"has a run of another recipe: rejection\.steps was 0, now 3"):
        train_run(small(training={"epochs": 1}, rejection={"steps": 3}), phantoms, out, resume=True)
