"""Measurements of a bundle made after its export, stored in its folder `evidence/` as written by the commands.

The files are `evaluation.json` (`evaluate`), `robustness.json` (`robustness`), `shortcuts.json` (`shortcuts`),
`saliency_check.json` (`saliency-check`), `phantom_saliency_check.json` (the same check of a network trained on phantoms) and
`audit.json` (`check-data --json`). `train --evidence` writes all except the evaluation and the check on phantoms.
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
# The same commands with a placeholder for the bundle.
EVIDENCE = {
    name: command.format(bundle="BUNDLE", target="BUNDLE", data=_MANIFEST) for name, command in _COMMANDS.items()
}

Json = Mapping[str, Any]


def evidence_file(folder: Path, name: str) -> Path:
    """Return the path of an evidence file (a name in `EVIDENCE`) in a bundle folder."""
    return folder / "evidence" / f"{name}.json"


def evidence_command(name: str, bundle: Path | None = None, run: Path | None = None) -> str:
    """Return the command that writes an evidence file.

    Args:
        name: Name of the evidence, one of `EVIDENCE`.
        bundle: Folder of the bundle; "BUNDLE" if None.
        run: Run of the bundle, or None. Its manifest specifies the validation images, so any copy of the data can be used.
    """
    place = "BUNDLE" if bundle is None else shlex.quote(bundle.as_posix())
    target, data = (place, _MANIFEST) if run is None else (shlex.quote(run.as_posix()), "DATA")
    return _COMMANDS[name].format(bundle=place, target=target, data=data)


def read_measurement(folder: Path, name: str, onnx_sha256: str, run: Path | None = None) -> Json | None:
    """Return a measurement of a network on validation images without a site profile, or None if there is none.

    Unlike `read_evidence`, this needs no bundle: runs are compared and reported without their weights.

    Args:
        folder: Folder of the bundle.
        name: Name of the evidence, one of `EVIDENCE`.
        onnx_sha256: Hash of the network file.
        run: Run of the bundle, for the command in the hint; see `evidence_command`.

    Raises:
        BundleError: The file is not a JSON object.
    """
    path = evidence_file(folder, name)
    content = _read_json(path, evidence_command(name, folder, run)) if path.is_file() else {}
    is_of_network = content.get("onnx_sha256") == onnx_sha256 and not content.get("site")
    return content if is_of_network and content.get("split") == "validation" else None


def is_measured(folder: Path, card: Card | MulticlassCard, name: str) -> bool:
    """Return whether `read_measurement` finds a valid measurement."""
    try:
        return read_measurement(folder, name, card.onnx_sha256) is not None
    except BundleError:
        return False


def evidence_paths(folder: Path, card: Card | MulticlassCard, evaluation: Path | None = None) -> dict[str, Path]:
    """Return the paths of the existing evidence files by name in `EVIDENCE`; see `read_evidence`."""
    return {name: path for name, (path, _) in _find_evidence(folder, card, evaluation).items()}


def read_evidence(folder: Path, card: Card | MulticlassCard, evaluation: Path | None = None) -> dict[str, Json | None]:
    """Return the measurements of a bundle by name in `EVIDENCE`, with None for missing ones.

    Args:
        folder: Folder of the bundle.
        card: Card of the bundle.
        evaluation: `evaluation.json` of the bundle's run, used if the bundle contains no evaluation. Ignored if it belongs to
            another network, uses a site profile, or covers training or validation images.

    Raises:
        BundleError: A file is not a JSON object, belongs to another bundle or was measured with a site profile.
    """
    found = _find_evidence(folder, card, evaluation)
    return {name: found[name][1] if name in found else None for name in EVIDENCE}


def _find_evidence(folder: Path, card: Card | MulticlassCard, evaluation: Path | None) -> dict[str, tuple[Path, Json]]:
    """Return the path and content of each existing evidence file."""
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
    if path.stem == "phantom_saliency_check":  # measured on a network of the same architecture, trained on phantoms
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
    """Return the rows of `robustness.json` for images that should be rejected."""
    return [*robustness["corruptions"], *robustness["other_images"]]


def images_text(evaluation: Json) -> str:
    """Describe the images of an evaluation."""
    counts = ", ".join(f"{n} {label}" for label, n in evaluation["counts"].items())
    patients = patients_text(evaluation["patients"], evaluation.get("unknown_patients"), evaluation["n"])
    return f"{evaluation['n']} {evaluation['split']} images ({counts}; {patients})"


def interval_text(interval: Json) -> str:
    """Return a measured value with its interval, or the reason why it is undefined."""
    if interval["value"] is None:
        return f"undefined: {interval['reason']}"
    if interval["low"] is None or interval["high"] is None:
        return with_minus_signs(f"{interval['value']:.3f}") + f" (no interval: {interval['reason']})"
    low, high = (format_limit(interval[limit], ".3f") for limit in ("low", "high"))
    return with_minus_signs(f"{interval['value']:.3f} [{low}, {high}]")
