"""Hostile files, PDUs and clients at the DICOM port and at STOW-RS; `benchmarks/dicom_hostile.py` sends more of them."""

import json
import shutil

import pytest
from tests.benchmarks.loading import load_benchmark

pytest.importorskip("pynetdicom", reason="[pacs] is not installed")
pytest.importorskip("highdicom", reason="[pacs] is not installed")
pytestmark = pytest.mark.slow  # objects are exchanged with another node
benchmark = load_benchmark("dicom_hostile")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", list(benchmark.header_bombs()))
def test_header_of_4_mib_is_refused_at_once(name):
    assert benchmark.header_seconds(benchmark.header_bombs()[name]) < benchmark.MAX_HEADER_SECONDS


def test_mutated_files_are_reproducible():
    first, again, other = (list(benchmark.mutated(20, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) > 15  # some mutations leave little of a file


@pytest.mark.slow
def test_service_withstands_hostile_input(bundle, tmp_path, capsys):
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
    assert {"0x0000", "0xc000"} <= set(document["C-STORE"])
    assert "no crash, no leak, nothing left" in capsys.readouterr().out
