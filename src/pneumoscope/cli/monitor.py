"""`pneumoscope monitor`: compare recent images with a site profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.options import assume_option, json_option, model_option, require_age_option

if TYPE_CHECKING:
    from pneumoscope.core.prediction_codes import AgeRequirement, Assumption

__all__ = ["ALARM", "command"]

ALARM = 4  # exit status


@click.command("monitor", short_help="Detect drift of recent images, without labels.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option(
    "--site",
    required=True,
    metavar="PROFILE",
    type=click.Path(path_type=Path),
    help="Site profile of `pneumoscope accept`.",
)
@model_option
@click.option(
    "--false-alarms",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Probability of at least one false alarm in all planned checks.",
)
@click.option(
    "--checks",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Planned number of checks, such as 12 a year.",
)
@require_age_option("never")
@assume_option
@click.option("--exit-code", is_flag=True, help="Exit with status 4 if there is an alarm.")
@json_option
def command(
    paths: tuple[str, ...],
    site: Path,
    bundle: Path | None,
    false_alarms: float,
    checks: int,
    require_age: AgeRequirement,
    assume: tuple[Assumption, ...],
    exit_code: bool,
    as_json: bool,
) -> None:
    """Compare recent images with those of a site profile: logits, rejections and image statistics.

    PATH is an image or a folder of images, such as those of the last month, one per patient. Drift is a reason to look for its
    cause: a new scanner, other processing, other patients. It does not show that the model is worse, and no drift does not
    show that it is not.

    Example:  pneumoscope monitor images/2026-11 --site acceptance/site.json --checks 12
    """
    from pneumoscope.cli.progress import image_progress, printable
    from pneumoscope.core.result_forms import to_json
    from pneumoscope.evaluation.acceptance.monitoring import monitor, monitoring_markdown
    from pneumoscope.inference.discovery import discover_images

    discovered = discover_images(paths)
    if discovered.skipped:
        click.echo(printable(discovered.skipped_summary()), err=True)
    with image_progress("scoring images") as progress:
        result = monitor(
            discovered.paths,
            site,
            bundle,
            false_alarms=false_alarms,
            checks=checks,
            require_age=require_age,
            assume=assume,
            progress=progress,
        )
    click.echo(to_json(result) if as_json else monitoring_markdown(result), nl=False)
    if exit_code and result.alarm:
        raise click.exceptions.Exit(ALARM)
