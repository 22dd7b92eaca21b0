"""Labels, and sentences about intervals."""

from pneumoscope.core.interval import Interval
from pneumoscope.core.result_forms import method_name
from pneumoscope.reporting import labels


def test_methods_have_printed_names() -> None:
    assert method_name("mcnemar, exact") == "McNemar, exact"
    assert method_name("delong by patient") == "DeLong, clustered by patient (Obuchowski)"
    assert method_name("patient bootstrap") == "percentile bootstrap by patient"
    assert method_name("patient bootstrap, basic") == "basic bootstrap by patient"
    assert method_name("mover-r, design effects 1.10 and 1.00") == "MOVER-R, design effects 1.10 and 1.00"


def interval(method: str, *, level: float = 0.95, seed: int | None = None, low: float | None = 0.1) -> Interval:
    return Interval(0.5, low, None if low is None else 0.9, method, 10, level, seed, "" if low else "undefined")


def test_interval_note_states_each_method_once_with_its_seed_and_metrics() -> None:
    note = labels.interval_note(
        [
            ("Accuracy", interval("wilson, design effect 1.31")),
            ("Accuracy", interval("wilson, design effect 1.02")),
            ("Sensitivity", interval("wilson")),
            ("F1", interval("patient bootstrap", seed=3)),
            ("MCC", interval("delong", low=None)),
        ]
    )
    assert note == (
        "95% intervals: Wilson, adjusted for repeated patients (Accuracy, Sensitivity); percentile bootstrap by patient,"
        " seed 3 (F1)."
    )


def test_interval_note_of_one_method_lists_no_metrics_and_of_none_is_empty() -> None:
    assert labels.interval_note([("a", interval("newcombe, paired", level=0.9))]) == "90% intervals: Newcombe, paired."
    assert labels.interval_note([("a", interval("wilson", low=None))]) == ""
    both = labels.interval_note([("a", interval("wilson")), ("b", interval("wilson", level=0.99))])
    assert both == "95% and 99% intervals: Wilson."


def test_every_metric_is_in_the_glossary() -> None:
    assert set(labels.METRICS.values()) <= set(labels.GLOSSARY)
