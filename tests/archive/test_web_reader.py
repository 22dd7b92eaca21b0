"""A DICOMweb server as a source: a real Orthanc that stops in the middle, and a server that answers 503 and nonsense."""

from __future__ import annotations

import http.server
import io
import json
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl

import httpx
import numpy as np
import pydicom
import pytest
from tests.archive.archives import contents, run_cli, score_command, table
from tests.images import dicom
from tests.orthanc import DEADLINE, USER, Orthanc

pytest.importorskip("dicomweb_client", reason="dicomweb-client is not installed (the extra [archive])")

from pneumoscope.archive import readers, web_reader
from pneumoscope.archive.report import write_report
from pneumoscope.archive.score import Scored, score_archive
from pneumoscope.archive.sources import open_source
from pneumoscope.archive.verify import verify_archive
from pneumoscope.core.errors import StorageError, UnreadableImageError, UsageError
from pneumoscope.dicomweb import session

ARCHIVE_DATE = "20190503"


def instance(number: int, *, modality: str = "DX", date: str = ARCHIVE_DATE) -> bytes:
    """Return an instance of a new study; every third study has a second instance."""
    study = number - (number % 3 == 2)
    return dicom(
        60 + 11 * number % 140, StudyInstanceUID=f"1.2.{study}", SeriesInstanceUID=f"1.2.{study}.1",
        SOPInstanceUID=f"1.2.{study}.1.{number}", StudyDate=date, Modality=modality, PatientID=f"{study}",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_DELAYS", (0.0, 0.0))
    web_reader._local.__dict__.clear()


@pytest.fixture
def orthanc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Orthanc:
    """An Orthanc that is not running yet; the environment has its password."""
    (tmp_path / "password").write_text(USER[1])
    monkeypatch.setenv("PNEUMOSCOPE_DICOMWEB_USER", USER[0])
    monkeypatch.setenv("PNEUMOSCOPE_DICOMWEB_PASSWORD_FILE", str(tmp_path / "password"))
    return Orthanc(tmp_path / "orthanc", plugin=True)


def fill(orthanc: Orthanc, files: dict[str, bytes], folder: Path) -> None:
    """Store files in Orthanc, in another order than that of their UIDs, and in a folder."""
    folder.mkdir()
    for name, content in reversed(files.items()):
        (folder / name).write_bytes(content)
        response = httpx.post(f"{orthanc.url}/instances", auth=USER, content=content, timeout=DEADLINE)
        assert response.is_success, response.text


def search(orthanc: Orthanc, query: str = "studies") -> str:
    return f"dicomweb+{orthanc.url}/dicom-web/{query}"


def score_web(location: str, out: Path, bundle: Path) -> Scored:
    return score_archive(open_source(location), out, model={"bundle": bundle}, shard_size=4, workers=1)


@pytest.mark.slow
@pytest.mark.pacs
def test_a_pacs_that_stops_in_the_middle_is_continued_to_the_predictions_of_its_files(
    tmp_path: Path, orthanc: Orthanc, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{number:03d}.dcm": instance(number) for number in range(10, 23)}
    with orthanc.running():
        fill(orthanc, files, tmp_path / "files")
        score_web(search(orthanc), tmp_path / "undisturbed", bundle)
        names = [row["source"] for row in table(tmp_path / "undisturbed")]
    assert names == sorted(names)
    assert len(names) == 13
    score_archive(open_source(str(tmp_path / "files")), tmp_path / "local", model={"bundle": bundle}, shard_size=4)
    assert same_predictions(tmp_path / "undisturbed") == same_predictions(tmp_path / "local")

    read, count = web_reader.WebReader.read, 0
    with orthanc.running() as running:

        def read_until_it_stops(self: web_reader.WebReader, name: str) -> bytes:
            nonlocal count
            count += 1
            if count == 6:
                running.post("/tools/shutdown", {})
                while True:
                    try:
                        httpx.get(f"{running.url}/system", auth=USER, timeout=DEADLINE)
                    except httpx.TransportError:
                        break
            return read(self, name)

        with monkeypatch.context() as patch:
            patch.setattr(web_reader.WebReader, "read", read_until_it_stops)
            with pytest.raises(StorageError, match=r"does not answer: .*Finished shards are kept"):
                score_web(search(orthanc), tmp_path / "out", bundle)
    assert verify_archive(tmp_path / "out").found == 4
    with pytest.raises(StorageError, match=r"missing or empty|does not answer"):
        score_web(search(orthanc), tmp_path / "out", bundle)
    with orthanc.running():
        assert score_web(search(orthanc), tmp_path / "out", bundle).failed == 0
        page = write_report(tmp_path / "out", tmp_path / "report.html", thumbnails=2).read_text()
    assert page.count("data:image/jpeg") == 2
    assert verify_archive(tmp_path / "out").problems == ()
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def same_predictions(out: Path) -> dict[str, tuple[object, ...]]:
    """Return what does not depend on the way of an image, by its instance."""
    columns = ("decision", "probability", "logit", "pixel_sha256", "rejection_code", "study_date")
    return {row["sop_instance_uid"]: tuple(row[column] for column in columns) for row in table(out)}


@pytest.mark.slow
@pytest.mark.pacs
def test_the_command_scores_a_search_and_its_next_run_only_what_is_new(
    tmp_path: Path, orthanc: Orthanc, bundle: Path
) -> None:
    files = {
        "a.dcm": instance(10), "b.dcm": instance(13, date="20180101"), "c.dcm": instance(16, modality="CR"),
        "d.dcm": instance(19, modality="CT"),
    }  # fmt: skip
    command = score_command(Path(), tmp_path / "out", bundle)[6:]
    with orthanc.running():
        fill(orthanc, files, tmp_path / "files")
        location = search(orthanc, "studies?StudyDate=20190101-20191231")
        done = run_cli("score", location, *command)
        assert done.returncode == 0, done.stderr
        assert [row["sop_instance_uid"] for row in table(tmp_path / "out")] == ["1.2.10.1.10", "1.2.16.1.16"]
        assert "Not CR or DX: 1" in done.stderr
        for level in ("series", "instances"):
            out = tmp_path / level
            score_web(search(orthanc, f"{level}?StudyDate=20190101-20191231"), out, bundle)
            assert table(out) == table(tmp_path / "out"), level
        assert httpx.post(f"{orthanc.url}/instances", auth=USER, content=instance(22), timeout=DEADLINE).is_success
        done = run_cli("score", location, *command)
    assert "Listed 3 images in 2 shards: 1 new. Finished before: 1 shard" in done.stderr
    assert len(table(tmp_path / "out")) == 3


# --- a server of the test --------------------------------------------------------------------------------------------------

Answer = tuple[int, str, bytes, dict[str, str]]
JSON = "application/dicom+json"


def found(*results: dict[str, str], headers: dict[str, str] | None = None) -> Answer:
    datasets = []
    for elements in results:
        dataset = pydicom.Dataset()
        for name, value in elements.items():
            setattr(dataset, name, value)
        datasets.append(dataset.to_json_dict())
    return (200, JSON, json.dumps(datasets).encode(), headers or {})


def page(*results: dict[str, str]) -> Callable[[dict[str, str]], Answer]:
    """Answer a search whose first page has all results."""
    return lambda parameters: found(*results) if parameters.get("offset", "0") == "0" else (204, JSON, b"", {})


def multipart(content: bytes) -> Answer:
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--b--\r\n"
    return (200, "multipart/related; boundary=b", body, {})


@contextmanager
def server(answer: Callable[[str, dict[str, str]], Answer]) -> Iterator[str]:
    """Serve what a function answers to a path and parameters."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, parameters = self.path.partition("?")
            status, content_type, body, headers = answer(path, dict(parse_qsl(parameters)))
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}"
        finally:
            running.shutdown()
            thread.join(60)


STUDY = {"StudyInstanceUID": "1.1"}
SERIES = {**STUDY, "SeriesInstanceUID": "1.1.1", "Modality": "DX"}


def archive_of(numbers: range, read: Callable[[int], Answer]) -> Callable[[str, dict[str, str]], Answer]:
    """Answer as a server with one series of so many instances, which `read` answers."""

    def answer(path: str, parameters: dict[str, str]) -> Answer:
        last = path.rpartition("/")[2]
        if last == "studies":
            return page(STUDY)(parameters)
        if last == "series":
            return page(SERIES)(parameters)
        if last == "instances":
            return page(*({**SERIES, "SOPInstanceUID": f"1.1.1.{number}"} for number in numbers))(parameters)
        return read(int(last.rpartition(".")[2]))

    return answer


def test_answers_503_are_repeated_and_a_server_that_keeps_giving_them_stops_the_run(
    tmp_path: Path, bundle: Path
) -> None:
    seen: set[int] = set()
    always: set[int] = set()

    def busy_once(number: int) -> Answer:
        if number not in seen or number in always:
            seen.add(number)
            return (503, "text/plain", b"busy", {})
        return multipart(instance(number))

    with server(archive_of(range(10, 18), busy_once)) as url:
        assert score_web(f"dicomweb+{url}/studies", tmp_path / "once", bundle).failed == 0
        always.add(15)
        with pytest.raises(StorageError, match="does not answer: HTTP status 503"):
            score_web(f"dicomweb+{url}/studies", tmp_path / "out", bundle)
        assert verify_archive(tmp_path / "out").found == 4
        always.clear()
        score_web(f"dicomweb+{url}/studies", tmp_path / "out", bundle)
    assert verify_archive(tmp_path / "out").problems == ()
    assert contents(tmp_path / "out") == contents(tmp_path / "once")


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        ((404, "text/plain", b"", {}), "file_not_found", ""),
        ((410, "text/plain", b"", {}), "file_not_found", ""),
        ((500, "text/plain", b"", {}), "file_not_accessible", "HTTP status 500"),
        ((406, "text/plain", b"", {}), "file_not_accessible", "HTTP status 406"),
        ((403, "text/plain", b"", {}), "permission_denied", ""),
        ((302, "text/plain", b"", {"Location": "http://127.0.0.1:1/"}), "file_not_accessible", "HTTP status 302"),
        ((200, "text/html", b"<html>", {}), "file_not_accessible", "not one DICOM file"),
        ((200, "multipart/related; boundary=b", b"--b\r\n\r\nnever ends", {}), "file_not_accessible", "not one DICOM"),
    ],
)
def test_an_instance_that_a_server_does_not_send_is_unreadable_with_the_reason(
    answer: Answer, reason: str, words: str
) -> None:
    with server(archive_of(range(1), lambda _: answer)) as url, pytest.raises(UnreadableImageError) as error:
        open_source(f"dicomweb+{url}/studies").reader.read("studies/1.1/series/1.1.1/instances/1.1.1.0")
    assert error.value.reason is not None
    assert error.value.reason.code == reason
    assert words in str(error.value.reason.parameters.get("error", ""))


def test_an_answer_that_is_cut_off_is_asked_for_again() -> None:
    content, cuts = instance(10), [True, False]

    def cut_once(_: int) -> Answer:
        status, kind, body, headers = multipart(content)
        return (status, kind, body[:-50] if cuts.pop(0) else body, {"Content-Length": str(len(body)), **headers})

    def answer(path: str, parameters: dict[str, str]) -> Answer:
        return archive_of(range(1), cut_once)(path, parameters)

    with server(answer) as url:
        read = open_source(f"dicomweb+{url}/studies").reader.read("studies/1.1/series/1.1.1/instances/1.1.1.10")
    assert np.array_equal(
        pydicom.dcmread(io.BytesIO(read)).pixel_array, pydicom.dcmread(io.BytesIO(content)).pixel_array
    )


def test_an_endless_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_reader, "MAX_BYTES", 1000)
    with (
        server(archive_of(range(1), lambda _: multipart(bytes(2000)))) as url,
        pytest.raises(UnreadableImageError) as error,
    ):
        open_source(f"dicomweb+{url}/studies").reader.read("studies/1.1/series/1.1.1/instances/1.1.1.0")
    assert error.value.reason is not None
    assert error.value.reason.parameters == {"error": "more than 1,000 bytes"}


def test_a_search_without_all_results_stops_the_run_before_any_image_is_read(tmp_path: Path, bundle: Path) -> None:
    def answer(path: str, parameters: dict[str, str]) -> Answer:
        return found(STUDY, headers={"Warning": '299 archive "There are 5 additional results"'})

    with server(answer) as url, pytest.raises(StorageError, match="did not return all results"):
        score_web(f"dicomweb+{url}/studies", tmp_path / "out", bundle)


def names_of(url: str, level: str = "studies") -> list[str]:
    """Return the names of the images that a search lists."""
    return [image.name for image in open_source(f"dicomweb+{url}/{level}").images()]


def numbered(start: int, end: int) -> Answer:
    return found(*({**SERIES, "SOPInstanceUID": f"1.1.1.{number}"} for number in range(start, end)))


@pytest.mark.parametrize("count", [100, 250])
def test_a_server_that_ignores_the_offset_is_not_read_as_complete(count: int) -> None:
    def answer(_: str, parameters: dict[str, str]) -> Answer:
        return numbered(0, min(count, int(parameters["limit"])))

    with server(answer) as url, pytest.raises(StorageError, match=r"did not return all results .*that repeat results"):
        names_of(url, "instances")


def test_a_server_without_a_stable_order_is_not_read_as_complete() -> None:
    def answer(_: str, parameters: dict[str, str]) -> Answer:
        """Return the second page with results of the first."""
        offset = int(parameters.get("offset", 0))
        return numbered(offset and 80, 100 if not offset else 180) if offset < 200 else (204, JSON, b"", {})

    with server(answer) as url, pytest.raises(StorageError, match="did not return all results"):
        names_of(url, "instances")


@pytest.mark.parametrize("count", [1, 99, 101, 250])
def test_a_server_that_ignores_limit_and_offset_is_complete(count: int) -> None:
    with server(lambda *_: numbered(0, count)) as url:
        assert len(names_of(url, "instances")) == count


def test_a_result_without_a_needed_uid_stops_the_run() -> None:
    nameless = found({"StudyInstanceUID": "1.1", "SOPInstanceUID": "1.1.1.1"})
    with server(lambda *_: nameless) as url, pytest.raises(StorageError, match="without SeriesInstanceUID"):
        names_of(url, "instances")
    with server(lambda *_: found(SERIES)) as url, pytest.raises(StorageError, match="did not return all results"):
        names_of(url, "instances")


def test_uids_of_a_search_within_a_series_need_not_be_repeated() -> None:
    def answer(path: str, parameters: dict[str, str]) -> Answer:
        level = path.rpartition("/")[2]
        results = {"studies": STUDY, "series": {"SeriesInstanceUID": "1.1.1", "Modality": "DX"}}
        return page(results.get(level, {"SOPInstanceUID": "1.1.1.1"}))(parameters)

    with server(answer) as url:
        assert names_of(url) == ["studies/1.1/series/1.1.1/instances/1.1.1.1"]


def test_an_access_that_is_not_accepted_stops_the_run_at_once(tmp_path: Path, bundle: Path) -> None:
    asked = []

    def denied(_: int) -> Answer:
        asked.append(1)
        return (401, "text/plain", b"", {})

    with (
        server(archive_of(range(3), denied)) as url,
        pytest.raises(StorageError, match=r"HTTP status 401.*Check user, password or token"),
    ):
        score_web(f"dicomweb+{url}/studies", tmp_path / "out", bundle)
    assert len(asked) == 1
    with server(lambda *_: (401, "text/plain", b"", {})) as url:
        reader = open_source(f"dicomweb+{url}/studies").reader
        for ask in (reader.is_available, lambda: names_of(url)):
            with pytest.raises(StorageError, match="does not accept the configured access"):
                ask()


def test_an_instance_that_is_denied_is_a_row_of_its_own(tmp_path: Path, bundle: Path) -> None:
    def denied_once(number: int) -> Answer:
        return (403, "text/plain", b"", {}) if number == 11 else multipart(instance(number))

    with server(archive_of(range(10, 13), denied_once)) as url:
        assert score_web(f"dicomweb+{url}/studies", tmp_path / "out", bundle).failed == 1
    assert [row["failure_code"] for row in table(tmp_path / "out")].count(None) == 2


def test_a_server_that_allows_no_search_without_filters_is_available() -> None:
    def answer(_: str, parameters: dict[str, str]) -> Answer:
        return numbered(0, 1) if parameters.get("StudyDate") == "2019" else (400, "text/plain", b"", {})

    with server(answer) as url:
        assert open_source(f"dicomweb+{url}/instances?StudyDate=2019").reader.is_available()
        assert not open_source(f"dicomweb+{url}/series").reader.is_available()


def test_an_answer_of_a_search_that_is_cut_off_is_asked_for_again() -> None:
    cuts = [True, False]

    def cut_once(_: str, parameters: dict[str, str]) -> Answer:
        status, kind, body, headers = numbered(0, 3)
        sent = body[:-20] if cuts and cuts.pop(0) else body
        return (status, kind, sent, {"Content-Length": str(len(body)), **headers})

    with server(cut_once) as url:
        assert len(names_of(url, "instances")) == 3


def test_an_endless_answer_of_a_search_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_ANSWER_BYTES", 1000)
    with server(lambda *_: numbered(0, 90)) as url, pytest.raises(StorageError, match="has more than 1,000 bytes"):
        names_of(url, "instances")


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.filterwarnings("ignore:The value length .* exceeds the maximum length")
@pytest.mark.parametrize("uid", ["../../secret", "..", "1..2", ".1", "1.", "1.2/3", "1" * 65])
def test_a_uid_that_would_change_the_address_is_refused(tmp_path: Path, bundle: Path, uid: str) -> None:
    body = b'[{"0020000D": {"vr": "UI", "Value": ["%s"]}}]' % uid.encode()

    def answer(path: str, parameters: dict[str, str]) -> Answer:
        return (200, JSON, body, {}) if parameters.get("offset", "0") == "0" else (204, JSON, b"", {})

    with (
        server(answer) as url,
        pytest.raises(StorageError, match="the answer has an invalid UID") as error,
    ):
        score_web(f"dicomweb+{url}/studies", tmp_path / "out", bundle)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("dicomweb+http://pacs.example/dicom-web/studies", "must be an https:// address"),
        ("dicomweb+https://jane:secret@pacs.example/dicom-web/studies", "must not contain a user name"),
        ("dicomweb+https://pacs.example/dicom-web", "ends in 'dicom-web', not in studies, series, instances"),
        ("dicomweb+https://pacs.example/dicom-web/studies?PatientID=4711", "searches for PatientID"),
        ("dicomweb+https://pacs.example/dicom-web/studies?00100010=Doe", "searches for 00100010"),
        ("dicomweb+https://pacs.example/dicom-web/studies?AccessionNumber=4711", "searches for AccessionNumber"),
        ("dicomweb+https://pacs.example/dicom-web/studies?00080090=Doe", "searches for 00080090"),
        ("dicomweb+https://pacs.example/dicom-web/studies?StudyInstanceUID=4711", "searches for StudyInstanceUID"),
        ("dicomweb+https://pacs.example/dicom-web/studies?StudyID=4711", "searches for StudyID"),
        ("dicomweb+https://pacs.example/studies?Modality=CR&00080060=DX", "has 00080060 more than once"),
        ("dicomweb+https://pacs.example/dicom-web/studies?limit=7", "'limit' is not a DICOM attribute"),
        ("dicomweb+https://[bad/studies", "cannot be parsed"),
        ("dicomweb+https://pacs.example:port/studies", "cannot be parsed"),
    ],
)
def test_address_without_a_search_or_with_a_patient_is_rejected(location: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        open_source(location)
    assert not any(value in str(error.value) for value in ("4711", "Doe", "secret"))


def test_a_password_file_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_DICOMWEB_USER", "jane")
    monkeypatch.setenv("PNEUMOSCOPE_DICOMWEB_PASSWORD_FILE", "/nowhere")
    with pytest.raises(UsageError, match=r"cannot be used: .*nowhere.*PNEUMOSCOPE_DICOMWEB_PASSWORD_FILE"):
        open_source("dicomweb+http://127.0.0.1:1/studies").reader.is_available()


def test_an_attribute_may_be_stated_by_its_tag() -> None:
    location = "dicomweb+https://pacs.example/studies?00080020=20190101-20191231&ModalitiesInStudy=DX"
    filters = web_reader.parse_query(location).filters
    assert filters == {"StudyDate": "20190101-20191231", "ModalitiesInStudy": "DX"}


@pytest.mark.parametrize("stated", [("USER",), ("PASSWORD_FILE",), ("USER", "PASSWORD_FILE", "TOKEN_FILE")])
def test_an_access_that_is_stated_in_part_or_twice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: tuple[str, ...]
) -> None:
    (tmp_path / "secret").write_text("x")
    for name in stated:
        monkeypatch.setenv(f"PNEUMOSCOPE_DICOMWEB_{name}", str(tmp_path / "secret"))
    with pytest.raises(UsageError, match="incomplete, or given twice"):
        open_source("dicomweb+http://127.0.0.1:1/studies").reader.is_available()


def test_a_token_of_several_lines_is_refused_without_a_trace_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("hid\nden\n")
    monkeypatch.setenv("PNEUMOSCOPE_DICOMWEB_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(UsageError, match=r"/token' has several lines") as error:
        open_source("dicomweb+http://127.0.0.1:1/studies").reader.is_available()
    assert "hid" not in "".join(traceback.format_exception(error.value))


def test_a_file_of_certificates_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_DICOMWEB_CA_FILE", "/nowhere")
    with pytest.raises(UsageError, match=r"'/nowhere'.*PNEUMOSCOPE_DICOMWEB_CA_FILE"):
        open_source("dicomweb+https://127.0.0.1:1/studies").reader.is_available()
