"""A short slice of what is sent to a service to break it: to the real process, which must not mind."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.imaging.decode import decode

_PATH = Path(__file__).parents[2] / "benchmarks" / "hostile.py"
_SPEC = importlib.util.spec_from_file_location("benchmark_hostile", _PATH)
benchmark = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = benchmark
_SPEC.loader.exec_module(benchmark)


def test_what_is_mutated_was_good():
    assert [decode(image).format for image in benchmark.seeds()] == [
        "JPEG",
        "PNG",
        "TIFF",
        "BMP",
        "WEBP",
        "DICOM",
        "DICOM",
    ]


def test_the_same_seed_gives_the_same_inputs_and_most_of_them_are_broken():
    first, again = (list(benchmark.inputs(60, 1)) for _ in range(2))
    assert [kind for kind, _ in first] == [kind for kind, _ in again]
    # A DICOM file that is written anew has another time inside it.
    assert len({body for _, body in first}) > 55
    broken = 0
    for kind, body in first:
        if kind == "application/octet-stream":
            try:
                decode(body)
            except UnreadableImageError:
                broken += 1
    assert broken > 10


@pytest.mark.slow
def test_the_real_process_survives_a_slice(tmp_path, capsys):
    assert benchmark.main(["--inputs", "300", "--seed", "3", "--clients", "4", "--out", str(tmp_path)]) == 0
    answers = json.loads((tmp_path / "hostile.json").read_text())["answers"]
    assert sum(answers.values()) == 300
    assert {"201", "422"} <= set(answers)
    assert "lives and is ready" in capsys.readouterr().out
    assert not (tmp_path / "failed").exists()


def test_a_fault_is_noticed(tmp_path):
    found = benchmark.attack("http://127.0.0.1:9", 2, 0, 1, tmp_path)
    assert found == {"ConnectError, which is a fault of ours": 2}
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
