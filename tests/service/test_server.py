"""The real process: started, asked, stopped and killed."""

import io
import itertools
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress

import httpx
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from tests.conftest import killed_after
from tests.service.conftest import TOKEN, png, served, verified


def post(client, *levels):
    return client.post("/v1/predictions", files=[("images", (f"{level}.png", png(level))) for level in levels])


def test_it_serves_stops_when_told_and_has_everything_when_it_starts_again(bundle, tmp_path):
    with served(bundle, tmp_path) as (process, client):
        assert client.get("/readyz").json() == {"status": "ok"}
        answers = post(client, 100, 150).json()["predictions"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "stopped" in process.stderr.read()
    status, found = verified(tmp_path)
    assert (status, found["rows"]) == (0, 2)
    with served(bundle, tmp_path) as (process, client):
        assert post(client, 150, 100).json()["predictions"] == answers[::-1]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert verified(tmp_path, "--expect-hash", found["last"]) == (0, found)


def test_killed_at_any_moment_it_has_all_that_it_answered_once_and_whole(bundle, tmp_path):
    answered = {}
    for turn in range(3):
        with served(bundle, tmp_path) as (process, client):
            answered |= {each["id"]: each for each in post(client, 80 + turn).json()["predictions"]}
            threading.Timer(0.1 + 0.2 * turn, process.kill).start()
            with suppress(httpx.TransportError):
                for size in itertools.count(64 + 1000 * turn):
                    answer = client.post("/v1/predictions", files=[("images", ("image.png", png(100, size)))])
                    answered |= {each["id"]: each for each in answer.json()["predictions"]}
    assert len(answered) >= 3
    with served(bundle, tmp_path) as (process, client):
        for key, said in answered.items():
            assert client.get(f"/v1/predictions/{key}").json() == said
            assert client.get(f"/v1/predictions/{key}/image.png").status_code == 200
        # One image may have been kept whose answer did not arrive any more, in each turn.
        total = client.get("/v1/predictions").json()["total"]
        assert len(answered) <= total <= len(answered) + 3
    assert verified(tmp_path)[1]["rows"] == total
    assert len(list((tmp_path / "pneumoscope-data/blobs").glob("*/*"))) == total


def test_what_was_taken_in_is_answered_when_it_is_told_to_stop(bundle, tmp_path):
    with served(bundle, tmp_path) as (process, client):
        found = []
        contents = [("images", (f"{size}.png", png(100, 1000 + size))) for size in range(48)]
        asked = threading.Thread(target=lambda: found.append(client.post("/v1/predictions", files=contents)))
        asked.start()
        deadline = time.monotonic() + 30
        while "waiting 0.0" in client.get("/metrics").text and asked.is_alive():
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        asked.join(30)
        assert process.wait(30) == 0
        assert len(found[0].json()["predictions"]) == 48
    assert verified(tmp_path)[1]["rows"] == 48


def test_who_does_not_take_an_answer_keeps_it_from_stopping_no_longer_than_that(bundle, tmp_path):
    """As it is started always, but that the time is short."""
    short = (
        "import pneumoscope.service.server as serve; serve._STOP_SECONDS = 1; import pneumoscope.cli as cli; cli.main()"
    )
    grain = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4000, 4000), np.uint8)).save(grain, "PNG")
    with served(bundle, tmp_path, program=["-c", short]) as (process, client):
        answer = client.post("/v1/predictions", files=[("images", ("grain.png", grain.getvalue()))])
        path = f"/v1/predictions/{answer.json()['predictions'][0]['id']}/image.png"
        with socket.socket() as slow:
            slow.settimeout(30)
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((client.base_url.host, client.base_url.port))
            slow.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            assert slow.recv(4) == b"HTTP"
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):  # it waits, and then no longer
                process.wait(0.5)
            assert process.wait(20) == 0
            assert "stopped" in process.stderr.read()
    assert verified(tmp_path)[1]["rows"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_before_it_serves_is_heeded(bundle, tmp_path, number):
    """As it is started always, but that uvicorn waits before it heeds signals by itself."""
    slow = (
        "import time, uvicorn; run = uvicorn.Server.run;"
        "uvicorn.Server.run = lambda *given, **options: (print('now', flush=True), time.sleep(2), run(*given, **options));"
        "import pneumoscope.cli as cli; cli.main()"
    )
    command = [sys.executable, "-c", slow, "serve", "--port", "0", "--model", str(bundle)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process,
        killed_after(60, process),
    ):
        assert process.stdout.readline() == "now\n"
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stderr.read().endswith("stopped\n")


def test_one_process_serves_a_folder(bundle, tmp_path):
    with served(bundle, tmp_path):
        ran = subprocess.run(
            [sys.executable, "-m", "pneumoscope", "serve", "--port", "0", "--model", str(bundle)],
            capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60,
        )  # fmt: skip
    assert ran.returncode == 2
    assert "another process serves 'pneumoscope-data'" in ran.stderr


def test_a_port_that_is_taken_is_told(bundle, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = subprocess.run(
            [sys.executable, "-m", "pneumoscope", "serve", "--model", str(bundle), "--port", str(taken.getsockname()[1])],
            capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60,
        )  # fmt: skip
    assert ran.returncode == 2
    assert re.search(
        r"cannot listen on 127.0.0.1, port \d+: Address already in use. Choose another with --port", ran.stderr
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "no token is asked"),
        (["--public-name", "images.clinic.example"], "no token is asked"),
        (["--public-name", "images.clinic.example:443", "--no-auth"], "no name of a host"),
        (["--public-name", "https://images.clinic.example", "--no-auth"], "without a port"),
        (["--keep", "99999w"], "is not an age"),
        (["--ephemeral", "--data-dir", "x"], "keeps nothing"),
        (["--token-file", "nowhere"], "cannot read the tokens"),
        (["--token-file", "tokens", "--no-auth"], "contradict"),
        (["--keep", "30"], "is not an age"),
        (["--database", "mysql://a/b"], "takes postgresql://"),
        (["--operating-point", "nowhere"], "there is no operating point"),
        (["--host", "nowhere.invalid", "--no-auth"], "Choose another with --host"),
        (["--host", "192.0.2.1", "--no-auth"], "Cannot assign requested address. Choose another with --host"),
        (["--host", 80 * "é", "--no-auth"], "Choose another with --host"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_made(bundle, tmp_path, options, words):
    ran = subprocess.run(
        [sys.executable, "-m", "pneumoscope", "serve", "--port", "0", "--model", str(bundle), *options],
        capture_output=True, text=True, cwd=tmp_path, check=False, timeout=30,
    )  # fmt: skip
    assert ran.returncode == 2
    assert words in ran.stderr
    assert not list((tmp_path / "pneumoscope-data").glob("*.sqlite"))


def test_on_an_address_that_others_reach_a_token_is_asked(bundle, tmp_path):
    (tmp_path / "tokens").write_text(f"me {TOKEN}\n")
    (tmp_path / "tokens").chmod(0o600)
    with served(bundle, tmp_path, "--token-file", "tokens", host="0.0.0.0") as (_, client):
        assert post(client, 100).status_code == 401
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        assert post(client, 100).status_code == 201


def test_an_ephemeral_service_leaves_nothing(bundle, tmp_path):
    with served(bundle, tmp_path, "--ephemeral") as (process, client):
        (found,) = post(client, 100).json()["predictions"]
        assert client.get(f"/v1/predictions/{found['id']}/image.png").status_code == 200
        process.terminate()
        process.wait(20)
    assert list(tmp_path.iterdir()) == []


def test_images_expire_while_it_serves(bundle, tmp_path):
    with served(bundle, tmp_path) as (_, client):
        (found,) = post(client, 100).json()["predictions"]
    with sqlite3.connect(tmp_path / "pneumoscope-data/pneumoscope.sqlite") as database:
        database.execute("UPDATE predictions SET created = '2020-01-01T00:00:00.000000Z'")
    with served(bundle, tmp_path, "--keep", "30d") as (_, client):
        for _ in range(50):
            if client.get(f"/v1/predictions/{found['id']}").json()["image_removed"]:
                break
            time.sleep(0.1)
        assert client.get(f"/v1/predictions/{found['id']}/image.png").status_code == 410
        assert client.get(f"/v1/predictions/{found['id']}").json()["probability"] == found["probability"]


def test_a_disk_that_cannot_be_written_is_told_and_it_goes_on_when_it_can(bundle, tmp_path):
    with served(bundle, tmp_path) as (_, client):
        images = tmp_path / "pneumoscope-data/blobs"
        post(client, 90)
        moved = images.rename(images.with_name("away"))
        images.write_bytes(b"")  # a file in the place of the folder: nothing can be written below it, by root either
        answer = post(client, 100)
        assert (answer.status_code, answer.json()["error"]) == (503, "StorageError")
        assert client.get("/v1/predictions").json()["total"] == 1
        images.unlink()
        moved.rename(images)
        assert post(client, 100).status_code == 201
    assert verified(tmp_path)[1]["rows"] == 2


def test_a_client_that_has_gone_is_not_scored_and_one_that_is_slow_is_cut(bundle, tmp_path):
    with served(bundle, tmp_path) as (process, client):
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as half:
            half.sendall(
                b"POST /v1/predictions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 9999\r\n\r\nab"
            )
        assert post(client, 100).status_code == 201
        assert client.get("/v1/predictions").json()["total"] == 1
        assert process.poll() is None


def test_a_head_without_end_is_cut(bundle, tmp_path):
    with served(bundle, tmp_path) as (_, client):
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as endless:
            endless.settimeout(20)
            sent, start = 0, time.monotonic()
            with suppress(ConnectionError):
                endless.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
                while time.monotonic() - start < 5:  # long before its 10 seconds are over
                    endless.sendall(b"X-%d: %s\r\n" % (sent, 1000 * b"a"))
                    sent += 1
            assert time.monotonic() - start < 5
        assert client.get("/healthz").status_code == 200


def test_nobody_else_may_look_into_its_folder(bundle, tmp_path):
    with served(bundle, tmp_path):
        assert stat.S_IMODE((tmp_path / "pneumoscope-data").stat().st_mode) == 0o700


def test_records_of_no_service_are_told(tmp_path):
    status, words = verified(tmp_path)
    assert (status, "there are no records in 'pneumoscope-data'" in words) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_trail_that_was_altered_is_told(bundle, tmp_path):
    with served(bundle, tmp_path) as (_, client):
        post(client, 100)
    with sqlite3.connect(tmp_path / "pneumoscope-data/pneumoscope.sqlite") as database:
        database.execute("DROP TRIGGER only_added_to_update")
        database.execute("UPDATE audit_log SET who = 'nobody'")
    status, words = verified(tmp_path)
    assert (status, "row 1 of the audit log was altered" in words) == (1, True)


def test_a_request_that_is_refused_leaves_a_line_on_standard_error(bundle, tmp_path):
    with served(bundle, tmp_path) as (process, client):
        client.get("/v1/predictions?decison=normal")
        client.get("/healthz")
        process.terminate()
        process.wait(20)
        said = process.stderr.read()
    line = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO GET /v1/predictions 422 UsageError local \d+ ms"
    assert len(re.findall(line, said)) == 1
    assert "decison" not in said
    assert "healthz" not in said


def test_the_server_logs_no_words_of_an_error_that_nobody_foresaw():
    """Whatever other library says it; in a process of its own, since a log is set once."""
    script = """
import logging, sys
from pneumoscope.service.server import _log_to_stderr
log = logging.getLogger("uvicorn.error")
log.addHandler(logging.StreamHandler())
log.propagate = False
_log_to_stderr()
for name in ("uvicorn.error", "sqlalchemy.pool.impl.QueuePool", "asyncio", "somebody.else"):
    try:
        raise KeyError(sys.argv[1])
    except KeyError as error:
        logging.getLogger(name).error("Exception in %s", sys.argv[1], exc_info=error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, "DOE^JANE"], capture_output=True, text=True, check=True, timeout=60
    )
    assert [line[-25:] for line in ran.stderr.splitlines()] == 3 * ["a fault of ours: KeyError"]


def test_what_a_library_in_c_writes_is_not_told(bundle, tmp_path):
    """libtiff writes a line for each row of a fax that is not as it should be, to the standard error of its process."""
    file = io.BytesIO()
    Image.new("1", (300, 400)).save(file, "TIFF", compression="group3")
    content = bytearray(file.getvalue())
    content[8:60] = b"\xa5" * 52
    with served(bundle, tmp_path) as (process, client):
        kind = {"Content-Type": "image/tiff"}
        assert client.post("/v1/predictions", content=bytes(content), headers=kind).status_code in {201, 422}
        process.terminate()
        process.wait(20)
        said = process.stderr.read()
    assert not re.search("(?i)fax|tiff|code word", said)
    assert said.endswith("stopped\n")


def test_what_a_library_says_of_a_image_is_not_told(bundle, tmp_path):
    """Pydicom warns about values that are not as they should be, and repeats them."""
    head, file = Dataset(), io.BytesIO()
    head.Modality = "DX"
    head.file_meta = FileMetaDataset()
    head.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    head.file_meta.MediaStorageSOPClassUID = "1.2.3"
    head.file_meta.MediaStorageSOPInstanceUID = "1.2.3456"
    head.save_as(file, enforce_file_format=True)
    content = file.getvalue().replace(str(ExplicitVRLittleEndian).encode(), b"1.2.840.DOE^JANE.1.")
    assert b"DOE" in content
    with served(bundle, tmp_path) as (process, client):
        kind = {"Content-Type": "application/dicom"}
        assert client.post("/v1/predictions", content=content, headers=kind).status_code == 422
        process.terminate()
        process.wait(20)
        said = process.stderr.read()
    assert "422 UnreadableImageError" in said
    assert "DOE" not in said
