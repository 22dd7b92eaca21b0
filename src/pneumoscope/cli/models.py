"""`pneumoscope models`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from pneumoscope.core.errors import UsageError


@click.command("models", short_help="List networks and where their weights come from.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--card",
    "target",
    metavar="[BUNDLE|RUN]",
    is_flag=False,
    flag_value="",
    help="Print a model card as Markdown.  [default: of the model that comes with the package]",
)
def command(as_json: bool, target: str | None) -> None:
    """List the networks: parameters, input size, and where ImageNet weights come from; or print the card of a model.

    Any other network of timm's works by its name in a recipe.
    """
    if target is not None:
        from pneumoscope.bundle.card import find_bundle
        from pneumoscope.bundle.model_card import model_card

        if as_json:
            raise UsageError("--card prints Markdown", hint="The same as JSON is card.json in the bundle")
        click.echo(model_card(find_bundle(Path(target) if target else None)), nl=False)
        return
    from pneumoscope.models.registry import NETWORKS

    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in NETWORKS], indent=2))
        return
    click.echo(f"{'network':24} {'parameters':>11} {'pixels':>6}  ImageNet weights")
    for row in NETWORKS:
        click.echo(f"{row.name:24} {row.parameters:11,} {row.image_size:6}  {row.imagenet or 'none'}")
