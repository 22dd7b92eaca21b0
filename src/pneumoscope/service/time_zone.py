"""The time zone of the web interface. API, CSV and database stay in UTC."""

from __future__ import annotations

import os
import zoneinfo
from datetime import UTC, date, datetime, time
from pathlib import Path
from zoneinfo import ZoneInfo

from pneumoscope.core.errors import UsageError

__all__ = ["find_time_zone", "format_minute", "local_date", "start_of_day", "today"]

_UTC = ("Etc/UTC", "Etc/UCT", "Etc/Universal", "Etc/Zulu", "UCT", "Universal", "Zulu")  # other names of UTC
_LOCALTIME = Path("/etc/localtime")  # a link into the database of time zones on Linux and macOS


def find_time_zone(name: str, *, localtime: Path = _LOCALTIME) -> ZoneInfo:
    """Return a time zone by its IANA name; that of this machine if the name is empty, or UTC if it cannot be told.

    Args:
        name: IANA name, or empty.
        localtime: The file that states the time zone of this machine.
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
    """Return the time zone of this machine if it has a name in the IANA database, or None.

    The environment variable TZ comes first, as in the C library. A copied file, or a rule such as "CET-1CEST", has no name.
    """
    if "TZ" in os.environ:
        return _zone(os.environ["TZ"].removeprefix(":"))
    try:
        target = localtime.readlink().parts  # its target may be a link, too: the old name of a zone to its new one
    except OSError:
        return None
    return _zone("/".join(target[target.index("zoneinfo") + 1 :])) if "zoneinfo" in target else None


def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo("UTC" if name in _UTC else name)
    # OSError: a folder of the database, or a name that is too long. ValueError: a path.
    except (zoneinfo.ZoneInfoNotFoundError, OSError, ValueError):
        return None


def today(zone: ZoneInfo) -> date:
    """Return the date in a time zone now."""
    return datetime.now(zone).date()


def start_of_day(day: date, zone: ZoneInfo) -> datetime:
    """Return the time in UTC at which a day of a time zone begins; days have 23 or 25 hours when clocks change.

    If midnight is skipped, the day begins with the change; if it occurs twice, with the first of them.

    Raises:
        OverflowError: The time is before the year 1 or after the year 9999.
    """
    return datetime.combine(day, time(), zone).astimezone(UTC)


def local_date(timestamp: str, zone: ZoneInfo) -> date:
    """Return the date of an ISO 8601 time in a time zone."""
    return _local(timestamp, zone).date()


def format_minute(timestamp: str, zone: ZoneInfo) -> str:
    """Return an ISO 8601 time to the minute in a time zone, such as "2026-01-31 09:30".

    A time that occurs twice, when clocks are set back, has its offset from UTC: "2026-10-25 02:30+01:00".
    """
    local = _local(timestamp, zone)
    is_ambiguous = local.utcoffset() != local.replace(fold=1 - local.fold).utcoffset()
    text = local.isoformat(" ", "minutes")
    return text if is_ambiguous else text[: len("2026-01-31 09:30")]


def _local(timestamp: str, zone: ZoneInfo) -> datetime:
    return datetime.fromisoformat(timestamp).astimezone(zone)
