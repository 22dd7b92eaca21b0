"""Measurements in the folder of a bundle, made after its export.

They are in the bundle's folder `evidence/`, as the commands wrote them: `evaluation.json` (`evaluate`), `robustness.json`
(`robustness`), `shortcuts.json` (`shortcuts`), `saliency_check.json` (`saliency-check`) and `audit.json` (`check-data --json`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumoscope.bundle.card import Card
from pneumoscope.bundle.multiclass_card import MulticlassCard
from pneumoscope.core.errors import BundleError
from pneumoscope.core.messages import patients_text
from pneumoscope.core.result_forms import with_minus_signs

__all__ = ["EVIDENCE", "Json", "images_text", "interval_text", "read_evidence", "unusable_images"]

# Command that writes each evidence file.
EVIDENCE = {
    "evaluation": "pneumoscope evaluate BUNDLE --data DATA --out BUNDLE/evidence",
    "robustness": "pneumoscope robustness BUNDLE --data MANIFEST --out BUNDLE/evidence",
    "shortcuts": "pneumoscope shortcuts BUNDLE --data MANIFEST --out BUNDLE/evidence",
    "saliency_check": "pneumoscope saliency-check BUNDLE --data MANIFEST --out BUNDLE/evidence",
    "phantom_saliency_check": "pneumoscope saliency-check PHANTOM_RUN --data PHANTOMS --masks MASKS --json"
    " > BUNDLE/evidence/phantom_saliency_check.json",
    "audit": "pneumoscope check-data DATA --json > BUNDLE/evidence/audit.json",
}

Json = Mapping[str, Any]


def read_evidence(folder: Path, card: Card | MulticlassCard, evaluation: Path | None = None) -> dict[str, Json | None]:
    """Return the measurements in the folder of a bundle by name of `EVIDENCE`; None for those that are missing.

    Args:
        folder: Folder of the bundle.
        card: Its card.
        evaluation: `evaluation.json` of the run of the bundle, for a bundle without an evaluation of its own; it is ignored if it
            is of another network, with a site profile, or of training or validation images. None without one.

    Raises:
        BundleError: A file is not JSON, or belongs to another bundle.
    """
    evidence: dict[str, Json | None] = {
        name: _read_evidence(folder / "evidence" / f"{name}.json", card) for name in EVIDENCE
    }
    if evaluation is not None and evidence["evaluation"] is None and evaluation.is_file():
        found = _read_json(evaluation)
        is_of_test_images = found.get("split") in {"test", "all"}
        if found.get("bundle_sha256") == card.onnx_sha256 and is_of_test_images and not found.get("site"):
            evidence["evaluation"] = found
    return evidence


def _read_json(path: Path) -> dict[str, Any]:
    hint = f"Measure again: {EVIDENCE[path.stem]}"
    try:
        evidence = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read the evidence {str(path)!r}: {error}", hint=hint) from error
    if not isinstance(evidence, dict):
        raise BundleError(f"the evidence {str(path)!r} is not a JSON object", hint=hint)
    return evidence


def _read_evidence(path: Path, card: Card | MulticlassCard) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    hint = f"Measure again: {EVIDENCE[path.stem]}"
    evidence = _read_json(path)
    if evidence.get("site"):
        raise BundleError(
            f"the evidence {str(path)!r} was measured with the site profile {evidence['site']!r}", hint=hint
        )
    if path.stem == "phantom_saliency_check":  # of a network with the same architecture, trained on phantoms
        if evidence.get("network", card.network) != card.network:
            raise BundleError(
                f"the evidence {str(path)!r} is of the network {evidence.get('network')}, not {card.network}", hint=hint
            )
        return evidence
    sha256 = evidence.get("bundle_sha256", evidence.get("onnx_sha256", card.onnx_sha256))
    if sha256 != card.onnx_sha256:
        raise BundleError(
            f"the evidence {str(path)!r} belongs to the network {str(sha256)[:16]}, not to this one,"
            f" {card.onnx_sha256[:16]}",
            hint=hint,
        )
    return evidence


def unusable_images(robustness: Json) -> list[Json]:
    """Return the rows of `robustness.json` about images that should be rejected."""
    return [*robustness["corruptions"], *robustness["other_images"]]


def images_text(evaluation: Json) -> str:
    """Return which images an evaluation is about."""
    counts = ", ".join(f"{n} {label}" for label, n in evaluation["counts"].items())
    patients = patients_text(evaluation["patients"], evaluation.get("unknown_patients"), evaluation["n"])
    return f"{evaluation['n']} {evaluation['split']} images ({counts}; {patients})"


def interval_text(interval: Json) -> str:
    """Return a measured number with its interval, or the reason why it is undefined."""
    if interval["value"] is None:
        return f"undefined: {interval['reason']}"
    if interval["low"] is None or interval["high"] is None:
        return with_minus_signs(f"{interval['value']:.3f}") + f" (no interval: {interval['reason']})"
    return with_minus_signs(f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]")
