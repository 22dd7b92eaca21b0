"""Two processes on one machine train as one does."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.processes import started
from tests.training.conftest import small

from pneumoscope.core.errors import DivergedError
from pneumoscope.data.cache import preprocess_images
from pneumoscope.data.layouts import load_manifest
from pneumoscope.imaging.phantom import phantom
from pneumoscope.models.factory import create_model
from pneumoscope.runs.run_folder import EPOCHS_FILE, WEIGHTS_FILE
from pneumoscope.training.data_module import ImageArrays
from pneumoscope.training.devices import Devices
from pneumoscope.training.train import split_as_asked, train
from pneumoscope.training.trainer import run_trainer

pytestmark = pytest.mark.training


def cli(*arguments):
    ran = subprocess.run(
        [sys.executable, "-m", "pneumoscope", "train", *map(str, arguments), "--json"],
        capture_output=True, text=True, env=os.environ, check=False, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_two_processes_reach_the_validation_accuracy_of_one_within_a_point(tmp_path):
    # A batch of 15 is shared as 8 and 7.
    images, recipe = tmp_path / "images", tmp_path / "recipe.toml"
    phantom(images, train=200, test=10, seed=4, size=48)
    recipe.write_text(
        'name = "two"\n[network]\nname = "test_convnext"\nimage_size = 48\n[data]\nvalidation = 0.5\n'
        '[optimizer]\nlearning_rate = 0.002\n[training]\nepochs = 6\nbatch = 15\nprecision = "32"\n'
    )

    one = cli(recipe, "--data", images, "--out", tmp_path / "one")
    two = cli(recipe, "--data", images, "--out", tmp_path / "two", "--accelerator", "cpu", "--devices", "2")

    assert two["device"] == "2 x cpu"
    assert two["best_validation_accuracy"] == pytest.approx(one["best_validation_accuracy"], abs=0.01)
    losses = [
        np.loadtxt(tmp_path / name / EPOCHS_FILE, delimiter=",", skiprows=1)[:, [1, 3]] for name in ("one", "two")
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02)
    assert losses[0][-1, 0] < 0.9 * losses[0][0, 0]  # it has learnt something to agree on


def test_two_processes_augment_and_step_as_one_process_does(tmp_path, capfd):
    # A network without batch normalisation: on CPUs each process normalises by its own share of a batch. In double precision,
    # so that another order of sums does not show.
    phantom(tmp_path / "images", train=80, test=4, seed=4, size=48)
    recipe = small(
        network={"name": "test_convnext", "image_size": 48, "dropout": 0},
        optimizer={"name": "sgd", "learning_rate": 0.0005},
        training={"epochs": 1, "batch": 15},
        augmentation={"flip": True, "rotation": 8, "scale": 0.2, "contrast": 0.2, "blur": 0.5, "noise": 0.02},
    )
    manifest = split_as_asked(load_manifest(tmp_path / "images"), recipe, "phantoms")
    arrays = ImageArrays(manifest.root, manifest.split("train"), manifest.split("validation"), recipe.preprocessing)
    preprocess_images(manifest.root, (*arrays.train, *arrays.validation), recipe.preprocessing)
    assert len(arrays.train) % 15

    def epoch(world):
        torch.manual_seed(0)
        network = create_model("test_convnext", image_size=48).double()
        history = run_trainer(recipe, network, arrays, tmp_path / str(world), Devices("cpu", world), "32")
        return history[0], load_file(tmp_path / str(world) / WEIGHTS_FILE)

    (one, weights_of_one), (two, weights_of_two) = epoch(1), epoch(2)

    assert two.train_loss == pytest.approx(one.train_loss, abs=1e-6)
    assert two.train_accuracy == one.train_accuracy
    assert two.validation_loss == pytest.approx(one.validation_loss, abs=1e-6)
    assert two.validation_accuracy == one.validation_accuracy
    torch.testing.assert_close(weights_of_two, weights_of_one, rtol=1e-6, atol=1e-8)
    # Spawned processes print nothing beside the line of the epoch.
    assert [line for line in capfd.readouterr().err.splitlines() if "epoch 1/1" not in line] == []


def test_an_error_in_a_process_arrives_as_what_it_was(phantoms, tmp_path):
    torch.manual_seed(0)
    tensors = {name: torch.full_like(value, float("nan")) if value.is_floating_point() else value
               for name, value in create_model("test_efficientnet", image_size=32).state_dict().items()}  # fmt: skip
    save_file(tensors, tmp_path / "nan.safetensors")

    with pytest.raises(DivergedError, match="the loss is nan in epoch 1 of run 'small'"):
        train(
            small(network={"weights": str(tmp_path / "nan.safetensors")}),
            phantoms,
            tmp_path / "run",
            devices=Devices("cpu", 2),
        )


def test_two_processes_average_weights_and_freeze_convolutions(phantoms, tmp_path):
    recipe = small(network={"freeze": "convolutions"}, training={"epochs": 1, "ema": 0.9})
    result = train(recipe, phantoms, tmp_path / "run", devices=Devices("cpu", 2))

    assert result.state == "finished"


def test_two_nodes_share_one_run(phantoms, tmp_path):
    # Two nodes on one machine: torchrun starts the program in each and numbers it; the first makes the folder and the bundle.
    recipe = tmp_path / "small.toml"
    recipe.write_text(small(training={"epochs": 1}).to_toml())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

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
        told = [process.communicate(timeout=200) for process in nodes]

    assert [process.returncode for process in nodes] == [0, 0], told
    assert "best epoch 1 of 1" in told[0][0]
    assert told[1][0] == ""
    assert json.loads((tmp_path / "run/run.json").read_text())["device"] == "2 x cpu"
    assert (tmp_path / "run/bundle/card.json").exists()
