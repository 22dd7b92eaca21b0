"""The time zone of the web interface. The API, CSV files and the database use UTC."""

from __future__ import annotations

import os
import zoneinfo
from datetime import UTC, date, datetime, time
from pathlib import Path
from zoneinfo import ZoneInfo

from pneumoscope.core.errors import UsageError

__all__ = ["find_time_zone", "format_minute", "local_date", "start_of_day", "today"]

_UTC = ("Etc/UTC", "Etc/UCT", "Etc/Universal", "Etc/Zulu", "UCT", "Universal", "Zulu")  # other names of UTC
_LOCALTIME = Path("/etc/localtime")  # a link into the time zone database on Linux and macOS


def find_time_zone(name: str, *, localtime: Path = _LOCALTIME) -> ZoneInfo:
    """Return a time zone by IANA name. For an empty name, return this machine's time zone, or UTC if it is unknown.

    Args:
        name: IANA name, or empty.
        localtime: Link to the machine's time zone.
    Raises:
        UsageError: There is no such time zone.
    """
    if not name:
        return _machine_time_zone(localtime) or ZoneInfo("UTC")
    zone = _zone(name)
    if zone is None:
        raise UsageError(
            f"there is no time zone {name[:64]!r}",
            hint="Pass a name of the IANA database, such as Europe/Berlin, Asia/Taipei or UTC",
        )
    return zone


def _machine_time_zone(localtime: Path) -> ZoneInfo | None:
    """Return this machine's time zone if it has a name in the IANA database, or None.

    As in the C library, the environment variable TZ takes precedence. A copied file, or a rule such as "CET-1CEST", has
    no name.
    """
    if "TZ" in os.environ:
        return _zone(os.environ["TZ"].removeprefix(":"))
    try:
        target = localtime.readlink().parts  # the target may also be a link, from a zone's old name to its new one
    except OSError:
        return None
    return _zone("/".join(target[target.index("zoneinfo") + 1 :])) if "zoneinfo" in target else None


def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo("UTC" if name in _UTC else name)
    # OSError: a folder of the database, or an overlong name. ValueError: a path.
    except (zoneinfo.ZoneInfoNotFoundError, OSError, ValueError):
        return None


def today(zone: ZoneInfo) -> date:
    """Return the current date in a time zone."""
    return datetime.now(zone).date()


def start_of_day(day: date, zone: ZoneInfo) -> datetime:
    """Return the UTC time at which a day begins in a time zone; days have 23 or 25 hours when clocks change.

    If midnight is skipped, the day begins with the change; if it occurs twice, with the first occurrence.

    Raises:
        OverflowError: The time is before year 1 or after year 9999.
    """
    return datetime.combine(day, time(), zone).astimezone(UTC)


def local_date(timestamp: str, zone: ZoneInfo) -> date:
    """Return the date of an ISO 8601 time in a time zone."""
    return _local(timestamp, zone).date()


def format_minute(timestamp: str, zone: ZoneInfo) -> str:
    """Return an ISO 8601 time to the minute in a time zone, such as "2026-01-31 09:30".

    If a time occurs twice because clocks are set back, the UTC offset is added: "2026-10-25 02:30+01:00".
    """
    local = _local(timestamp, zone)
    is_ambiguous = local.utcoffset() != local.replace(fold=1 - local.fold).utcoffset()
    text = local.isoformat(" ", "minutes")
    return text if is_ambiguous else text[: len("2026-01-31 09:30")]


def _local(timestamp: str, zone: ZoneInfo) -> datetime:
    return datetime.fromisoformat(timestamp).astimezone(zone)
