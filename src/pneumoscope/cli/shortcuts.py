"""`pneumoscope shortcuts`: measure how well a network predicts without the lungs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.data_options import data_argument, label_options, split_option
from pneumoscope.cli.options import json_option, recorded_command, result_folder_option, target_argument

if TYPE_CHECKING:
    from pneumoscope.data.label_mapping import LabelMapping

__all__ = ["command"]


@click.command("shortcuts", short_help="Measure what a network can tell without the lungs.")
@target_argument
@data_argument
@label_options()
@split_option
@result_folder_option("shortcuts")
@json_option
def command(target: Path, data: Path, labels: LabelMapping | None, split: str, out: Path | None, as_json: bool) -> None:
    """Measure the AUROC of RUN or BUNDLE on DATA with the center of each image blanked, and on the center alone.

    With the center blanked, the AUROC should be near 0.5: if it is not, the network can use the border, markers or the scanner.
    With the center alone, it should match the whole image. `pneumoscope check-data` finds shortcuts in the data.

    Example:  pneumoscope shortcuts runs/quick chest_xray --out shortcuts
    """
    from pneumoscope.cli.progress import staged_progress
    from pneumoscope.core.result_forms import to_json
    from pneumoscope.evaluation.shortcuts import measure_network_shortcuts, shortcuts_markdown

    with staged_progress() as progress:
        result = measure_network_shortcuts(
            target, data, split=split, labels=labels, out=out, command=recorded_command(), progress=progress
        )
    click.echo(to_json(result) if as_json else shortcuts_markdown(result), nl=False)
