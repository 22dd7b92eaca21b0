"""The configured Trainer: TensorBoard, progress, batch normalization, and training on several devices and nodes."""

import contextlib
import copy
import csv
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.processes import free_port, started
from tests.training.conftest import small
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from pneumoscope.core.errors import DivergedError, RunError
from pneumoscope.data.cache import preprocess_images
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.phantoms import write_phantoms
from pneumoscope.models.factory import create_model
from pneumoscope.runs.epochs import count_plateaus, read_epochs
from pneumoscope.runs.record import lock_run
from pneumoscope.runs.run_folder import CHECKPOINT_FILE, EPOCHS_FILE, TENSORBOARD_FOLDER, WEIGHTS_FILE
from pneumoscope.training.classifier import Classifier
from pneumoscope.training.data_module import ImageArrays
from pneumoscope.training.inputs import apply_split
from pneumoscope.training.train import train_run
from pneumoscope.training.trainer import Devices, run_trainer

pytestmark = pytest.mark.training


def scalars(folder):
    """Return the scalars as TensorBoard reads them, {tag: [(step, value), ...]}."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def rows(run):
    return list(csv.DictReader((run / EPOCHS_FILE).read_text().splitlines()))


@pytest.mark.usefixtures("without_bundle")
def test_tensorboard_shows_the_metrics_of_epochs_csv(phantoms, tmp_path):
    train_run(small(), phantoms, tmp_path / "run")

    logged = scalars(tmp_path / "run" / TENSORBOARD_FOLDER)

    assert set(logged) == set(rows(tmp_path / "run")[0]) - {"epoch"}
    for name, points in logged.items():
        assert [step for step, _ in points] == [1, 2]
        assert [value for _, value in points] == pytest.approx(
            [float(row[name]) for row in rows(tmp_path / "run")], rel=1e-6
        )


@pytest.mark.usefixtures("without_bundle")
def test_tensorboard_shows_a_resumed_run_as_one_curve(phantoms, tmp_path, monkeypatch):
    step = Classifier.training_step

    def interrupted(self, batch, number):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_run(small(), phantoms, tmp_path / "run")

    train_run(small(), phantoms, tmp_path / "run", resume=True)

    folder = tmp_path / "run" / TENSORBOARD_FOLDER
    assert len(list(folder.glob("events.*"))) == 2
    assert [step for step, _ in scalars(folder)["train_loss"]] == [1, 2]


@pytest.mark.usefixtures("without_bundle")
def test_progress_bar_on_a_terminal_does_not_change_the_weights(phantoms, tmp_path):
    recipe = tmp_path / "small.toml"
    recipe.write_text(small().to_toml())
    train_run(small(), phantoms, tmp_path / "log")
    main, terminal = pty.openpty()
    with started(
        [
            *(sys.executable, "-m", "pneumoscope", "train", str(recipe)),
            *("--data", str(phantoms), "--out", tmp_path / "terminal"),
        ],
        deadline=240,
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    ) as process:
        os.close(terminal)
        output = b""
        try:
            while select.select([main], [], [], 120)[0]:
                output += os.read(main, 65_536)
            process.kill()  # no output for two minutes
        except OSError:
            pass  # the process closed its terminal
        finally:
            out, _ = process.communicate(timeout=120)
    os.close(main)

    assert process.returncode == 0, output.decode()
    assert b"Epoch 1/1" in output
    assert b"train_loss" in output
    assert b"validation_accuracy" in output
    assert b"Epoch" not in out
    assert (tmp_path / "terminal" / WEIGHTS_FILE).read_bytes() == (tmp_path / "log" / WEIGHTS_FILE).read_bytes()


def test_synchronized_batch_normalization_keeps_outputs_and_parameter_names():
    # torch's own conversion, which Lightning's `sync_batchnorm` calls, drops the activations inside timm's layers.
    torch.manual_seed(0)
    network = create_model("test_efficientnet", image_size=32).eval()
    converted = convert_sync_batchnorm(copy.deepcopy(network))
    images = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)

    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in converted.modules())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in converted.modules())
    torch.testing.assert_close(converted.state_dict(), network.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(converted(images), network(images))
    assert not torch.allclose(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))(images), network(images))


def test_two_processes_take_the_same_steps_as_one(tmp_path, capfd):
    # A network without batch normalization, because CPU processes normalize by their own part of a batch. In double
    # precision, so that the order of sums does not matter.
    write_phantoms(tmp_path / "images", train=80, test=4, seed=4, size=48)
    recipe = small(
        network={"name": "test_convnext", "image_size": 48, "dropout": 0},
        optimizer={"name": "sgd", "learning_rate": 0.0005},
        training={"epochs": 1, "batch": 15},
        augmentation={"flip": True, "rotation": 8, "scale": 0.2, "contrast": 0.2, "blur": 0.5, "noise": 0.02},
    )
    manifest = apply_split(load_manifest(tmp_path / "images"), recipe, "phantoms")
    arrays = ImageArrays(manifest.root, manifest.split("train"), manifest.split("validation"), recipe.preprocessing)
    preprocess_images(manifest.root, (*arrays.train, *arrays.validation), recipe.preprocessing)
    assert len(arrays.train) % 15

    def train_one_epoch(world_size):
        torch.manual_seed(0)
        network = create_model("test_convnext", image_size=48).double()
        history = run_trainer(recipe, network, arrays, tmp_path / str(world_size), Devices("cpu", world_size), "32")
        return history[0], load_file(tmp_path / str(world_size) / WEIGHTS_FILE)

    (one, weights_of_one), (two, weights_of_two) = train_one_epoch(1), train_one_epoch(2)

    assert two.train_loss == pytest.approx(one.train_loss, abs=1e-6)
    assert two.train_accuracy == one.train_accuracy
    assert two.validation_loss == pytest.approx(one.validation_loss, abs=1e-6)
    assert two.validation_accuracy == one.validation_accuracy
    torch.testing.assert_close(weights_of_two, weights_of_one, rtol=1e-6, atol=1e-8)
    # Spawned processes print only the line of the epoch.
    assert [line for line in capfd.readouterr().err.splitlines() if "epoch 1/1" not in line] == []


def status(pid):
    """Return the state and the parent of a process, as in /proc; ("Z", 0) if it has ended."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "Z", 0
    return state, int(parent)


def wait_until(condition, seconds):
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.05)
    assert condition()


def is_locked(run):
    try:
        with lock_run(run):
            return False
    except RunError:
        return True


@pytest.fixture
def two_workers(phantoms, tmp_path):
    """A run on two devices after its first epoch, and its two workers, which ignore Ctrl-C as after `nohup`."""
    out, recipe = tmp_path / "run", tmp_path / "recipe.toml"
    recipe.write_text(small(training={"epochs": 9999}).to_toml())
    command = [sys.executable, "-m", "pneumoscope", "train", recipe, "--data", phantoms, "--out", out]
    with started(
        [*command, "--accelerator", "cpu", "--devices", "2"], deadline=200, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as main:  # fmt: skip
        workers = []
        try:
            wait_until(lambda: (out / CHECKPOINT_FILE).exists() or main.poll() is not None, 150)
            pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
            children = [pid for pid in pids if status(pid)[1] == main.pid]
            workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            assert len(workers) == 2, main.stderr.read()
            yield main, workers, out
        finally:
            for process in (main.pid, *workers):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@needs_proc
def test_workers_end_with_a_terminated_parent(two_workers):
    main, workers, out = two_workers

    main.terminate()

    assert main.wait(timeout=60) == -signal.SIGTERM
    wait_until(lambda: all(status(pid)[0] == "Z" for pid in workers), 60)
    wait_until(lambda: not is_locked(out), 60)  # the threads of a process end after its main thread


@needs_proc
def test_lock_is_held_until_the_last_worker_of_a_killed_parent_has_ended(two_workers):
    main, workers, out = two_workers
    os.kill(workers[0], signal.SIGSTOP)  # it cannot end before it continues

    main.kill()

    assert main.wait(timeout=60) == -signal.SIGKILL
    wait_until(lambda: status(workers[1])[0] == "Z", 60)
    assert is_locked(out)
    os.kill(workers[0], signal.SIGCONT)
    wait_until(lambda: status(workers[0])[0] == "Z", 60)
    wait_until(lambda: not is_locked(out), 60)  # the threads of a process end after its main thread


@needs_proc
def test_terminated_worker_ends_the_run(two_workers):
    main, workers, _ = two_workers

    os.kill(workers[1], signal.SIGTERM)

    _, stderr = main.communicate(timeout=60)
    assert main.returncode == 2
    assert "error: a training process was ended (SIG" in stderr
    assert "repeat the command with --resume" in stderr
    wait_until(lambda: all(status(pid)[0] == "Z" for pid in workers), 60)


def test_error_in_a_spawned_process_is_raised_with_its_type(phantoms, tmp_path):
    torch.manual_seed(0)
    tensors = {name: torch.full_like(value, float("nan")) if value.is_floating_point() else value
               for name, value in create_model("test_efficientnet", image_size=32).state_dict().items()}  # fmt: skip
    save_file(tensors, tmp_path / "nan.safetensors")

    with pytest.raises(DivergedError, match="the loss is nan in epoch 1 of run 'small'"):
        train_run(
            small(network={"weights": str(tmp_path / "nan.safetensors")}),
            phantoms,
            tmp_path / "run",
            devices=Devices("cpu", 2),
        )


@pytest.mark.usefixtures("without_bundle")
def test_two_processes_with_moving_average_and_frozen_convolutions(phantoms, tmp_path):
    recipe = small(network={"freeze": "convolutions"}, training={"epochs": 1, "ema": 0.9})
    result = train_run(recipe, phantoms, tmp_path / "run", devices=Devices("cpu", 2))

    assert (result.state, result.device) == ("finished", "2 x cpu")


def test_two_nodes_train_one_run(phantoms, tmp_path):
    # Two nodes on one machine, started by torchrun; the first one writes the run folder.
    recipe = tmp_path / "small.toml"
    recipe.write_text(small(training={"epochs": 1}).to_toml())
    port = free_port()

    def node(rank):
        return started(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank)),
                *("--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)),
                *("-m", "pneumoscope", "train", str(recipe), "--data", str(phantoms), "--out", str(tmp_path / "run")),
                *("--accelerator", "cpu", "--devices", "1", "--nodes", "2"),
            ],
            deadline=200,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    with node(0) as first, node(1) as second:
        nodes = [first, second]
        outputs = [process.communicate(timeout=200) for process in nodes]

    assert [process.returncode for process in nodes] == [0, 0], outputs
    assert "best epoch 1 of 1 (training.select = accuracy)" in outputs[0][0]
    assert outputs[1][0] == ""
    assert json.loads((tmp_path / "run/run.json").read_text())["device"] == "2 x cpu"
    assert (tmp_path / "run/bundle/card.json").exists()


def test_run_stops_early_and_a_resumed_one_stops_at_the_same_epoch(phantoms, tmp_path, without_bundle):
    """With a learning rate of almost zero, no epoch is better than the first."""
    recipe = small(
        optimizer={"learning_rate": 1e-12},
        training={"epochs": 9, "early_stopping": 2, "select": "accuracy", "ema": 0.0},
    )
    record = train_run(recipe, phantoms, tmp_path / "run")
    assert (record.best_epoch, record.state) == (1, "finished")
    epochs = read_epochs(tmp_path / "run")
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
    run = json.loads((tmp_path / "run/run.json").read_text())
    results = ("best_epoch", "seconds", "finished")
    run = {name: value for name, value in run.items() if name not in results} | {"state": "running"}
    (tmp_path / "run/run.json").write_text(json.dumps(run))  # as if it had been killed after its last epoch
    resumed = train_run(recipe, phantoms, tmp_path / "run", resume=True)
    assert resumed.best_epoch == 1
    assert read_epochs(tmp_path / "run") == epochs


def test_learning_rate_decreases_after_epochs_without_a_lower_loss(phantoms, tmp_path, without_bundle):
    recipe = small(
        optimizer={"learning_rate": 1e-12, "schedule": "plateau", "step_epochs": 1, "step_factor": 0.5},
        training={"epochs": 4},
    )
    train_run(recipe, phantoms, tmp_path / "run")
    epochs = read_epochs(tmp_path / "run")
    losses = [epoch.validation_loss for epoch in epochs]
    # The rate of an epoch follows the losses of those before it.
    expected = [1e-12 * 0.5 ** count_plateaus(losses[:number], 1) for number in range(4)]
    assert [epoch.learning_rate for epoch in epochs] == pytest.approx(expected, rel=1e-9)
    assert expected[-1] < expected[0]
