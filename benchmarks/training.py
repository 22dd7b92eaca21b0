"""Measure training speed: `pneumoscope train`, the network alone, and a plain PyTorch loop, on the same machine.

- Upper bound: the network alone on one batch of tensors in memory, with the same precision, memory format and optimizer.
- pneumoscope: the training loop of `pneumoscope train`, from cached images to the optimizer step.
- Plain PyTorch: ImageFolder, JPEG decoded every epoch by two workers, float32, default memory format, and for AlexNet the local
  response normalization of PyTorch.

The three take turns; a rate is the median over the rounds, a ratio the median of the rounds' ratios. The arithmetic of training
is compared with that of a large matrix product in the same precision.
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
from pneumoscope.data.phantoms import write_phantoms
from pneumoscope.models.base import ClassifierNetwork
from pneumoscope.models.factory import create_model
from pneumoscope.models.report_networks import LocalResponseNorm
from pneumoscope.runs.recipe import Recipe
from pneumoscope.runs.recipe_files import parse_recipe
from pneumoscope.runs.record import machine, versions
from pneumoscope.training.data_module import ImageArrays
from pneumoscope.training.optimizers import create_optimizer
from pneumoscope.training.trainer import Devices, device_name, resolve_precision, run_trainer

BATCH_SIZES = {"alexnet": 64, "vgg19": 64, "tf_efficientnet_lite0": 32}


@dataclasses.dataclass(frozen=True)
class Case:
    """One network on one device.

    Attributes:
        recipe: Recipe with the network, the batch size and the optimizer.
        folder: Images on disk.
        arrays: The same images, cached.
        device: Device to train on.
        precision: "bf16" or "32".
        steps: Timed steps per round.
    """

    recipe: Recipe
    folder: Path
    arrays: ImageArrays
    device: torch.device
    precision: str
    steps: int

    @property
    def batch(self) -> int:
        """Return the number of images per step."""
        return self.recipe.training.batch

    def network(self) -> ClassifierNetwork:
        """Return a new network."""
        return create_model(self.recipe.network.name, image_size=self.recipe.network.image_size)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def time_steps(step: Callable[[], None], case: Case) -> float:
    """Return the seconds per image: the mean over `case.steps` steps after one warm-up step."""
    step()
    synchronize(case.device)
    start = time.perf_counter()
    for _ in range(case.steps):
        step()
    synchronize(case.device)
    return (time.perf_counter() - start) / (case.steps * case.batch)


def training_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Any, labels: Any, *, bf16: bool
) -> None:
    """Run forward pass, backward pass and optimizer step."""
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
        logits = network(images)
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def time_upper_bound(case: Case) -> float:
    """Return the seconds per image of the network alone."""
    network = case.network().to(case.device)
    network.to(memory_format=torch.channels_last if case.device.type == "cuda" else network.memory_format)
    optimizer = create_optimizer(case.recipe.optimizer, network.parameters())
    size = case.recipe.network.image_size
    images = torch.randint(0, 256, (case.batch, size, size), dtype=torch.uint8, device=case.device)
    labels = (torch.arange(case.batch, device=case.device) % 2).float()
    return time_steps(lambda: training_step(network, optimizer, images, labels, bf16=case.precision == "bf16"), case)


class StepTimes(Callback):
    """Record the time at which each step ends."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.ends = device, list[float]()

    def on_train_batch_end(self, *_: Any) -> None:
        """Append the current time."""
        synchronize(self.device)
        self.ends.append(time.perf_counter())


def time_pneumoscope(case: Case) -> float:
    """Return the seconds per image of one epoch of `steps` + 1 batches; the first one warms up."""
    times = StepTimes(case.device)
    with tempfile.TemporaryDirectory() as out:
        devices = Devices("gpu" if case.device.type == "cuda" else "cpu", 1)
        run_trainer(case.recipe, case.network(), case.arrays, Path(out), devices, case.precision, callbacks=(times,))
    return (times.ends[-1] - times.ends[0]) / ((len(times.ends) - 1) * case.batch)


class FloatInput(nn.Module):
    """Apply a network to the output of ToTensor, three channels from 0 to 1, without its own scaling of gray levels."""

    def __init__(self, network: ClassifierNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (n,), for images of shape (n, 3, height, width)."""
        return self.network.forward_head(self.network.forward_features(images)).squeeze(1)


def time_plain_pytorch(case: Case) -> float:
    """Return the seconds per image of ImageFolder, JPEG and float32."""
    network = case.network()
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LocalResponseNorm):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
    model = FloatInput(network).to(case.device)
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

    return time_steps(step, case)


def count_flops(case: Case) -> int:
    """Return the floating-point operations per image of a training step: 3 times those of the forward pass.

    Only convolutions and dense layers are counted. PyTorch's own counter counts the backward pass of a depthwise convolution
    as that of a full one.
    """
    network, total = case.network().eval(), [0]

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weight = layer.weight  # one multiplication and one addition per weight and output position
        positions = output.numel() // weight.shape[0]
        total[0] += 2 * weight.numel() * positions

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    size = case.recipe.network.image_size
    with torch.inference_mode():
        network(torch.zeros(1, size, size, dtype=torch.uint8))
    return 3 * total[0]


def measure_peak_flops(device: torch.device, precision: str) -> float:
    """Return the operations per second of a large matrix product, the best of several."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(side, side, device=device, dtype=dtype), torch.randn(side, side, device=device, dtype=dtype)
    best = 0.0
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


def measure(name: str, size: int, images: Path, device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    """Return one row of the table."""
    batch = BATCH_SIZES[name]
    recipe = parse_recipe(
        {
            "name": f"benchmark-{name}",
            "network": {"name": name, "image_size": size},
            "training": {"epochs": 1, "batch": batch},
        },
        "benchmark",
    )
    manifest = load_manifest(images)
    available = manifest.split("train")
    arrays = ImageArrays(
        manifest.root,
        tuple(available[i % len(available)] for i in range((steps + 1) * batch)),
        available[:: len(available) // 8],
        recipe.preprocessing,
    )
    devices = Devices("gpu" if device.type == "cuda" else "cpu", 1)
    case = Case(recipe, images, arrays, device, resolve_precision(recipe, devices), steps)
    variants = {"upper_bound": time_upper_bound, "pneumoscope": time_pneumoscope, "plain_pytorch": time_plain_pytorch}
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(rounds):
        for variant, run in variants.items():
            times[variant].append(run(case))
            rate = 1 / times[variant][-1]
            print(f"{name} at {size}, round {number + 1}: {variant} {rate:.1f} images/s", flush=True)
    peak = measure_peak_flops(device, case.precision)
    rates = {variant: 1 / statistics.median(seconds) for variant, seconds in times.items()}
    flops = count_flops(case)

    def speedup(reference: str) -> float:
        pairs = zip(times[reference], times["pneumoscope"], strict=True)
        return statistics.median(a / b for a, b in pairs)

    return {
        "network": name,
        "image_size": size,
        "batch": batch,
        "precision": case.precision,
        "images_per_second": rates,
        "relative_to_upper_bound": speedup("upper_bound"),
        "relative_to_plain_pytorch": speedup("plain_pytorch"),
        "flops_per_image": flops,
        "fraction_of_peak": flops * rates["pneumoscope"] / peak,
        "peak_flops_per_second": peak,
    }


def to_markdown(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Return the rows as a Markdown table."""
    headings = (
        "network", "pixels", "batch", "precision", "upper bound, images/s", "pneumoscope, images/s", "plain PyTorch, images/s",
        "/ upper bound", "/ plain PyTorch", "fraction of peak",
    )  # fmt: skip
    lines = [
        f"Training on {facts['device']} ({facts['machine']['processor']}, {facts['machine']['cores']} cores),"
        f" torch {facts['versions']['torch']}, {facts['rounds']} rounds of {facts['steps']} steps."
        " Goals: at least 0.95 of the upper bound and 1.4 times plain PyTorch.",
        "",
        f"| {' | '.join(headings)} |",
        f"| {' | '.join(['---'] * len(headings))} |",
    ]
    for row in rows:
        rates = row["images_per_second"]
        lines.append(
            f"| {row['network']} | {row['image_size']} | {row['batch']} | {row['precision']} | {rates['upper_bound']:.1f}"
            f" | {rates['pneumoscope']:.1f} | {rates['plain_pytorch']:.1f} | {row['relative_to_upper_bound']:.2f}"
            f" | {row['relative_to_plain_pytorch']:.2f} | {row['fraction_of_peak']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(BATCH_SIZES), choices=list(BATCH_SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps per round")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {
        "device": device_name(Devices("gpu" if device.type == "cuda" else "cpu", 1)),
        "machine": machine(),
        "system": platform.platform(),
        "versions": versions(),
        "rounds": options.rounds,
        "steps": options.steps,
    }
    # On a CPU, VGG19 is measured at the size that `pneumoscope reproduce` uses there.
    sizes = {"alexnet": 224, "vgg19": 224 if device.type == "cuda" else 64, "tf_efficientnet_lite0": 224}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            images = Path(folder) / str(sizes[name])
            if not images.exists():
                write_phantoms(images, train=192, test=10, size=sizes[name])
            rows.append(measure(name, sizes[name], images, device, options.rounds, options.steps))
    text = to_markdown(rows, facts)
    print(f"\n{text}")
    write_atomically(options.out / "training.json", json.dumps({**facts, "rows": rows}, indent=2) + "\n")
    write_atomically(options.out / "training.md", text)


if __name__ == "__main__":
    main()
