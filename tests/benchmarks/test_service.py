"""A short slice of the load that a service bears: tiny images, seconds, the real process. No speed is asked of it."""

import asyncio
import importlib.util
import json
import statistics
import sys
from pathlib import Path

import pytest

from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.phantom import phantom

_PATH = Path(__file__).parents[2] / "benchmarks" / "service.py"
_SPEC = importlib.util.spec_from_file_location("benchmark_service", _PATH)
benchmark = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = benchmark
_SPEC.loader.exec_module(benchmark)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load") / "images"
    phantom(folder, train=4, test=2, size=64)
    return folder


def test_a_number_makes_another_file_of_the_same_image(images):
    image = next(images.rglob("*.jpeg")).read_bytes()
    one, other = benchmark.numbered(image, 1), benchmark.numbered(image, 2)
    assert len({image, one, other}) == 3
    assert (decode(one).pixels == decode(image).pixels).all()
    assert (decode(other).pixels == decode(image).pixels).all()


@pytest.mark.slow
def test_the_real_process_bears_a_slice(images, tmp_path, capsys):
    slice_ = ["--rounds", "1", "--seconds", "1", "--overload", "2", "--soak", "0.04", "--out", str(tmp_path)]
    benchmark.main(["--data", str(images), *slice_])
    document = json.loads((tmp_path / "load.json").read_text())
    # So short a time does not tell whether memory stays as it is.
    assert [fault for fault in document["faults"] if "memory" not in fault] == []
    rows = document["throughput"]
    assert list(rows) == ["bare session", "network alone", "1 client", "8 clients", "64 clients"]
    for name, row in rows.items():
        assert len(row["images_a_second"]) == len(row["to_bare"]) == 1
        assert set(row["answers"]) == ({"201"} if "client" in name else set())
    found = rows["8 clients"]["answers"]["201"]
    assert found["n"] >= 8
    assert 0 < found["p50"] <= found["p95"] <= found["p99"]
    overload, soak = document["overload"], document["soak"]
    reached = [statistics.median(row["images_a_second"]) for name, row in rows.items() if "client" in name]
    assert overload["rate"] == pytest.approx(2 * max(reached))
    assert set(overload["answers"]) <= {"201", "503"}
    assert sum(row["n"] for row in overload["answers"].values()) == pytest.approx(2 * overload["rate"], abs=1)
    assert set(soak["answers"]) == {"201"}
    assert soak["memory"]["peak"] >= soak["memory"]["at the end"] > 10
    text = (tmp_path / "load.md").read_text()
    assert text.rstrip() == capsys.readouterr().out.rstrip()
    assert "| 64 clients |" in text


def test_a_silent_service_and_an_answer_without_retry_after_are_faults(images):
    image = next(images.rglob("*.jpeg")).read_bytes()

    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def both():
        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            refused = await benchmark.sent([image], port, 0, 1, 0.2, 5)
        return refused, await benchmark.sent([image], port, 0, 1, 0.2, 5)

    refused, silent = asyncio.run(both())
    assert [status for _, _, status in refused] == ["503 without Retry-After"]
    assert [status for _, _, status in silent] == ["ConnectionRefusedError"]
