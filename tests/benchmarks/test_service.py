"""The load benchmark: a few seconds with tiny images on a real server process. Speed is not tested."""

from __future__ import annotations

import asyncio
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks.loading import load_benchmark

from pneumoscope.data.phantoms import write_phantoms
from pneumoscope.imaging.decode import decode

benchmark = load_benchmark("service")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("load") / "images"
    write_phantoms(folder, train=4, test=2, size=64)
    return folder


def test_numbered_files_differ_but_have_the_same_pixels(images: Path) -> None:
    image = next(images.rglob("*.jpeg")).read_bytes()
    first, second = benchmark.number_image(image, 1), benchmark.number_image(image, 2)
    assert len({image, first, second}) == 3
    assert (decode(first).pixels == decode(image).pixels).all()
    assert (decode(second).pixels == decode(image).pixels).all()


@pytest.mark.slow
def test_short_run_on_a_real_process(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--rounds", "1", "--seconds", "0.5", "--overload", "1", "--soak", "0.02", "--out", str(tmp_path)]
    benchmark.main(["--data", str(images), *options])

    document = json.loads((tmp_path / "load.json").read_text())
    # The run is too short to tell whether memory grows.
    assert [failure for failure in document["failures"] if "memory" not in failure] == []
    rows = document["throughput"]
    assert list(rows) == ["bare session", "network alone", "1 client", "8 clients", "64 clients"]
    for name, row in rows.items():
        assert len(row["images_per_second"]) == len(row["relative_to_bare"]) == 1
        assert set(row["responses"]) == ({"201"} if "client" in name else set())
    latencies = rows["8 clients"]["responses"]["201"]
    assert latencies["n"] >= 1
    assert 0 < latencies["p50"] <= latencies["p95"] <= latencies["p99"]
    overload, soak = document["overload"], document["soak"]
    rates = [statistics.median(row["images_per_second"]) for name, row in rows.items() if "client" in name]
    assert overload["rate"] == pytest.approx(2 * max(rates))
    assert set(overload["responses"]) <= {"201", "503"}
    assert sum(row["n"] for row in overload["responses"].values()) == pytest.approx(overload["rate"], abs=1)
    assert set(soak["responses"]) == {"201"}
    assert soak["memory"]["peak"] >= soak["memory"]["at the end"] > 10
    text = (tmp_path / "load.md").read_text()
    assert text.rstrip() == capsys.readouterr().out.rstrip()
    assert "| 64 clients |" in text


def test_missing_responses_and_missing_retry_after_are_reported(images: Path) -> None:
    image = next(images.rglob("*.jpeg")).read_bytes()

    async def reject(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def post_with_and_without_server() -> tuple[Any, Any]:
        async with await asyncio.start_server(reject, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            rejected = await benchmark.post_images([image], port, 0, 1, 0.2, 5)
        return rejected, await benchmark.post_images([image], port, 0, 1, 0.2, 5)

    rejected, unanswered = asyncio.run(asyncio.wait_for(post_with_and_without_server(), 30))
    assert [status for _, _, status in rejected] == ["503 without Retry-After"]
    assert [status for _, _, status in unanswered] == ["ConnectionRefusedError"]
