"""The run folder under two processes, killed ones, other weights and other machines."""

import json
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
from pneumoscope.models.factory import create_model
from pneumoscope.runs.record import lock_run, read_run
from pneumoscope.runs.run_folder import CHECKPOINT_FILE, WEIGHTS_FILE
from pneumoscope.training import devices, trainer
from pneumoscope.training import train as train_module
from pneumoscope.training.checkpoints import epochs_done
from pneumoscope.training.train import train

pytestmark = pytest.mark.training

ONE = small(training={"epochs": 1})
TWO = small(training={"epochs": 2})
# Trains until its second epoch begins, and then no more.
CHILD = """
import sys, time
from pathlib import Path
from pneumoscope.training.classifier import Classifier
from pneumoscope.training.train import train
from tests.training.test_run_folder import TWO

step = Classifier.training_step

def waiting(self, batch, number):
    if self.current_epoch == 1:
        Path(sys.argv[3]).touch()
        time.sleep(600)
    return step(self, batch, number)

Classifier.training_step = waiting
train(TWO, Path(sys.argv[1]), Path(sys.argv[2]))
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def record(run):
    return json.loads((run / "run.json").read_text())


@pytest.fixture(scope="module")
def whole(phantoms, tmp_path_factory):
    """A run of two epochs that nobody killed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(TWO, phantoms, out)
    return out


def stopped(monkeypatch, recipe, phantoms, out, *, before="export", resume=False):
    """A run that ended before a step of it."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_module, before, stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, phantoms, out, resume=resume)


# --- two processes ---------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_until_the_first_is_killed_and_its_remains_are_swept(whole, phantoms, tmp_path):
    out, reached = tmp_path / "run", tmp_path / "reached"
    command = [sys.executable, "-c", CHILD, str(phantoms), str(out), str(reached)]
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
                train(TWO, phantoms, out, resume=True)
            assert (out / "run.json").read_bytes() == before
        finally:
            child.send_signal(signal.SIGKILL)
    (out / "bundle").mkdir()
    left = [out / ".run.json-0123456789abcdef", out / "checkpoints/.last.ckpt-0123456789abcdef",
            out / "bundle/.network.onnx-0123456789abcdef"]  # fmt: skip
    theirs = [out / ".notes-0123456789abcdef", out / "checkpoints/.last.ckpt-mine", out / "bundle/.network.onnx"]
    for path in (*left, *theirs):
        path.write_text("half")
    assert (out / ".run.lock").exists()  # a file without a lock: its holder is dead

    result = train(TWO, phantoms, out, resume=True)

    assert [entry.epoch for entry in result.resumed] == [1]
    assert (out / WEIGHTS_FILE).read_bytes() == (whole / WEIGHTS_FILE).read_bytes()
    assert not any(path.exists() for path in left)
    assert all(path.read_text() == "half" for path in theirs)
    assert not (out / ".run.lock").exists()


def test_a_start_that_fails_leaves_neither_a_lock_nor_a_folder(phantoms, tmp_path):
    recipe = small(network={"weights": str(tmp_path / "absent.safetensors")})
    (tmp_path / "mine").mkdir()

    for out in (tmp_path / "new", tmp_path / "mine"):
        with pytest.raises(WeightsError, match=r"absent\.safetensors"):
            train(recipe, phantoms, out)

    assert names(tmp_path) == ["mine"]
    assert names(tmp_path / "mine") == []


def test_a_folder_whose_maker_was_killed_before_it_began_is_free(phantoms, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".run.lock").touch()

    assert train(ONE, phantoms, out).state == "finished"


def test_a_finished_run_is_read_while_its_folder_is_held(whole, phantoms):
    with lock_run(whole):
        assert train(TWO, phantoms, whole, resume=True).state == "finished"


def test_a_run_that_ended_while_this_one_waited_for_its_images_is_not_made_again(whole, phantoms, monkeypatch):
    # What the first look saw is out of date by the time that the folder is held.
    looks, look = [], train_module._done
    monkeypatch.setattr(
        train_module, "_done", lambda *a, **k: looks.append(1) or (look(*a, **k) if len(looks) > 1 else None)
    )
    monkeypatch.setattr(train_module, "_train", lambda *_: pytest.fail("trained again"))

    assert train(TWO, phantoms, whole, resume=True) == read_run(whole)


# --- starting weights ------------------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path):
    torch.manual_seed(5)
    save_file(create_model("test_efficientnet", image_size=32).state_dict(), tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


def spoil(start, part):
    tensors = load_file(start)
    name = next(name for name in sorted(tensors) if part in name and tensors[name].is_floating_point())
    tensors[name] = tensors[name] + 1
    save_file(tensors, start)


@pytest.mark.parametrize("part", ["conv_stem", "classifier"])
def test_a_run_does_not_go_on_from_other_weights_than_it_began_with(phantoms, tmp_path, monkeypatch, start, part):
    recipe, out = small(network={"weights": str(start)}, training={"epochs": 1}), tmp_path / "run"
    stopped(monkeypatch, recipe, phantoms, out, before="run_trainer")
    was, good = record(out)["weights_sha256"], start.read_bytes()
    spoil(start, part)

    with pytest.raises(
        RunError,
        match=rf"was started with the weights {was[:16]}; '{start}' now gives (?!{was[:16]})[0-9a-f]{{16}}\.",
    ):
        train(recipe, phantoms, out, resume=True)
    assert read_run(out).resumed == ()

    start.write_bytes(good)
    assert train(recipe, phantoms, out, resume=True).weights_sha256 == was


def test_weights_drawn_by_seed_are_recorded_and_not_compared(whole, phantoms, tmp_path, monkeypatch):
    out = tmp_path / "run"
    stopped(monkeypatch, TWO, phantoms, out)
    data = record(out)
    assert data["weights_sha256"] == record(whole)["weights_sha256"]
    (out / "run.json").write_text(json.dumps({**data, "weights_sha256": "0" * 64}))

    assert train(TWO, phantoms, out, resume=True).weights_sha256 == "0" * 64


def test_what_imagenets_weights_leave_to_be_drawn_is_not_in_their_hash():
    recipe = small(network={"weights": "imagenet"})
    network = create_model("test_efficientnet", image_size=32)
    first = train_module._weights_sha256(network, recipe)
    with torch.no_grad():
        network.model.classifier.weight += 1
    assert train_module._weights_sha256(network, recipe) == first
    with torch.no_grad():
        network.model.conv_stem.weight += 1
    assert train_module._weights_sha256(network, recipe) != first


# --- where it was resumed --------------------------------------------------------------------------------------------


def test_each_resume_is_recorded_with_what_it_ran_on(phantoms, tmp_path, monkeypatch):
    out = tmp_path / "run"
    stopped(monkeypatch, TWO, phantoms, out, before="run_trainer")
    begun = read_run(out)
    assert (begun.resumed, epochs_done(out)) == ((), 0)
    monkeypatch.setattr(train_module, "device_name", lambda devices: "another device")

    stopped(monkeypatch, TWO, phantoms, out, resume=True)
    result = train(TWO, phantoms, out, resume=True)

    assert [entry.epoch for entry in result.resumed] == [0, 2]
    first = result.resumed[0]
    assert (first.device, first.precision) == ("another device", begun.precision)
    assert (first.machine, first.versions) == (begun.machine, begun.versions)
    assert first.when >= begun.started
    assert result.device == "cpu"
    assert train(TWO, phantoms, out, resume=True) == result  # finished: not one more


@pytest.mark.parametrize("begun", ["32", "bf16"])
def test_a_run_moved_to_another_machine_goes_on_in_the_precision_that_it_began_in(
    phantoms, tmp_path, monkeypatch, begun
):
    out, told, used = tmp_path / "run", [], []
    monkeypatch.setattr(devices, "bf16_is_native", lambda *, gpu: begun == "bf16")
    stopped(monkeypatch, ONE, phantoms, out, before="run_trainer")
    monkeypatch.setattr(devices, "bf16_is_native", lambda *, gpu: begun != "bf16")
    original = trainer.pl.Trainer
    monkeypatch.setattr(
        trainer.pl, "Trainer", lambda **options: used.append(options["precision"]) or original(**options)
    )

    result = train(ONE, phantoms, out, resume=True, tell=told.append)

    here = "32" if begun == "bf16" else "bf16"
    assert told == [
        f"note: the run was begun in precision {begun} and goes on so; begun on this machine it would be {here}"
    ]
    assert used == [{"32": "32-true", "bf16": "bf16-mixed"}[begun]]
    assert (result.precision, result.resumed[0].precision) == (begun, begun)
    assert (out / CHECKPOINT_FILE).exists()


def test_a_run_from_before_a_field_existed_goes_on_where_the_field_leaves_everything_as_it_was(phantoms, tmp_path):
    out = tmp_path / "run"
    result = train(ONE, phantoms, out)
    before = record(out)
    del before["recipe"]["refusal"]
    (out / "run.json").write_text(json.dumps(before))

    assert train(ONE, phantoms, out, resume=True).finished == result.finished  # it was done, and is known as that run
    with pytest.raises(RunError, match=r"is a run of another recipe: refusal\.steps was 0, now 3"):
        train(small(training={"epochs": 1}, rejection_limits={"steps": 3}), phantoms, out, resume=True)
