"""Atomic writes leave the old file or the new one at every failure; locks exclude other processes."""

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.processes import started

from pneumoscope.core.errors import RunError, StorageError
from pneumoscope.core.files import is_temporary, locked, remove_temporary_files, write_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Lunge, größer\n", b"Lunge, gr\xc3\xb6\xc3\x9fer\n"),
        (b"\x00\xff", b"\x00\xff"),
        (lambda file: (file.write(b"one "), file.write(b"two")), b"one two"),
        ("", b""),
    ],
)
def test_writes_text_bytes_and_functions(tmp_path, content, expected):
    path = tmp_path / "made" / "on the way" / "file"

    assert write_atomically(path, content) == path
    assert path.read_bytes() == expected
    assert names(path.parent) == ["file"]


def test_replaces_an_existing_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("a longer text than the new one")

    write_atomically(path, "new")

    assert path.read_text() == "new"


class StopError(Exception):
    pass


def failing(error, after=b"half of it"):
    def content(file):
        file.write(after)
        file.flush()
        raise error

    return content


@pytest.mark.parametrize("old", ["old", None])
@pytest.mark.parametrize("error", [StopError("stop"), KeyboardInterrupt(), MemoryError()])
def test_content_that_raises_leaves_the_old_file(tmp_path, old, error):
    path = tmp_path / "file"
    if old:
        path.write_text(old)

    with pytest.raises(type(error)):
        write_atomically(path, failing(error))

    assert (path.read_text() if path.exists() else None) == old
    assert names(tmp_path) == (["file"] if old else [])


def test_file_gets_its_name_only_when_complete(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    seen = []

    def content(file):
        file.write(b"half")
        file.flush()
        seen.append(path.read_text())

    write_atomically(path, content)

    assert seen == ["old"]
    assert path.read_text() == "half"


def test_syncs_the_file_before_renaming_and_the_folder_after(tmp_path, monkeypatch):
    done, replace, fsync = [], Path.replace, os.fsync

    def synced(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", lambda path, target: done.append("name") or replace(path, target))
    write_atomically(tmp_path / "a", "x")
    assert done == ["file", "name", "folder"]

    done.clear()
    write_atomically(tmp_path / "new" / "inner" / "b", "x")
    assert done == ["folder", "folder", "file", "name", "folder"]  # the names of the new folders first


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_full_disk_at_any_step_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    if step == "replace":
        monkeypatch.setattr(Path, "replace", full)

    with pytest.raises(StorageError, match=rf"cannot write '{path}': No space left on device. Free some space"):
        write_atomically(path, full if step == "write" else "new")

    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.fixture
def small_disk(tmp_path):
    """A mounted file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    mount = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if mount.returncode:
        pytest.skip(f"cannot mount a file system: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True, timeout=60)


def test_full_file_system_leaves_the_old_file(small_disk):
    path = small_disk / "file"
    write_atomically(path, bytes(600_000))

    with pytest.raises(StorageError, match="No space left on device"):
        write_atomically(path, b"\x01" * 600_000)

    assert path.read_bytes() == bytes(600_000)
    assert names(small_disk) == ["file"]
    write_atomically(path, "a small file fits")
    assert path.read_text() == "a small file fits"


def test_unwritable_path_is_named(tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    (tmp_path / "folder" / "inner").mkdir(parents=True)

    with pytest.raises(StorageError, match=r"cannot write '.*file/new': (Not a directory|File exists)"):
        write_atomically(tmp_path / "file" / "new", "new")
    with pytest.raises(StorageError, match=r"cannot write '.*folder': Is a directory"):
        write_atomically(tmp_path / "folder", "new")

    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "folder" / "inner").is_dir()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_umask_applies_even_if_the_old_file_had_other_permissions(tmp_path, umask, mode):
    old = tmp_path / "old"
    old.write_text("old")
    old.chmod(0o400)
    before = os.umask(umask)
    try:
        made = [write_atomically(path, "new").stat().st_mode & 0o777 for path in (tmp_path / "new", old)]
    finally:
        after = os.umask(before)
    assert made == [mode, mode]
    assert after == umask


def test_never_changes_the_umask_of_the_process(tmp_path, monkeypatch):
    def touched(mask):
        pytest.fail(f"the umask of the process was set to {mask:o}")

    monkeypatch.setattr(os, "umask", touched)

    write_atomically(tmp_path / "file", "new")


def test_concurrent_writers_leave_one_complete_file(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([number]) * 200_000 for number in range(8)]
    write_atomically(path, contents[0])
    torn, stop = [], threading.Event()

    def watch():
        while not stop.is_set():
            if path.read_bytes() not in contents:
                torn.append(True)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomically(path, content), contents * 5))
    stop.set()
    watcher.join(timeout=60)
    assert not watcher.is_alive()

    assert not torn
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["file"]


def test_killed_writer_leaves_the_old_file_and_a_removable_temporary_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    code = f"""
import os, signal
from pathlib import Path
from pneumoscope.core.files import write_atomically

def content(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

write_atomically(Path({str(path)!r}), content)
"""

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -9

    assert path.read_text() == "old"
    write_atomically(path, "new")
    assert path.read_text() == "new"
    (left,) = set(names(tmp_path)) - {"file"}
    assert is_temporary(left, "file")

    remove_temporary_files(path)

    assert names(tmp_path) == ["file"]
    assert path.read_text() == "new"


def test_removes_only_temporary_files_of_this_file(tmp_path):
    others = ["file", ".file", ".file-", ".file-0123", ".file-0123456789abcdeg", ".file-0123456789abcdef0", ".file-x"]
    others += [
        "file-0123456789abcdef",
        ".another-0123456789abcdef",
        ".my.file-0123456789abcdef",
        ".FILE-0123456789abcdef",
    ]
    for name in (*others, ".file-0123456789abcdef", ".file-fedcba9876543210"):
        (tmp_path / name).write_text("kept")

    remove_temporary_files(tmp_path / "file")
    remove_temporary_files(tmp_path / "absent" / "file")

    assert names(tmp_path) == sorted(others)


def test_dot_in_a_file_name_is_literal(tmp_path):
    assert is_temporary(".last.ckpt-0123456789abcdef", "last.ckpt")
    assert not is_temporary(".lastxckpt-0123456789abcdef", "last.ckpt")


# --- locks -----------------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from pneumoscope.core.errors import RunError
from pneumoscope.core.files import locked
with locked(Path(sys.argv[1]), RunError("held")):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock `tmp_path/made/lock`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "made" / "lock")]
    with started(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_lock_of_another_process_is_respected_until_that_process_is_killed(tmp_path, holder):
    path, error = tmp_path / "made" / "lock", RunError("in use")

    with pytest.raises(RunError, match="in use"), locked(path, error):
        pytest.fail("two processes hold the lock")
    begun = time.monotonic()
    with pytest.raises(RunError, match="in use"), locked(path, error, timeout=0.3):
        pytest.fail("two processes hold the lock")
    assert time.monotonic() - begun >= 0.3

    holder.kill()
    holder.wait(timeout=60)

    with locked(path, error):
        assert path.exists()


def test_waiting_process_gets_the_lock_when_its_holder_is_killed(tmp_path, holder):
    threading.Timer(0.3, holder.kill).start()

    with locked(tmp_path / "made" / "lock", RunError("in use"), timeout=60):
        assert holder.wait(timeout=60) == -9


def test_lock_is_released_after_an_error_in_its_block(tmp_path):
    for _ in range(2):
        with pytest.raises(OSError, match="of the block"), locked(tmp_path / "lock", RunError("in use")):
            raise OSError("of the block")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_an_error(tmp_path, monkeypatch, number):
    fcntl = pytest.importorskip("fcntl")

    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)

    with (
        pytest.raises(
            StorageError,
            match=rf"cannot lock '.*/lock': {os.strerror(number)}. Choose a writable folder .* supports locks",
        ),
        locked(tmp_path / "lock", RunError("in use")),
    ):
        pytest.fail("the lock was acquired")


def test_lock_file_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")

    with (
        pytest.raises(StorageError, match=r"cannot lock '.*file/lock': (Not a directory|File exists)"),
        locked(tmp_path / "file" / "lock", RunError("in use")),
    ):
        pytest.fail("the lock was acquired")


def test_symbolic_link_is_followed(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    assert write_atomically(tmp_path / "link", "new") == tmp_path / "link"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="a pipe or a device"):
        write_atomically(tmp_path / "pipe", "new")
    assert (tmp_path / "pipe").is_fifo()
