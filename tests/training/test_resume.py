"""Killed by SIGKILL, in the middle of an epoch or of writing a checkpoint, a run goes on and ends with the same weights."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from tests.training.conftest import small

from pneumoscope.runs.run_folder import CHECKPOINT_FILE, EPOCHS_FILE, WEIGHTS_FILE
from pneumoscope.training.train import train

pytestmark = pytest.mark.training

EPOCHS_IN_ALL = 4
RECIPE = small(training={"epochs": EPOCHS_IN_ALL, "ema": 0.9})
# Runs `train`; the step and the write to die in are given by the environment.
CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from pneumoscope.training import classifier
from pneumoscope.training.train import train
from tests.training.test_resume import RECIPE

step, save = classifier.Classifier.training_step, torch.save
count = {"step": 0, "save": 0}

def dying_step(self, batch, number):
    count["step"] += 1
    if count["step"] == int(os.environ.get("DIE_IN_STEP", 0)):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, number)

def dying_save(checkpoint, file):
    count["save"] += 1
    if count["save"] == int(os.environ.get("DIE_IN_SAVE", 0)):
        file.write(b"half of a checkpoint")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return save(checkpoint, file)

classifier.Classifier.training_step, torch.save = dying_step, dying_save
train(RECIPE, Path(sys.argv[1]), Path(sys.argv[2]), resume=True)
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
def whole(phantoms, tmp_path_factory):
    """A run that nobody killed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(RECIPE, phantoms, out)
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
    ("death", "kept"), [({"DIE_IN_STEP": 15}, 2), ({"DIE_IN_SAVE": 3}, 2), ({"DIE_IN_SAVE": 1}, 0)]
)
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(whole, phantoms, tmp_path, death, kept):
    out = tmp_path / "run"
    killed = child(phantoms, out, **death)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (out / "bundle").exists()
    assert json.loads((out / "run.json").read_text())["state"] == "running"
    state = torch.load(out / CHECKPOINT_FILE, weights_only=True) if kept else {"history": []}
    assert len(state["history"]) == kept
    assert (out / CHECKPOINT_FILE).exists() == bool(kept)

    resumed = child(phantoms, out)

    assert resumed.returncode == 0, resumed.stderr
    assert comparable(out) == comparable(whole)


def test_what_is_left_when_only_the_export_was_interrupted(whole, phantoms, tmp_path, monkeypatch):
    from pneumoscope.training import train as module

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    monkeypatch.setattr(module, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, phantoms, out)
    monkeypatch.undo()

    train(RECIPE, phantoms, out, resume=True)

    assert comparable(out) == comparable(whole)
