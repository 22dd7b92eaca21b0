"""`pneumoscope accept`: test a model at a hospital."""

from __future__ import annotations

from pathlib import Path

import click

from pneumoscope.cli.options import (
    json_option,
    margin_option,
    model_option,
    power_option,
    recorded_command,
    seed_option,
)

__all__ = ["command"]


@click.command("accept", short_help="Test a model on labeled images of your hospital.")
@click.argument("data", metavar="DATA", type=click.Path(path_type=Path))
@model_option
@click.option("--site", required=True, metavar="NAME", help="Name of the hospital or unit, for the profile.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for acceptance.md, acceptance.json and the profile site.json.",
)
@click.option(
    "--operating-point", default="balanced", show_default=True, metavar="NAME", help="Operating point of the verdict."
)
@margin_option
@power_option
@click.option(
    "--prevalence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Prevalence of pneumonia at the site.  [default: fraction of the images, right for consecutive images only]",
)
@seed_option
@json_option
def command(
    data: Path,
    bundle: Path | None,
    site: str,
    out: Path,
    operating_point: str,
    margin: float,
    power: float,
    prevalence: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Test a model on labeled images of your hospital, and write a site profile.

    DATA is a folder, a CSV with the columns path and label (such as DICOM files with their diagnoses), or an archive. The report
    states whether sensitivity, specificity and the fraction of accepted images are not inferior to the model card, how well
    the probabilities are calibrated, what was rejected, and subgroups. The profile has thresholds, calibration and limits for
    the site, each only if enough images support it: use it with --site in `predict`, `serve` and `evaluate`.

    Exit status: 0 whatever the verdict.

    Example:  pneumoscope accept labeled.csv --site "North Clinic" --out acceptance
    """
    from pneumoscope.cli.progress import image_progress
    from pneumoscope.core.results import to_json
    from pneumoscope.evaluation.acceptance import PROFILE_FILE, accept
    from pneumoscope.evaluation.acceptance_report import acceptance_markdown

    with image_progress("scoring images") as progress:
        result, _ = accept(
            data,
            bundle,
            site=site,
            out=out,
            operating_point=operating_point,
            margin=margin,
            target_power=power,
            prevalence=prevalence,
            seed=seed,
            command=recorded_command(),
            progress=progress,
        )
    click.echo(to_json(result) if as_json else acceptance_markdown(result), nl=False)
    click.echo(f"profile  {out / PROFILE_FILE}", err=True)
