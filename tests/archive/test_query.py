"""Queries see what is entered, once, and nothing else."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from tests.archive.archives import draw_images, query, run_cli, score, table
from tests.conftest import Maker
from tests.images import png

pytest.importorskip("duckdb", reason="DuckDB is not installed (the extra [archive])")

from pneumoscope.archive.archive_folder import ArchiveFolder
from pneumoscope.archive.table import COLUMNS
from pneumoscope.core.errors import UsageError


@pytest.fixture
def out(tmp_path: Path, bundle: Path) -> Path:
    score(draw_images(tmp_path / "it's images", 11), tmp_path / "it's an archive", bundle)
    return tmp_path / "it's an archive"


def test_the_views_have_the_rows_of_the_files(out: Path) -> None:
    rows = table(out)
    found = query(out, "SELECT decision, count(*) FROM predictions GROUP BY decision")[1]
    assert dict(found) == Counter(row["decision"] for row in rows)  # type: ignore[arg-type]
    names = query(out, "SELECT row, source FROM images ORDER BY row")[1]
    assert list(names) == [(row["row"], row["source"]) for row in rows]
    columns = query(out, "SELECT * FROM predictions LIMIT 1")[0]
    assert columns == (*COLUMNS, "model", "time", "runtime", "current")


def test_name_of_a_folder_is_neither_pattern_nor_column(tmp_path: Path, out: Path) -> None:
    moved = tmp_path / "site=5" / "chest [1]*"
    moved.parent.mkdir()
    out.rename(moved)
    assert query(moved, "SELECT count(*) FROM predictions")[1] == ((11,),)
    columns = query(moved, "SELECT * FROM images LIMIT 1")[0]
    assert columns == ("row", "shard", "source", "size", "modified", "current")


def test_a_shard_that_is_not_entered_is_not_seen(out: Path) -> None:
    predictions = ArchiveFolder.open(out).find_set()
    lines = predictions.journal.read_bytes().splitlines(keepends=True)
    predictions.journal.write_bytes(b"".join(line for line in lines if b'"shard":1,' not in line))
    assert query(out, "SELECT count(*) FROM predictions")[1] == ((7,),)
    assert query(out, "SELECT count(*) FROM images")[1] == ((11,),)


def test_a_changed_image_has_one_current_row(tmp_path: Path, out: Path, bundle: Path) -> None:
    (tmp_path / "it's images" / "0003.png").write_bytes(png(199, height=40))
    score(tmp_path / "it's images", out, bundle)
    sql = "SELECT row, height, current FROM predictions WHERE source = '0003.png' ORDER BY row"
    assert query(out, sql)[1] == ((3, 19, False), (11, 40, True))


def test_models_are_joined_by_row_and_have_times(tmp_path: Path, out: Path, maker: Maker) -> None:
    other = maker.bundle(tmp_path / "other", name="other", gain=0.04)
    score(tmp_path / "it's images", out, other)
    sql = (
        "SELECT count(*), count(DISTINCT a.model || b.model), min(a.time) > '2026-01-01' FROM predictions a JOIN predictions b"
        " USING (row) WHERE a.model < b.model"
    )
    assert query(out, sql)[1] == ((11, 1, True),)


def test_an_archive_without_predictions_has_empty_views(out: Path) -> None:
    for path in (out / "sets").iterdir():
        path.unlink()
    assert query(out, "SELECT * FROM predictions")[1] == ()


def test_a_wrong_query_names_the_views(out: Path) -> None:
    with pytest.raises(UsageError, match=r"the query failed: .*nothing.*DESCRIBE predictions"):
        query(out, "SELECT * FROM nothing")


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


def test_rows_are_computed_as_they_are_read_and_spill_to_no_folder_of_the_caller(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumoscope.archive.query import query_archive

    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    many = "SELECT a.range AS number FROM range(3_000_000) a, range(1_000_000) b"  # never fits in memory
    with query_archive(out, many) as result:
        assert all(0 <= number < 3_000_000 for (number,) in islice(result.rows, 5000))
        assert set(tmp_path.iterdir()) == before
    with query_archive(out, "SELECT current_setting('temp_directory')") as result:
        ((folder,),) = result.rows
        assert folder
        assert not Path(folder).is_relative_to(tmp_path)
    assert not Path(folder).exists()


def test_a_query_that_fails_in_the_middle_is_reported(out: Path) -> None:
    late = "SELECT CASE WHEN range < 100000 THEN range ELSE error('late') END FROM range(200000)"
    with pytest.raises(UsageError, match=r"the query failed: .*late"):
        query(out, late)


def test_json_is_one_document_also_without_rows(out: Path) -> None:
    document = json.loads(run_cli("query", out, "SELECT * FROM predictions WHERE false", "--json").stdout)
    assert document["rows"] == []
    assert "Not a medical device" in document["notice"]
