"""`pneumoscope storage check`: orphaned, missing, damaged, unexpected and staged files are reported, and nothing is changed."""

import json
from datetime import timedelta

import pytest
from click.testing import CliRunner
from tests.service.conftest import add, png, post, served

from pneumoscope.cli import cli
from pneumoscope.core.errors import PartialFailureError, UsageError
from pneumoscope.service.storage.blob_store import FolderBlobStore, content_hash
from pneumoscope.service.storage.check import check_storage
from pneumoscope.service.storage.data_directory import data_directory_lock
from pneumoscope.service.storage.received_instances import ReceivedInstance
from pneumoscope.service.storage.repository import PredictionRepository


def check(folder, database, *options):
    """Run the command, and return its exit status, its standard output and its error message."""
    where = ["--data-dir", str(folder), *(["--database", database] if database else [])]
    result = CliRunner().invoke(cli, ["storage", "check", *where, *options])
    if result.exception and not isinstance(result.exception, PartialFailureError | UsageError):
        raise result.exception
    return getattr(result.exception, "exit_status", 0), result.stdout, str(result.exception or "")


def path_of(content):
    sha256 = content_hash(content)
    return f"blobs/{sha256[:2]}/{sha256}"


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".sqlite-shm"}


@pytest.fixture
def folder(tmp_path, database):
    """A data directory with two images."""
    repository = PredictionRepository(tmp_path / "data", database)
    for image in (b"first", b"second"):
        add(repository, image)
    repository.close()
    return tmp_path / "data"


def test_consistent_storage_has_exit_status_0(folder, database):
    status, out, message = check(folder, database)
    assert (status, out, message) == (0, "2 images checked, 0 problems found.\n", "")
    status, out, _ = check(folder, database, "--json")
    assert (status, json.loads(out)) == (
        0,
        {
            "consistent": True,
            "blobs": 2,
            "orphaned_files": [],
            "missing_blobs": [],
            "damaged_blobs": [],
            "unexpected_files": [],
            "staging_files": [],
            "missing_instances": [],
        },
    )


def test_every_kind_of_problem_is_reported_with_exit_status_3_and_nothing_is_changed(folder, database):
    store = FolderBlobStore(folder)
    store.stage({content_hash(b"orphaned"): b"orphaned"})
    store.publish(content_hash(b"orphaned"))
    store.stage({content_hash(b"staged"): b"staged"})
    (folder / path_of(b"first")).unlink()
    (folder / path_of(b"second")).write_bytes(b"damaged")
    (folder / "blobs" / "notes.txt").write_bytes(b"foreign")
    before = files(folder)

    status, out, message = check(folder, database, "--json")
    assert (status, json.loads(out)) == (
        3,
        {
            "consistent": False,
            "blobs": 2,
            "orphaned_files": [path_of(b"orphaned")],
            "missing_blobs": [path_of(b"first")],
            "damaged_blobs": [path_of(b"second")],
            "unexpected_files": ["blobs/notes.txt"],
            "staging_files": [f"staging/{content_hash(b'staged')}"],
            "missing_instances": [],
        },
    )
    assert message == f"the storage in {str(folder)!r} is not consistent: 5 problems"

    status, out, _ = check(folder, database)
    assert status == 3
    for kind in ("Orphaned files", "Missing blobs", "Damaged blobs", "Unexpected files", "Staging files"):
        assert f"{kind}: 1. " in out
    assert f"  {path_of(b'orphaned')}\n" in out
    assert out.endswith("2 images checked, 5 problems found.\n")
    if not database:
        del before[folder / "pneumoscope.sqlite"]
    assert {path: content for path, content in files(folder).items() if path in before} == before


def test_missing_and_damaged_files_of_waiting_instances_are_reported(tmp_path, database):
    repository = PredictionRepository(tmp_path / "data", database)
    contents = [b"missing", b"damaged", b"complete"]
    for content in contents:
        instance = ReceivedInstance("PACS", "PACS", "1.2", f"1.2.{len(content)}", "{}")
        repository.inbox.submit(instance, content, timedelta(0), "settings").result(60)
    repository.close()
    paths = [tmp_path / "data/inbox/staging" / content_hash(content) for content in contents]
    paths[0].unlink()
    paths[1].write_bytes(b"changed")
    status, out, message = check(tmp_path / "data", database, "--json")
    assert (status, "2 problems" in message) == (3, True)
    assert set(json.loads(out)["missing_instances"]) == {
        path.relative_to(tmp_path / "data").as_posix() for path in paths[:2]
    }


def test_start_removes_files_of_the_inbox_that_no_instance_waits_for(tmp_path, database):
    repository = PredictionRepository(tmp_path / "data", database)
    repository.inbox.submit(ReceivedInstance("PACS", "", "1.2", "1.3", "{}"), b"waits", timedelta(0), "s").result(60)
    repository.close()
    staging = tmp_path / "data/inbox/staging"
    (staging / content_hash(b"unknown")).write_bytes(b"unknown")
    (staging / f"{content_hash(b'partial')}.part").write_bytes(b"par")
    reopened = PredictionRepository(tmp_path / "data", database)
    assert [path.name for path in staging.iterdir()] == [content_hash(b"waits")]
    (waiting,) = reopened.inbox.ready(10)
    assert reopened.inbox.content(waiting) == b"waits"
    reopened.close()


def test_file_whose_removal_did_not_finish_is_orphaned_until_the_next_start(tmp_path, database):
    folder = tmp_path / "data"
    repository = PredictionRepository(folder, database)
    record, _ = add(repository, b"deleted")
    repository.remove(record.id, user="me")
    repository.storage.blobs.stage({record.image_sha256: b"deleted"})
    repository.storage.blobs.publish(record.image_sha256)
    assert check_storage(folder, repository.engine).orphaned_files == (path_of(b"deleted"),)
    with data_directory_lock(folder):  # a running service may be just removing it
        report = check_storage(folder, repository.engine)
    assert (report.orphaned_files, report.staging_files) == ((), None)
    repository.close()
    PredictionRepository(folder, database).close()
    assert check(folder, database)[0] == 0


def test_files_other_than_blobs_in_their_places_are_unexpected(folder, database):
    first = content_hash(b"first")
    foreign = [
        "blobs/.DS_Store",
        f"blobs/{first}",
        f"blobs/ff/{first}",
        f"{path_of(b'first')}.part",
        "blobs/old/1/a.png",
    ]
    for path in foreign:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"first")
    (folder / "blobs" / "empty").mkdir()
    (folder / "blobs" / ".probe").write_bytes(b"")  # the service's own, which it overwrites and removes
    with data_directory_lock(folder):  # a running service changes nothing
        status, out, _ = check(folder, database, "--json")
    report = json.loads(out)
    assert (status, report["unexpected_files"]) == (3, sorted(foreign))
    assert (report["orphaned_files"], report["missing_blobs"], report["damaged_blobs"]) == ([], [], [])


def test_storage_of_a_running_service_can_be_checked(bundle, tmp_path):
    with served(bundle, tmp_path) as (_, client):
        post(client, png(100))
        status, out, _ = check(tmp_path / "pneumoscope-data", "")
    assert status == 0
    assert "The service is running: the staging area and received images were not checked." in out


def test_name_in_the_staging_area_moves_no_cursor(folder, database):
    (folder / "staging" / "\x1b[2J").write_bytes(b"")
    status, out, _ = check(folder, database)
    assert (status, "\x1b" in out, r"staging/\x1b[2J" in out) == (3, False, True)


def test_directory_that_is_not_a_data_directory_is_rejected_and_not_created(tmp_path):
    status, out, message = check(tmp_path / "nowhere", "")
    assert (status, out) == (2, "")
    assert "is not a data directory of the service" in message
    assert list(tmp_path.iterdir()) == []
