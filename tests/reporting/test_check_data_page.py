"""The audit's page: complete, self-contained, and safe with names that a stranger chose."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.core.results import Interval
from pneumoscope.data.check import DatasetAudit, UnreadableFile, check_data
from pneumoscope.data.layouts import load_manifest
from pneumoscope.reporting.check_data_page import check_data_page

EVIL = "<img src=x onerror=alert(1)>.png"


class _Page(HTMLParser):
    """Tags, ids and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id" and value:
                self.ids.append(value)
            if name in {"src", "href", "xlink:href"} and value:
                self.addresses.append(value)

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetAudit, Path]:
    root = tmp_path_factory.mktemp("images")
    for number in range(6):
        for split in ("train", "test"):
            for label, name in (("NORMAL", f"IM-{number:04}-0001.png"), ("PNEUMONIA", f"person{number}_virus_1.png")):
                noise = np.random.default_rng([number, len(split + label)]).integers(0, 256, (9, 9), dtype=np.uint8)
                (root / split / label).mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise).resize((320, 240)).save(root / split / label / name)
    copy = root / "train" / "NORMAL" / "IM-0002-0001.png"
    (root / "test" / "NORMAL" / EVIL).write_bytes(copy.read_bytes())
    (root / "train" / "NORMAL" / "<b>bad.png").write_text("no image")
    return check_data(load_manifest(root)), root


def test_needs_nothing_else_and_runs_nothing(audited: tuple[DatasetAudit, Path]) -> None:
    text = check_data_page(*audited)
    page = _Page(text)
    assert "script" not in page.tags
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import", text)
    assert "default-src 'none'" in text
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert text == check_data_page(*audited)


def test_says_what_was_found(audited: tuple[DatasetAudit, Path]) -> None:
    found, _ = audited
    text = " ".join(_Page(check_data_page(*audited)).text.split())
    assert "Audit of 25 images" in text
    assert found.notice in text
    assert "12 patients are in more than one split : 12 in train/test" in text
    assert found.expected_leak_rate is not None
    assert f"{100 * found.expected_leak_rate:.1f}%" in text
    for interval in found.shortcuts.values():
        assert f"{interval.value:.3f} {interval.low:.3f} to {interval.high:.3f}" in text
    assert "1 groups of byte-identical images" in text
    assert "train and test" in text or "test and train" in text
    assert "not an image (8 bytes)" in text
    assert found.images_sha256 in text


def test_names_of_files_stay_text(audited: tuple[DatasetAudit, Path]) -> None:
    text = check_data_page(*audited)
    assert EVIL not in text
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in text
    assert "<b>bad" not in text


def test_figures_are_pictures_with_names(audited: tuple[DatasetAudit, Path]) -> None:
    found, _ = audited
    figures = re.findall(r"<svg[^>]*class=\"plot\".*?</svg>", check_data_page(*audited), re.DOTALL)
    labels = [ElementTree.fromstring(figure).get("aria-label") for figure in figures]
    assert labels[:2] == ["Images by split and label", "AUROC of the three shortcut controls"]
    assert len(labels) == 6
    counts = "".join(ElementTree.fromstring(figures[0]).itertext())
    for split, images in found.images.items():
        for label, count in images.items():
            assert f"{split} {label}" in counts
            assert str(count) in counts
    assert f"{found.shortcuts['border'].value:.3f}" in "".join(ElementTree.fromstring(figures[1]).itertext())


def test_duplicate_images_are_embedded_small(audited: tuple[DatasetAudit, Path]) -> None:
    pictures = [address for address in _Page(check_data_page(*audited)).addresses if address.startswith("data:image")]
    assert len(pictures) == 2
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))) as image:
            assert image.size == (220, 165)


def test_a_image_that_has_gone_since_is_said_to_be(audited: tuple[DatasetAudit, Path], tmp_path: Path) -> None:
    page = _Page(check_data_page(audited[0], tmp_path))
    assert page.text.count("cannot be read") == 2
    assert "img" not in page.tags


def test_an_audit_without_findings(audited: tuple[DatasetAudit, Path]) -> None:
    found, root = audited
    missing = Interval(None, None, None, "5-fold by patient", 25, seed=0, reason="5 folds need 5 NORMAL patients")
    bare = dataclasses.replace(
        found,
        near_duplicates=dataclasses.replace(found.near_duplicates, pairs=0, identical=0, listed=()),
        unreadable=(),
        patients_in_several_splits={},
        expected_leak_rate=None,
        expected_leak_rate_reason="no patient is known",
        shortcuts=dict.fromkeys(found.shortcuts, missing),
        notes=("the patient of 25 images is unknown",),
    )
    text = " ".join(_Page(check_data_page(bare, root)).text.split())
    assert "The images are in one split." in text
    assert "not defined: no patient is known" in text
    assert text.count("5 folds need 5 NORMAL patients") == 3
    assert "The patient of 25 images is unknown." in text
    assert text.count("None.") == 2


def test_long_lists_are_cut_and_say_so(audited: tuple[DatasetAudit, Path]) -> None:
    found, root = audited
    pair = found.near_duplicates.listed[0]
    many = dataclasses.replace(
        found,
        unreadable=tuple(UnreadableFile(f"{number}.png", "broken") for number in range(150)),
        near_duplicates=dataclasses.replace(found.near_duplicates, pairs=600, listed=(pair,) * 500),
    )
    text = " ".join(_Page(check_data_page(many, root)).text.split())
    assert "24 of 600 pairs are shown" in text
    assert "100 of 150 are shown" in text
    assert text.count("broken") == 100
