"""Row numbers and shards that never change."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pneumoscope.archive.listing import Growth, Listing
from pneumoscope.archive.readers import SourceImage
from pneumoscope.core.errors import ArchiveError


def images(*numbers: int, version: int = 1) -> list[SourceImage]:
    return [SourceImage(f"{number}.png", 100 * version, version) for number in numbers]


def listed(folder: Path) -> list[tuple[int, int, tuple[str, ...]]]:
    listing = Listing(folder)
    return [listing.shard(number) for number in range(listing.shards)]


def test_images_are_numbered_and_divided_into_shards(tmp_path: Path) -> None:
    growth = Listing(tmp_path).grow(images(*range(7)), 3)

    assert growth == Growth(7, 0, 0)
    assert listed(tmp_path) == [
        (0, 0, ("0.png", "1.png", "2.png")),
        (1, 3, ("3.png", "4.png", "5.png")),
        (2, 6, ("6.png",)),
    ]
    assert list(Listing(tmp_path).ranges()) == [(0, 0, 3), (1, 3, 3), (2, 6, 1)]


def test_new_images_get_new_rows_and_shards_and_earlier_ones_keep_theirs(tmp_path: Path) -> None:
    Listing(tmp_path).grow(images(1, 3, 5, 7), 3)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    before = listed(tmp_path)

    growth = Listing(tmp_path).grow(images(0, 1, 2, 3, 4, 5, 6, 7), 3)

    assert growth == Growth(4, 0, 0)
    assert listed(tmp_path)[:2] == before
    assert listed(tmp_path)[2:] == [(2, 4, ("0.png", "2.png", "4.png")), (3, 7, ("6.png",))]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()}.items() >= first.items()


def test_an_unchanged_source_adds_no_file(tmp_path: Path) -> None:
    Listing(tmp_path).grow(images(1, 2), 3)
    assert Listing(tmp_path).grow(images(2, 1), 3) == Growth(0, 0, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["rows-000000.parquet"]


def test_a_changed_file_is_a_new_row_once(tmp_path: Path) -> None:
    Listing(tmp_path).grow(images(1, 2), 3)
    assert Listing(tmp_path).grow([*images(1), *images(2, version=2)], 3) == Growth(0, 1, 0)
    assert listed(tmp_path)[1:] == [(1, 2, ("2.png",))]
    assert Listing(tmp_path).grow([*images(1), *images(2, version=2)], 3) == Growth(0, 0, 0)
    # Back to the first version: its row is of an older file, so that it is a change again.
    assert Listing(tmp_path).grow(images(1, 2), 3) == Growth(0, 1, 0)


def test_a_file_that_is_no_longer_there_keeps_its_row(tmp_path: Path) -> None:
    Listing(tmp_path).grow(images(1, 2, 3), 3)
    assert Listing(tmp_path).grow(images(2), 3) == Growth(0, 0, 2)
    assert Listing(tmp_path).rows == 3


def test_names_that_are_not_valid_text_come_back(tmp_path: Path) -> None:
    Listing(tmp_path).grow([SourceImage("\udcff a.png", 1, 1), SourceImage("胸.png", 1, 1)], 3)
    assert listed(tmp_path) == [(0, 0, ("\udcff a.png", "胸.png"))]
    assert pq.read_table(tmp_path / "rows-000000.parquet")["source"].to_pylist() == ["\\udcff a.png", "胸.png"]


@pytest.mark.slow
def test_growth_of_many_images_agrees_with_sets(tmp_path: Path) -> None:
    """Compared with the same bookkeeping in Python's dictionaries, over several runs."""
    draw = random.Random(3)
    known: dict[str, SourceImage] = {}
    for _ in range(5):
        source = [SourceImage(f"{number}.png", draw.choice([1, 2]), 0) for number in draw.sample(range(60_000), 40_000)]
        expected = Growth(
            sum(image.name not in known for image in source),
            sum(image.name in known and known[image.name] != image for image in source),
            len(known.keys() - {image.name for image in source}),
        )
        assert Listing(tmp_path).grow(source, 1000) == expected
        known |= {image.name: image for image in source}


def test_a_missing_or_damaged_file_is_reported(tmp_path: Path) -> None:
    Listing(tmp_path).grow(images(1), 3)
    Listing(tmp_path).grow(images(1, 2), 3)
    (tmp_path / "rows-000001.parquet").write_bytes(b"damaged")
    with pytest.raises(ArchiveError, match=r"rows-000001\.parquet' is damaged"):
        Listing(tmp_path)
    (tmp_path / "rows-000001.parquet").unlink()
    Listing(tmp_path).grow(images(1, 2), 3)
    (tmp_path / "rows-000000.parquet").unlink()
    with pytest.raises(ArchiveError, match=r"no file before .*rows-000001"):
        Listing(tmp_path)
