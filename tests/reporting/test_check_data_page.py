"""The page of a dataset audit is complete and self-contained, and escapes file names."""

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

from pneumoscope.core.interval import Interval
from pneumoscope.data.check import DatasetAudit, UnreadableFile, check_data
from pneumoscope.data.layouts import load_manifest
from pneumoscope.reporting.check_data_page import check_data_page

MARKUP_NAME = "<img src=x onerror=alert(1)>.png"


class _Page(HTMLParser):
    """Tags, ids, URLs and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.urls: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id" and value:
                self.ids.append(value)
            if name in {"src", "href", "xlink:href"} and value:
                self.urls.append(value)

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


@pytest.fixture(scope="module")
def audit_and_root(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetAudit, Path]:
    root = tmp_path_factory.mktemp("images")
    for number in range(6):
        for split in ("train", "test"):
            for label, name in (("NORMAL", f"IM-{number:04}-0001.png"), ("PNEUMONIA", f"person{number}_virus_1.png")):
                noise = np.random.default_rng([number, len(split + label)]).integers(0, 256, (9, 9), dtype=np.uint8)
                (root / split / label).mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise).resize((320, 240)).save(root / split / label / name)
    copy = root / "train" / "NORMAL" / "IM-0002-0001.png"
    (root / "test" / "NORMAL" / MARKUP_NAME).write_bytes(copy.read_bytes())
    (root / "train" / "NORMAL" / "<b>bad.png").write_text("not an image")
    return check_data(load_manifest(root)), root


def test_the_page_is_self_contained_and_has_no_scripts(audit_and_root: tuple[DatasetAudit, Path]) -> None:
    text = check_data_page(*audit_and_root)
    page = _Page(text)
    assert "script" not in page.tags
    assert all(url.startswith(("#", "data:")) for url in page.urls)
    assert not re.search(r"url\((?!#)|@import", text)
    assert "default-src 'none'" in text
    assert len(page.ids) == len(set(page.ids))
    assert {url[1:] for url in page.urls if url.startswith("#")} <= set(page.ids)
    assert text == check_data_page(*audit_and_root)


def test_the_page_states_the_findings(audit_and_root: tuple[DatasetAudit, Path]) -> None:
    audit, _ = audit_and_root
    text = " ".join(_Page(check_data_page(*audit_and_root)).text.split())
    assert "Dataset audit: 25 images" in text
    assert audit.notice in text
    assert "12 patients are in more than one split : 12 in train/test" in text
    assert audit.expected_leak_rate is not None
    assert f"{100 * audit.expected_leak_rate:.1f}%" in text
    for interval in audit.shortcuts.values():
        assert f"{interval.value:.3f} {interval.low:.3f} to {interval.high:.3f}" in text
    assert "Groups of byte-identical images: 1." in text
    assert "train and test" in text or "test and train" in text
    assert "not an image (12 bytes)" in text
    assert audit.images_sha256 in text


def test_a_single_patient_in_several_splits_is_singular(audit_and_root: tuple[DatasetAudit, Path]) -> None:
    audit, root = audit_and_root
    text = check_data_page(dataclasses.replace(audit, patients_in_several_splits={"train/test": 1}), root)
    assert "<strong>1 patient is in more than one split</strong>" in text


def test_several_classes_have_their_own_columns_and_controls(audit_and_root: tuple[DatasetAudit, Path]) -> None:
    audit, root = audit_and_root
    classes = ("covid", "other", "tb")
    size = audit.sizes["NORMAL"]
    several = dataclasses.replace(
        audit,
        images={"all": {"covid": 11, "other": 12, "tb": 13}},
        etiology={"all": {"normal": 0, "bacteria": 0, "virus": 0, "unknown": 36}},
        patients={"all": 30},
        sizes=dict.fromkeys(classes, size),
        shortcuts={f"{name}, {label}": audit.shortcuts[name] for label in classes for name in audit.shortcuts},
    )
    page = _Page(check_data_page(several, root))
    text = " ".join(page.text.split())
    assert "Split covid other tb Patients all 11 12 13 30" in text
    assert "center blanked, tb" in text
    assert "Bacteria" not in text


def test_file_names_are_escaped(audit_and_root: tuple[DatasetAudit, Path]) -> None:
    text = check_data_page(*audit_and_root)
    assert MARKUP_NAME not in text
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in text
    assert "<b>bad" not in text


def test_figures_have_text_alternatives(audit_and_root: tuple[DatasetAudit, Path]) -> None:
    audit, _ = audit_and_root
    figures = re.findall(r"<svg[^>]*class=\"plot\".*?</svg>", check_data_page(*audit_and_root), re.DOTALL)
    labels = [ElementTree.fromstring(figure).get("aria-label") for figure in figures]
    assert labels[:2] == ["Images by split and label", "AUROC of the three shortcut controls"]
    assert len(labels) == 6
    counts = "".join(ElementTree.fromstring(figures[0]).itertext())
    for split, images in audit.images.items():
        for label, count in images.items():
            assert f"{split} {label}" in counts
            assert str(count) in counts
    assert f"{audit.shortcuts['border'].value:.3f}" in "".join(ElementTree.fromstring(figures[1]).itertext())


def test_thumbnails_of_duplicates_are_embedded(audit_and_root: tuple[DatasetAudit, Path]) -> None:
    thumbnails = [url for url in _Page(check_data_page(*audit_and_root)).urls if url.startswith("data:image")]
    assert len(thumbnails) == 2
    for thumbnail in thumbnails:
        with Image.open(io.BytesIO(base64.b64decode(thumbnail.partition(",")[2]))) as image:
            assert image.size == (220, 165)


def test_a_missing_image_is_reported(audit_and_root: tuple[DatasetAudit, Path], tmp_path: Path) -> None:
    page = _Page(check_data_page(audit_and_root[0], tmp_path))
    assert page.text.count("unreadable") == 2
    assert "img" not in page.tags


def test_an_audit_without_findings(audit_and_root: tuple[DatasetAudit, Path]) -> None:
    audit, root = audit_and_root
    missing = Interval(None, None, None, "5-fold by patient", 25, seed=0, reason="5 folds need 5 NORMAL patients")
    without_findings = dataclasses.replace(
        audit,
        near_duplicates=dataclasses.replace(audit.near_duplicates, pairs=0, identical=0, listed=()),
        unreadable=(),
        patients_in_several_splits={},
        expected_leak_rate=None,
        expected_leak_rate_reason="no patient is known",
        shortcuts=dict.fromkeys(audit.shortcuts, missing),
        notes=("the patient of 25 images is unknown",),
    )
    text = " ".join(_Page(check_data_page(without_findings, root)).text.split())
    assert "All images are in one split." in text
    assert "undefined: no patient is known" in text
    assert text.count("5 folds need 5 NORMAL patients") == 3
    assert "The patient of 25 images is unknown." in text
    assert text.count("None.") == 2


def test_long_lists_are_truncated(audit_and_root: tuple[DatasetAudit, Path]) -> None:
    audit, root = audit_and_root
    pair = audit.near_duplicates.listed[0]
    truncated = dataclasses.replace(
        audit,
        unreadable=tuple(UnreadableFile(f"{number}.png", "broken") for number in range(150)),
        near_duplicates=dataclasses.replace(audit.near_duplicates, pairs=600, listed=(pair,) * 500),
    )
    text = " ".join(_Page(check_data_page(truncated, root)).text.split())
    assert "24 of 600 pairs are shown" in text
    assert "100 of 150 are shown" in text
    assert text.count("broken") == 100
