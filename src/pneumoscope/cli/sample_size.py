"""`pneumoscope sample-size`: plan an acceptance test."""

from __future__ import annotations

from pathlib import Path

import click

from pneumoscope.cli.options import json_option, margin_option, model_option, power_option

__all__ = ["command"]


@click.command("sample-size", short_help="Compute how many images an acceptance test needs.")
@model_option
@margin_option
@power_option
@json_option
def command(bundle: Path | None, margin: float, power: float, as_json: bool) -> None:
    """Compute how many images an acceptance test needs, for each operating point of a model.

    The numbers are accepted images with pneumonia (to test sensitivity) and without (to test specificity), one per patient;
    each test on its own then has the requested power. More images of the same patients add less.

    Example:  pneumoscope sample-size --margin 0.05 --power 0.9
    """
    from pneumoscope.bundle.bundle_folder import read_bundle
    from pneumoscope.core.result_forms import to_json
    from pneumoscope.evaluation.acceptance.metrics import needed_images
    from pneumoscope.runs.run_folder import find_bundle

    card, _ = read_bundle(find_bundle(bundle))
    points = needed_images(card, margin, power)
    if as_json:
        click.echo(to_json({"model": card.name, "margin": margin, "power": power, "images": points}), nl=False)
        return
    click.echo(f"{card.name}, margin {margin:g}, power {power:.0%}")
    click.echo(f"{'operating point':<16} {'with pneumonia':>15} {'without':>10}")
    for name, counts in points.items():
        cells = [f"{count:,}" if count else "not feasible" for count in counts.values()]
        click.echo(f"{name:<16} {cells[0]:>15} {cells[1]:>10}")
