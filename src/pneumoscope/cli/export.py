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
@click.option(
    "--population",
    "recipe",
    metavar="RECIPE",
    help="Recipe, by name or path, whose population is stated on the card instead of that of the run.",
)
def command(run: Path, out: Path, recipe: str | None) -> None:
    """Verify the bundle of a finished run, or another bundle, and copy it with the measurements of its model card.

    A bundle has two files, network.onnx and card.json. Its folder evidence/, if there is one, has measurements for the model
    card, such as those of `train --evidence` and the evaluation of the run on test images. They name commands with their
    paths, and audit.json names duplicate and unreadable files: read them before you publish a bundle. Inference needs neither
    PyTorch nor the run.
    """
    from pneumoscope.bundle.bundle_folder import export_bundle
    from pneumoscope.runs.recipe_files import read_recipe
    from pneumoscope.runs.run_folder import evaluation_of_bundle, find_bundle

    population = None
    if recipe is not None:
        population = read_recipe(recipe).declared_population()
    bundle = find_bundle(run)
    card = export_bundle(bundle, out, population, evaluation=evaluation_of_bundle(bundle))
    click.echo(f"{out}: {card.network}, {card.onnx_bytes / 1e6:.1f} MB, SHA-256 {card.onnx_sha256[:16]}")
