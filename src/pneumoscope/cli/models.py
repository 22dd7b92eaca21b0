"""`pneumoscope models`: list networks and print model cards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from pneumoscope.cli.options import json_option
from pneumoscope.core.errors import UsageError

__all__ = ["command"]


@click.command("models", short_help="List networks, or print a model card.")
@json_option
@click.option(
    "--card",
    "target",
    metavar="[BUNDLE|RUN]",
    is_flag=False,
    flag_value="",
    help="Print a model card; that of a run has its evaluation on test images.  [default: the model in the package]",
)
@click.option(
    "--format",
    "card_format",
    type=click.Choice(["markdown", "html", "chai", "huggingface"]),
    default="markdown",
    show_default=True,
    help="Format of the card: Markdown; HTML, a page with figures (needs the extra [evaluate]); CHAI Applied Model Card (XML); or"
    " README.md of a Hugging Face repository.",
)
@click.option("--developer", default="", metavar="NAME", help="Developer of the model, for a CHAI card.")
@click.option("--contact", default="", metavar="TEXT", help="How to reach the developer, for a CHAI card.")
def command(as_json: bool, target: str | None, card_format: str, developer: str, contact: str) -> None:
    """List the networks with parameters, input size and source of ImageNet weights, or print the card of a model.

    Recipes also accept any other timm network by name.

    Example:  pneumoscope models --card --format html > card.html
    """
    if target is None and (card_format != "markdown" or developer or contact):
        raise UsageError("--format, --developer and --contact need --card", hint="Add --card")
    if card_format != "chai" and (developer or contact):
        raise UsageError("--developer and --contact are parts of a CHAI card", hint="Add --format chai")
    if target is not None:
        from pneumoscope.bundle.model_card import model_card
        from pneumoscope.bundle.model_card_exports import chai_model_card, hugging_face_model_card
        from pneumoscope.runs.run_folder import evaluation_of_bundle, find_bundle

        if as_json:
            raise UsageError("--card and --json cannot be combined", hint="Read card.json in the bundle instead")
        folder = find_bundle(Path(target) if target else None)
        evaluation = evaluation_of_bundle(folder)
        if card_format == "chai":
            text = chai_model_card(folder, developer=developer, contact=contact, evaluation=evaluation)
        elif card_format == "html":
            from pneumoscope.reporting.model_card_page import model_card_page

            text = model_card_page(folder, evaluation)
        else:
            text = (hugging_face_model_card if card_format == "huggingface" else model_card)(folder, evaluation)
        click.echo(text, nl=False)
        return
    from pneumoscope.models.registry import list_models

    if as_json:
        click.echo(json.dumps([dataclasses.asdict(model) for model in list_models()], indent=2))
        return
    click.echo(f"{'network':24} {'parameters':>11} {'pixels':>6}  ImageNet weights")
    for model in list_models():
        click.echo(f"{model.name:24} {model.parameters:11,} {model.image_size:6}  {model.imagenet or 'none'}")
