"""Verification finds missing, altered and doubled shards, and names them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from tests.archive.archives import contents, draw_images, run_cli, score, table

from pneumoscope.archive.archive_folder import ArchiveFolder, PredictionSet
from pneumoscope.archive.journal import Entry, Runtime, StoredFile, append_entry, read_journal
from pneumoscope.archive.status import archive_status
from pneumoscope.archive.table import write_table
from pneumoscope.archive.verify import verify_archive
from pneumoscope.cli.archive_output import verification_error
from pneumoscope.core.errors import UnknownNameError, UsageError


@pytest.fixture
def out(tmp_path: Path, bundle: Path) -> Path:
    score(draw_images(tmp_path / "images", 11), tmp_path / "out", bundle)
    return tmp_path / "out"


@pytest.fixture
def predictions(out: Path) -> PredictionSet:
    return ArchiveFolder.open(out).find_set()


def problems(out: Path) -> list[tuple[int, str, int, int, int, int]]:
    return [tuple(problem)[:6] for problem in verify_archive(out).problems]  # type: ignore[misc]


def enter(predictions: PredictionSet, shard: int, content: bytes, rows: int) -> None:
    """Write a shard and enter it with the right hash, as a faulty program would."""
    import hashlib

    predictions.shard_path(shard).write_bytes(content)
    entry = Entry(
        shard=shard, rows=rows, failed=0, decisions={}, heatmaps=None, finished="", seconds=0,
        table=StoredFile(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)),
        runtime=Runtime(pneumoscope="", onnxruntime="", provider="cpu"),
    )  # fmt: skip
    append_entry(predictions.journal, entry)


def test_a_complete_archive_has_no_problems(out: Path) -> None:
    verified = verify_archive(out)
    assert (verified.rows, verified.found, verified.problems) == (11, 11, ())


def test_a_lost_file_is_named(out: Path, predictions: PredictionSet) -> None:
    predictions.shard_path(1).unlink()
    assert problems(out) == [(1, "lost", 4, 7, 4, 0)]
    assert verify_archive(out).found == 7


@pytest.mark.parametrize("place", [4, -1, 700])
def test_one_altered_byte_is_found(out: Path, predictions: PredictionSet, place: int) -> None:
    content = bytearray(predictions.shard_path(0).read_bytes())
    content[place] ^= 1
    predictions.shard_path(0).write_bytes(content)
    assert problems(out) == [(0, "altered", 0, 3, 4, 0)]
    assert [problem.path for problem in verify_archive(out).problems] == [str(predictions.shard_path(0))]


def test_a_shard_that_is_not_entered_is_not_scored(out: Path, predictions: PredictionSet) -> None:
    lines = predictions.journal.read_bytes().splitlines(keepends=True)
    predictions.journal.write_bytes(b"".join(line for line in lines if b'"shard":2,' not in line))
    assert problems(out) == [(2, "not_entered", 8, 10, 3, 0)]
    predictions.shard_path(2).unlink()
    assert problems(out) == [(2, "not_scored", 8, 10, 3, 0)]


def test_rows_that_are_missing_doubled_or_of_another_shard_are_counted(out: Path, predictions: PredictionSet) -> None:
    rows = table(out)
    enter(predictions, 0, write_table([rows[0], rows[1], rows[1], rows[3]]), 4)
    enter(predictions, 1, write_table(rows[8:11]), 3)
    assert problems(out) == [(0, "wrong_rows", 0, 3, 1, 1), (1, "wrong_rows", 4, 7, 4, 0)]


def test_a_shard_of_no_listed_image_is_named(out: Path, predictions: PredictionSet) -> None:
    enter(predictions, 7, write_table(table(out)[:2]), 2)
    assert problems(out) == [(7, "not_listed", -1, -1, 0, 2)]


def test_the_next_run_repairs_what_verify_tells_to_delete(tmp_path: Path, out: Path, bundle: Path) -> None:
    before = contents(out)
    predictions = ArchiveFolder.open(out).find_set()
    predictions.shard_path(0).write_bytes(b"altered")
    predictions.shard_path(1).unlink()
    assert score(tmp_path / "images", out, bundle).shards == 2
    assert contents(out) == before
    assert problems(out) == []
    assert len(read_journal(predictions.journal)) == 3


@pytest.mark.slow
def test_the_command_prints_each_problem_and_has_exit_status_1(out: Path, predictions: PredictionSet) -> None:
    assert run_cli("verify", out).returncode == 0
    predictions.shard_path(1).unlink()
    done = run_cli("verify", out)
    assert done.returncode == 1
    assert f"shard 1, rows 4 to 7: lost, {predictions.shard_path(1)}\n" in done.stdout
    assert "error: 4 of 11 images are missing, doubled or altered (1 shard)" in done.stderr
    document = json.loads(run_cli("verify", out, "--json").stdout)
    assert document["found"] == 7
    assert document["problems"][0]["code"] == "lost"
    assert document["problems"][0]["path"] == str(predictions.shard_path(1))


def test_an_unfinished_archive_is_distinguished_from_a_damaged_one(out: Path, predictions: PredictionSet) -> None:
    def message() -> str:
        return verification_error(verify_archive(out)).message

    lines = predictions.journal.read_bytes().splitlines(keepends=True)
    predictions.journal.write_bytes(b"".join(line for line in lines if b'"shard":2,' not in line))
    assert message() == "the archive is not finished: 2 of 3 shards are scored"
    predictions.shard_path(2).unlink()
    assert message() == "the archive is not finished: 2 of 3 shards are scored"
    predictions.shard_path(1).unlink()
    assert message() == (
        "4 of 11 images are missing, doubled or altered (1 shard); besides, the archive is not finished: 2 of 3 shards are"
        " scored"
    )


@pytest.mark.slow
def test_a_half_scored_archive_is_one_line_of_verify(tmp_path: Path, bundle: Path) -> None:
    source = draw_images(tmp_path / "images", 30)
    out = tmp_path / "out"
    score(source, out, bundle, shard_size=1, stopping=stopped())
    done = run_cli("verify", out)
    assert done.stdout.splitlines()[0] == "not_scored: 30 shards, 30 images"
    assert (done.returncode, done.stderr) == (
        1,
        "error: the archive is not finished: 0 of 30 shards are scored. Run the same `pneumoscope archive score` again to"
        " continue\n",
    )
    assert len(json.loads(run_cli("verify", out, "--json").stdout)["problems"]) == 30
    status = run_cli("status", out).stdout.splitlines()
    assert status[1].endswith(": 0 of 30 images scored")


def stopped() -> threading.Event:
    """Return the event of a run that is interrupted before its first shard."""
    event = threading.Event()
    event.set()
    return event


def test_status_counts_no_shard_whose_file_is_lost_or_cut(out: Path, predictions: PredictionSet) -> None:
    rows = table(out)
    predictions.shard_path(1).unlink()
    (each,) = archive_status(out).sets
    assert (each.done, each.shards) == (7, 2)
    decisions = [row["decision"] for row in rows[:4] + rows[8:]]
    assert each.decisions == {name: decisions.count(name) for name in set(decisions)}
    content = predictions.shard_path(0).read_bytes()
    predictions.shard_path(0).write_bytes(content[:-1])
    assert archive_status(out).sets[0].done == 3


def test_status_counts_from_the_journal(out: Path, predictions: PredictionSet) -> None:
    status = archive_status(out)
    (each,) = status.sets
    assert (status.rows, status.shards, each.done, each.shards, each.failed) == (11, 3, 11, 3, 0)
    decisions = [row["decision"] for row in table(out)]
    assert each.decisions == {name: decisions.count(name) for name in set(decisions)}
    document = json.loads(run_cli("status", out, "--json").stdout)
    assert document["sets"][0]["done"] == 11
    assert "11 of 11 images scored" in run_cli("status", out).stdout


def test_folder_without_an_archive_and_unknown_set_are_reported(tmp_path: Path, out: Path) -> None:
    with pytest.raises(UsageError, match=r"has no archive\.json"):
        verify_archive(tmp_path)
    with pytest.raises(UnknownNameError, match="there is no set of predictions '0123456789'"):
        verify_archive(out, "0123456789")


def test_rows_of_other_images_are_found_by_their_names(out: Path, predictions: PredictionSet) -> None:
    rows = table(out)
    rows[2]["source"], rows[3]["source"] = rows[3]["source"], rows[2]["source"]
    enter(predictions, 0, write_table(rows[:4]), 4)
    assert problems(out) == [(0, "wrong_rows", 0, 3, 2, 0)]
