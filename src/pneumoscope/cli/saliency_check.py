"""`pneumoscope saliency-check`: test whether heatmaps show what the network uses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.data_options import data_argument, images_option, label_options, split_option
from pneumoscope.cli.options import json_option, recorded_command, result_folder_option, seed_option, target_argument

if TYPE_CHECKING:
    from pneumoscope.data.label_mapping import LabelMapping

__all__ = ["command"]


@click.command("saliency-check", short_help="Test whether heatmaps show what the network uses.")
@target_argument
@data_argument
@label_options()
@split_option
@images_option(100)
@seed_option
@click.option(
    "--masks",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Masks of the disease: PNG files with the paths of their images, not 0 where the disease is.",
)
@result_folder_option("saliency_check")
@json_option
def command(
    target: Path,
    data: Path,
    labels: LabelMapping | None,
    split: str,
    images: int,
    seed: int,
    masks: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Test whether the heatmaps of RUN or BUNDLE show on DATA what the network uses.

    Deletion and insertion (Petsiuk 2018): blurring the important pixels should lower the score of the predicted class, and
    restoring them should raise it, more than with random heatmaps. Sanity check (Adebayo 2018): shuffling the weights should
    change the heatmaps. With --masks, also the pointing game (Zhang 2018): whether the peak of the heatmap lies on the disease.

    Needs the extra [train].

    Example:  pneumoscope saliency-check runs/quick chest_xray --out saliency
    """
    from pneumoscope.cli.progress import staged_progress
    from pneumoscope.core.result_forms import to_json
    from pneumoscope.evaluation.saliency.check import check_saliency, saliency_markdown

    with staged_progress() as progress:
        result = check_saliency(
            target,
            data,
            split=split,
            labels=labels,
            images=images,
            seed=seed,
            masks=masks,
            out=out,
            command=recorded_command(),
            progress=progress,
        )
    click.echo(to_json(result) if as_json else saliency_markdown(result), nl=False)
