"""A bundle that arrives elsewhere is the same bundle, and half a copy is none."""

import errno
import os
from pathlib import Path

import pytest

from pneumoscope.bundle import export as module
from pneumoscope.bundle.card import read_bundle
from pneumoscope.bundle.export import export_bundle
from pneumoscope.core.errors import BundleError, StorageError, UsageError


@pytest.fixture
def bundle(maker):
    return maker.bundle(maker.root / "bundle")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_copy_is_the_same_bundle(bundle, tmp_path):
    (bundle / "notes.txt").write_text("not part of it")
    out = tmp_path / "made" / "there"

    card = export_bundle(bundle, out)

    assert read_bundle(out) == read_bundle(bundle)
    assert card == read_bundle(bundle)[0]
    assert contents(out) == {name: (bundle / name).read_bytes() for name in ("card.json", "network.onnx")}


def test_an_empty_folder_is_taken(bundle, tmp_path):
    out = tmp_path / "out"
    out.mkdir()

    export_bundle(bundle, out)

    assert read_bundle(out) == read_bundle(bundle)


def test_a_folder_with_anything_in_it_is_left_alone(bundle, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "theirs").write_text("keep")

    with pytest.raises(UsageError, match=r"out' exists and is not an empty folder\. Choose another folder with --out"):
        export_bundle(bundle, out)

    assert contents(out) == {"theirs": b"keep"}


def test_a_file_is_no_folder(bundle, tmp_path):
    (tmp_path / "out").write_text("keep")

    with pytest.raises(UsageError, match=r"out' exists and is not an empty folder"):
        export_bundle(bundle, tmp_path / "out")

    assert (tmp_path / "out").read_text() == "keep"


def test_a_bundle_is_not_copied_onto_itself(bundle):
    before = contents(bundle)

    with pytest.raises(UsageError, match=r"bundle' exists and is not an empty folder"):
        export_bundle(bundle, bundle)

    assert contents(bundle) == before


def test_a_damaged_bundle_is_not_spread(bundle, tmp_path):
    (bundle / "network.onnx").write_bytes(b"other")

    with pytest.raises(BundleError, match="not the network that its card describes"):
        export_bundle(bundle, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_a_copy_that_was_cut_short_is_no_bundle(bundle, tmp_path, monkeypatch):
    out = tmp_path / "out"
    replace = Path.replace

    def full(self, target):
        if target.name == "card.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)

    with pytest.raises(StorageError, match=r"cannot write '.*card.json': No space left on device"):
        export_bundle(bundle, out)

    assert set(contents(out)) == {"network.onnx"}
    with pytest.raises(BundleError, match=r"is no bundle: .*card.json"):
        read_bundle(out)


def test_the_network_is_written_before_the_card_that_vouches_for_it(bundle, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(module, "write_atomically", lambda path, content: written.append(path.name))

    export_bundle(bundle, tmp_path / "out")

    assert written == ["network.onnx", "card.json"]
