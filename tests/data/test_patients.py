"""Parsing patients and etiologies from file names."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from pneumoscope.data.patients import FileNameInfo, parse_file_name, parse_patient


@pytest.mark.parametrize(
    ("name", "patient", "etiology"),
    [
        ("person100_bacteria_475.jpeg", "bacteria-100", "bacteria"),
        ("person100_virus_184.jpeg", "virus-100", "virus"),
        ("person1_virus_6_2.jpeg", "virus-1", "virus"),
        ("IM-0115-0001.jpeg", "IM-0115", "normal"),
        ("IM-0115-0001-0002.jpeg", "IM-0115", "normal"),
        ("NORMAL2-IM-0115-0001.jpeg", "NORMAL2-IM-0115", "normal"),
        ("NORMAL2-IM-0115-0001-0001.png", "NORMAL2-IM-0115", "normal"),
        ("BACTERIA-1008087-0001.jpeg", "BACTERIA-1008087", "bacteria"),
        ("VIRUS-1058959-0003.jpeg", "VIRUS-1058959", "virus"),
        ("NORMAL-28501-0001.jpeg", "NORMAL-28501", "normal"),
    ],
)
def test_known_patterns_give_patient_and_etiology(name: str, patient: str, etiology: str) -> None:
    assert parse_file_name(name) == FileNameInfo(patient, etiology)


@pytest.mark.parametrize(
    "name",
    [
        "image.png",
        "person_bacteria_1.jpeg",
        "person1_fungus_2.jpeg",
        "my-IM-0115-0001.jpeg",
        "IM-0115.jpeg",
        "",
        ".jpeg",
    ],
)
def test_unknown_pattern_gives_nothing(name: str) -> None:
    assert parse_file_name(name) == FileNameInfo("", "")


def test_equal_numbers_in_different_series_are_different_patients() -> None:
    names = ["person115_bacteria_1", "person115_virus_1", "IM-0115-0001", "NORMAL2-IM-0115-0001", "VIRUS-115-0001"]
    assert len({parse_file_name(name).patient for name in names}) == len(names)


@pytest.mark.parametrize(
    ("patient", "expected"),
    [
        ("NORMAL2-IM-0381", ("NORMAL2-IM", 381)),
        ("bacteria-100", ("bacteria", 100)),
        ("P7", ("P", 7)),
        ("42", ("", 42)),
        ("anna", None),
        ("", None),
    ],
)
def test_patient_is_parsed_into_series_and_its_number(patient: str, expected: tuple[str, int] | None) -> None:
    assert parse_patient(patient) == expected


@pytest.mark.real_data
def test_number_without_series_would_report_false_leaks(real_images: Path) -> None:
    patients: dict[str, set[str]] = defaultdict(set)
    numbers: dict[str, set[str]] = defaultdict(set)
    for split in ("train", "test"):
        for image in (real_images / split).rglob("*.jpeg"):
            patients[split].add(parse_file_name(image.name).patient)
            match = re.search(r"person(\d+)|IM-(\d+)", image.name)
            assert match is not None
            numbers[split].add(match[0])
    assert "" not in patients["train"] | patients["test"]
    assert not patients["train"] & patients["test"]
    assert len(numbers["train"] & numbers["test"]) == 264
