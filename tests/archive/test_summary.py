"""Reports and comparisons agree with counts in Python."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.archive.archives import query, run_cli, score
from tests.conftest import LIMITS, Maker
from tests.images import dicom, png

pytest.importorskip("duckdb", reason="DuckDB is not installed (the extra [archive])")
pytest.importorskip("scipy", reason="SciPy is not installed (the extra [archive])")

from pneumoscope.archive.report import write_report
from pneumoscope.archive.summary import compare_sets, summarize_set
from pneumoscope.bundle.card import ReferenceDistribution
from pneumoscope.core.errors import UnknownNameError

YEARS = ("20170101", "20180202", "20180303", "")
REFERENCE = ReferenceDistribution(deciles=tuple(n / 10 for n in range(1, 10)), n=100, n_pneumonia=50)


@pytest.fixture(scope="module")
def bundles(shared_maker: Maker) -> tuple[Path, Path]:
    """Two models, of which the second is less sensitive."""
    root = shared_maker.root
    options = {"rejection_limits": LIMITS, "reference_distribution": REFERENCE}
    return (
        shared_maker.bundle(root / "summary-a", name="a", **options),
        shared_maker.bundle(root / "summary-b", name="b", gain=0.02, **options),
    )


@pytest.fixture(scope="module")
def out(bundles: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of DICOM files of two devices and three years, and two other files, scored by both models."""
    folder = tmp_path_factory.mktemp("summary")
    images = folder / "images"
    images.mkdir()
    for number in range(80):
        content = dicom(
            40 + 2 * number, StudyDate=YEARS[number % 4], Manufacturer="Acme" if number % 3 else "Best",
            StationName=f"Room {number % 2}",
        )  # fmt: skip
        (images / f"{number:03d}.dcm").write_bytes(content)
    (images / "cut.png").write_bytes(png(100)[:50])
    (images / "empty.png").write_bytes(b"")
    for bundle in bundles:
        score(images, folder / "out", bundle, shard_size=10)
    return folder / "out"


def rows(out: Path, model: str) -> list[dict[str, object]]:
    columns, found = query(out, f"SELECT * FROM predictions WHERE model = '{model}' ORDER BY row")
    return [dict(zip(columns, row, strict=True)) for row in found]


def keys(out: Path) -> list[str]:
    """Return the sets of the models a and b."""
    document = json.loads(run_cli("status", out, "--json").stdout)
    return [each["key"] for each in sorted(document["sets"], key=lambda each: each["model"])]


def test_a_summary_has_the_counts_of_the_rows(out: Path) -> None:
    key, _ = keys(out)
    summary, found = summarize_set(out, key), rows(out, key)
    assert (summary.rows, summary.scored) == (82, 82)
    assert dict(summary.decisions) == Counter(row["decision"] for row in found if row["decision"])
    assert dict(summary.failures) == {"pixels_not_decodable": 1, "empty_file": 1}
    expected = Counter(
        (row["rejection_code"], row["manufacturer"], row["station_name"]) for row in found if row["rejection_code"]
    )
    assert {(g.code, g.manufacturer, g.station): g.rejected for g in summary.rejections} == expected
    devices = Counter((row["manufacturer"], row["station_name"]) for row in found if row["decision"])
    assert all(group.images == devices[group.manufacturer, group.station] for group in summary.rejections)
    assert len(expected) >= 4


def test_scores_by_year_are_quantiles_of_the_accepted_images(out: Path) -> None:
    key, _ = keys(out)
    summary, found = summarize_set(out, key), rows(out, key)
    assert [year.year for year in summary.years] == [2017, 2018, None]
    for year in summary.years:
        readable = [row for row in found if row["study_year"] == year.year and row["decision"]]
        scores = [row["probability"] for row in readable if row["probability"] is not None]
        assert (year.images, year.accepted) == (len(readable), len(scores))
        assert year.quantiles == pytest.approx(np.quantile(scores, [0.05, 0.25, 0.5, 0.75, 0.95]))
        assert year.pneumonia == sum(row["decision"] == "pneumonia" for row in readable)


def test_drift_counts_the_accepted_images_by_tenths(out: Path) -> None:
    key, _ = keys(out)
    drift = summarize_set(out, key).drift
    scores = [row["probability"] for row in rows(out, key) if row["probability"] is not None]
    assert drift is not None
    assert drift.counts == tuple(np.histogram(scores, np.linspace(0, 1, 11))[0])


def test_a_comparison_counts_pairs_of_decisions(out: Path) -> None:
    a, b = keys(out)
    compared = compare_sets(out, a, b)
    pairs = list(zip(rows(out, a), rows(out, b), strict=True))
    expected = Counter((str(x["decision"] or "failed"), str(y["decision"] or "failed")) for x, y in pairs)
    assert {(x, y): n for x, y, n in compared.decisions} == expected
    assert compared.images == 82
    assert compared.agree == sum(n for (x, y), n in expected.items() if x == y)
    assert compared.changed == (expected["no_pneumonia", "pneumonia"], expected["pneumonia", "no_pneumonia"])
    assert sum(compared.changed) > 0
    differences = [y["probability"] - x["probability"] for x, y in pairs if x["probability"] is not None]
    assert compared.difference == pytest.approx(
        (statistics.fmean(differences), statistics.fmean(map(abs, differences)))
    )


def test_kappa_is_that_of_scikit_learn(out: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    a, b = keys(out)
    decided = [
        (x["decision"], y["decision"])
        for x, y in zip(rows(out, a), rows(out, b), strict=True)
        if {x["decision"], y["decision"]} <= {"pneumonia", "no_pneumonia"}
    ]
    assert compare_sets(out, a, b).kappa.value == pytest.approx(metrics.cohen_kappa_score(*zip(*decided, strict=True)))


def test_an_unknown_set_is_reported(out: Path) -> None:
    with pytest.raises(UnknownNameError, match="there is no set of predictions '0123456789'"):
        compare_sets(out, keys(out)[0], "0123456789")


def test_the_report_has_the_numbers_and_no_image_unless_asked(tmp_path: Path, out: Path) -> None:
    key, _ = keys(out)
    text = write_report(out, tmp_path / "report.html", key).read_text()
    for code, manufacturer, station, rejected, _ in summarize_set(out, key).rejections:
        assert (
            f'<th scope="row">{code}</th><td class="text">{manufacturer}</td><td class="text">{station}</td><td>{rejected}</td>'
        ) in text
    assert "82 of 82 images scored" in text
    drift = summarize_set(out, key).drift
    assert drift is not None
    for tenth, count in enumerate(drift.counts, start=1):
        assert f'<th scope="row">{tenth}</th><td>{count}</td><td>{100 * count / drift.n:.1f}%</td>' in text
    assert "<svg" in text
    assert "data:image" not in text
    assert ".dcm" not in text


@pytest.mark.slow
def test_examples_are_thumbnails_of_all_decisions(tmp_path: Path, out: Path) -> None:
    import base64
    import io
    import re

    key, _ = keys(out)
    text = write_report(out, tmp_path / "report.html", key, thumbnails=6).read_text()
    pictures = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="Row (\d+)">', text)
    assert len(pictures) == 6
    found = rows(out, key)
    assert len({found[int(row)]["decision"] for _, row in pictures}) == 3
    for content, row in pictures:
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert np.asarray(image).mean() == pytest.approx(40 + 2 * int(row), abs=8)
    assert write_report(out, tmp_path / "again.html", key, thumbnails=6).read_text() == text


@pytest.mark.parametrize("width", [390, 1200])
def test_the_report_fits_the_screen_and_loads_nothing(tmp_path: Path, out: Path, browser: Any, width: int) -> None:
    """No text of a table runs into its neighbor, and the page is no wider than the screen."""
    key, _ = keys(out)
    path = write_report(out, tmp_path / "report.html", key, thumbnails=24)
    page = browser.new_page(viewport={"width": width, "height": 800})
    try:
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") == width
        overflowing = "[...document.querySelectorAll('th, td')].filter(cell => cell.scrollWidth > cell.clientWidth + 1)"
        assert page.evaluate(f"{overflowing}.map(cell => cell.textContent)") == []
        assert page.locator("#examples img").count() == 24
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    finally:
        page.close()


@pytest.mark.slow
def test_the_commands_print_the_comparison_and_write_the_report(tmp_path: Path, out: Path) -> None:
    a, b = keys(out)
    compared = compare_sets(out, a, b)
    printed = run_cli("compare", out, a, b)
    assert printed.returncode == 0, printed.stderr
    assert f"82 images in both; the same decision: {compared.agree} (" in printed.stdout
    document = json.loads(run_cli("compare", out, a, b, "--json").stdout)
    assert document["changed"] == list(compared.changed)
    assert document["kappa"] == dataclasses.asdict(compared.kappa)
    done = run_cli("report", out, "--set", a, "--out", tmp_path / "report.html")
    assert (done.returncode, (tmp_path / "report.html").exists()) == (0, True), done.stderr
    assert run_cli("report", out, "--out", tmp_path / "x.html").returncode == 2  # which set?
