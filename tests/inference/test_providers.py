"""The processor that runs the network: a missing one is named, and none is replaced in silence."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
from tests.conftest import Maker

from pneumoscope import load_model
from pneumoscope.core.errors import UsageError


@pytest.fixture
def bundle(maker: Maker, tmp_path: Path) -> Path:
    return maker.bundle(tmp_path / "bundle")


def test_the_network_runs_on_the_cpu_unless_asked(bundle: Path) -> None:
    assert load_model(bundle).provider == "cpu"


def test_a_provider_that_is_not_installed_is_named_with_those_that_are(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        UsageError, match=r"'cuda' is not available: onnxruntime \d.* has CPUExecutionProvider"
    ) as error:
        load_model(bundle, provider="cuda")
    assert "Install onnxruntime-gpu" in error.value.hint


@pytest.mark.filterwarnings("ignore:Specified provider")  # of ONNX Runtime, before it falls back
def test_unusable_gpu_does_not_fall_back_to_the_cpu(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package says that it has CUDA, but the session runs on the CPU, as without a driver."""
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(UsageError, match="'cuda' cannot be started"):
        load_model(bundle, provider="cuda")


def test_an_unknown_provider_is_refused(bundle: Path) -> None:
    with pytest.raises(UsageError, match="provider is 'tpu'"):
        load_model(bundle, provider="tpu")  # type: ignore[arg-type]
