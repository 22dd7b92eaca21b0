"""`pneumoscope robustness`: measure how predictions react to changes of the image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.data_options import data_argument, images_option, label_options, split_option
from pneumoscope.cli.options import (
    json_option,
    operating_point_option,
    recorded_command,
    result_folder_option,
    seed_option,
    site_option,
    target_argument,
)

if TYPE_CHECKING:
    from pneumoscope.data.label_mapping import LabelMapping

__all__ = ["command"]


@click.command("robustness", short_help="Measure how predictions react to changed images.")
@target_argument
@data_argument
@label_options()
@split_option
@images_option(400)
@click.option(
    "--phantoms", type=click.IntRange(min=0), default=50, show_default=True, help="Number of phantoms to draw."
)
@click.option(
    "--originals",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Full-size images to compare with their downsampled copies in --copies.",
)
@click.option(
    "--copies",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Downsampled copies under the same relative paths as in --originals.",
)
@click.option(
    "--other-images",
    metavar="DIR",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of images that should be rejected; repeat for several.",
)
@operating_point_option
@site_option
@seed_option
@result_folder_option("robustness")
@json_option
def command(
    target: Path,
    data: Path,
    labels: LabelMapping | None,
    split: str,
    images: int,
    phantoms: int,
    originals: Path | None,
    copies: Path | None,
    other_images: tuple[Path, ...],
    operating_point: str,
    site: Path | None,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure how the predictions of RUN or BUNDLE react to changed images of DATA.

    File formats and resolutions should not change a decision; JPEG compression, rotation by 10 degrees and brightness should
    change few. Inverted, rotated, mirrored, cropped and blank images, phantoms and --other-images should be rejected.
    Thresholds and limits come from the model, or with --site from the profile of a hospital.

    Example:  pneumoscope robustness runs/quick chest_xray --out robustness
    """
    from pneumoscope.cli.progress import staged_progress
    from pneumoscope.core.result_forms import to_json
    from pneumoscope.evaluation.robustness import measure_robustness, robustness_markdown

    with staged_progress() as progress:
        result = measure_robustness(
            target,
            data,
            split=split,
            labels=labels,
            images=images,
            phantoms=phantoms,
            operating_point=operating_point,
            site=site,
            originals=originals,
            copies=copies,
            other_images=other_images,
            seed=seed,
            out=out,
            command=recorded_command(),
            progress=progress,
        )
    click.echo(to_json(result) if as_json else robustness_markdown(result), nl=False)
