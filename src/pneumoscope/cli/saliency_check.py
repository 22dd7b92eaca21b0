"""`pneumoscope saliency-check`: test whether heatmaps show what the network uses."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

__all__ = ["command"]


@click.command("saliency-check", short_help="Test whether heatmaps show what the network uses.")
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
    default=100,
    show_default=True,
    help="Size of the random sample, half of it with pneumonia.",
)
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for saliency_check.json and saliency_check.md.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
def command(target: Path, data: Path, split: str, images: int, seed: int, out: Path | None, as_json: bool) -> None:
    """Test whether the heatmaps of RUN or BUNDLE show what the network uses.

    Deletion and insertion (Petsiuk 2018): blurring the important pixels should lower the score of the predicted class, and
    restoring them should raise it, more than with random heatmaps. Sanity check (Adebayo 2018): shuffling the weights should
    change the heatmaps.

    Needs the extra [train].

    Example:  pneumoscope saliency-check runs/quick --data chest_xray --out saliency
    """
    from pneumoscope.cli.progress import staged_progress
    from pneumoscope.core.results import to_json
    from pneumoscope.evaluation.saliency_check import check_saliency, saliency_markdown

    options = [
        *(["--split", split] if split != "validation" else []),
        *(["--images", str(images)] if images != 100 else []),
        *(["--seed", str(seed)] if seed else []),
        *(["--out", str(out)] if out else []),
    ]
    with staged_progress() as progress:
        result = check_saliency(
            target,
            data,
            split=split,
            images=images,
            seed=seed,
            out=out,
            command=shlex.join(["pneumoscope", "saliency-check", str(target), "--data", str(data), *options]),
            progress=progress,
        )
    click.echo(to_json(result) if as_json else saliency_markdown(result), nl=False)
