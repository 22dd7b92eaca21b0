"""How fast training is: ours, the limit, and a plain loop, in one run on one machine.

- limit: the network alone, on one batch of tensors that stays in memory, with the same precision, memory format and optimizer.
- ours: `pneumoscope train`'s own loop, from cached images to optimizer step.
- plain: what people write: ImageFolder, JPEG decoded every epoch by two workers, float32, default memory format, and for AlexNet
  torch's own LRN.

The three take turns; a figure is the median over the rounds, a ratio the median of the rounds' ratios. On every device the
arithmetic done is set against what a large matrix product reaches there in the same precision.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, ToTensor

from pneumoscope.core.files import write_atomically
from pneumoscope.data.layouts import load_manifest
from pneumoscope.imaging.phantom import phantom
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.models.factory import create_model
from pneumoscope.models.report_networks import LocalResponseNorm
from pneumoscope.runs.recipe import Recipe, parse_recipe
from pneumoscope.runs.record import machine, versions
from pneumoscope.training.data_module import ImageArrays
from pneumoscope.training.optimizers import create_optimizer
from pneumoscope.training.trainer import Devices, device_name, resolve_precision, run_trainer

# (network, batch): the report's, and the small one of ours.
CASES = {"alexnet": 64, "vgg19": 64, "tf_efficientnet_lite0": 32}


@dataclasses.dataclass(frozen=True)
class Case:
    """One network on one device."""

    recipe: Recipe
    folder: Path
    arrays: ImageArrays
    device: torch.device
    precision: str
    steps: int

    @property
    def batch(self) -> int:
        """Images a step."""
        return self.recipe.training.batch

    def network(self) -> ClassifierNetwork:
        """A fresh one."""
        return create_model(self.recipe.network.name, image_size=self.recipe.network.image_size)


def seconds_a_image(step: Callable[[], None], case: Case) -> float:
    """Mean over `steps` after one that warms up."""
    step()
    wait(case.device)
    started = time.perf_counter()
    for _ in range(case.steps):
        step()
    wait(case.device)
    return (time.perf_counter() - started) / (case.steps * case.batch)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def training_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Any, labels: Any, *, bf16: bool
) -> None:
    """Forward, backward, update."""
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
        logits = network(images)
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def limit(case: Case) -> float:
    """The network alone."""
    network = case.network().to(case.device)
    network.to(memory_format=torch.channels_last if case.device.type == "cuda" else network.memory_format)
    optimizer = create_optimizer(case.recipe.optimizer, network.parameters())
    size = case.recipe.network.image_size
    images = torch.randint(0, 256, (case.batch, size, size), dtype=torch.uint8, device=case.device)
    labels = (torch.arange(case.batch, device=case.device) % 2).float()
    return seconds_a_image(
        lambda: training_step(network, optimizer, images, labels, bf16=case.precision == "bf16"), case
    )


class Watch(Callback):
    """Notes when each step ended."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.ends = device, list[float]()

    def on_train_batch_end(self, *_: Any) -> None:
        """Note it."""
        wait(self.device)
        self.ends.append(time.perf_counter())


def ours(case: Case) -> float:
    """The product's loop; one epoch of `steps` + 1 batches, the first of which warms up."""
    watch = Watch(case.device)
    with tempfile.TemporaryDirectory() as out:
        devices = Devices("gpu" if case.device.type == "cuda" else "cpu", 1)
        run_trainer(case.recipe, case.network(), case.arrays, Path(out), devices, case.precision, callbacks=(watch,))
    return (watch.ends[-1] - watch.ends[0]) / ((len(watch.ends) - 1) * case.batch)


class PlainScaling(nn.Module):
    """Takes the pictures of ToTensor, 0 to 1 in three channels, past our own scaling of grey levels."""

    def __init__(self, network: ClassifierNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Three channels, 0 to 1, to logits."""
        return self.network.forward_head(self.network.forward_features(images)).squeeze(1)


def plain(case: Case) -> float:
    """ImageFolder, JPEG, float32."""
    network = case.network()
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LocalResponseNorm):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
    model = PlainScaling(network).to(case.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    loader = DataLoader(
        ImageFolder(str(case.folder / "train"), Compose([ToTensor()])),
        batch_size=case.batch, shuffle=True, num_workers=2, drop_last=True,
    )  # fmt: skip

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    batches = endless()

    def step() -> None:
        images, labels = next(batches)
        training_step(model, optimizer, images.to(case.device), labels.float().to(case.device), bf16=False)

    return seconds_a_image(step, case)


def operations_a_image(case: Case) -> int:
    """Floating-point operations of a training step: three times those of the forward pass of convolutions and dense layers.

    Counted here, because torch's counter takes the backward pass of a depthwise convolution for a full one.
    """
    network, counted = case.network().eval(), [0]

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weight = layer.weight  # one multiplication and one addition a weight and place
        places = output.numel() // weight.shape[0]
        counted[0] += 2 * weight.numel() * places

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    size = case.recipe.network.image_size
    with torch.inference_mode():
        network(torch.zeros(1, size, size, dtype=torch.uint8))
    return 3 * counted[0]


def peak(device: torch.device, precision: str) -> float:
    """Operations a second of a large matrix product, the best of several."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    side = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(side, side, device=device, dtype=kind), torch.randn(side, side, device=device, dtype=kind)
    best = 0.0
    for _ in range(6):
        wait(device)
        started = time.perf_counter()
        torch.mm(a, b)
        wait(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def measure(name: str, size: int, images: Path, device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    """One row of the table."""
    batch = CASES[name]
    recipe = parse_recipe(
        {
            "name": f"benchmark-{name}",
            "network": {"name": name, "image_size": size},
            "training": {"epochs": 1, "batch": batch},
        },
        "benchmark",
    )
    manifest = load_manifest(images)
    every = manifest.split("train")
    wanted = (steps + 1) * batch
    arrays = ImageArrays(
        manifest.root,
        tuple(every[i % len(every)] for i in range(wanted)),
        every[:: len(every) // 8],
        recipe.preprocessing,
    )
    devices = Devices("gpu" if device.type == "cuda" else "cpu", 1)
    case = Case(recipe, images, arrays, device, resolve_precision(recipe, devices), steps)
    ways = {"limit": limit, "ours": ours, "plain": plain}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way, run in ways.items():
            times[way].append(run(case))
            print(f"{name} at {size}, round {number + 1}: {way} {1 / times[way][-1]:.1f} images/s", flush=True)
    reached = peak(device, case.precision)
    rates = {way: 1 / statistics.median(found) for way, found in times.items()}
    return {
        "network": name,
        "image_size": size,
        "batch": batch,
        "precision": case.precision,
        "images_a_second": rates,
        "ours_to_limit": statistics.median(a / b for a, b in zip(times["limit"], times["ours"], strict=True)),
        "ours_to_plain": statistics.median(a / b for a, b in zip(times["plain"], times["ours"], strict=True)),
        "operations_a_image": operations_a_image(case),
        "share_of_peak": operations_a_image(case) * rates["ours"] / reached,
        "peak_operations_a_second": reached,
    }


def table(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Markdown for people."""
    lines = [
        f"Training on {about['device']} ({about['machine']['processor']}, {about['machine']['cores']} cores),"
        f" torch {about['versions']['torch']}, {about['rounds']} rounds of {about['steps']} steps."
        " Goals: ours at least 0.95 of the limit and 1.4 times plain.",
        "",
        "| network | pixels | batch | precision | limit, images/s | ours, images/s | plain, images/s | ours / limit | ours / plain"
        " | share of peak |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        rates = row["images_a_second"]
        lines.append(
            f"| {row['network']} | {row['image_size']} | {row['batch']} | {row['precision']} | {rates['limit']:.1f}"
            f" | {rates['ours']:.1f} | {rates['plain']:.1f} | {row['ours_to_limit']:.2f} | {row['ours_to_plain']:.2f}"
            f" | {row['share_of_peak']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed in each round")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = {
        "device": device_name(Devices("gpu" if device.type == "cuda" else "cpu", 1)),
        "machine": machine(),
        "system": platform.platform(),
        "versions": versions(),
        "rounds": given.rounds,
        "steps": given.steps,
    }
    # On a CPU VGG19 is measured at the size that it is reproduced at there.
    sizes = {"alexnet": 224, "vgg19": 224 if device.type == "cuda" else 64, "tf_efficientnet_lite0": 224}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.networks:
            images = Path(folder) / str(sizes[name])
            if not images.exists():
                phantom(images, train=192, test=10, size=sizes[name])
            rows.append(measure(name, sizes[name], images, device, given.rounds, given.steps))
    text = table(rows, about)
    print(f"\n{text}")
    write_atomically(given.out / "training.json", json.dumps({**about, "rows": rows}, indent=2) + "\n")
    write_atomically(given.out / "training.md", text)


if __name__ == "__main__":
    main()
