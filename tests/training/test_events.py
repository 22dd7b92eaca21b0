"""What TensorBoard reads of a run, and that a full disk ends the record but not the run."""

import csv
import subprocess
import threading

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.training.conftest import small

from pneumoscope.training import trainer as loop
from pneumoscope.training.checkpoints import BEST, EPOCHS
from pneumoscope.training.events import EventLog
from pneumoscope.training.train import train

pytestmark = pytest.mark.training


def scalars(folder):
    """What TensorBoard itself reads: {tag: [(step, value), ...]}."""
    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.fixture(scope="module")
def run(phantoms, tmp_path_factory):
    out = tmp_path_factory.mktemp("events") / "run"
    train(small(), phantoms, out)
    return out


def test_tensorboard_reads_the_figures_of_epochs_csv(run):
    rows = list(csv.DictReader((run / EPOCHS).read_text().splitlines()))

    found = scalars(run / "tensorboard")

    assert set(found) == set(rows[0]) - {"epoch"}
    for name, operating_points in found.items():
        assert [step for step, _ in operating_points] == [1, 2]
        assert [value for _, value in operating_points] == pytest.approx([float(row[name]) for row in rows], rel=1e-6)


def test_a_resumed_run_is_one_curve(tmp_path):
    for step in (1, 2, 3):
        EventLog(tmp_path).log_metrics({"loss": 1 / step}, step)

    assert scalars(tmp_path) == {"loss": [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]}
    assert len(list(tmp_path.iterdir())) == 3


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 16 kB with one page left."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder]
    made = subprocess.run(mount, capture_output=True, text=True, check=False, timeout=60)
    if made.returncode:
        pytest.skip(f"a file system cannot be mounted here: {made.stderr.strip()}")
    (folder / "others").write_bytes(bytes(12_288))
    yield folder
    subprocess.run(["umount", folder], check=True, timeout=60)


def test_a_disk_that_is_really_full_ends_the_record(full_disk, capsys):
    log = EventLog(full_disk)

    for step in range(1, 200):
        log.log_metrics({"loss": 1.0}, step)

    assert capsys.readouterr().err == (
        f"note: nothing more is written for TensorBoard in {str(full_disk)!r}: No space left on device; training goes on\n"
    )
    steps = [step for step, _ in scalars(full_disk)["loss"]]
    assert steps == list(range(1, len(steps) + 1))  # the half record at the end is none
    assert 20 < len(steps) < 199
    (full_disk / "others").unlink()
    log.log_metrics({"loss": 1.0}, 200)
    assert len(scalars(full_disk)["loss"]) == len(steps)


def test_a_run_whose_tensorboard_folder_cannot_be_written_ends_with_the_same_weights(
    run, phantoms, tmp_path, monkeypatch, capfd
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(loop, "EventLog", lambda folder: EventLog(tmp_path / "file" / folder.name))

    assert train(small(), phantoms, tmp_path / "run")["state"] == "finished"

    assert (tmp_path / "run" / BEST).read_bytes() == (run / BEST).read_bytes()
    told = [line for line in capfd.readouterr().err.splitlines() if "TensorBoard" in line]
    assert len(told) == 1
    assert "Not a directory; training goes on" in told[0]
    assert not [thread for thread in threading.enumerate() if "AsyncWriter" in type(thread).__name__]
