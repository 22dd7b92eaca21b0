"""The real process: start, shutdown, crashes, options and its log."""

import io
import itertools
import platform
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from tests.processes import started
from tests.service.conftest import TOKEN, dicom, fetch, images, insert_token_of_service, png, served, verified

from pneumoscope.cli import cli, run_and_exit
from pneumoscope.core.errors import UsageError
from pneumoscope.service.server import open_listener


def post(client, *levels):
    return client.post("/v1/predictions", files=[("images", (f"{level}.png", png(level))) for level in levels])


def test_restart_keeps_everything(bundle, tmp_path):
    with served(bundle, tmp_path) as (process, client):
        assert client.get("/readyz").json() == {"status": "ok"}
        answers = post(client, 100, 150).json()["predictions"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Stopped" in process.stderr.read()
    status, found = verified(tmp_path)
    assert (status, found["rows"]) == (0, 2)
    with served(bundle, tmp_path) as (process, client):
        assert post(client, 150, 100).json()["predictions"] == answers[::-1]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert verified(tmp_path, "--expect-hash", found["last_hash"]) == (0, found)


def test_kill_loses_no_answered_prediction(bundle, tmp_path):
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
        for key, prediction in answered.items():
            assert fetch(client, key) == prediction
            assert client.get(f"/v1/predictions/{key}/image.png").status_code == 200
        # In each turn, one image may have been stored whose response did not arrive.
        total = client.get("/v1/predictions").json()["total"]
        assert len(answered) <= total <= len(answered) + 3
    assert verified(tmp_path)[1]["rows"] == total + len(answered)  # each was viewed
    assert len(list((tmp_path / "pneumoscope-data/blobs").glob("*/*"))) == total


def test_shutdown_answers_accepted_requests(bundle, tmp_path):
    with served(bundle, tmp_path) as (process, client):
        found = []
        contents = [("images", (f"{size}.png", png(100, 1000 + size))) for size in range(48)]
        request = threading.Thread(target=lambda: found.append(client.post("/v1/predictions", files=contents)))
        request.start()
        deadline = time.monotonic() + 30
        while "waiting 0.0" in client.get("/metrics").text and request.is_alive():
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        request.join(30)
        assert process.wait(60) == 0
        assert len(found[0].json()["predictions"]) == 48
    assert verified(tmp_path)[1]["rows"] == 48


def test_shutdown_does_not_wait_for_a_client_that_reads_nothing(bundle, tmp_path):
    """With a short shutdown timeout."""
    short = "import pneumoscope.service.server as server; server._ANSWER_SECONDS = 4; import pneumoscope.cli as cli; cli.main()"
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
            with pytest.raises(subprocess.TimeoutExpired):  # it waits for the client, up to the timeout
                process.wait(0.5)
            assert process.wait(60) == 0
            assert "Stopped" in process.stderr.read()
    assert verified(tmp_path)[1]["rows"] == 2  # predicted and viewed


def test_shutdown_does_not_wait_for_a_removal_that_hangs(bundle, tmp_path):
    """With a short timeout."""
    hang = (
        "import threading, pneumoscope.service.app as app, pneumoscope.cli as cli;"
        "from pneumoscope.service.storage.repository import PredictionRepository;"
        "app.CLOSE_SECONDS = 3;"
        "PredictionRepository.retry_failed = lambda self: threading.Event().wait(120);"
        "cli.main()"
    )
    with served(bundle, tmp_path, program=["-c", hang]) as (process, client):
        post(client, 100)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Stopped" in process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_before_the_server_runs_stops_it(bundle, tmp_path, number):
    """uvicorn is delayed before it installs its signal handlers."""
    slow = (
        "import time, uvicorn; run = uvicorn.Server.run;"
        "uvicorn.Server.run = lambda *given, **options: (print('now', flush=True), time.sleep(2), run(*given, **options));"
        "import pneumoscope.cli as cli; cli.main()"
    )
    command = [sys.executable, "-c", slow, "serve", "--port", "0", "--model", str(bundle)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(command, cwd=tmp_path, **pipes) as process:
        assert process.stdout.readline() == "now\n"
        process.send_signal(number)
        assert process.wait(60) == 0
        assert process.stderr.read().endswith("Stopped\n")


def test_second_process_on_a_data_directory_is_rejected(bundle, tmp_path):
    with served(bundle, tmp_path):
        ran = subprocess.run(
            [sys.executable, "-m", "pneumoscope", "serve", "--port", "0", "--model", str(bundle)],
            capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60,
        )  # fmt: skip
    assert ran.returncode == 2
    assert "another process serves 'pneumoscope-data'" in ran.stderr


def test_port_in_use_is_reported(bundle, tmp_path):
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


def failed_start(bundle, folder, *options):
    """Run a service that does not start, and return what it prints."""
    ran = subprocess.run(
        [sys.executable, "-m", "pneumoscope", "serve", "--port", "0", "--model", str(bundle), *options],
        capture_output=True, text=True, cwd=folder, check=False, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 2
    return ran.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--public-name", "images.clinic.example:443", "--no-auth"], "is not a host name"),
        (["--public-name", "https://images.clinic.example", "--no-auth"], "without a scheme"),
        (["--keep", "99999w"], "is not an age"),
        (["--ephemeral", "--data-dir", "x"], "cannot be combined"),
        (["--keep", "30"], "is not an age"),
        (["--operating-point", "nowhere"], "there is no operating point"),
    ],
)
def test_invalid_options_are_rejected_before_anything_is_created(bundle, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_and_exit(cli, ["serve", "--port", "0", "--model", str(bundle), *options])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--database", "mysql://a/b"], "takes postgresql://"),
        (["--host", 80 * "é", "--no-auth"], "Choose another with --host"),
    ],
)
def test_unusable_database_or_address_is_reported_before_a_database_is_created(bundle, tmp_path, options, words):
    assert words in failed_start(bundle, tmp_path, *options)
    assert not list((tmp_path / "pneumoscope-data").glob("*.sqlite"))


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("nowhere.invalid", "cannot listen on nowhere.invalid, port 0"),
        ("192.0.2.1", "Cannot assign requested address. Choose another with --host"),
    ],
)
def test_address_that_cannot_be_listened_on_is_an_error(host, words):
    with pytest.raises(UsageError) as caught, open_listener(host, 0):
        pass
    assert words in f"{caught.value.message}. {caught.value.hint}"


def test_public_address_requires_a_token(bundle, tmp_path):
    for options in (["--public-name", "images.clinic.example"], ["--host", "0.0.0.0", "--ephemeral"]):
        printed = failed_start(bundle, tmp_path, *options)
        assert f"Refusing to serve on {options[1]} without authentication" in printed
    insert_token_of_service(tmp_path, "me")
    with served(bundle, tmp_path, host="0.0.0.0") as (_, client):
        assert post(client, 100).status_code == 401
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        assert post(client, 100).status_code == 201
    with served(bundle, tmp_path, "--no-auth", host="0.0.0.0") as (_, client):
        assert post(client, 100).status_code == 201


def test_ephemeral_service_writes_no_file(bundle, tmp_path):
    with served(bundle, tmp_path, "--ephemeral") as (process, client):
        (found,) = post(client, 100).json()["predictions"]
        assert client.get(f"/v1/predictions/{found['id']}/image.png").status_code == 200
        process.terminate()
        process.wait(60)
    assert list(tmp_path.iterdir()) == []


def test_images_expire_while_the_service_runs(bundle, tmp_path):
    with served(bundle, tmp_path) as (_, client):
        (found,) = post(client, 100).json()["predictions"]
    with sqlite3.connect(tmp_path / "pneumoscope-data/pneumoscope.sqlite") as database:
        database.execute("UPDATE predictions SET created = '2020-01-01T00:00:00.000000Z'")
    with served(bundle, tmp_path, "--keep", "30d") as (_, client):
        deadline = time.monotonic() + 60
        while not client.get(f"/v1/predictions/{found['id']}").json()["image_removed"]:
            assert time.monotonic() < deadline, "the image is not removed"
            time.sleep(0.1)
        assert client.get(f"/v1/predictions/{found['id']}/image.png").status_code == 410
        assert client.get(f"/v1/predictions/{found['id']}").json()["probability"] == found["probability"]


def test_service_continues_when_the_disk_is_writable_again(bundle, tmp_path):
    with served(bundle, tmp_path) as (_, client):
        images = tmp_path / "pneumoscope-data/blobs"
        post(client, 90)
        moved = images.rename(images.with_name("away"))
        images.write_bytes(b"")  # a file instead of the folder: not even root can write below it
        answer = post(client, 100)
        assert (answer.status_code, answer.json()["code"]) == (503, "storage")
        assert client.get("/v1/predictions").json()["total"] == 1
        images.unlink()
        moved.rename(images)
        assert post(client, 100).status_code == 201
    assert verified(tmp_path)[1]["rows"] == 2


def test_disconnected_client_is_not_scored(bundle, tmp_path):
    with served(bundle, tmp_path) as (process, client):
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as half:
            half.sendall(
                b"POST /v1/predictions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 9999\r\n\r\nab"
            )
        assert post(client, 100).status_code == 201
        assert client.get("/v1/predictions").json()["total"] == 1
        assert process.poll() is None


def test_endless_header_is_rejected(bundle, tmp_path):
    with served(bundle, tmp_path) as (_, client):
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as endless:
            endless.settimeout(60)
            with suppress(ConnectionError):
                endless.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
                for number in range(32_000):  # more than the buffers of a connection hold
                    endless.sendall(b"X-%d: %s\r\n" % (number, 1000 * b"a"))
                pytest.fail("a header of 32 MB was read")
        assert client.get("/healthz").status_code == 200


def arenas(pid):
    """Return the number of glibc's memory arenas but the first: aligned regions of 64 MiB, of which the start is used."""
    size = 64 * 2**20
    maps = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    ranges = [(*(int(each, 16) for each in addresses.split("-")), access) for addresses, access, *_ in maps]
    return sum(
        access == "rw-p" and rest == "---p" and start % size == 0 and end == next_start and next_end == start + size
        for (start, end, access), (next_start, next_end, rest) in itertools.pairwise(ranges)
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the limit is one of glibc")
@pytest.mark.parametrize(("environment", "few"), [({}, True), ({"MALLOC_ARENA_MAX": "16"}, False)])
def test_threads_share_two_memory_arenas(bundle, tmp_path, monkeypatch, environment, few):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with served(bundle, tmp_path) as (process, client), ThreadPoolExecutor(8) as threads:
        for answer in threads.map(lambda level: post(client, level), range(90, 106)):
            assert answer.status_code == 201
        assert (arenas(process.pid) <= 1) == few


def test_data_directory_is_private(bundle, tmp_path):
    with served(bundle, tmp_path):
        assert stat.S_IMODE((tmp_path / "pneumoscope-data").stat().st_mode) == 0o700


def test_verification_without_a_database_is_an_error(tmp_path):
    status, words = verified(tmp_path)
    assert (status, "no database in 'pneumoscope-data'" in words) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_altered_audit_log_is_detected(bundle, tmp_path):
    with served(bundle, tmp_path) as (_, client):
        post(client, 100)
    with sqlite3.connect(tmp_path / "pneumoscope-data/pneumoscope.sqlite") as database:
        database.execute("DROP TRIGGER audit_log_append_only_update")
        database.execute("UPDATE audit_log SET user = 'another'")
    status, words = verified(tmp_path)
    assert (status, "row 1 of the audit log was altered" in words) == (1, True)


def test_failed_request_is_logged_on_standard_error(bundle, tmp_path):
    with served(bundle, tmp_path) as (process, client):
        client.get("/v1/predictions?decison=pneumonia")
        client.get("/healthz")
        process.terminate()
        process.wait(60)
        output = process.stderr.read()
    line = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO GET /v1/predictions 422 usage local \d+ ms"
    assert len(re.findall(line, output)) == 1
    assert "decison" not in output
    assert "healthz" not in output


def test_log_contains_no_message_of_an_unexpected_error():
    """In another process, because logging is configured once."""
    script = """
import logging, sys
from pneumoscope.service.server import _log_to_stderr
log = logging.getLogger("uvicorn.error")
log.addHandler(logging.StreamHandler())
log.propagate = False
_log_to_stderr()
for name in ("uvicorn.error", "sqlalchemy.pool.impl.QueuePool", "asyncio", "another.library"):
    try:
        raise KeyError(sys.argv[1])
    except KeyError as error:
        logging.getLogger(name).error("Exception in %s", sys.argv[1], exc_info=error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, "DOE^JANE"], capture_output=True, text=True, check=True, timeout=60
    )
    assert [line.partition("ERROR ")[2] or line for line in ran.stderr.splitlines()] == 3 * ["Internal error: KeyError"]


def test_output_of_c_libraries_is_not_logged(bundle, tmp_path):
    """libtiff writes a line for each invalid row of a fax to the standard error of its process."""
    file = io.BytesIO()
    Image.new("1", (300, 400)).save(file, "TIFF", compression="group3")
    content = bytearray(file.getvalue())
    content[8:60] = b"\xa5" * 52
    with served(bundle, tmp_path) as (process, client):
        kind = {"Content-Type": "image/tiff"}
        assert client.post("/v1/predictions", content=bytes(content), headers=kind).status_code in {201, 422}
        process.terminate()
        process.wait(60)
        output = process.stderr.read()
    assert not re.search("(?i)fax|tiff|code word", output)
    assert output.endswith("Stopped\n")


def test_warnings_of_decoders_are_not_logged(bundle, tmp_path):
    """pydicom repeats invalid values in its warnings."""
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
        process.wait(60)
        output = process.stderr.read()
    assert "422 unreadable_image" in output
    assert "DOE" not in output


def decision(client, **elements):
    response = client.post("/v1/predictions", files=images(dicom(**elements)))
    return response.json()["predictions"][0]["decision"]


HAND = {"PatientAge": "003Y", "BodyPartExamined": "HAND"}


def test_dicom_files_without_an_age_or_of_another_body_part_are_rejected_by_default(child_bundle, tmp_path):
    with served(child_bundle, tmp_path) as (process, client):
        assert (decision(client), decision(client, **HAND)) == ("rejected", "rejected")
        printed = process.stderr.read()
    assert "require age dicom\n" in printed
    assert "Assumed" not in printed


def test_assumptions_override_headers_of_all_images(child_bundle, tmp_path):
    with served(child_bundle, tmp_path, "--assume", "chest") as (process, client):
        assert decision(client, **HAND) == "no_pneumonia"
        assert "Assumed of all images: chest" in process.stderr.read()


def test_dicom_files_without_an_age_are_predicted_if_no_age_is_required(child_bundle, tmp_path):
    with served(child_bundle, tmp_path, "--require-age", "never") as (process, client):
        assert decision(client) == "no_pneumonia"
        assert "require age never\n" in process.stderr.read()


def test_configuration_file_requires_the_age_of_images_of_every_format(child_bundle, tmp_path):
    file = tmp_path / "dicom.toml"
    file.write_text('require_age = "always"\n')
    with served(child_bundle, tmp_path, "--dicom-config", str(file)) as (process, client):
        (found,) = client.post("/v1/predictions", files=images(png(100))).json()["predictions"]
        assert found["rejection"]["code"] == "age_required"
        assert "require age always\n" in process.stderr.read()
