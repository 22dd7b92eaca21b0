"""`pneumoscope accept`: test a model at a hospital."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.data_options import label_options
from pneumoscope.cli.options import (
    assume_option,
    json_option,
    margin_option,
    model_option,
    power_option,
    recorded_command,
    require_age_option,
    seed_option,
)

if TYPE_CHECKING:
    from pneumoscope.core.prediction_codes import AgeRequirement, Assumption
    from pneumoscope.data.label_mapping import LabelMapping

__all__ = ["command"]


@click.command("accept", short_help="Test a model on labeled images of your hospital.")
@click.argument("data", metavar="DATA", type=click.Path(path_type=Path))
@label_options()
@model_option
@click.option(
    "--site-name",
    metavar="NAME",
    help="Name of the hospital or unit, for the profile; up to 64 characters.  [default: name of the folder DATA, or of the"
    " file without its extension]",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for acceptance.md, acceptance.json, images.csv and the profile site.json.",
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
@require_age_option("never")
@assume_option
@seed_option
@json_option
def command(
    data: Path,
    labels: LabelMapping | None,
    bundle: Path | None,
    site_name: str | None,
    out: Path,
    operating_point: str,
    margin: float,
    power: float,
    prevalence: float | None,
    require_age: AgeRequirement,
    assume: tuple[Assumption, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Test a model on labeled images of your hospital, and write a site profile.

    DATA is a folder of labeled images, a CSV with the columns path (of DICOM files, for example), label and patient, or an
    archive. The report shows whether sensitivity, specificity and the fraction of accepted images are non-inferior to the model
    card, how well the probabilities are calibrated, what was rejected, and subgroups. The profile has thresholds, calibration
    and limits for the site, each only if enough patients support it: use it with --site in `predict`, `serve`, `evaluate`,
    `archive score`, `monitor` and `robustness`.

    Exit status: 0 regardless of the verdict.

    Example:  pneumoscope accept labeled.csv --site-name "North Clinic" --out acceptance
    """
    from pneumoscope.cli.progress import image_progress
    from pneumoscope.core.result_forms import to_json
    from pneumoscope.evaluation.acceptance.accept import PROFILE_FILE, accept
    from pneumoscope.evaluation.acceptance.report import acceptance_markdown

    with image_progress("scoring images") as progress:
        result, _ = accept(
            data,
            bundle,
            site=site_name,
            out=out,
            labels=labels,
            operating_point=operating_point,
            margin=margin,
            target_power=power,
            prevalence=prevalence,
            require_age=require_age,
            assume=assume,
            seed=seed,
            command=recorded_command(),
            progress=progress,
        )
    click.echo(to_json(result) if as_json else acceptance_markdown(result), nl=False)
    click.echo(f"profile  {out / PROFILE_FILE}", err=True)
