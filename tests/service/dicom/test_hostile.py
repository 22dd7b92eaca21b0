"""Hostile files, PDUs and clients at the DICOM port, STOW-RS and a pull; `benchmarks/dicom_hostile.py` sends more of them."""

import io
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pydicom
import pytest
from fastapi.testclient import TestClient
from tests.benchmarks.loading import load_benchmark
from tests.service.conftest import post, problem

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.imaging.image import MAX_PART_BYTES
from pneumoscope.imaging.sandbox.pool import DecodePool, Limits
from pneumoscope.inference.model import Model
from pneumoscope.inference.session import BundleSession
from pneumoscope.service.app import create_app
from pneumoscope.service.storage.repository import PredictionRepository

pytest.importorskip("pynetdicom", reason="[pacs] is not installed")
pytest.importorskip("highdicom", reason="[pacs] is not installed")
pytestmark = pytest.mark.slow  # objects are exchanged with another node
benchmark, bombs = load_benchmark("dicom_hostile"), load_benchmark("dicom_bombs")

# A bomb that runs into the limit on processor time fails in a second.
LIMITS = Limits(memory=2**30, cpu_seconds=60, part_cpu_seconds=1, wall_seconds=60)
MAX_OWN_SECONDS = 0.5  # processor time of this process for a part
DEADLINE = 120  # of a request, seconds


@pytest.fixture(scope="module")
def pool():
    with DecodePool(1, limits=LIMITS) as made:
        yield made


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", list(bombs.header_bombs()))
def test_header_of_4_mib_is_refused_at_once(name):
    assert benchmark.header_seconds(bombs.header_bombs()[name]) < benchmark.MAX_HEADER_SECONDS


@pytest.mark.parametrize("part", ["header", "frame", "display"])
@pytest.mark.parametrize("name", list(bombs.header_bombs()))
def test_bomb_beyond_columns_costs_the_service_no_time(pool, name, part):
    bomb = bombs.header_bombs(after_columns=True)[name]
    start = time.process_time()
    code, size = "", 0
    try:
        size = len(pool.read_part(bomb, part))
    except UnreadableImageError as error:
        code = error.reason.code
    assert time.process_time() - start < MAX_OWN_SECONDS
    assert size <= MAX_PART_BYTES[part]
    assert code in (
        "", "dicom_header_not_readable", "dicom_file_not_readable", "processor_time_limit_exceeded", "memory_limit_exceeded",
    )  # fmt: skip


@pytest.mark.parametrize("rest", ["metadata", "frames/1"])
def test_stored_bomb_is_a_problem_and_the_service_stays_responsive(bundle, pool, rest):
    app = create_app(Model(BundleSession.load(bundle), pool=pool), PredictionRepository(None))
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        bomb, ordinary = bombs.image_bomb(200_000, level=1), bombs.image_bomb(1, level=2)
        post(client, bomb, ordinary)
        paths = []
        for content in (bomb, ordinary):
            header = pydicom.dcmread(io.BytesIO(content), specific_tags=["StudyInstanceUID"], stop_before_pixels=True)
            (found,) = client.get(
                "/dicom-web/instances", params={"StudyInstanceUID": header.StudyInstanceUID, "Modality": "DX"}
            ).json()
            series, instance = (found[tag]["Value"][0] for tag in ("0020000E", "00080018"))
            paths.append(f"/dicom-web/studies/{header.StudyInstanceUID}/series/{series}/instances/{instance}/{rest}")
        start, answers = time.process_time(), 0
        with ThreadPoolExecutor(1) as executor:
            waiting = executor.submit(client.get, paths[0])
            deadline = time.monotonic() + DEADLINE
            while not waiting.done():
                assert client.get("/healthz").status_code == 200
                assert time.monotonic() < deadline, "the request of the bomb does not end"
                answers += 1
                time.sleep(0.05)
            found = problem(waiting.result(timeout=DEADLINE), 422, "decode_timeout")
        assert "more than 1 s of processor time" in found["detail"]
        assert answers
        assert time.process_time() - start < MAX_OWN_SECONDS + 0.05 * answers
        assert client.get(paths[1]).status_code == 200


def test_mutated_files_are_reproducible():
    first, again, other = (list(benchmark.mutated(20, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) > 15  # some mutations leave little of a file


@pytest.mark.slow
def test_service_withstands_hostile_input(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "BOMB_ITEMS", 20_000)  # that are read in time
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    status = benchmark.main(["--inputs", "150", "--model", str(bundle), "--out", str(tmp_path)])
    document = json.loads((tmp_path / "hostile.json").read_text())
    assert document["problems"] == []
    assert status == 0
    assert document["TLS"] == {
        "plain text on the TLS port": "closed",
        "wrong certificate": "closed",
        "no certificate": "closed",
    }
    assert document["limits"]["wrong called AE title"] == document["limits"]["unknown calling AE title"] == "rejected"
    assert document["bombs by pull"] == {"stored": 2, "failed": 12}
    assert document["stored bombs by WADO-RS"] == {"200": 6}
    assert {"0x0000", "0xc000"} <= set(document["C-STORE"])
    assert "no crash, no leak, nothing left" in capsys.readouterr().out
