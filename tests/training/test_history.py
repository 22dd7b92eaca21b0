"""Which epoch is kept."""

import csv
import io

from pneumoscope.training.history import Epoch, best_epoch, history_csv


def row(epoch, loss, accuracy, area):
    return Epoch(epoch, 0.5, 0.8, loss, accuracy, area, 0.001, 2.0)


HISTORY = [row(1, 0.4, 0.90, 0.95), row(2, 0.5, 0.92, 0.90), row(3, 0.3, 0.92, 0.97), row(4, 0.35, 0.91, 0.97)]


def test_the_best_epoch_is_the_earliest_with_the_best_figure():
    assert best_epoch(HISTORY, "accuracy").epoch == 2
    assert best_epoch(HISTORY, "auroc").epoch == 3
    assert best_epoch(HISTORY, "loss").epoch == 3


def test_the_last_epoch_is_kept_where_nothing_is_to_be_chosen():
    assert best_epoch(HISTORY, "last").epoch == 4
    assert best_epoch(HISTORY[:1], "last").epoch == 1


def test_the_table_holds_every_figure():
    rows = list(csv.DictReader(io.StringIO(history_csv(HISTORY))))

    assert [row["validation_accuracy"] for row in rows] == ["0.9", "0.92", "0.92", "0.91"]
    assert [row["validation_auroc"] for row in rows] == ["0.95", "0.9", "0.97", "0.97"]
