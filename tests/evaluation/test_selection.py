import pytest

from pneumoscope.bundle.card import read_bundle, short_hash
from pneumoscope.core.errors import DatasetError, ThresholdError, UsageError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.evaluation.selection import (
    refuse_chosen_thresholds,
    refuse_seen,
    select_images,
    unreadable_error,
)


def test_the_official_test_split_is_taken_as_it_is(maker):
    images = maker.images()
    maker.images(split="train", seed=1)
    root, chosen = select_images(images, "test", None)
    assert root == images
    assert {image.split for image in chosen} == {"test"}
    assert len(chosen) == 32


def test_a_manifest_says_what_is_validation(maker):
    images = maker.images(split="train")
    manifest = images / "split.csv"
    manifest.write_text(maker.manifest(images, "validation"))
    _, chosen = select_images(manifest, "validation", None)
    assert len(chosen) == 16
    assert len(select_images(manifest, "train", None)[1]) == 16


def test_a_run_says_what_is_validation(maker):
    images = maker.images(split="train")
    (images / "run-manifest.csv").write_text(maker.manifest(images, "validation"))
    _, chosen = select_images(images, "validation", images / "run-manifest.csv")
    assert [image.path for image in chosen] == [image.path for image in load_manifest(images).images[::2]]


def test_a_run_says_what_is_test_where_the_data_does_not(maker):
    images = maker.images(split="train")
    run_manifest = maker.root / "manifest.csv"
    run_manifest.write_text(maker.manifest(images, "test"))
    _, chosen = select_images(images, "test", run_manifest)
    assert [image.path for image in chosen] == [image.path for image in load_manifest(images).images[::2]]


def test_images_of_a_run_must_be_there_with_the_same_content(maker):
    images = maker.images(split="train")
    manifest = maker.root / "manifest.csv"
    manifest.write_text(maker.manifest(images, "validation"))
    changed = images / load_manifest(images).images[2].path
    changed.write_bytes((images / load_manifest(images).images[1].path).read_bytes())
    with pytest.raises(
        DatasetError, match=rf"^1 of the 16 validation images of .* the first: train/NORMAL/{changed.name}"
    ):
        select_images(images, "validation", manifest)


def test_images_of_a_run_are_found_wherever_its_manifest_lay(maker):
    """A manifest beside the folder says images/train/...; the folder itself says train/...."""
    images, run = maker.images(split="train"), maker.run()
    text = maker.manifest(images, "validation")
    header, columns, *rows = text.splitlines()
    (run / "manifest.csv").write_text("\n".join([header, columns, *(f"images/{row}" for row in rows)]))
    root, found = select_images(images, "validation", run / "manifest.csv")
    assert len(found) == 16
    assert all((root / image.path).is_file() for image in found)


def test_of_two_copies_of_a_image_the_one_of_its_name_is_taken(maker):
    images, run = maker.images(split="train"), maker.run()
    (run / "manifest.csv").write_text(maker.manifest(images, "validation"))
    _, before = select_images(images, "validation", run / "manifest.csv")
    copy = images / "train" / before[0].label / "0-copy.png"
    copy.write_bytes((images / before[0].path).read_bytes())
    assert select_images(images, "validation", run / "manifest.csv")[1] == before


@pytest.mark.parametrize("with_run", [True, False])
def test_validation_of_a_folder_needs_a_manifest(maker, with_run):
    images = maker.images()
    with pytest.raises(UsageError, match=r"which images of .* are validation is not known"):
        select_images(images, "validation", images / "manifest.csv" if with_run else None)


def test_an_unknown_split_is_named(maker):
    with pytest.raises(UsageError, match="there is no split 'unused' to judge"):
        select_images(maker.images(), "unused", None)


def test_an_empty_split_shows_what_there_is(maker):
    with pytest.raises(DatasetError, match=r"no image in the split 'test' \(images: train 32\)"):
        select_images(maker.images(split="train"), "test", None)


@pytest.mark.parametrize(("normal", "pneumonia", "missing"), [(0, 6, "NORMAL"), (6, 0, "PNEUMONIA")])
def test_one_label_is_no_evaluation(maker, normal, pneumonia, missing):
    with pytest.raises(
        DatasetError, match=f"the 6 images of the split 'test' have one label only: there is no {missing}"
    ):
        select_images(maker.images(normal=normal, pneumonia=pneumonia), "test", None)


def test_a_image_that_cannot_be_opened_is_refused_in_its_split_only(maker):
    images = maker.images()
    maker.images(split="train", seed=1)
    train = next((images / "train" / "NORMAL").iterdir())
    train.write_bytes(b"")
    (images / "test" / "NORMAL" / "notes.txt").write_text("litter is no image")
    assert len(select_images(images, "test", None)[1]) == 32
    test = next((images / "test" / "NORMAL").iterdir())
    test = images / "test" / "NORMAL" / "IM-0001-0002.png"
    test.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"^1 test images cannot be read \(test/NORMAL/IM-0001-0002.png: empty"):
        select_images(images, "test", None)


def test_a_manifest_whose_image_is_gone_is_refused_in_its_split_only(maker):
    images = maker.images(split="train")
    manifest = images / "split.csv"
    manifest.write_text(maker.manifest(images, "test"))
    gone = images / load_manifest(images).images[2].path
    gone.unlink()
    assert len(select_images(manifest, "train", None)[1]) == 16
    with pytest.raises(DatasetError, match=rf"^1 test images cannot be read \(train/NORMAL/{gone.name}"):
        select_images(manifest, "test", None)


def test_long_lists_are_cut():
    error = unreadable_error([(f"{i}.png", "empty") for i in range(8)], "test")
    assert error.message.startswith("8 test images cannot be read (0.png: empty; 1.png")
    assert error.message.endswith("4.png: empty; and 3 more)")


def card_that_saw(maker, split, images):
    return read_bundle(maker.bundle(maker.root / "b", seen={split: [short_hash(image.sha256) for image in images]}))[0]


def test_seen_images_are_refused(maker):
    images = load_manifest(maker.images()).images
    refuse_seen(images[:4], card_that_saw(maker, "train", images[4:]))
    with pytest.raises(DatasetError, match=r"^28 of 32 test images were train images of 'grey'"):
        refuse_seen(images, read_bundle(maker.root / "b")[0])


def test_a_threshold_is_not_judged_by_the_images_that_chose_it(maker):
    images = load_manifest(maker.images()).images
    card = card_that_saw(maker, "validation", images[:3])
    with pytest.raises(
        ThresholdError,
        match=r"^the operating point 'balanced' was chosen on 3 of these 32 images.*--operating-point half",
    ):
        refuse_chosen_thresholds(images, card, ["half", "balanced", "rule_out"])
    refuse_chosen_thresholds(images, card, ["half"])
    refuse_chosen_thresholds(images[3:], card, ["half", "balanced", "rule_out"])
