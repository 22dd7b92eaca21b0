"""Summaries of a prediction set's current rows: counts, rejections, scores by year and drift from the card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pneumoscope.archive.archive_folder import ArchiveFolder, PredictionSet, SetSettings
from pneumoscope.archive.query import connected
from pneumoscope.bundle.bundle_folder import read_card
from pneumoscope.core.errors import UndefinedMetricError
from pneumoscope.core.interval import Interval
from pneumoscope.statistics.agreement import cohen_kappa
from pneumoscope.statistics.drift import Drift, measure_drift

if TYPE_CHECKING:
    import duckdb

__all__ = ["ArchiveComparison", "ArchiveSummary", "GroupCount", "YearScores", "compare_sets", "summarize_set"]

_MAX_GROUPS = 30
_CURRENT = "FROM predictions WHERE current AND model = ?"


class GroupCount(NamedTuple):
    """Rejected images by reason and device.

    Attributes:
        code: Rejection code.
        manufacturer, station: Device according to the header; "" if missing.
        rejected: Number of images with this code.
        images: Number of readable images from this device.
    """

    code: str
    manufacturer: str
    station: str
    rejected: int
    images: int


class YearScores(NamedTuple):
    """Images of studies in one year.

    Attributes:
        year: Year of the studies; None if missing.
        images, accepted, pneumonia: Number of readable images, of those with a probability, and of those with the decision
            pneumonia.
        quantiles: 5th, 25th, 50th, 75th and 95th percentiles of the probability; None without accepted images.
    """

    year: int | None
    images: int
    accepted: int
    pneumonia: int
    quantiles: tuple[float, ...] | None


class ArchiveSummary(NamedTuple):
    """Summary of a prediction set.

    Attributes:
        key, settings: Name of the set, and the settings that affect its predictions.
        source: Location of the images.
        rows, scored: Number of current images listed, and how many of them are scored.
        decisions, failures: Number of images by decision, and of unreadable ones by reason.
        rejections: Rejected images by code and device, most frequent first.
        more_rejections: Number of groups omitted from `rejections`.
        years: Scores by year.
        drift: Drift of accepted images relative to the card's reference distribution; None if undefined.
        drift_reason: Reason if the drift is undefined; otherwise "".
    """

    key: str
    settings: SetSettings
    source: str
    rows: int
    scored: int
    decisions: tuple[tuple[str, int], ...]
    failures: tuple[tuple[str, int], ...]
    rejections: tuple[GroupCount, ...]
    more_rejections: int
    years: tuple[YearScores, ...]
    drift: Drift | None
    drift_reason: str


class ArchiveComparison(NamedTuple):
    """Comparison of two prediction sets on the same images.

    Attributes:
        a, b: Names of the sets.
        settings_a, settings_b: Settings that affect their predictions.
        images: Number of current images in both sets.
        agree: Number of images with the same decision, or unreadable in both.
        decisions: Number of images by the decisions of `a` and `b`; "failed" if unreadable.
        changed: Number of images that changed from no_pneumonia to pneumonia, and from pneumonia to no_pneumonia.
        kappa: Cohen's kappa of pneumonia against no_pneumonia, over images that both sets decide.
        difference: Mean and mean absolute difference of the probability, b minus a, over images accepted by both; None without
            any.
        drift_a, drift_b: Drift of accepted images relative to each card's reference distribution; None if undefined.
    """

    a: str
    b: str
    settings_a: SetSettings
    settings_b: SetSettings
    images: int
    agree: int
    decisions: tuple[tuple[str, str, int], ...]
    changed: tuple[int, int]
    kappa: Interval
    difference: tuple[float, float] | None
    drift_a: Drift | None
    drift_b: Drift | None


def summarize_set(path: Path, key: str = "") -> ArchiveSummary:
    """Return the summary of a prediction set.

    Args:
        path: Folder of the archive.
        key: Name or prefix of the set; empty for the only one.

    Raises:
        UsageError: The folder is not an archive, or has several sets.
    """
    folder = ArchiveFolder.open(path)
    chosen = folder.find_set(key)
    with connected(path) as connection:
        rejections = _rejections(connection, chosen.key)
        drift, reason = _drift(connection, chosen)
        decisions = _rows(
            connection,
            f"SELECT decision, count(*) {_CURRENT} AND decision IS NOT NULL GROUP BY ALL ORDER BY 2 DESC, 1",
            chosen.key,
        )
        failures = _rows(
            connection,
            f"SELECT coalesce(failure_reason, failure_code), count(*) {_CURRENT} AND decision IS NULL GROUP BY ALL"
            " ORDER BY 2 DESC, 1",
            chosen.key,
        )
        return ArchiveSummary(
            key=chosen.key,
            settings=chosen.settings,
            source=folder.settings.source,
            rows=_number(connection, "SELECT count(*) FROM images WHERE current"),
            scored=_number(connection, f"SELECT count(*) {_CURRENT}", chosen.key),
            decisions=tuple((name, count) for name, count in decisions),
            failures=tuple((name, count) for name, count in failures),
            rejections=rejections[:_MAX_GROUPS],
            more_rejections=max(0, len(rejections) - _MAX_GROUPS),
            years=_years(connection, chosen.key),
            drift=drift,
            drift_reason=reason,
        )


def compare_sets(path: Path, a: str, b: str) -> ArchiveComparison:
    """Compare two prediction sets image by image.

    Args:
        path: Folder of the archive.
        a, b: Names or prefixes of the sets.

    Raises:
        UsageError: The folder is not an archive.
        UnknownNameError: A set does not exist.
    """
    folder = ArchiveFolder.open(path)
    first, second = folder.find_set(a), folder.find_set(b)
    with connected(path) as connection:
        connection.execute(
            "CREATE TEMP TABLE pairs AS SELECT coalesce(a.decision, 'failed') AS a, coalesce(b.decision, 'failed') AS b,"
            " b.probability - a.probability AS difference FROM predictions a JOIN predictions b USING (row)"
            " WHERE a.model = ? AND b.model = ? AND a.current",
            [first.key, second.key],
        )
        decisions = tuple(
            (str(x), str(y), int(n))
            for x, y, n in _rows(connection, "SELECT a, b, count(*) FROM pairs GROUP BY ALL ORDER BY 3 DESC, 1, 2")
        )
        ((mean, absolute),) = _rows(connection, "SELECT avg(difference), avg(abs(difference)) FROM pairs")
        return ArchiveComparison(
            a=first.key,
            b=second.key,
            settings_a=first.settings,
            settings_b=second.settings,
            images=sum(n for _, _, n in decisions),
            agree=sum(n for x, y, n in decisions if x == y),
            decisions=decisions,
            changed=(
                sum(n for x, y, n in decisions if (x, y) == ("no_pneumonia", "pneumonia")),
                sum(n for x, y, n in decisions if (x, y) == ("pneumonia", "no_pneumonia")),
            ),
            kappa=_kappa(decisions),
            difference=None if mean is None else (float(mean), float(absolute)),
            drift_a=_drift(connection, first)[0],
            drift_b=_drift(connection, second)[0],
        )


def _kappa(decisions: Sequence[tuple[str, str, int]]) -> Interval:
    calls_a: list[bool] = []
    calls_b: list[bool] = []
    for a, b, count in decisions:
        if {a, b} <= {"pneumonia", "no_pneumonia"}:
            calls_a += [a == "pneumonia"] * count
            calls_b += [b == "pneumonia"] * count
    return cohen_kappa(calls_a, calls_b)


def _rejections(connection: duckdb.DuckDBPyConnection, key: str) -> tuple[GroupCount, ...]:
    rows = _rows(
        connection,
        "WITH readable AS (SELECT rejection_code, coalesce(manufacturer, '') AS manufacturer,"  # noqa: S608
        f" coalesce(station_name, '') AS station {_CURRENT} AND decision IS NOT NULL),"
        " devices AS (SELECT manufacturer, station, count(*) AS images FROM readable GROUP BY ALL)"
        " SELECT rejection_code, manufacturer, station, count(*) AS rejected, any_value(images)"
        " FROM readable JOIN devices USING (manufacturer, station) WHERE rejection_code IS NOT NULL"
        " GROUP BY rejection_code, manufacturer, station ORDER BY rejected DESC, 1, 2, 3",
        key,
    )
    return tuple(GroupCount(*row) for row in rows)


def _years(connection: duckdb.DuckDBPyConnection, key: str) -> tuple[YearScores, ...]:
    rows = _rows(
        connection,
        "SELECT study_year, count(*), count(probability), count(*) FILTER (decision = 'pneumonia'),"
        f" quantile_cont(probability, [0.05, 0.25, 0.5, 0.75, 0.95]) {_CURRENT} AND decision IS NOT NULL"
        " GROUP BY study_year ORDER BY study_year NULLS LAST",
        key,
    )
    return tuple(
        YearScores(year, images, accepted, pneumonia, None if quantiles is None else tuple(quantiles))
        for year, images, accepted, pneumonia, quantiles in rows
    )


def _drift(connection: duckdb.DuckDBPyConnection, chosen: PredictionSet) -> tuple[Drift | None, str]:
    """Return the drift of the accepted images, or None and the reason why it is undefined."""
    reference = read_card(chosen.card).reference_distribution
    if reference is None:
        return None, "the card has no reference distribution"
    sql = f"SELECT probability {_CURRENT} AND probability IS NOT NULL"
    probabilities = connection.execute(sql, [chosen.key]).fetchnumpy()["probability"]
    try:
        return measure_drift(probabilities, reference.deciles, reference.n), ""
    except UndefinedMetricError as error:
        return None, error.message


def _rows(connection: duckdb.DuckDBPyConnection, sql: str, *parameters: str) -> list[tuple[Any, ...]]:
    return connection.execute(sql, list(parameters)).fetchall()


def _number(connection: duckdb.DuckDBPyConnection, sql: str, *parameters: str) -> int:
    ((number,),) = _rows(connection, sql, *parameters)
    return int(number)
