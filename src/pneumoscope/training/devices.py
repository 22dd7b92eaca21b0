"""The devices that a run trains on, and the precision that they compute in."""

from __future__ import annotations

import dataclasses
import os
from typing import Literal

import torch

from pneumoscope.core.errors import UsageError
from pneumoscope.runs.recipe import Recipe

__all__ = ["Devices", "bf16_is_native", "device_name", "precision_here"]


@dataclasses.dataclass(frozen=True, slots=True)
class Devices:
    """The devices that a run trains on.

    Attributes:
        accelerator: "cpu", "gpu", or "auto" for a GPU where there is one.
        count: Devices per node; 0 takes one CPU process, or every GPU.
        nodes: Machines; each starts the same command under torchrun.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    count: int = 0
    nodes: int = 1

    @property
    def gpu(self) -> bool:
        """True where GPUs are used."""
        return self.accelerator == "gpu" or (self.accelerator == "auto" and torch.cuda.is_available())

    @property
    def world(self) -> int:
        """Number of processes on all nodes, one per device."""
        here = self.count or (torch.cuda.device_count() if self.gpu else 1)
        return here * self.nodes

    @property
    def first(self) -> bool:
        """True in the process that writes the run folder; torchrun numbers the processes of several nodes."""
        return self.nodes == 1 or os.environ.get("RANK", "0") == "0"

    def refuse_missing(self) -> None:
        """Raise where more GPUs are requested than there are.

        Raises:
            UsageError: With both numbers.
        """
        requested, found = max(self.count, 1), torch.cuda.device_count()
        if self.gpu and requested > found:
            raise UsageError(
                f"training on {requested} GPU{'s' * (requested > 1)} was requested; torch finds {found} on this machine",
                hint="Use --accelerator cpu, or fewer --devices",
            )


def bf16_is_native(*, gpu: bool) -> bool:
    """Return True where the processor or GPU computes in bf16; emulated bf16 is far slower than float32."""
    if gpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


def precision_here(recipe: Recipe, devices: Devices) -> str:
    """Return "32" or "bf16": the recipe's precision, or what the device computes in for "auto"."""
    requested = recipe.training.precision
    if requested == "auto":
        return "bf16" if bf16_is_native(gpu=devices.gpu) else "32"
    return requested


def device_name(devices: Devices) -> str:
    """Return "cpu" or the GPU's name, with the count where there are several: "2 x cpu"."""
    name = torch.cuda.get_device_name() if devices.gpu else "cpu"
    return name if devices.world == 1 else f"{devices.world} x {name}"
