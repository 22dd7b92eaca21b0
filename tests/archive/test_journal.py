"""A journal that survives crashes and full disks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pneumoscope.archive.journal import (
    Entry,
    Runtime,
    StoredFile,
    append_entry,
    drop_torn_line,
    iter_journal,
    read_journal,
)
from pneumoscope.core.errors import ArchiveError, StorageError


def entry(shard: int, sha256: str = "ab") -> Entry:
    return Entry(
        shard=shard, rows=4, failed=1, decisions={"pneumonia": 3}, table=StoredFile(sha256=sha256, bytes=9), heatmaps=None,
        finished="2026-01-02T03:04:05+00:00", seconds=1.5,
        runtime=Runtime(pneumoscope="0.1.0", onnxruntime="1.20.0", provider="cpu"),
    )  # fmt: skip


def test_entries_come_back_and_the_last_of_a_shard_holds(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for each in (entry(2), entry(0), entry(2, "cd")):
        append_entry(path, each)
    assert read_journal(path) == {0: entry(0), 2: entry(2, "cd")}
    assert len(list(iter_journal(path))) == 3


def test_a_missing_journal_has_no_entries(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "journal.jsonl") == {}
    drop_torn_line(tmp_path / "journal.jsonl")


def test_a_line_that_is_cut_off_anywhere_is_ignored_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    append_entry(path, entry(0))
    first = path.read_bytes()
    append_entry(path, entry(1))
    both = path.read_bytes()
    for size in range(len(first), len(both)):
        path.write_bytes(both[:size])
        assert read_journal(path) == {0: entry(0)}
        drop_torn_line(path)
        assert path.read_bytes() == first
        append_entry(path, entry(1))
        assert path.read_bytes() == both


def test_a_journal_of_one_cut_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"shard":' + b" " * 200_000)
    drop_torn_line(path)
    assert path.read_bytes() == b""


def test_a_malformed_line_before_the_last_is_reported_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    append_entry(path, entry(0))
    path.write_bytes(path.read_bytes() + b"{broken}\n")
    append_entry(path, entry(1))
    with pytest.raises(ArchiveError, match=r"line 2 of '.*journal\.jsonl' is malformed"):
        read_journal(path)


def test_a_line_of_another_version_is_not_to_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    append_entry(path, entry(0))
    path.write_bytes(path.read_bytes().replace(b'"runtime"', b'"versions"'))
    with pytest.raises(
        ArchiveError, match=r"missing required field `runtime`.*Another version of pneumoscope wrote it"
    ):
        read_journal(path)


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "journal.jsonl"
    append_entry(path, entry(0))
    before, write = path.read_bytes(), os.write

    def half(handle: int, data: bytes) -> int:
        return write(handle, data[: len(data) // 2])

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, half if step == "write" else full)
        with pytest.raises(StorageError, match=r"cannot write .*journal\.jsonl.*Finished shards are kept"):
            append_entry(path, entry(1))
    assert path.read_bytes() == before
