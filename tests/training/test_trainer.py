"""What Lightning's Trainer is configured with: TensorBoard's log, progress, and batch normalisation on several GPUs."""

import copy
import csv
import os
import pty
import select
import subprocess
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.training.conftest import small
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from pneumoscope.models.factory import create_model
from pneumoscope.runs.run_folder import EPOCHS_FILE, TENSORBOARD_FOLDER, WEIGHTS_FILE
from pneumoscope.training.classifier import Classifier
from pneumoscope.training.train import train


def scalars(folder):
    """What TensorBoard itself reads: {tag: [(step, value), ...]}."""
    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def rows(run):
    return list(csv.DictReader((run / EPOCHS_FILE).read_text().splitlines()))


def test_tensorboard_shows_the_metrics_of_epochs_csv(phantoms, tmp_path):
    train(small(), phantoms, tmp_path / "run")

    found = scalars(tmp_path / "run" / TENSORBOARD_FOLDER)

    assert set(found) == set(rows(tmp_path / "run")[0]) - {"epoch"}
    for name, operating_points in found.items():
        assert [step for step, _ in operating_points] == [1, 2]
        assert [value for _, value in operating_points] == pytest.approx(
            [float(row[name]) for row in rows(tmp_path / "run")], rel=1e-6
        )


def test_tensorboard_shows_a_resumed_run_as_one_curve(phantoms, tmp_path, monkeypatch):
    step = Classifier.training_step

    def interrupted(self, batch, number):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(small(), phantoms, tmp_path / "run")

    train(small(), phantoms, tmp_path / "run", resume=True)

    folder = tmp_path / "run" / TENSORBOARD_FOLDER
    assert len(list(folder.glob("events.*"))) == 2
    assert [step for step, _ in scalars(folder)["train_loss"]] == [1, 2]


def test_a_terminal_gets_a_bar_and_training_gives_the_same_weights(phantoms, tmp_path):
    recipe = tmp_path / "small.toml"
    recipe.write_text(small().to_toml())
    command = [sys.executable, "-m", "pneumoscope", "train", str(recipe), "--data", str(phantoms), "--out"]
    subprocess.run([*command, tmp_path / "log"], check=True, capture_output=True, timeout=120)
    main, terminal = pty.openpty()
    with subprocess.Popen(
        [*command, tmp_path / "terminal"],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    ) as process:
        os.close(terminal)
        shown = b""
        try:
            while select.select([main], [], [], 120)[0]:
                shown += os.read(main, 65_536)
            process.kill()  # nothing was printed for two minutes
        except OSError:
            pass  # the other end is closed
        finally:
            out, _ = process.communicate(timeout=120)
    os.close(main)

    assert process.returncode == 0, shown.decode()
    assert b"Epoch 1/1" in shown
    assert b"train_loss" in shown
    assert b"validation_accuracy" in shown
    assert b"Epoch" not in out
    assert (tmp_path / "terminal" / WEIGHTS_FILE).read_bytes() == (tmp_path / "log" / WEIGHTS_FILE).read_bytes()


def test_synchronised_batch_normalisation_keeps_the_network_and_its_names():
    # torch's own conversion, which Lightning's `sync_batchnorm` calls, leaves out the activations inside timm's layers.
    network = create_model("test_efficientnet", image_size=32).eval()
    converted = convert_sync_batchnorm(copy.deepcopy(network))
    images = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)

    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in converted.modules())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in converted.modules())
    torch.testing.assert_close(converted.state_dict(), network.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(converted(images), network(images))
    assert not torch.allclose(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))(images), network(images))
