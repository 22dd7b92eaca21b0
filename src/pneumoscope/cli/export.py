"""`pneumoscope export`: copy the bundle of a run."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command("export", short_help="Copy the bundle of a finished run.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the bundle; must be empty or new."
)
def command(run: Path, out: Path) -> None:
    """Verify the bundle of a finished run and copy it.

    A bundle has two files, network.onnx and card.json. Inference needs neither PyTorch nor the run.
    """
    from pneumoscope.bundle.card import export_bundle
    from pneumoscope.runs.run_folder import find_bundle

    card = export_bundle(find_bundle(run), out)
    click.echo(f"{out}: {card.network}, {card.onnx_bytes / 1e6:.1f} MB, SHA-256 {card.onnx_sha256[:16]}")
