"""What befalls the real process: a full disk, a folder that cannot be written, a model whose file is lost while it serves."""

import io
import os
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tests.service.conftest import png, post, served, verified


def noise(size):
    """An image that no file format makes smaller."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size), np.uint8)).save(file, "PNG")
    return file.getvalue()


LARGE = noise(700)  # about 490 kB


class FullDisk:
    """A small disk of its own, in the place of the data folder, that only the process sees; needs root."""

    ready = 503

    def __init__(self, folder):
        self.folder = folder

    def within(self, options="size=4m"):
        if shutil.which("unshare") is None or shutil.which("nsenter") is None:
            pytest.skip("only Linux gives a process a disk of its own")
        script = f'mount -t tmpfs -o {options} tmpfs "$0" && exec "$@"'
        tried = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, self.folder, "true"],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        if tried.returncode:
            pytest.skip(f"no disk can be mounted here, as by root it can: {tried.stderr.strip()}")
        return ["unshare", "-m", "sh", "-c", script, self.folder]

    def begin(self, process):
        self.seen = type(self.folder)(f"/proc/{process.pid}/root{self.folder}")
        self.beside = ["nsenter", "-m", "-t", str(process.pid)]

    def leave(self, room):
        """Fill the disk but for so many bytes."""
        disk = os.statvfs(self.seen)
        with (self.seen / "filler").open("ab") as file:
            file.write(bytes(max(0, disk.f_bavail * disk.f_frsize - room)))

    def end(self):
        (self.seen / "filler").unlink()


class SmallFiles:
    """The system lets the process write no file beyond a size, as a quota would; needs nobody's leave."""

    beside = ()
    ready = 200  # no file as large as an image is tried

    def __init__(self, folder):
        self.folder = self.seen = folder

    def within(self):
        if not hasattr(resource, "prlimit"):
            pytest.skip("only Linux changes the limits of a process that runs")
        return []

    def begin(self, process):
        self.process = process

    def leave(self, room):
        largest = max(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        self.limit(largest + room)

    def end(self):
        self.limit(resource.RLIM_INFINITY)

    def limit(self, size):
        _, most = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size if size >= 0 else most, most))


@pytest.mark.parametrize("kind", [FullDisk, SmallFiles])
def test_where_there_is_no_room_nothing_is_kept_in_part_and_it_goes_on_when_there_is(bundle, tmp_path, kind):
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
        assert stored() == kept  # and nothing half-written beside it

        disk.leave(0)
        for asked in (
            client.post("/v1/predictions", files=[("images", ("small.png", png(150)))]),
            client.put(f"{path}/review", json={"agrees": True}),
        ):
            assert (asked.status_code, asked.json()["code"]) == (503, "storage")
        assert stored() == kept
        assert client.get(path).json() == first
        assert client.get("/v1/predictions").json()["total"] == 1
        assert client.get("/readyz").status_code == disk.ready

        disk.end()
        assert client.post("/v1/predictions", files=[("images", ("large.png", LARGE))]).status_code == 201
        assert client.put(f"{path}/review", json={"agrees": True}).json()["review"]["agrees"] is True
        status, found = verified(tmp_path, "--data-dir", str(folder), within=disk.beside)
        assert (status, found["rows"], found["predictions"], found["images"]) == (0, 3, 2, 2)

        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        said = process.stderr.read()
    assert said.count("WARNING POST /v1/predictions 503 storage local") == 2
    assert ("not ready: no space left" in said) == (disk.ready == 503)
    assert said.count("WARNING PUT /v1/predictions/{id}/review 503 storage local") == 1
    assert ".png" not in said


def ended(folder, *options, within=()):
    """What a start that fails comes to: exit status and words."""
    ran = subprocess.run(
        [*within, sys.executable, "-m", "pneumoscope", "serve", "--port", "0", *options],
        capture_output=True, text=True, cwd=folder, check=False, timeout=60,
    )  # fmt: skip
    return ran.returncode, ran.stderr


def test_a_folder_that_cannot_be_written_is_told_at_the_start(bundle, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    within = []
    if os.getuid() == 0:  # who may write wherever the disk itself does not forbid it
        within = FullDisk(folder).within("ro")
    else:
        folder.chmod(0o500)
    status, said = ended(tmp_path, "--model", str(bundle), "--data-dir", str(folder), within=within)
    assert status == 1
    assert f"error: cannot lock '{folder / '.serving'}': " in said
    assert "Choose a folder that can be written" in said


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "network.onnx").unlink(), "network.onnx"),
        (lambda folder: (folder / "network.onnx").write_bytes(b"altered"), "network.onnx"),
        (lambda folder: shutil.rmtree(folder), "'model' is not a bundle"),
    ],
)
def test_a_model_whose_file_is_lost_serves_on_and_is_missed_at_the_next_start(bundle, tmp_path, damage, words):
    own = shutil.copytree(bundle, tmp_path / "model")
    with served(own, tmp_path) as (_, client):
        (before,) = post(client, png(100))
        damage(own)
        (after,) = post(client, png(150))
        assert (before["decision"], after["decision"]) == ("no_pneumonia", "pneumonia")
        assert client.get(f"/v1/predictions/{after['id']}/heatmap.png").status_code == 200
        assert client.get("/readyz").status_code == 200  # it scores the golden image as its card says
    status, said = ended(tmp_path, "--model", "model")
    assert status == 2
    assert words in said
    assert "Traceback" not in said


def test_a_image_that_is_lost_is_told_and_the_others_are_there(bundle, tmp_path):
    with served(bundle, tmp_path) as (_, client):
        lost, here = post(client, png(100), png(150))
        (tmp_path / "pneumoscope-data/blobs" / lost["image_sha256"][:2] / lost["image_sha256"]).unlink()
        answer = client.get(f"/v1/predictions/{lost['id']}/image.png")
        assert (answer.status_code, answer.json()["code"]) == (503, "storage")
        assert "from a backup" in answer.json()["hint"]
        assert client.get(f"/v1/predictions/{lost['id']}").json() == lost
        assert client.get(f"/v1/predictions/{here['id']}/image.png").status_code == 200
        status, said = verified(tmp_path)
        assert (status, f"the image of record '{lost['id']}' is missing" in said) == (1, True)
        assert post(client, png(100)) == [{**lost, "path": "image 0.png"}]
        assert client.get(f"/v1/predictions/{lost['id']}/image.png").status_code == 200
    assert verified(tmp_path)[0] == 0
