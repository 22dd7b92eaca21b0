"""Queries see what is entered, once, and nothing else."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pytest
from tests.archive.archives import draw_images, run_cli, score, table
from tests.conftest import Maker
from tests.images import png

pytest.importorskip("duckdb", reason="DuckDB is not installed (the extra [archive])")

from pneumoscope.archive.archive_folder import ArchiveFolder
from pneumoscope.archive.query import query_archive
from pneumoscope.archive.table import COLUMNS
from pneumoscope.core.errors import UsageError


@pytest.fixture
def out(tmp_path: Path, bundle: Path) -> Path:
    score(draw_images(tmp_path / "it's images", 11), tmp_path / "it's an archive", bundle)
    return tmp_path / "it's an archive"


def test_the_views_have_the_rows_of_the_files(out: Path) -> None:
    rows = table(out)
    found = query_archive(out, "SELECT decision, count(*) FROM predictions GROUP BY decision").rows
    assert dict(found) == Counter(row["decision"] for row in rows)  # type: ignore[arg-type]
    names = query_archive(out, "SELECT row, source FROM images ORDER BY row").rows
    assert list(names) == [(row["row"], row["source"]) for row in rows]
    columns = query_archive(out, "SELECT * FROM predictions LIMIT 1").columns
    assert columns == (*COLUMNS, "model", "time", "current")


def test_the_name_of_a_folder_is_no_pattern_and_no_column(tmp_path: Path, out: Path) -> None:
    moved = tmp_path / "site=5" / "chest [1]*"
    moved.parent.mkdir()
    out.rename(moved)
    assert query_archive(moved, "SELECT count(*) FROM predictions").rows == ((11,),)
    columns = query_archive(moved, "SELECT * FROM images LIMIT 1").columns
    assert columns == ("row", "shard", "source", "size", "modified", "current")


def test_a_shard_that_is_not_entered_is_not_seen(out: Path) -> None:
    predictions = ArchiveFolder.open(out).find_set()
    lines = predictions.journal.read_bytes().splitlines(keepends=True)
    predictions.journal.write_bytes(b"".join(line for line in lines if b'"shard":1,' not in line))
    assert query_archive(out, "SELECT count(*) FROM predictions").rows == ((7,),)
    assert query_archive(out, "SELECT count(*) FROM images").rows == ((11,),)


def test_a_changed_image_has_one_current_row(tmp_path: Path, out: Path, bundle: Path) -> None:
    (tmp_path / "it's images" / "0003.png").write_bytes(png(199, height=40))
    score(tmp_path / "it's images", out, bundle)
    sql = "SELECT row, height, current FROM predictions WHERE source = '0003.png' ORDER BY row"
    assert query_archive(out, sql).rows == ((3, 19, False), (11, 40, True))


def test_models_are_joined_by_row_and_have_times(tmp_path: Path, out: Path, maker: Maker) -> None:
    other = maker.bundle(tmp_path / "other", name="other", gain=0.04)
    score(tmp_path / "it's images", out, other)
    sql = (
        "SELECT count(*), count(DISTINCT a.model || b.model), min(a.time) > '2026-01-01' FROM predictions a JOIN predictions b"
        " USING (row) WHERE a.model < b.model"
    )
    assert query_archive(out, sql).rows == ((11, 1, True),)


def test_an_archive_without_predictions_has_empty_views(out: Path) -> None:
    for path in (out / "sets").iterdir():
        path.unlink()
    assert query_archive(out, "SELECT * FROM predictions").rows == ()


def test_a_wrong_query_names_the_views(out: Path) -> None:
    with pytest.raises(UsageError, match=r"the query failed: .*nothing.*DESCRIBE predictions"):
        query_archive(out, "SELECT * FROM nothing")


@pytest.mark.slow
def test_the_command_prints_a_table_json_and_csv(out: Path) -> None:
    sql = "SELECT row, source, probability FROM predictions ORDER BY row"
    rows = table(out)
    printed = run_cli("query", out, sql, "--limit", "2")
    assert printed.stdout.splitlines()[0].split() == ["row", "source", "probability"]
    assert len(printed.stdout.splitlines()) == 3
    assert "Only the first 2 rows are shown" in printed.stderr
    document = json.loads(run_cli("query", out, sql, "--json").stdout)
    assert document["rows"] == [{name: row[name] for name in ("row", "source", "probability")} for row in rows]
    lines = list(csv.DictReader(io.StringIO(run_cli("query", out, sql, "--csv").stdout)))
    assert [line["source"] for line in lines] == [row["source"] for row in rows]
