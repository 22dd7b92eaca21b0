"""The test ledger with several processes, a full disk and damaged lines."""

import errno
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.processes import started

from pneumoscope.core.errors import StorageError
from pneumoscope.core.files import locked
from pneumoscope.evaluation.ledger import default_ledger, record_evaluation


def test_evaluations_are_numbered_by_images(tmp_path):
    ledger = tmp_path / "results" / "test-ledger.jsonl"
    numbers = [record_evaluation(ledger, {"images_sha256": images, "name": "x"}) for images in ("a", "b", "a", "a")]
    assert numbers == [1, 1, 2, 3]
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [line["test_evaluation"] for line in lines] == numbers
    assert lines[2] == {"images_sha256": "a", "name": "x", "test_evaluation": 2}


def test_default_ledger_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("PNEUMOSCOPE_LEDGER", raising=False)
    assert default_ledger() == Path("results/test-ledger.jsonl")
    monkeypatch.setenv("PNEUMOSCOPE_LEDGER", "elsewhere.jsonl")
    assert default_ledger() == Path("elsewhere.jsonl")


def test_older_lines_and_notes_are_read(tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    old = {"films_sha256": "a", "name": "x", "look": 1}
    note = {"when": "2026-11-28T00:00:00+00:00", "note": "keys renamed"}
    ledger.write_text(json.dumps(old) + "\n" + json.dumps(note) + "\n")
    assert record_evaluation(ledger, {"images_sha256": "a", "name": "y"}) == 2


WRITER = """
import sys
from pathlib import Path
from pneumoscope.evaluation.ledger import record_evaluation
go = Path(sys.argv[1])
while not go.exists():
    pass
for number in range(40):
    record_evaluation(Path(sys.argv[2]), {"images_sha256": "same", "writer": sys.argv[3], "number": number, "pad": "x" * 5000})
"""


def test_concurrent_processes_lose_no_line(tmp_path):
    ledger, go = tmp_path / "ledger.jsonl", tmp_path / "go"
    with ExitStack() as stack:
        command = [sys.executable, "-c", WRITER, str(go), str(ledger)]
        writers = [stack.enter_context(started([*command, who])) for who in "abc"]
        time.sleep(0.5)
        go.touch()
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [line["test_evaluation"] for line in lines] == list(range(1, 121))
    assert sorted((line["writer"], line["number"]) for line in lines) == [(w, n) for w in "abc" for n in range(40)]


@pytest.mark.parametrize(
    ("damage", "number"),
    [("not json\n", 2), ('{"images_sha256": "a"', 2), ('{"name": "x"}\n', 2), ("[1]\n", 2), ("\n", 2)],
)
def test_malformed_line_is_reported_and_nothing_is_appended(tmp_path, damage, number):
    ledger = tmp_path / "ledger.jsonl"
    record_evaluation(ledger, {"images_sha256": "a"})
    before = ledger.read_text() + damage
    ledger.write_text(before)
    with pytest.raises(StorageError, match=rf"line {number} of .*ledger.jsonl' is malformed"):
        record_evaluation(ledger, {"images_sha256": "a"})
    assert ledger.read_text() == before


def test_partial_line_is_removed(tmp_path, monkeypatch):
    ledger = tmp_path / "ledger.jsonl"
    record_evaluation(ledger, {"images_sha256": "a"})
    before = ledger.read_bytes()
    whole = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: whole(handle, data[:10]))
    with pytest.raises(StorageError, match="10 of 45 bytes written"):
        record_evaluation(ledger, {"images_sha256": "a"})
    assert ledger.read_bytes() == before


def test_unwritable_path_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write the test ledger .*file/ledger.jsonl.*--ledger FILE"):
        record_evaluation(tmp_path / "file" / "ledger.jsonl", {"images_sha256": "a"})


def test_full_disk_is_reported(tmp_path, monkeypatch):
    def full(handle, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"cannot write the test ledger .*: No space left on device"):
        record_evaluation(tmp_path / "ledger.jsonl", {"images_sha256": "a"})
    assert (tmp_path / "ledger.jsonl").read_bytes() == b""


def test_locked_ledger_is_reported_and_nothing_is_appended(tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    with (
        locked(tmp_path / ".ledger.jsonl.lock", StorageError("held")),
        pytest.raises(StorageError, match=r"ledger.jsonl' has been locked by another process for 0 s. Try again"),
    ):
        record_evaluation(ledger, {"images_sha256": "a"}, lock_timeout=0.2)
    assert not ledger.exists()
    assert record_evaluation(ledger, {"images_sha256": "a"}) == 1


def test_lock_file_is_hidden_and_ignored_by_git(tmp_path):
    record_evaluation(tmp_path / "test-ledger.jsonl", {"images_sha256": "a"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".test-ledger.jsonl.lock", "test-ledger.jsonl"]
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("no git checkout")
    names = ["results/.test-ledger.jsonl.lock", "results/runs/a/.run.lock", "results/test-ledger.jsonl"]
    ignored = subprocess.run(
        ["git", "-C", root, "check-ignore", "--no-index", *names],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ignored.stdout.split() == names[:2]


def test_module_imports_without_fcntl():
    code = "import sys; sys.modules['fcntl'] = None; import pneumoscope.evaluation.ledger"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
