"""`pneumoscope check-data`: audit a labeled data set before training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.data_options import label_options
from pneumoscope.cli.options import json_option

if TYPE_CHECKING:
    from rich.table import Table

    from pneumoscope.data.check import DatasetAudit
    from pneumoscope.data.label_mapping import LabelMapping

__all__ = ["command"]


@click.command("check-data", short_help="Find leaks, duplicates and shortcuts in a data set.")
@click.argument("data", type=click.Path(path_type=Path))
@label_options()
@json_option
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write an HTML page with thumbnails.",
)
@click.option("--seed", default=0, show_default=True, help="Random seed of the cross-validation folds.")
def command(data: Path, labels: LabelMapping | None, as_json: bool, html: Path | None, seed: int) -> None:
    """Count images and patients; find patient leaks, duplicates and unreadable files; measure shortcuts.

    Unreadable files are listed. The HTML page embeds thumbnails of duplicate images, so treat it like DATA.
    """
    from rich.console import Console

    from pneumoscope.cli.progress import staged_progress
    from pneumoscope.core.result_forms import to_json
    from pneumoscope.data.check import check_data
    from pneumoscope.data.layouts import load_manifest

    with staged_progress() as progress:
        manifest = load_manifest(
            data, labels=labels, progress=lambda done, total: progress("listing images", done, total)
        )
        result = check_data(manifest, seed=seed, progress=progress)
    if html:
        from pneumoscope.core.files import write_atomically
        from pneumoscope.reporting.check_data_page import check_data_page

        write_atomically(html, check_data_page(result, manifest.root))
        click.echo(f"Wrote {html}", err=True)
    if as_json:
        click.echo(to_json(result), nl=False)
        return
    console = Console(markup=False)  # names may contain brackets
    for table in _tables(result):
        console.print(table)
        console.print()


def _tables(result: DatasetAudit) -> list[Table]:
    """Return the tables of counts, findings and shortcuts."""
    from rich.table import Table

    counts = Table("split", *next(iter(result.images.values())), *result.etiology_columns, "patients", title="Images")
    for name, images in result.images.items():
        etiology = [result.etiology[name][column] for column in result.etiology_columns]
        counts.add_row(name, *(f"{n:,}" for n in (*images.values(), *etiology, result.patients[name])))
    for column in counts.columns[1:]:
        column.justify = "right"

    near = result.near_duplicates
    across = sum(near.across.values())
    leak_rate = result.expected_leak_rate
    findings = Table("finding", "value", title="Findings")
    for pair, patients in result.patients_in_several_splits.items():
        findings.add_row(f"patients in {pair}", f"{patients:,}")
    findings.add_row("images without a known patient", f"{result.unknown_patients:,}")
    findings.add_row(
        "validation images whose patient is in training, if split by image",
        f"{leak_rate:.1%} expected" if leak_rate is not None else result.expected_leak_rate_reason,
    )
    findings.add_row("groups of byte-identical images", f"{result.exact_duplicate_groups:,}")
    findings.add_row("near-duplicate pairs", f"{near.pairs:,}, {across:,} of them across splits")
    findings.add_row("skipped files", f"{len(result.unreadable):,}")
    for file in result.unreadable[:10]:
        findings.add_row(f"  {file.path}", file.reason)
    if len(result.unreadable) > 10:
        findings.add_row(f"  and {len(result.unreadable) - 10} more", "list all with --json")
    for note in result.notes:
        findings.add_row("note", note)

    shortcuts = Table("control", "AUROC", "95% interval", title="Shortcuts (AUROC 0.5: no information)")
    for name, interval in result.shortcuts.items():
        if interval.value is None or interval.low is None or interval.high is None:
            shortcuts.add_row(name, "undefined", interval.reason)
        else:
            shortcuts.add_row(name, f"{interval.value:.3f}", f"{interval.low:.3f} to {interval.high:.3f}")
    return [counts, findings, shortcuts]
