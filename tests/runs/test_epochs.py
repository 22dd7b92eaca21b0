"""Selection of the best epoch, and `epochs.csv`."""

import csv
import io

import pytest

from pneumoscope.core.errors import RunError
from pneumoscope.runs.epochs import Epoch, best_epoch, epochs_csv, read_epochs


def row(epoch, loss, accuracy, area):
    return Epoch(epoch, 0.5, 0.8, loss, accuracy, area, 0.001, 2.0)


HISTORY = [row(1, 0.4, 0.90, 0.95), row(2, 0.5, 0.92, 0.90), row(3, 0.3, 0.92, 0.97), row(4, 0.35, 0.91, 0.97)]


def test_best_epoch_is_the_earliest_with_the_best_metric():
    assert best_epoch(HISTORY, "accuracy").epoch == 2
    assert best_epoch(HISTORY, "auroc").epoch == 3
    assert best_epoch(HISTORY, "loss").epoch == 3


def test_select_last_returns_the_last_epoch():
    assert best_epoch(HISTORY, "last").epoch == 4
    assert best_epoch(HISTORY[:1], "last").epoch == 1


def test_csv_has_numbers_in_full_precision():
    rows = list(csv.DictReader(io.StringIO(epochs_csv(HISTORY))))

    assert [row["validation_accuracy"] for row in rows] == ["0.9", "0.92", "0.92", "0.91"]
    assert [row["validation_auroc"] for row in rows] == ["0.95", "0.9", "0.97", "0.97"]


HEADER = ",".join(Epoch._fields)


def test_epochs_round_trip_through_csv(tmp_path):
    (tmp_path / "epochs.csv").write_text(epochs_csv(HISTORY))

    assert read_epochs(tmp_path) == tuple(HISTORY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER}\n", r"epochs\.csv has no rows"),
        ("epoch,train_loss\n1,0.5\n", r"has no column 'train_accuracy' \(it has: epoch, train_loss\)"),
        (f"{HEADER}\n1,1,1,1,1,1,1,1\n2,1,1,high,1,1,1,1\n", "row 2: validation_loss is 'high', not a finite number"),
        (f"{HEADER}\n1,1,1,,1,1,1,1\n", "row 1: validation_loss is '', not a finite number"),
        (f"{HEADER}\n1.5,1,1,1,1,1,1,1\n", r"row 1: epoch is '1\.5', not a whole number"),
        (f"{HEADER}\n1,1\n", "row 1: train_accuracy is None, not a finite number"),
    ],
)
def test_malformed_value_is_an_error_with_its_row(tmp_path, text, message):
    (tmp_path / "epochs.csv").write_text(text)
    with pytest.raises(RunError, match=message):
        read_epochs(tmp_path)


def test_missing_or_undecodable_file_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"cannot read '.*epochs\.csv': No such file"):
        read_epochs(tmp_path)
    (tmp_path / "epochs.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match=r"cannot read '.*epochs\.csv': 'utf-8' codec"):
        read_epochs(tmp_path)
