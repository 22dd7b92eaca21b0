"""Heatmaps in one file for each shard: those of the network, named by rows, verified, and repaired by the next run."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from tests.archive.archives import contents, draw_images, run_cli, score, score_command, table
from tests.conftest import LIMITS, Maker

from pneumoscope import load_model
from pneumoscope.archive.archive_folder import ArchiveFolder, PredictionSet
from pneumoscope.archive.journal import StoredFile, append_entry, read_journal
from pneumoscope.archive.score import Listed
from pneumoscope.archive.status import archive_status
from pneumoscope.archive.verify import verify_archive
from pneumoscope.core.errors import BundleError, UsageError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "Doe Jane", 11)


@pytest.fixture
def out(tmp_path: Path, source: Path, bundle: Path) -> Path:
    score(source, tmp_path / "out", bundle, heatmaps=True)
    return tmp_path / "out"


def opened(out: Path) -> dict[str, bytes]:
    """Return the files of all shards by name."""
    found: dict[str, bytes] = {}
    for path in sorted(out.glob("heatmaps/*/*")):
        with zipfile.ZipFile(path) as file:
            assert file.testzip() is None
            pictures = {name: file.read(name) for name in file.namelist() if name != "maxima.csv"}
            maxima = list(csv.DictReader(io.StringIO(file.read("maxima.csv").decode())))
        assert [f"row-{int(line['row']):09d}.png" for line in maxima] == list(pictures)
        found |= pictures
    return found


def predictions(out: Path) -> PredictionSet:
    return ArchiveFolder.open(out).find_set()


def problems(out: Path) -> list[tuple[int, str]]:
    return [(problem.shard, problem.code) for problem in verify_archive(out).problems]


def test_each_accepted_image_has_the_heatmap_of_its_model(out: Path, source: Path, bundle: Path) -> None:
    pictures, rows = opened(out), table(out)
    accepted = [row for row in rows if row["probability"] is not None]
    assert list(pictures) == [f"row-{row['row']:09d}.png" for row in accepted]
    assert 0 < len(accepted) < len(rows)
    model = load_model(bundle)
    for row in accepted:
        found = np.asarray(Image.open(io.BytesIO(pictures[f"row-{row['row']:09d}.png"])))
        expected = model.heatmap_layer(source / row["source"]).png
        assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(expected))))
        assert found.shape == (row["height"], row["width"], 4)


def test_the_maximum_is_that_of_the_network(out: Path, source: Path, bundle: Path) -> None:
    model = load_model(bundle)
    (path, *_) = sorted(out.glob("heatmaps/*/*"))
    with zipfile.ZipFile(path) as file:
        lines = csv.DictReader(io.StringIO(file.read("maxima.csv").decode()))
        maxima = {int(line["row"]): float(line["maximum"]) for line in lines}
    assert maxima
    for row, maximum in maxima.items():
        assert maximum == pytest.approx(np.abs(model.heatmap(source / table(out)[row]["source"]).contributions).max())


def test_no_name_of_an_image_is_in_the_files_of_heatmaps(out: Path) -> None:
    for path in (out / "heatmaps").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(word in content for word in (b"Jane", b".dcm", b"20190503", b"Acme"))
            with zipfile.ZipFile(path) as file:
                assert file.comment.startswith(b"Research and education software. Not a medical device.")


def test_heatmaps_change_no_byte_of_the_table_and_can_be_added_later(
    tmp_path: Path, out: Path, source: Path, bundle: Path
) -> None:
    plain = tmp_path / "plain"
    score(source, plain, bundle)
    before = contents(plain)
    assert not (plain / "heatmaps").exists()
    assert score(source, plain, bundle, heatmaps=True).shards == 3
    assert contents(plain) == contents(out)
    assert {name: content for name, content in contents(plain).items() if name in before} == before
    assert score(source, plain, bundle, heatmaps=True).shards == 0
    assert score(source, plain, bundle).shards == 0
    assert archive_status(plain).sets[0].heatmaps == 3


@pytest.mark.slow
def test_lost_and_altered_heatmaps_are_found_and_scored_again(
    tmp_path: Path, out: Path, source: Path, bundle: Path
) -> None:
    before, chosen = contents(out), predictions(out)
    chosen.heatmaps_path(1).unlink()
    content = bytearray(chosen.heatmaps_path(2).read_bytes())
    content[60] ^= 1
    chosen.heatmaps_path(2).write_bytes(content)
    assert problems(out) == [(1, "heatmaps_lost"), (2, "heatmaps_altered")]
    assert verify_archive(out).found == 11
    done = run_cli("verify", out)
    assert done.returncode == 1
    assert "error: the heatmaps of 2 shards are missing, altered or not entered (2 shards)" in done.stderr
    chosen.heatmaps_path(2).unlink()
    assert score(source, out, bundle, heatmaps=True).shards == 2
    assert contents(out) == before
    assert problems(out) == []


def test_heatmaps_that_no_line_of_the_journal_has_are_found(out: Path, source: Path, bundle: Path) -> None:
    """A shard whose table was deleted is scored again, without heatmaps."""
    before, chosen = contents(out), predictions(out)
    chosen.shard_path(1).unlink()
    assert score(source, out, bundle).shards == 1
    chosen.heatmaps_path(1).write_bytes(b"altered")
    assert problems(out) == [(1, "heatmaps_not_entered")]
    assert verify_archive(out).found == 11
    assert score(source, out, bundle, heatmaps=True).shards == 1
    assert contents(out) == before
    assert problems(out) == []


def test_shards_of_other_software_get_no_heatmaps_since_their_tables_would_change(
    tmp_path: Path, source: Path, bundle: Path
) -> None:
    plain = tmp_path / "plain"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pneumoscope.archive.scoring.runtime_version", lambda: "1.2.3")
        score(source, plain, bundle)
    before, chosen = contents(plain), predictions(plain)
    with pytest.raises(UsageError, match=r"other software scored 3 shards .*onnxruntime 1\.2\.3, cpu; this is "):
        score(source, plain, bundle, heatmaps=True)
    assert contents(plain) == before
    for number in range(2):
        chosen.shard_path(number).unlink()
    score(source, plain, bundle)
    listed: list[Listed] = []
    with pytest.raises(UsageError, match="other software scored 1 shard"):
        score(source, plain, bundle, heatmaps=True)
    chosen.shard_path(2).unlink()
    assert score(source, plain, bundle, heatmaps=True, on_listed=listed.append).shards == 3
    assert listed[0].others == {}
    assert problems(plain) == []


def test_finished_shards_of_other_software_are_named_when_heatmaps_are_complete(
    out: Path, source: Path, bundle: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pneumoscope.archive.scoring.runtime_version", lambda: "1.2.3")
        listed: list[Listed] = []
        assert score(source, out, bundle, heatmaps=True, on_listed=listed.append).shards == 0
    assert sum(listed[0].others.values()) == 3


def test_heatmaps_of_other_rows_are_found(out: Path) -> None:
    """A faulty program enters a file of heatmaps with the right hash, but of another shard."""
    chosen = predictions(out)
    content = chosen.heatmaps_path(1).read_bytes()
    chosen.heatmaps_path(0).write_bytes(content)
    stored = StoredFile(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    append_entry(chosen.journal, msgspec.structs.replace(read_journal(chosen.journal)[0], heatmaps=stored))
    assert problems(out) == [(0, "heatmaps_altered")]


def without_heatmaps(folder: Path) -> Path:
    """Remove the output of a network, and state its new hash on the card."""
    import onnx

    model = onnx.load(folder / "network.onnx")
    del model.graph.output[1]
    content = model.SerializeToString()
    (folder / "network.onnx").write_bytes(content)
    card = json.loads((folder / "card.json").read_text())
    card |= {"onnx_sha256": hashlib.sha256(content).hexdigest(), "onnx_bytes": len(content)}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def test_a_network_without_heatmaps_is_refused_before_the_source_is_listed(
    tmp_path: Path, source: Path, maker: Maker
) -> None:
    other = without_heatmaps(maker.bundle(tmp_path / "other", rejection_limits=LIMITS))
    with pytest.raises(BundleError, match="has no heatmaps"):
        score(source, tmp_path / "new", other, heatmaps=True)
    assert not (tmp_path / "new").exists()
    assert score(source, tmp_path / "new", other).done == 11


@pytest.mark.slow
def test_the_command_writes_heatmaps(tmp_path: Path, source: Path, bundle: Path, out: Path) -> None:
    done = run_cli(*score_command(source, tmp_path / "cli", bundle, "--heatmaps")[4:])
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "cli") == contents(out)
    assert "; heatmaps of 3 shards. Last shard: " in run_cli("status", out).stdout
