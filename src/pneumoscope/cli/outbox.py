"""`pneumoscope outbox`: list, retry and cancel results waiting for other nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pneumoscope.cli.options import json_option
from pneumoscope.cli.service_database import open_service_database, service_database_options
from pneumoscope.core.errors import UsageError
from pneumoscope.core.messages import counted

if TYPE_CHECKING:
    from pneumoscope.service.storage.outbox_records import Delivery, DeliveryState

__all__ = ["command"]

_LIMIT = 10_000


@click.group("outbox", short_help="List, retry and cancel results for other nodes.")
def command() -> None:
    """List, retry and cancel the results that wait for a PACS or another node. The service may be running."""


def _selection_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        service_database_options,
        click.option("--all", "every", is_flag=True, help="All waiting results."),
        click.option("--destination", default="", metavar="NAME", help="Waiting results for this destination."),
        click.argument("numbers", nargs=-1, type=click.IntRange(1), metavar="[NUMBER]..."),
    ):
        function = option(function)
    return function


@command.command("list", short_help="List waiting results, or those in other states.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(["waiting", "delivered", "withdrawn", "cancelled"]),
    help="Results in this state; repeat for several.  [default: waiting]",
)  # fmt: skip
@click.option(
    "--uncommitted", is_flag=True,
    help="Instead, delivered results whose storage commitment is requested, but not confirmed.",
)  # fmt: skip
@service_database_options
@json_option
def list_command(
    states: tuple[DeliveryState, ...], uncommitted: bool, data_dir: Path | None, database: str, as_json: bool
) -> None:
    """Print results, oldest first: number, destination, object, failed attempts, time of the next attempt and last error.

    The columns state and storage commitment are shown only if their values differ, and the time of the delivery or cancellation
    only if there is one. Results of a study are listed below a line for the study, with the time of the prediction. Times are
    in UTC; a time in the past means as soon as possible.

    Example:  pneumoscope outbox list --data-dir records
    """
    from pneumoscope.service.storage.outbox import Outbox

    if states and uncommitted:
        raise UsageError("--uncommitted lists delivered results only", hint="Leave out --state")
    with open_service_database(data_dir, database) as (_, engine):
        outbox = Outbox(engine)
        found = outbox.find_uncommitted(_LIMIT) if uncommitted else outbox.find(states, _LIMIT)
    if as_json:
        click.echo(json.dumps({"results": [_document(each) for each in found]}, indent=2))
        return
    if not found:
        nothing = "No results in these states" if states else "No results are waiting. Use --state to list others"
        click.echo("No results lack storage commitment" if uncommitted else nothing, err=True)
        return
    _print_table(found)
    if len(found) == _LIMIT:
        click.echo(f"Only the first {_LIMIT} are shown", err=True)


def _print_table(found: Sequence[Delivery]) -> None:
    """Print results below a line for each study, which keeps the long study UID out of the table."""
    columns: dict[str, list[str]] = {
        "number": [str(each.number) for each in found],
        "destination": [each.destination for each in found],
        "object": [each.kind for each in found],
        "state": [each.state for each in found],
        "commitment": [each.commitment or "-" for each in found],
        "attempts": [str(each.attempts) for each in found],
        "next attempt": [_second(each.next_attempt) for each in found],
        "finished": [_second(each.finished) for each in found],
        "error": [each.error for each in found],
    }
    for name in ("state", "commitment"):
        if len(set(columns[name])) == 1:
            del columns[name]
    if set(columns["finished"]) == {"-"}:
        del columns["finished"]
    widths = [max(map(len, (name, *values))) for name, values in columns.items()]
    alignments = [">" if name in ("number", "attempts") else "<" for name in columns]

    def line(values: Iterable[str]) -> str:
        cells = zip(values, alignments, widths, strict=True)
        return "  ".join(f"{value:{alignment}{width}}" for value, alignment, width in cells).rstrip()

    click.echo(line(columns))
    earlier = None
    for each, *values in zip(found, *columns.values(), strict=True):
        study = f"study {each.study_instance_uid or '-'}, predicted {each.created[:16]}Z"
        if study != earlier:
            click.echo(study)
        earlier = study
        click.echo(line(values))


def _second(time: str | None) -> str:
    """Return an ISO 8601 time in UTC without fractions of a second, or "-" for None."""
    return f"{time[:19]}Z" if time else "-"


@command.command("retry", short_help="Send results now.")
@_selection_options
@click.option(
    "--delivered", is_flag=True, help="Resend delivered results that a destination lost, by NUMBER or --study."
)
@click.option(
    "--study", default="", metavar="UID", help="With --delivered: those in this study, optionally with --destination."
)
def retry_command(
    numbers: tuple[int, ...],
    destination: str,
    every: bool,
    data_dir: Path | None,
    database: str,
    delivered: bool,
    study: str,
) -> None:
    """Send results now: waiting ones and, by NUMBER, cancelled or uncommitted ones. See `outbox list`.

    With --delivered, send delivered results again, with the same UIDs and bytes. A result whose bytes would differ is not sent.

    Example:  pneumoscope outbox retry --destination PACS --data-dir records
    """
    from pneumoscope.service.storage.outbox import Outbox
    from pneumoscope.service.storage.resending import resend

    if delivered:
        if every or bool(numbers) == bool(study) or (numbers and destination):
            raise UsageError(
                "select delivered results", hint="Pass numbers, or --study UID, perhaps with --destination"
            )
    elif study:
        raise UsageError("--study selects delivered results", hint="Add --delivered")
    else:
        _require_selection(numbers, destination, every)
    with open_service_database(data_dir, database) as (_, engine):
        time = datetime.now(UTC)
        if delivered:
            count = resend(engine, numbers, study, destination, time=time)
        else:
            count = Outbox(engine).retry(numbers, destination, time=time)
    click.echo(f"{counted(count, 'result')} due now", err=True)


@command.command("cancel", short_help="Cancel waiting results.")
@_selection_options
def cancel_command(
    numbers: tuple[int, ...], destination: str, every: bool, data_dir: Path | None, database: str
) -> None:
    """Cancel waiting results, by NUMBER, destination or all. `outbox retry NUMBER` reverts a cancellation.

    Example:  pneumoscope outbox cancel 17 --data-dir records
    """
    from pneumoscope.service.storage.outbox import Outbox

    _require_selection(numbers, destination, every)
    with open_service_database(data_dir, database) as (_, engine):
        count = Outbox(engine).cancel(numbers, destination, time=datetime.now(UTC))
    click.echo(f"Cancelled {counted(count, 'result')}", err=True)


def _require_selection(numbers: tuple[int, ...], destination: str, every: bool) -> None:
    if bool(numbers) + bool(destination) + every != 1:
        raise UsageError("select results", hint="Pass numbers, or --destination NAME, or --all")


def _document(delivery: Delivery) -> dict[str, Any]:
    """Return a result as a dictionary without patient identifiers."""
    names = (
        "number", "destination", "study_instance_uid", "kind", "state", "attempts", "next_attempt", "error", "created",
        "finished", "commitment_requested",
    )  # fmt: skip
    values = {"commitment": delivery.commitment or None, "prediction_id": delivery.subject.prediction_id}
    return {name: getattr(delivery, name) for name in names} | values
