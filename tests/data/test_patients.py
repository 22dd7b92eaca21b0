"""Patients and etiologies from file names."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from pneumoscope.data.patients import Identity, identify, series_and_number


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
def test_the_name_tells_series_number_and_etiology(name: str, patient: str, etiology: str) -> None:
    assert identify(name) == Identity(patient, etiology)


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
def test_an_unknown_name_is_not_guessed(name: str) -> None:
    assert identify(name) == Identity("", "")


def test_series_count_for_themselves() -> None:
    names = ["person115_bacteria_1", "person115_virus_1", "IM-0115-0001", "NORMAL2-IM-0115-0001", "VIRUS-115-0001"]
    assert len({identify(name).patient for name in names}) == len(names)


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
def test_a_key_comes_apart_into_series_and_number(patient: str, expected: tuple[str, int] | None) -> None:
    assert series_and_number(patient) == expected


@pytest.mark.real_data
def test_the_key_by_number_alone_would_invent_a_leak(real_images: Path) -> None:
    keyed: dict[str, set[str]] = defaultdict(set)
    naive: dict[str, set[str]] = defaultdict(set)
    for split in ("train", "test"):
        for image in (real_images / split).rglob("*.jpeg"):
            keyed[split].add(identify(image.name).patient)
            found = re.search(r"person(\d+)|IM-(\d+)", image.name)
            assert found is not None
            naive[split].add(found[0])
    assert "" not in keyed["train"] | keyed["test"]
    assert not keyed["train"] & keyed["test"]
    assert len(naive["train"] & naive["test"]) == 264
