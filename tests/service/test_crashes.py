"""Kill a process at every step of adding, deleting, expiring and recovering, and start again.

`crash_steps` says what a step is. Each test moves on by one step until the operation ends without being killed.
"""

import signal

import httpx
import pytest
from tests.service.conftest import add, png, served, verified
from tests.service.crash_steps import add_images, delete_image, expire_images, images, recover, steps_until_killed

from pneumoscope.service.audit.verification import verify
from pneumoscope.service.storage.blob_store import FolderBlobStore, content_hash
from pneumoscope.service.storage.check import check_storage
from pneumoscope.service.storage.queries import Filter
from pneumoscope.service.storage.repository import PredictionRepository


def every_crash(operation, folder, database, before=lambda repository, number: None):
    """Crash at each step in turn; yield its number, the steps before it, and the repository that was opened after it.

    The repository, which has recovered from one crash, prepares the next one. The last turn is not killed.
    """
    repository = PredictionRepository(folder, database)
    for number in range(200):
        before(repository, number)
        repository.close()
        steps, killed = steps_until_killed(operation, folder, database, number)
        repository = PredictionRepository(folder, database)
        yield number, steps, repository
        if not killed:
            repository.close()
            return
    pytest.fail("the operation does not end")


def assert_consistent(repository, folder):
    """Check that the database, the blob store and the audit log agree, and return the repository."""
    found = repository.find(Filter(), limit=200).predictions
    held = {record.image_sha256 for record in found if not record.image_removed}
    assert {sha256 for sha256, _ in repository.storage.blobs.stored()} == held
    assert all(repository.image(record) for record in found if not record.image_removed)
    assert (repository.storage.orphaned, check_storage(folder, repository.engine).problems) == ({}, 0)
    verify(repository.engine, images=repository.storage.blobs)
    return found


def test_crash_while_adding_leaves_nothing_or_a_complete_prediction(tmp_path, database):
    folder = tmp_path / "data"

    def before(repository, number):
        """Let the audit log record that one of the images was deleted earlier."""
        repository.remove(add(repository, images(number)[1])[0].id, user="me")

    outcomes, seen = set(), set()
    for number, steps, repository in every_crash(add_images, folder, database, before):
        found = {record.image_sha256: record for record in assert_consistent(repository, folder)}
        there = [content_hash(image) in found for image in images(number)]
        for image in images(number):
            assert content_hash(image) not in found or repository.image(found[content_hash(image)]) == image
        assert all(there[int(step[-1])] for step in steps if step.startswith("answer"))
        assert there[0] == there[1]  # one transaction
        outcomes.add(tuple(there))
        seen.update(step.partition(" ")[0] for step in steps)
    assert outcomes == {(False, False), (True, True)}
    assert {"open", "half", "fsync", "rename", "INSERT", "commit", "committed", "answer"} <= seen


def test_crash_while_deleting_leaves_the_prediction_or_nothing(tmp_path, database):
    folder = tmp_path / "data"

    def before(repository, number):
        add(repository, b"image %d" % number)

    outcomes = []
    for number, steps, repository in every_crash(delete_image, folder, database, before):
        there = content_hash(b"image %d" % number) in {
            each.image_sha256 for each in assert_consistent(repository, folder)
        }
        assert not (there and any(step.startswith("answer") for step in steps))
        outcomes.append((there, "committed" in steps, "remove" in str(steps)))
    assert {(True, False, False), (False, True, False), (False, True, True)} <= set(outcomes)


def test_crash_while_expiring_leaves_no_expired_image(tmp_path, database):
    folder = tmp_path / "data"

    def before(repository, number):
        add(repository, b"image %d" % number)

    outcomes = set()
    for number, steps, repository in every_crash(expire_images, folder, database, before):
        found = {each.image_sha256: each for each in assert_consistent(repository, folder)}
        removed = found[content_hash(b"image %d" % number)].image_removed is not None
        assert removed or "answer" not in steps
        outcomes.add(removed)
    assert outcomes == {False, True}


def test_crash_while_recovering_is_recovered_from(tmp_path, database):
    folder = tmp_path / "data"

    def before(repository, number):
        """Make by hand what a crash can leave: to be completed, to be discarded, half written, and to be removed."""
        record, _ = add(repository, b"complete %d" % number)
        gone, _ = add(repository, b"gone %d" % number)
        repository.remove(gone.id, user="me")
        store = FolderBlobStore(folder)
        store.stage({gone.image_sha256: b"gone %d" % number})
        store.publish(gone.image_sha256)
        (folder / "blobs" / record.image_sha256[:2] / record.image_sha256).rename(
            folder / "staging" / record.image_sha256
        )
        (folder / "staging" / content_hash(b"discarded")).write_bytes(b"discarded")
        (folder / "staging" / f"{content_hash(b'half')}.part").write_bytes(b"ha")

    turns = 0
    for number, _, repository in every_crash(recover, folder, database, before):
        found = {record.image_sha256 for record in assert_consistent(repository, folder)}
        assert content_hash(b"complete %d" % number) in found
        turns += 1
    assert turns > 4


KILLED_BEFORE_THE_COMMIT = (
    "import os, signal; import pneumoscope.service.storage.additions as module;"
    "module.append = lambda *_: os.kill(os.getpid(), signal.SIGKILL);"
    "import pneumoscope.cli as cli; cli.main()"
)


def test_service_starts_after_a_crash_between_writing_an_image_and_committing_its_row(bundle, tmp_path):
    with served(bundle, tmp_path, program=["-c", KILLED_BEFORE_THE_COMMIT]) as (process, client):
        with pytest.raises(httpx.TransportError):
            client.post("/v1/predictions", files=[("images", ("a.png", png(100)))])
        assert process.wait(60) == -signal.SIGKILL
    assert len(list((tmp_path / "pneumoscope-data/staging").iterdir())) == 1
    with served(bundle, tmp_path) as (process, client):
        assert client.get("/v1/predictions").json()["total"] == 0
        process.terminate()
        assert process.wait(60) == 0
        assert "orphaned" not in process.stderr.read()
    files = [path for name in ("blobs", "staging") for path in (tmp_path / "pneumoscope-data" / name).rglob("*")]
    assert [path for path in files if path.is_file()] == []
    assert verified(tmp_path)[1]["rows"] == 0


def test_service_prints_its_address_before_it_warns_of_orphaned_files(bundle, tmp_path):
    store = FolderBlobStore(tmp_path / "pneumoscope-data")
    store.stage({content_hash(b"another database's"): b"another database's"})
    store.publish(content_hash(b"another database's"))
    with served(bundle, tmp_path) as (process, _):
        process.terminate()
        assert process.wait(60) == 0
        first, *rest = process.stderr.read().splitlines()
    assert first.startswith("http://127.0.0.1:")
    warning = "WARNING Found 1 orphaned file in blobs/ (no database record). See `pneumoscope storage check`"
    assert sum(line.endswith(warning) for line in rest) == 1
    assert store.get(content_hash(b"another database's"))
