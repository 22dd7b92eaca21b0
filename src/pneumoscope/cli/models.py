"""`pneumoscope models`."""

from __future__ import annotations

import dataclasses
import json

import click


@click.command("models", short_help="List networks and where their weights come from.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """List the networks: parameters, input size, and where ImageNet weights come from.

    Any other network of timm's works by its name in a recipe.
    """
    from pneumoscope.networks.registry import NETWORKS

    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in NETWORKS], indent=2))
        return
    click.echo(f"{'network':24} {'parameters':>11} {'pixels':>6}  ImageNet weights")
    for row in NETWORKS:
        click.echo(f"{row.name:24} {row.parameters:11,} {row.image_size:6}  {row.imagenet or 'none'}")
