"""Archives that grow, fail, fill the disk and have broken images."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.archive.archives import contents, draw_images, run_cli, score, score_command, table
from tests.conftest import Maker
from tests.images import dicom, png
from tests.processes import free_port

from pneumoscope import __version__, load_model
from pneumoscope.archive.archive_folder import ArchiveFolder
from pneumoscope.archive.progress import Progress
from pneumoscope.archive.readers import LocalReader
from pneumoscope.archive.verify import verify_archive
from pneumoscope.core.errors import StorageError, UsageError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images") / "images", 11)


@pytest.fixture
def source(tmp_path: Path, images: Path) -> Path:
    """A copy of the images, with their times."""
    return Path(shutil.copytree(images, tmp_path / "images"))


@pytest.fixture(scope="module")
def undisturbed(images: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    score(images, out, bundle)
    return contents(out)


def test_rows_are_the_predictions_of_predict(tmp_path: Path, source: Path, bundle: Path) -> None:
    score(source, tmp_path / "out", bundle)
    rows = table(tmp_path / "out")
    model = load_model(bundle)
    expected = [model.predict(path) for path in sorted(source.iterdir())]

    assert [row["row"] for row in rows] == list(range(11))
    for row, prediction, path in zip(rows, expected, sorted(source.iterdir()), strict=True):
        stated = prediction.to_row()
        assert row["source"] == path.name
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert row["bytes"] == path.stat().st_size
        same = set(stated) & set(row) - {"path"}
        assert len(same) > 25
        assert {name: row[name] for name in same} == {
            name: stated[name] if name in ("warnings", "model_site") else stated[name] or None for name in same
        }
    assert {row["decision"] for row in rows} >= {"pneumonia", "no_pneumonia", "rejected"}


def test_the_logit_gives_the_probability_and_rejected_images_have_neither(
    tmp_path: Path, source: Path, bundle: Path
) -> None:
    """The card's calibration is sigmoid(0.8 x logit + 0.1)."""
    import math

    score(source, tmp_path / "out", bundle)
    for row in table(tmp_path / "out"):
        if row["decision"] == "rejected":
            assert (row["logit"], row["probability"]) == (None, None)
        else:
            assert row["probability"] == pytest.approx(1 / (1 + math.exp(-0.8 * row["logit"] - 0.1)), rel=1e-12)


def test_header_fields_are_columns(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "images").mkdir()
    header = {
        "PatientAge": "004Y", "PatientSex": "F", "ViewPosition": "AP", "Manufacturer": "Acme  Ltd", "StationName": "Room 3",
        "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4", "StudyDate": "20190503", "PatientName": "Doe^Jane",
        "PatientID": "4711", "PatientBirthDate": "20150101",
    }  # fmt: skip
    (tmp_path / "images" / "a.dcm").write_bytes(dicom(130, **header))
    score(tmp_path / "images", tmp_path / "out", bundle)
    (row,) = table(tmp_path / "out")
    expected = {
        "age": 4.0, "patient_sex": "F", "view": "AP", "manufacturer": "ACME LTD", "station_name": "Room 3",
        "study_instance_uid": "1.2.3", "series_instance_uid": "1.2.4", "study_date": "2019-05-03", "study_year": 2019,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert not {"Doe", "Jane", "4711", "2015-01-01"} & {str(value) for value in row.values()}
    assert b"Jane" not in b"".join(contents(tmp_path / "out").values())


def test_without_identifiers_the_table_has_no_path_and_no_uid(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "images").mkdir()
    header = {"StudyInstanceUID": "1.2.34567", "StudyDate": "20190503", "StationName": "ROOM-3", "Manufacturer": "Acme"}
    (tmp_path / "images" / "Doe Jane.dcm").write_bytes(dicom(130, **header))
    score(tmp_path / "images", tmp_path / "out", bundle, identifiers=False)
    (row,) = table(tmp_path / "out")
    hidden = ("source", "study_instance_uid", "series_instance_uid", "sop_instance_uid", "study_date", "station_name")
    assert {name: row[name] for name in hidden} == dict.fromkeys(hidden)
    assert (row["study_year"], row["manufacturer"], row["row"]) == (2019, "ACME", 0)
    (file,) = (tmp_path / "out").glob("predictions/*/shard-*")
    for word in (b"Jane", b"1.2.34567", b"ROOM-3", b"2019-05"):
        assert word not in pq.ParquetFile(file).read().to_pandas().to_csv().encode()
    assert b"Jane" not in (tmp_path / "out" / "archive.log").read_bytes()


@pytest.mark.parametrize("identifiers", [True, False])
def test_without_identifiers_no_value_of_the_header_is_quoted(tmp_path: Path, bundle: Path, identifiers: bool) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.dcm").write_bytes(dicom(130, BodyPartExamined="JANE DOE"))
    score(tmp_path / "images", tmp_path / "out", bundle, identifiers=identifiers)
    (row,) = table(tmp_path / "out")
    assert row["rejection_code"] == "body_part_not_chest"
    assert ("JANE" in row["rejection_parameters"]) == identifiers


@pytest.mark.slow
def test_each_result_has_the_notice(tmp_path: Path, source: Path, bundle: Path) -> None:
    done = run_cli(*score_command(source, tmp_path / "out", bundle)[4:])
    notice = "Research and education software. Not a medical device."
    assert done.stdout.splitlines()[-1].startswith(notice)
    for path in (tmp_path / "out").rglob("shard-*"):
        assert pq.read_schema(path).metadata[b"notice"].decode().startswith(notice)
    assert notice in run_cli("status", tmp_path / "out").stdout
    assert json.loads(run_cli("status", tmp_path / "out", "--json").stdout)["sets"][0]["notice"].startswith(notice)


def test_a_second_run_scores_nothing(tmp_path: Path, source: Path, bundle: Path) -> None:
    assert score(source, tmp_path / "out", bundle).shards == 3
    before = contents(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("shard-*")}
    assert score(source, tmp_path / "out", bundle).shards == 0
    assert contents(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("shard-*")} == times


def test_only_new_images_of_a_grown_source_are_scored(tmp_path: Path, source: Path, bundle: Path) -> None:
    score(source, tmp_path / "out", bundle)
    before = contents(tmp_path / "out")
    draw_images(source, 3, first=100)
    (source / "0000-new.png").write_bytes(png(120))

    scored = score(source, tmp_path / "out", bundle)

    assert (scored.shards, scored.rows, scored.done) == (1, 15, 15)
    assert {name: content for name, content in contents(tmp_path / "out").items() if name in before} == before
    rows = table(tmp_path / "out")
    assert [row["row"] for row in rows] == list(range(15))
    assert [row["source"] for row in rows[11:]] == ["0000-new.png", "0100.png", "0101.png", "0102.png"]
    assert verify_archive(tmp_path / "out").problems == ()


def test_a_changed_image_is_a_new_row(tmp_path: Path, source: Path, bundle: Path) -> None:
    score(source, tmp_path / "out", bundle)
    (source / "0003.png").write_bytes(png(199, height=40))
    assert score(source, tmp_path / "out", bundle).rows == 12
    rows = [row for row in table(tmp_path / "out") if row["source"] == "0003.png"]
    assert [(row["row"], row["height"]) for row in rows] == [(3, 19), (11, 40)]


def test_another_model_or_operating_point_has_a_set_of_its_own(
    tmp_path: Path, source: Path, bundle: Path, maker: Maker
) -> None:
    other = maker.bundle(tmp_path / "other", name="other", gain=0.04)
    keys = {
        score(source, tmp_path / "out", bundle).key,
        score(source, tmp_path / "out", other).key,
        score(source, tmp_path / "out", bundle, model={"operating_point": "rule_out"}).key,
    }
    assert len(keys) == 3
    assert {each.key for each in ArchiveFolder.open(tmp_path / "out").sets()} == keys
    for key in keys:
        assert verify_archive(tmp_path / "out", key).problems == ()


def test_another_card_of_the_same_network_has_a_set_of_its_own(tmp_path: Path, source: Path, bundle: Path) -> None:
    """A model that is calibrated again has the same network file."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "network.onnx").write_bytes((bundle / "network.onnx").read_bytes())
    card = json.loads((bundle / "card.json").read_text())
    card["calibration"]["slope"] = 0.4
    (other / "card.json").write_text(json.dumps(card))
    assert score(source, tmp_path / "out", bundle).key != score(source, tmp_path / "out", other).key


@pytest.mark.slow
def test_another_shard_size_than_that_of_the_archive_is_refused(tmp_path: Path, source: Path, bundle: Path) -> None:
    score(source, tmp_path / "out", bundle)
    command = ["score", source, "--out", tmp_path / "out", "--model", bundle]
    done = run_cli(*command, "--shard-size", "8")
    assert done.returncode == 2
    assert "has shards of 4 images, not of 8. Leave out --shard-size" in done.stderr
    assert run_cli(*command).returncode == 0
    assert run_cli(*command, "--shard-size", "4").returncode == 0


@pytest.mark.slow
def test_software_that_was_upgraded_in_between_is_reported(
    tmp_path: Path, source: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pneumoscope.archive.scoring.runtime_version", lambda: "1.2.3")
        score(source, tmp_path / "out", bundle)
    (source / "0900.png").write_bytes(png(120))
    done = run_cli(*score_command(source, tmp_path / "out", bundle)[4:])
    assert "Other software scored 3 finished shards: pneumoscope 0.1.0, onnxruntime 1.2.3, cpu." in done.stderr
    import onnxruntime

    expected = (
        f"Scored by different software: pneumoscope {__version__}, onnxruntime 1.2.3, cpu: 3 shards;"
        f" pneumoscope {__version__}, onnxruntime {onnxruntime.__version__}, cpu: 1 shard"
    )
    assert expected in done.stdout
    assert expected in run_cli("status", tmp_path / "out").stdout
    assert expected in run_cli("verify", tmp_path / "out").stdout
    assert list(verify_archive(tmp_path / "out").runtimes.values()) == [3, 1]
    assert "different software" not in run_cli(*score_command(source, tmp_path / "fresh", bundle)[4:]).stdout


def test_a_gpu_that_is_missing_is_an_error_before_the_source_is_listed(
    tmp_path: Path, source: Path, bundle: Path
) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    done = run_cli(*score_command(source, tmp_path / "out", bundle, "--provider", "cuda")[4:])
    assert done.returncode == 2
    assert "the execution provider 'cuda' is not available: onnxruntime" in done.stderr
    assert not (tmp_path / "out").exists()


def test_progress_reaches_all_images(tmp_path: Path, source: Path, bundle: Path) -> None:
    seen: list[Progress] = []
    score(source, tmp_path / "out", bundle, watchers=[seen.append])
    assert [each.done for each in sorted(seen)] == [2, 4, 6, 8, 10, 11] or sorted(seen)[-1].done == 11
    assert {each.total for each in seen} == {11}
    log = (tmp_path / "out" / "archive.log").read_text().splitlines()
    assert len(log) == 3
    assert all("11 images" in line and "0 failed" in line for line in log)


def test_metrics_state_the_progress_and_name_no_image(tmp_path: Path, source: Path, bundle: Path) -> None:
    from urllib.request import urlopen

    from pneumoscope.archive.metrics import serve_metrics

    port = free_port()
    score(source, tmp_path / "out", bundle, watchers=[serve_metrics(port)])
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    assert "\npneumoscope_archive_images 11.0\n" in text
    assert "\npneumoscope_archive_images_failed 0.0\n" in text
    assert ".png" not in text
    with pytest.raises(UsageError, match=rf"cannot serve metrics on port {port}.*--metrics-port"):
        serve_metrics(port)


# --- sources that fail ---------------------------------------------------------------------------------------------------


def test_an_image_that_vanishes_is_a_row_with_its_reason(tmp_path: Path, source: Path, bundle: Path) -> None:
    (source / "images.txt").write_text("".join(f"{path.name}\n" for path in sorted(source.iterdir())))
    (source / "0002.png").unlink()
    scored = score(source / "images.txt", tmp_path / "out", bundle)
    row = table(tmp_path / "out")[2]
    assert scored.failed == 1
    assert (row["source"], row["failure_code"], row["failure_reason"]) == (
        "0002.png", "unreadable_image", "file_not_found",
    )  # fmt: skip
    assert (row["sha256"], row["decision"]) == (None, None)


def test_a_source_that_vanishes_stops_the_run_and_no_image_is_lost(
    tmp_path: Path, source: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(source, tmp_path / "undisturbed", bundle)
    read, gone = LocalReader.read, tmp_path / "gone"

    def read_until_unmounted(self: LocalReader, name: str) -> bytes:
        if name == "0005.png" and source.exists():
            source.rename(gone)
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(LocalReader, "read", read_until_unmounted)
        with pytest.raises(StorageError, match=r"missing or empty.*Finished shards are kept"):
            score(source, tmp_path / "out", bundle, workers=1)
    assert len(list((tmp_path / "out").glob("predictions/*/shard-*"))) == 1
    with pytest.raises(UsageError, match="does not exist"):
        score(source, tmp_path / "out", bundle)
    source.mkdir()  # the mount point
    with pytest.raises(StorageError, match="missing or empty"):
        score(source, tmp_path / "out", bundle)
    source.rmdir()
    gone.rename(source)
    score(source, tmp_path / "out", bundle)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


# --- disks that fill -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", range(1, 16))
def test_a_full_disk_stops_the_run_and_the_next_one_continues(
    tmp_path: Path,
    source: Path,
    bundle: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    """The disk is full at the synchronization of a number: of the archive, the listing, a shard or the journal."""
    fsync, calls = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call and Path(f"/proc/self/fd/{handle}").resolve().is_file():  # of folders, errors are ignored
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    messages = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        try:
            score(source, tmp_path / "out", bundle, workers=1)
        except StorageError as error:
            messages.append(str(error))
    assert all("No space left on device" in message for message in messages)
    assert calls >= call
    score(source, tmp_path / "out", bundle)
    assert verify_archive(tmp_path / "out").problems == ()
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_a_really_full_disk_has_exit_status_1_and_a_hint(tmp_path: Path, bundle: Path) -> None:
    source, disk = draw_images(tmp_path / "images", 40), tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk]
    mount = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if mount.returncode:
        pytest.skip(f"cannot mount a file system: {mount.stderr.strip()}")
    try:
        arguments = score_command(source, disk / "out", bundle)[4:]
        done = run_cli(*arguments)
        assert done.returncode == 1, done.stderr
        assert "No space left on device" in done.stderr
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True, timeout=60)
        assert run_cli(*arguments).returncode == 0
        assert verify_archive(disk / "out").problems == ()
        score(source, tmp_path / "undisturbed", bundle)
        assert contents(disk / "out") == contents(tmp_path / "undisturbed")
    finally:
        subprocess.run(["umount", disk], check=True, timeout=60)


# --- broken images -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_broken_hostile_and_other_files_are_rows_with_reasons_and_exit_status_3(tmp_path: Path, bundle: Path) -> None:
    source = draw_images(tmp_path / "images", 95)
    broken: dict[str, tuple[bytes, str]] = {
        "x-cut.png": (png(100)[:50], "pixels_not_decodable"),
        "x-empty.png": (b"", "empty_file"),
        "x-text.jpeg": (b"not an image", "not_an_image"),
        "x-zip.png": (b"PK\x03\x04" + bytes(40), "unsupported_file_type"),
        "x-bomb.bmp": (
            b"BM" + bytes(8) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
            + (60_000).to_bytes(4, "little") * 2 + b"\1\0\x18\0" + bytes(24),
            "decompression_bomb",
        ),
    }  # fmt: skip
    for name, (content, _) in broken.items():
        (source / name).write_bytes(content)
    (source / "readme.txt").write_text("not claimed to be an image")

    done = run_cli(*score_command(source, tmp_path / "out", bundle)[4:])

    assert done.returncode == 3, done.stderr
    assert "5 of 100 images could not be read" in done.stderr
    assert "Skipped 1 file. Not an image: 1 (readme.txt)" in done.stderr
    rows = {row["source"]: row for row in table(tmp_path / "out")}
    assert len(rows) == 100
    found = {name: row["failure_reason"] for name, row in rows.items() if row["decision"] is None}
    assert found == {name: reason for name, (_, reason) in broken.items()}
    assert json.loads(rows["x-text.jpeg"]["failure_parameters"]) == {"bytes": 12}
    assert rows["x-cut.png"]["sha256"] == hashlib.sha256(broken["x-cut.png"][0]).hexdigest()
    skipped = pq.read_table(tmp_path / "out" / "listing" / "skipped.parquet").to_pylist()
    assert [(Path(each["source"]).name, each["reason"]) for each in skipped] == [("readme.txt", "not an image")]
    # The same again: nothing is left to do, and the failures are still reported.
    again = run_cli(*score_command(source, tmp_path / "out", bundle)[4:])
    assert (again.returncode, "Finished before: 25 shards" in again.stderr) == (3, True)


# --- wrong use -----------------------------------------------------------------------------------------------------------


def test_another_source_in_the_same_folder_is_refused(tmp_path: Path, source: Path, bundle: Path) -> None:
    score(source, tmp_path / "out", bundle)
    other = draw_images(tmp_path / "others", 2)
    with pytest.raises(UsageError, match=r"has the results of '.*images', not of '.*others'"):
        score(other, tmp_path / "out", bundle)


def test_a_folder_with_other_files_is_refused(tmp_path: Path, source: Path, bundle: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"has other files and no archive\.json"):
        score(source, tmp_path / "out", bundle)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_source_without_images_is_refused(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match="no images found"):
        score(tmp_path / "images", tmp_path / "out", bundle)


def test_two_runs_at_a_time_are_refused(tmp_path: Path, source: Path, bundle: Path) -> None:
    refused: list[StorageError] = []

    def second(_: Any) -> None:
        with pytest.raises(StorageError, match="another process is scoring") as caught:
            score(source, tmp_path / "out", bundle)
        refused.append(caught.value)

    score(source, tmp_path / "out", bundle, on_listed=second)
    assert len(refused) == 1


def test_a_manifest_as_a_source_has_the_same_predictions_as_its_folder(
    tmp_path: Path, source: Path, bundle: Path
) -> None:
    names = [path.name for path in sorted(source.iterdir())]
    with (source / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *([name, "NORMAL"] for name in names)])
    score(source / "images.csv", tmp_path / "by manifest", bundle)
    (source / "images.csv").unlink()
    score(source, tmp_path / "by folder", bundle)
    assert table(tmp_path / "by manifest") == table(tmp_path / "by folder")
    assert Counter(row["failure_code"] for row in table(tmp_path / "by folder")) == {None: 11}


def test_scoring_imports_no_torch(tmp_path: Path, source: Path, bundle: Path) -> None:
    code = (
        "import sys; from pneumoscope.cli import cli, run_and_exit\n"
        "try: run_and_exit(cli, sys.argv[1:])\n"
        "finally: print(sorted(name for name in sys.modules if name in ('torch', 'ray', 'duckdb')))"
    )
    arguments = score_command(source, tmp_path / "out", bundle)[3:]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
