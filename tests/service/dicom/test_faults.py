"""Faults with real processes: nothing is lost, nothing is doubled. `benchmarks/dicom_faults.py` makes them, and measures more."""

import pytest
from tests.benchmarks.loading import load_benchmark

pytest.importorskip("pynetdicom", reason="[pacs] is not installed")
pytest.importorskip("highdicom", reason="[pacs] is not installed")
benchmark = load_benchmark("dicom_faults")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(benchmark.FAULTS))
def test_fault_loses_and_doubles_nothing(bundle, tmp_path, name):
    try:
        row = benchmark.run_fault(name, tmp_path, bundle, 12)
    except benchmark.UnavailableError as error:
        pytest.skip(str(error))
    assert row.problems == []
    assert row.sent >= 12
    assert row.stored == row.answered == row.sent
    assert row.copies >= row.at_pacs >= row.results > 0


@pytest.mark.slow
def test_lost_instance_and_doubled_result_are_reported(bundle, tmp_path):
    """The checks of the table see what they look for."""
    world = benchmark.World(tmp_path, bundle, 2)
    try:
        world.pacs.start()
        world.service.start()
        world.send(world.instances())
        lost, *_ = benchmark.make_instances(1, seed=5)
        world.sent["lost"] = lost
        world.settle()
        first = next(iter(world.pacs.received()))
        with (world.pacs.folder / "received.jsonl").open("a") as file:
            file.write(f'["{first}", "another content"]\n["1.2.3", "an unknown object"]\n')
        row = world.finish("none")
    finally:
        world.service.kill()
        world.pacs.stop()
    assert row.problems == [
        "2 instances are stored, of 3 that were acknowledged",
        "results: 0 missing, 1 unknown, 1 with two contents",
    ]


def test_table_states_what_was_lost(tmp_path):
    row = benchmark.Row("a fault", 2000, 6000, 1999, 1999, 4000, 4000, 4001, ["1 instance is lost"])
    text = benchmark.to_markdown([row], ["disk full (needs root)"], "command")
    assert "| a fault | 2,000 | 6,000 | 1,999 | 1,999 | 4,000 | 4,000 | 4,001 | 1 instance is lost |" in text
    assert "Not made: disk full (needs root)." in text
