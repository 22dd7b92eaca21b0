"""`pneumoscope export`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export", short_help="Copy a finished run's bundle to where it is used.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the bundle; must not exist, or be empty."
)
def command(run: Path, out: Path) -> None:
    """Copy the bundle of a finished run to where it is used, checked on the way.

    A bundle is two files: network.onnx and card.json. InferenceQueue with it needs neither PyTorch nor the run.
    """
    from pneumoscope.bundle.card import find_bundle
    from pneumoscope.bundle.export import export_bundle

    card = export_bundle(find_bundle(run), out)
    click.echo(f"{out}: {card.network}, {card.onnx_bytes / 1e6:.1f} MB, SHA-256 {card.onnx_sha256[:16]}")
