"""Checklists: their numbers, their facts from the record, and what stays open."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from typing import Any

import pytest

from pneumoscope.reporting.binary_checklist_facts import BINARY_FACTS
from pneumoscope.reporting.checklist_facts import PLACES
from pneumoscope.reporting.checklists import CHECKLISTS, Checklist, checklist_table, fill_checklist, read_items
from pneumoscope.reporting.comparison_figures import draw_figures
from pneumoscope.reporting.comparison_page import comparison_page
from pneumoscope.reporting.run_data import load_run_data
from pneumoscope.reporting.table_forms import to_csv

# Numbers of the published checklists: those with parts, and the last number.
NUMBERS = {
    "claim": ({}, 44),
    "tripod-ai": (
        {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg", 18: "abcdef", 20: "abc", 23: "ab", 27: "abc"},
        27,
    ),
    "stard-ai": ({15: "abcd", 16: "abc", 17: "ab", 26: "ab", 40: "ab"}, 40),
}


@pytest.fixture(scope="module")
def filled(three: Any) -> dict[str, Checklist]:
    comparison, folders, _ = three
    data = load_run_data(comparison, folders)
    return {name: fill_checklist(name, comparison, data, BINARY_FACTS) for name in CHECKLISTS}


@pytest.mark.parametrize("name", CHECKLISTS)
def test_items_have_the_numbers_of_the_published_checklist(name: str) -> None:
    parts, last = NUMBERS[name]
    expected = [f"{number}{part}" for number in range(1, last + 1) for part in parts.get(number, [""])]
    _, source, items = read_items(name)
    assert [item.number for item in items] == expected
    assert all(item.topic for item in items)
    assert len({item.topic for item in items}) == len(items)
    assert re.search(r"202[45]", source)


def test_every_fact_is_known_and_used() -> None:
    used = {fact for name in CHECKLISTS for item in read_items(name)[2] for fact in item.facts}
    assert used == set(BINARY_FACTS)


def test_items_without_a_fact_are_open(filled: dict[str, Checklist]) -> None:
    for checklist in filled.values():
        for answer in checklist.answers:
            assert answer.facts or answer.ask
            assert answer.status == "open" if not answer.facts else answer.status.startswith("prefilled")
    funding = next(answer for answer in filled["claim"].answers if answer.item.number == "44")
    assert (funding.status, funding.text) == ("open", "")


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("accuracy", "epoch 4 of 4 was selected on validation images"),
        ("last", "the weights are those of epoch 4 of 4, the last one; validation images did not select it"),
    ],
)
def test_the_last_epoch_is_not_called_selected(three: Any, select: str, expected: str) -> None:
    comparison, folders, _ = three
    runs = [
        dataclasses.replace(
            run, evaluation=dataclasses.replace(run.evaluation, recipe={"training": {"select": select}})
        )
        for run in load_run_data(comparison, folders)
    ]
    fact = BINARY_FACTS["selection"](comparison, runs)
    assert fact is not None
    assert fact.text.startswith(f"alexnet-sgd: {expected}.")


def test_facts_are_those_of_the_record(filled: dict[str, Checklist], three: Any) -> None:
    comparison = three[0]
    answers = {answer.item.number: answer for answer in filled["stard-ai"].answers}
    first = comparison.runs[0]
    assert f"{first.confusion.tp} true positives, {first.confusion.fn} false negatives" in answers["30"].text
    assert answers["30"].places == ("confusion",)
    assert f"Sensitivity {first.test['sensitivity']}" in answers["31"].text
    assert "balanced at probability" in answers["15c"].text or "balanced at score" in answers["15c"].text
    assert "Kermany <2018> & others" in answers["11"].text
    assert comparison.images["sha256"][:16] in answers["11"].text
    assert (
        "not evaluated: split train: 40 images, 30 patients; cannot be read: 1 image; other files: 2"
        in answers["24"].text
    )
    assert answers["24"].status == "prefilled, to be completed"
    assert "McNemar" in answers["18"].text


def test_analysis_of_failures_counts_the_errors_of_each_run(filled: dict[str, Checklist], three: Any) -> None:
    failures = next(answer for answer in filled["claim"].answers if answer.item.number == "39")
    for run in three[0].runs:
        counts = run.confusion
        negative = f"{counts.fn} false negative{'s' * (counts.fn != 1)}"
        positive = f"{counts.fp} false positive{'s' * (counts.fp != 1)}"
        assert f"{run.name}: {negative} and {positive} at half." in failures.text


def test_facts_that_are_not_recorded_leave_the_item_open(three: Any) -> None:
    comparison, folders, _ = three
    runs = [
        dataclasses.replace(run, record=None, evaluation=dataclasses.replace(run.evaluation, flow=None, subgroups=()))
        for run in load_run_data(comparison, folders)
    ]
    answers = {answer.item.number: answer for answer in fill_checklist("claim", comparison, runs, BINARY_FACTS).answers}
    for number in ("7", "10", "19", "20", "24", "25", "35"):
        assert answers[number].status == "open"
        assert answers[number].ask
    assert answers["19"].ask == "The record does not have it: state it."


@pytest.mark.slow
def test_places_are_sections_of_the_page(filled: dict[str, Checklist], three: Any) -> None:
    data = load_run_data(three[0], three[1])
    page = comparison_page(three[0], data, draw_figures(three[0], data), list(filled.values()))
    sections = set(re.findall(r'<section id="([a-z_]+)"', page))
    used = {place for checklist in filled.values() for answer in checklist.answers for place in answer.places}
    assert used <= sections
    assert used <= set(PLACES)
    for name, checklist in filled.items():
        assert f'id="checklist-{name}"' in page
        assert re.search(rf"{re.escape(checklist.title)}</h3>\s*<p>{checklist.counts()}\.</p>", page)


def test_table_has_number_status_place_and_what_to_add(filled: dict[str, Checklist]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(checklist_table(filled["claim"])))))
    assert len(rows) == 44
    row = next(row for row in rows if row["Item"] == "39")
    assert (row["Status"], row["Place in the report"]) == ("prefilled, to be completed", "Confusion matrices")
    assert row["For the author"] == "Show and discuss examples of errors."
