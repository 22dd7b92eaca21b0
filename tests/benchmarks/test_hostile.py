"""The fuzzing benchmark: reproducible inputs, and a short run against a real server process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.benchmarks.loading import load_benchmark

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.imaging.decode import decode

benchmark = load_benchmark("hostile")


def test_original_images_are_valid() -> None:
    formats = [decode(image).format for image in benchmark.valid_images()]
    assert formats == ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "DICOM", "DICOM"]


def test_inputs_are_reproducible_and_mostly_malformed() -> None:
    first, second = (list(benchmark.generate_inputs(60, 1)) for _ in range(2))
    # Compressed DICOM files contain a new UID each time, so only the content types are compared.
    assert [content_type for content_type, _ in first] == [content_type for content_type, _ in second]
    assert len({body for _, body in first}) > 55
    unreadable = 0
    for content_type, body in first:
        if content_type == "application/octet-stream":
            try:
                decode(body)
            except UnreadableImageError:
                unreadable += 1
    assert unreadable > 10


@pytest.mark.slow
def test_server_survives_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--inputs", "300", "--seed", "3", "--clients", "4", "--out", str(tmp_path)]) == 0
    responses = json.loads((tmp_path / "hostile.json").read_text())["responses"]
    assert sum(responses.values()) == 300
    assert {"201", "422"} <= set(responses)
    assert "alive and ready" in capsys.readouterr().out
    assert not (tmp_path / "failed").exists()


def test_failures_are_counted_and_their_inputs_written(tmp_path: Path) -> None:
    responses = benchmark.send_inputs("http://127.0.0.1:9", 2, 0, 1, tmp_path)
    assert responses == {"ConnectError (unexpected)": 2}
    assert len(list(tmp_path.iterdir())) == 2


def test_help_is_available() -> None:
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--help"])
    assert stop.value.code == 0
