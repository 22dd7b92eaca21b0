"""The ledger under several processes, a full disk and a damaged line."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pneumoscope.core.errors import StorageError
from pneumoscope.core.files import locked
from pneumoscope.evaluation import ledger as module
from pneumoscope.evaluation.ledger import default_ledger, record_evaluation


def test_looks_are_counted_by_images(tmp_path):
    ledger = tmp_path / "results" / "test-ledger.jsonl"
    looks = [record_evaluation(ledger, {"images_sha256": images, "name": "x"}) for images in ("a", "b", "a", "a")]
    assert looks == [1, 1, 2, 3]
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [line["look"] for line in lines] == looks
    assert lines[2] == {"images_sha256": "a", "name": "x", "look": 2}


def test_where_the_ledger_is(monkeypatch):
    monkeypatch.delenv("PNEUMOSCOPE_LEDGER", raising=False)
    assert default_ledger() == Path("results/test-ledger.jsonl")
    monkeypatch.setenv("PNEUMOSCOPE_LEDGER", "elsewhere.jsonl")
    assert default_ledger() == Path("elsewhere.jsonl")


WRITER = """
import sys
from pathlib import Path
from pneumoscope.evaluation.ledger import record_evaluation
go = Path(sys.argv[1])
while not go.exists():
    pass
for number in range(40):
    record_evaluation(Path(sys.argv[2]), {"images_sha256": "same", "who": sys.argv[3], "number": number, "pad": "x" * 5000})
"""


def test_processes_that_write_at_once_lose_and_tear_nothing(tmp_path):
    ledger, go = tmp_path / "ledger.jsonl", tmp_path / "go"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(go), str(ledger), who]) for who in "abc"]
    time.sleep(0.5)
    go.touch()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [line["look"] for line in lines] == list(range(1, 121))
    assert sorted((line["who"], line["number"]) for line in lines) == [(w, n) for w in "abc" for n in range(40)]


@pytest.mark.parametrize(
    ("damage", "number"),
    [("not json\n", 2), ('{"images_sha256": "a"', 2), ('{"name": "x"}\n', 2), ("[1]\n", 2), ("\n", 2)],
)
def test_a_malformed_line_is_named_and_nothing_is_added(tmp_path, damage, number):
    ledger = tmp_path / "ledger.jsonl"
    record_evaluation(ledger, {"images_sha256": "a"})
    before = ledger.read_text() + damage
    ledger.write_text(before)
    with pytest.raises(StorageError, match=rf"ledger.jsonl', line {number} is malformed"):
        record_evaluation(ledger, {"images_sha256": "a"})
    assert ledger.read_text() == before


def test_a_line_cut_short_is_taken_back(tmp_path, monkeypatch):
    ledger = tmp_path / "ledger.jsonl"
    record_evaluation(ledger, {"images_sha256": "a"})
    before = ledger.read_bytes()
    whole = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: whole(handle, data[:10]))
    with pytest.raises(StorageError, match="10 of 33 bytes written"):
        record_evaluation(ledger, {"images_sha256": "a"})
    assert ledger.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write the test ledger .*file/ledger.jsonl.*--ledger FILE"):
        record_evaluation(tmp_path / "file" / "ledger.jsonl", {"images_sha256": "a"})


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(handle, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"cannot write the test ledger .*: No space left on device"):
        record_evaluation(tmp_path / "ledger.jsonl", {"images_sha256": "a"})
    assert (tmp_path / "ledger.jsonl").read_bytes() == b""


def test_a_ledger_that_stays_locked_is_told_and_nothing_is_added(tmp_path, monkeypatch):
    ledger = tmp_path / "ledger.jsonl"
    monkeypatch.setattr(module, "_WAIT", 0.2)
    with (
        locked(tmp_path / ".ledger.jsonl.lock", StorageError("held")),
        pytest.raises(StorageError, match=r"ledger.jsonl' has been locked by another process for 0 s. Try again"),
    ):
        record_evaluation(ledger, {"images_sha256": "a"})
    assert not ledger.exists()
    assert record_evaluation(ledger, {"images_sha256": "a"}) == 1


def test_the_lock_lies_hidden_beside_the_ledger_and_git_does_not_see_it(tmp_path):
    record_evaluation(tmp_path / "test-ledger.jsonl", {"images_sha256": "a"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".test-ledger.jsonl.lock", "test-ledger.jsonl"]
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("no git checkout")
    names = ["results/.test-ledger.jsonl.lock", "results/runs/a/.run.lock", "results/test-ledger.jsonl"]
    ignored = subprocess.run(
        ["git", "-C", root, "check-ignore", "--no-index", *names], capture_output=True, text=True, check=False
    )
    assert ignored.stdout.split() == names[:2]


def test_it_can_be_imported_where_there_is_no_fcntl():
    code = "import sys; sys.modules['fcntl'] = None; import pneumoscope.evaluation.ledger"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
