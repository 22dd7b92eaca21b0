"""`pneumoscope robustness`: measure how predictions react to changes of the image."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

__all__ = ["command"]


@click.command("robustness", short_help="Measure how predictions react to changed images.")
@click.argument("target", metavar="RUN|BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Labeled data set: folder, manifest CSV or archive."
)
@click.option(
    "--split",
    type=click.Choice(["validation", "train"]),
    default="validation",
    show_default=True,
    help="Test images are reserved for `pneumoscope evaluate`.",
)
@click.option(
    "--images",
    type=click.IntRange(min=2),
    default=400,
    show_default=True,
    help="Size of the random sample, half of it with pneumonia.",
)
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
@click.option(
    "--operating-point", default="", metavar="NAME", help="Operating point on the model card.  [default: balanced]"
)
@click.option("--seed", default=0, show_default=True, help="Random seed of the sample.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for robustness.json and robustness.md.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
def command(
    target: Path,
    data: Path,
    split: str,
    images: int,
    phantoms: int,
    originals: Path | None,
    copies: Path | None,
    other_images: tuple[Path, ...],
    operating_point: str,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure how the predictions of RUN or BUNDLE react to changed images.

    File formats and resolutions should not change a decision; JPEG compression, rotation by 10 degrees and brightness
    should change few. Inverted, rotated, mirrored, cropped and blank images, phantoms and --other-images should be rejected.

    Example:  pneumoscope robustness runs/quick --data chest_xray --out robustness
    """
    from pneumoscope.cli.progress import staged_progress
    from pneumoscope.core.results import to_json
    from pneumoscope.evaluation.robustness import measure_robustness, robustness_markdown

    options = [
        *(["--split", split] if split != "validation" else []),
        *(["--images", str(images)] if images != 400 else []),
        *(["--phantoms", str(phantoms)] if phantoms != 50 else []),
        *(["--originals", str(originals)] if originals else []),
        *(["--copies", str(copies)] if copies else []),
        *(word for folder in other_images for word in ("--other-images", str(folder))),
        *(["--operating-point", operating_point] if operating_point else []),
        *(["--seed", str(seed)] if seed else []),
        *(["--out", str(out)] if out else []),
    ]
    with staged_progress() as progress:
        result = measure_robustness(
            target,
            data,
            split=split,
            images=images,
            phantoms=phantoms,
            operating_point=operating_point,
            originals=originals,
            copies=copies,
            other_images=other_images,
            seed=seed,
            out=out,
            command=shlex.join(["pneumoscope", "robustness", str(target), "--data", str(data), *options]),
            progress=progress,
        )
    click.echo(to_json(result) if as_json else robustness_markdown(result), nl=False)
