"""Execution providers of ONNX Runtime, which select the processor that runs the network."""

from __future__ import annotations

import os
from typing import Any, Literal, get_args

from pneumoscope.core.errors import UsageError

__all__ = ["Provider", "import_onnxruntime", "provider_arguments", "require_running", "runtime_version"]

Provider = Literal["cpu", "cuda"]
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# TF32 is disabled because its 10-bit mantissa makes logits deviate from the CPU's. Operators missing in CUDA run on the
# CPU.
_ARGUMENTS: dict[str, list[Any]] = {"cpu": [_CPU], "cuda": [(_CUDA, {"use_tf32": "0"}), _CPU]}


def provider_arguments(provider: Provider) -> list[Any]:
    """Return the argument `providers` of an ONNX Runtime session.

    Raises:
        UsageError: The provider is unknown, or the installed ONNX Runtime package does not support it.
    """
    if provider not in get_args(Provider):
        raise UsageError(f"provider is {provider!r}", hint=f"Pass one of: {', '.join(get_args(Provider))}")
    if provider == "cuda" and _CUDA not in (available := import_onnxruntime().get_available_providers()):
        raise UsageError(
            f"the execution provider 'cuda' is not available: onnxruntime {runtime_version()} has {', '.join(available)}",
            hint="Install onnxruntime-gpu in place of onnxruntime, or use cpu",
        )
    return _ARGUMENTS[provider]


def require_running(provider: Provider, running: list[str]) -> None:
    """Raise if a session does not run on its provider; ONNX Runtime only logs the fallback to the CPU.

    Args:
        provider: Requested provider.
        running: Providers of the session.

    Raises:
        UsageError: The requested provider is not among them.
    """
    if provider == "cuda" and _CUDA not in running:
        raise UsageError(
            "the execution provider 'cuda' cannot be started: ONNX Runtime runs the network on the CPU instead",
            hint="Check the driver of the GPU, and the versions of CUDA and cuDNN that onnxruntime-gpu needs; or use cpu",
        )


def runtime_version() -> str:
    """Return the version of ONNX Runtime."""
    return str(import_onnxruntime().__version__)


def import_onnxruntime() -> Any:
    """Return the module of ONNX Runtime."""
    # Some builds report usage to their vendor. Disable that before the first import, unless the user configured it.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime
