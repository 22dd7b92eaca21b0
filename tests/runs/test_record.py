"""The record of a run: strict reading, and its state."""

import json

import pytest

from pneumoscope.core.errors import RunError
from pneumoscope.runs.record import read_run


def changed(run, **fields):
    """The run with fields of its record replaced, or removed where None."""
    file = run / "run.json"
    data = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))
    return run


def test_record_round_trips_through_json(maker):
    run = maker.run()
    record = read_run(run)

    (run / "run.json").write_text(record.to_json())

    assert read_run(run) == record
    assert (record.name, record.state, record.best_epoch, record.resumed) == ("gray", "finished", 2, ())


def test_unfinished_run_is_an_error_only_if_a_finished_one_is_required(maker):
    run = changed(maker.run(), state="running", best_epoch=None, seconds=None)

    assert read_run(run).best_epoch is None
    with pytest.raises(RunError, match=r"run 'gray' is 'running', not finished.*--resume"):
        read_run(run, finished=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"average_train_accuracy": None}, "is malformed: a finished run has no average_train_accuracy"),
        ({"epochs": "2"}, r"is malformed: Expected `int`, got `str` - at `\$\.epochs`"),
        ({"state": "stopped"}, "is malformed: Invalid enum value 'stopped'"),
        ({"schema": 2}, "has schema 2; this version reads 1"),
    ],
)
def test_malformed_record_is_an_error_with_the_field(maker, fields, message):
    with pytest.raises(RunError, match=message):
        read_run(changed(maker.run(), **fields))


def test_error_for_a_folder_without_a_record_states_the_command(tmp_path):
    with pytest.raises(RunError, match=r"cannot read '.*run\.json': No such file.*pneumoscope train RECIPE"):
        read_run(tmp_path)
