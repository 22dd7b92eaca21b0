"""Faults of the real process: a full disk, a read-only directory, a lost model or image."""

import contextlib
import io
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tests.service.conftest import fetch, png, post, served, verified

from pneumoscope.service.storage import database
from pneumoscope.service.storage.database import DATABASE_FILE


def noise(size):
    """Return an image that does not compress."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size), np.uint8)).save(file, "PNG")
    return file.getvalue()


LARGE = noise(700)  # about 490 kB


class FullDisk:
    """A small disk mounted on the data directory, which only the process sees; needs root."""

    ready = 503

    def __init__(self, folder):
        self.folder = folder

    def within(self, options="size=4m"):
        if shutil.which("unshare") is None or shutil.which("nsenter") is None:
            pytest.skip("only Linux has mount namespaces")
        script = f'mount -t tmpfs -o {options} tmpfs "$0" && exec "$@"'
        tried = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, self.folder, "true"],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        if tried.returncode:
            pytest.skip(f"mounting needs root: {tried.stderr.strip()}")
        return ["unshare", "-m", "sh", "-c", script, self.folder]

    def begin(self, process):
        self.seen = type(self.folder)(f"/proc/{process.pid}/root{self.folder}")
        self.beside = ["nsenter", "-m", "-t", str(process.pid)]

    def leave(self, room):
        """Fill the disk up to a number of free bytes."""
        disk = os.statvfs(self.seen)
        with (self.seen / "filler").open("ab") as file:
            file.write(bytes(max(0, disk.f_bavail * disk.f_frsize - room)))

    def end(self):
        (self.seen / "filler").unlink()


class SmallFiles:
    """A limit on the size of the files that the process writes; needs no privileges."""

    beside = ()
    ready = 200  # the readiness check writes no large file

    def __init__(self, folder):
        self.folder = self.seen = folder

    def within(self):
        if not hasattr(resource, "prlimit"):
            pytest.skip("only Linux can limit a running process")
        return []

    def begin(self, process):
        self.process = process

    def leave(self, room):
        largest = max(
            path.stat().st_size for path in self.folder.rglob("*") if path.is_file() and path.name != "reserve"
        )
        self.limit(largest + room)

    def end(self):
        self.limit(resource.RLIM_INFINITY)

    def limit(self, size):
        _, most = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size if size >= 0 else most, most))


@pytest.mark.parametrize("kind", [FullDisk, SmallFiles])
def test_full_disk_leaves_no_partial_prediction_and_the_service_continues(bundle, tmp_path, kind):
    folder = tmp_path / "data"
    folder.mkdir()
    disk = kind(folder)
    with served(bundle, tmp_path, "--data-dir", str(folder), within=disk.within()) as (process, client):
        disk.begin(process)

        def stored():
            return sorted(
                path for name in ("blobs", "staging") for path in (disk.seen / name).rglob("*") if path.is_file()
            )

        (first,) = post(client, png())
        kept = stored()
        path = f"/v1/predictions/{first['id']}"
        assert len(kept) == 1

        disk.leave(64 * 1024)
        answer = client.post("/v1/predictions", files=[("images", ("large.png", LARGE))])
        assert (answer.status_code, answer.json()["code"]) == (503, "storage")
        assert "Retry-After" in answer.headers
        assert stored() == kept  # and no partly written file

        disk.leave(0)
        for response in (
            client.post("/v1/predictions", files=[("images", ("small.png", png(150)))]),
            client.put(f"{path}/review", json={"label": "pneumonia"}),
        ):
            assert (response.status_code, response.json()["code"]) == (503, "storage")
        assert stored() == kept
        assert fetch(client, first["id"]) == first
        assert client.get("/v1/predictions").json()["total"] == 1
        assert client.get("/readyz").status_code == disk.ready

        disk.end()
        assert client.post("/v1/predictions", files=[("images", ("large.png", LARGE))]).status_code == 201
        assert client.put(f"{path}/review", json={"label": "pneumonia"}).json()["reviews"][0]["label"] == "pneumonia"
        status, found = verified(tmp_path, "--data-dir", str(folder), within=disk.beside)
        assert (status, found["rows"], found["predictions"], found["images"]) == (0, 3, 2, 2)

        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        output = process.stderr.read()
    assert output.count("WARNING POST /v1/predictions 503 storage local") == 2
    assert ("Not ready: no space left" in output) == (disk.ready == 503)
    assert output.count("WARNING PUT /v1/predictions/{id}/review 503 storage local") == 1
    assert ".png" not in output


def test_deleting_works_on_a_full_disk_and_frees_it(bundle, tmp_path):
    """The reserve holds the journal of the deletion, and is filled again."""
    folder = tmp_path / "data"
    folder.mkdir()
    disk = FullDisk(folder)
    with served(bundle, tmp_path, "--data-dir", str(folder), within=disk.within("size=8m")) as (process, client):
        disk.begin(process)
        ids = [post(client, image)[0]["id"] for image in (LARGE, png(150))]
        for _ in range(2):
            disk.leave(0)
            assert client.post("/v1/predictions", files=[("images", ("new.png", png(90)))]).status_code == 503
            assert client.delete(f"/v1/predictions/{ids.pop()}").status_code == 204
        assert client.get("/v1/predictions").json()["total"] == 0
        assert [path for path in (disk.seen / "blobs").rglob("*") if path.is_file()] == []
        disk.end()
        assert client.post("/v1/predictions", files=[("images", ("new.png", png(90)))]).status_code == 201
        assert verified(tmp_path, "--data-dir", str(folder), within=disk.beside)[0] == 0


def test_requests_that_wait_for_a_locked_database_fail_together(bundle, tmp_path):
    """None of them waits for the failures of the others, and the service continues."""
    folder = tmp_path / "data"
    with served(bundle, tmp_path, "--data-dir", str(folder)) as (_, client):

        def send(gray):
            start = time.monotonic()
            answer = client.post("/v1/predictions", files=[("images", ("image.png", png(gray)))])
            return (answer.status_code, answer.json()["code"]), time.monotonic() - start

        with contextlib.closing(sqlite3.connect(folder / DATABASE_FILE)) as other, ThreadPoolExecutor(8) as threads:
            other.execute("BEGIN IMMEDIATE")
            sent = [threads.submit(send, 90 + each) for each in range(8)]
            answers, seconds = zip(*(each.result(60) for each in sent), strict=True)
        assert set(answers) == {(503, "storage")}
        # In turn, the last would wait for eight times the limit. A busy machine delays all, but not as much.
        assert max(seconds) < 8 * database._LOCK_SECONDS
        assert database._LOCK_SECONDS < 3
        assert [path for path in (folder / "staging").rglob("*") if path.is_file()] != []
        assert client.post("/v1/predictions", files=[("images", ("image.png", png()))]).status_code == 201


def ended(folder, *options, within=()):
    """Run a start that fails, and return its exit status and its message."""
    ran = subprocess.run(
        [*within, sys.executable, "-m", "pneumoscope", "serve", "--port", "0", *options],
        capture_output=True, text=True, cwd=folder, check=False, timeout=60,
    )  # fmt: skip
    return ran.returncode, ran.stderr


def test_read_only_data_directory_is_reported_at_the_start(bundle, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    within = []
    if os.getuid() == 0:  # root ignores file modes
        within = FullDisk(folder).within("ro")
    else:
        folder.chmod(0o500)
    status, output = ended(tmp_path, "--model", str(bundle), "--data-dir", str(folder), within=within)
    assert status == 1
    assert f"error: cannot lock '{folder / '.serving'}': " in output
    assert "Choose a writable folder" in output


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "network.onnx").unlink(), "network.onnx"),
        (lambda folder: (folder / "network.onnx").write_bytes(b"altered"), "network.onnx"),
        (lambda folder: shutil.rmtree(folder), "'model' does not exist"),
    ],
)
def test_lost_model_file_is_reported_at_the_next_start(bundle, tmp_path, damage, words):
    own = shutil.copytree(bundle, tmp_path / "model")
    with served(own, tmp_path) as (_, client):
        (before,) = post(client, png(100))
        damage(own)
        (after,) = post(client, png(150))
        assert (before["decision"], after["decision"]) == ("no_pneumonia", "pneumonia")
        assert client.get(f"/v1/predictions/{after['id']}/heatmap.png").status_code == 200
        assert client.get("/readyz").status_code == 200  # the self-test passes: the network is in memory
    status, output = ended(tmp_path, "--model", "model")
    assert status == 2
    assert words in output
    assert "Traceback" not in output


def test_lost_image_is_reported_and_can_be_posted_again(bundle, tmp_path):
    with served(bundle, tmp_path) as (_, client):
        lost, here = post(client, png(100), png(150))
        (tmp_path / "pneumoscope-data/blobs" / lost["image_sha256"][:2] / lost["image_sha256"]).unlink()
        answer = client.get(f"/v1/predictions/{lost['id']}/image.png")
        assert (answer.status_code, answer.json()["code"]) == (503, "storage")
        assert answer.json()["hint"] == "See the server log for the reason"
        assert fetch(client, lost["id"]) == lost
        assert client.get(f"/v1/predictions/{here['id']}/image.png").status_code == 200
        status, output = verified(tmp_path)
        assert (status, f"the image of prediction '{lost['id']}' is missing" in output) == (1, True)
        assert post(client, png(100)) == [{**lost, "path": "image 0.png"}]
        assert client.get(f"/v1/predictions/{lost['id']}/image.png").status_code == 200
    assert verified(tmp_path)[0] == 0
