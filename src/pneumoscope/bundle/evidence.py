"""Measurements in the folder of a bundle, made after its export.

They are in the folder `evidence/` of the bundle, as the commands wrote them: `evaluation.json` (`evaluate`), `robustness.json`
(`robustness`), `shortcuts.json` (`shortcuts`), `saliency_check.json` (`saliency-check`), `phantom_saliency_check.json` (the
same of a network that was trained on phantoms) and `audit.json` (`check-data --json`). `train --evidence` writes all but the
evaluation and the check on phantoms.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumoscope.bundle.card import Card
from pneumoscope.bundle.multiclass_card import MulticlassCard
from pneumoscope.core.errors import BundleError
from pneumoscope.core.messages import patients_text
from pneumoscope.core.result_forms import format_limit, with_minus_signs

__all__ = [
    "EVIDENCE",
    "Json",
    "evidence_command",
    "evidence_file",
    "evidence_paths",
    "images_text",
    "interval_text",
    "is_measured",
    "read_evidence",
    "read_measurement",
    "unusable_images",
]

_MANIFEST = "MANIFEST"
# Command that writes each evidence file; the target is a bundle or its run.
_COMMANDS = {
    "evaluation": "pneumoscope evaluate {bundle} --data DATA --out {bundle}/evidence",
    "robustness": "pneumoscope robustness {target} --data {data} --out {bundle}/evidence",
    "shortcuts": "pneumoscope shortcuts {target} --data {data} --out {bundle}/evidence",
    "saliency_check": "pneumoscope saliency-check {target} --data {data} --out {bundle}/evidence",
    "phantom_saliency_check": "pneumoscope saliency-check PHANTOM_RUN --data PHANTOMS --masks MASKS --json"
    " > {bundle}/evidence/phantom_saliency_check.json",
    "audit": "pneumoscope check-data DATA --json > {bundle}/evidence/audit.json",
}
# The commands for a bundle of any path.
EVIDENCE = {
    name: command.format(bundle="BUNDLE", target="BUNDLE", data=_MANIFEST) for name, command in _COMMANDS.items()
}

Json = Mapping[str, Any]


def evidence_file(folder: Path, name: str) -> Path:
    """Return the path of an evidence file, of a name of `EVIDENCE`, in the folder of a bundle."""
    return folder / "evidence" / f"{name}.json"


def evidence_command(name: str, bundle: Path | None = None, run: Path | None = None) -> str:
    """Return the command that writes an evidence file, of a name of `EVIDENCE`.

    Args:
        name: Name of the evidence.
        bundle: Folder of the bundle; "BUNDLE" if None.
        run: Run of the bundle, whose manifest states which images are for validation, so that any copy of the data will do; None
            for a bundle without one.
    """
    place = "BUNDLE" if bundle is None else shlex.quote(bundle.as_posix())
    target, data = (place, _MANIFEST) if run is None else (shlex.quote(run.as_posix()), "DATA")
    return _COMMANDS[name].format(bundle=place, target=target, data=data)


def read_measurement(folder: Path, name: str, onnx_sha256: str, run: Path | None = None) -> Json | None:
    """Return a measurement of a network on validation images, without a site profile; None if the bundle has none.

    Unlike `read_evidence` this needs no bundle: runs are compared and reported without their weights.

    Args:
        folder: Folder of the bundle.
        name: Name of the evidence, one of `EVIDENCE`.
        onnx_sha256: Hash of the network file.
        run: Run of the bundle, for the command in the hint; see `evidence_command`.

    Raises:
        BundleError: The file is not JSON.
    """
    path = evidence_file(folder, name)
    content = _read_json(path, evidence_command(name, folder, run)) if path.is_file() else {}
    is_of_network = content.get("onnx_sha256") == onnx_sha256 and not content.get("site")
    return content if is_of_network and content.get("split") == "validation" else None


def is_measured(folder: Path, card: Card | MulticlassCard, name: str) -> bool:
    """Return True if a bundle has a measurement that `read_measurement` returns."""
    try:
        return read_measurement(folder, name, card.onnx_sha256) is not None
    except BundleError:
        return False


def evidence_paths(folder: Path, card: Card | MulticlassCard, evaluation: Path | None = None) -> dict[str, Path]:
    """Return the path of each evidence file of a bundle that exists, by name of `EVIDENCE`; see `read_evidence`."""
    return {name: path for name, (path, _) in _find_evidence(folder, card, evaluation).items()}


def read_evidence(folder: Path, card: Card | MulticlassCard, evaluation: Path | None = None) -> dict[str, Json | None]:
    """Return the measurements in the folder of a bundle by name of `EVIDENCE`; None for those that are missing.

    Args:
        folder: Folder of the bundle.
        card: Its card.
        evaluation: `evaluation.json` of the run of the bundle, for a bundle without its own evaluation; it is ignored if it
            is of another network, with a site profile, or of training or validation images. None without one.

    Raises:
        BundleError: A file is not JSON, or belongs to another bundle.
    """
    found = _find_evidence(folder, card, evaluation)
    return {name: found[name][1] if name in found else None for name in EVIDENCE}


def _find_evidence(folder: Path, card: Card | MulticlassCard, evaluation: Path | None) -> dict[str, tuple[Path, Json]]:
    """Return path and content of each evidence file that exists."""
    found: dict[str, tuple[Path, Json]] = {}
    for name in EVIDENCE:
        path = evidence_file(folder, name)
        if (content := _read_evidence(path, card)) is not None:
            found[name] = path, content
    if evaluation is not None and "evaluation" not in found and evaluation.is_file():
        content = _read_json(evaluation, EVIDENCE["evaluation"])
        is_of_test_images = content.get("split") in {"test", "all"}
        if content.get("bundle_sha256") == card.onnx_sha256 and is_of_test_images and not content.get("site"):
            found["evaluation"] = evaluation, content
    return found


def _read_json(path: Path, command: str) -> dict[str, Any]:
    hint = f"Measure again: {command}"
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
    evidence = _read_json(path, EVIDENCE[path.stem])
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
    low, high = (format_limit(interval[limit], ".3f") for limit in ("low", "high"))
    return with_minus_signs(f"{interval['value']:.3f} [{low}, {high}]")
