"""Selection of images, and checks against evaluating on images that the model was fitted on."""

import numpy as np
import pytest

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import short_hash
from pneumoscope.core.errors import DatasetError, ThresholdError, UsageError
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.evaluation.selection import (
    check_thresholds,
    check_unseen,
    count_patients,
    draw_sample,
    select_images,
    unreadable_error,
)


def test_given_test_split_is_used(maker):
    images = maker.images()
    maker.images(split="train", seed=1)
    root, chosen = select_images(images, "test", None)
    assert root == images
    assert {image.split for image in chosen} == {"test"}
    assert len(chosen) == 32


def test_manifest_states_the_validation_split(maker):
    images = maker.images(split="train")
    manifest = images / "split.csv"
    manifest.write_text(maker.manifest(images, "validation"))
    _, chosen = select_images(manifest, "validation", None)
    assert len(chosen) == 16
    assert len(select_images(manifest, "train", None)[1]) == 16


def test_manifest_of_the_run_states_the_validation_split(maker):
    images = maker.images(split="train")
    (images / "run-manifest.csv").write_text(maker.manifest(images, "validation"))
    _, chosen = select_images(images, "validation", images / "run-manifest.csv")
    assert [image.path for image in chosen] == [image.path for image in load_manifest(images).images[::2]]


def test_manifest_of_the_run_states_the_test_split_if_the_data_has_none(maker):
    images = maker.images(split="train")
    run_manifest = maker.root / "manifest.csv"
    run_manifest.write_text(maker.manifest(images, "test"))
    _, chosen = select_images(images, "test", run_manifest)
    assert [image.path for image in chosen] == [image.path for image in load_manifest(images).images[::2]]


def test_manifest_of_the_run_states_the_splits_of_a_csv_without_splits(maker):
    images = maker.images(split="train")
    (maker.root / "mine.csv").write_text(
        "path,label\n" + "".join(f"images/{image.path},{image.label}\n" for image in load_manifest(images))
    )
    run_manifest = maker.root / "manifest.csv"
    for split in ("test", "validation"):
        run_manifest.write_text(maker.manifest(images, split))
        root, chosen = select_images(maker.root / "mine.csv", split, run_manifest)
        assert [image.path for image in chosen] == [f"images/{i.path}" for i in load_manifest(images).images[::2]]
        assert all((root / image.path).is_file() for image in chosen)
    with pytest.raises(
        UsageError, match=r"cannot tell .* in the test split: there is no manifest of a run.*--split all"
    ):
        select_images(maker.root / "mine.csv", "test", None)


def test_all_images_of_a_folder_without_splits(maker):
    images = maker.images(split=".")
    assert len(select_images(images, "all", None)[1]) == 32
    next((images / "NORMAL").iterdir()).write_bytes(b"")
    with pytest.raises(DatasetError, match=r"^1 image cannot be read"):
        select_images(images, "all", None)


def test_all_images_are_those_that_are_not_set_aside(maker):
    images = maker.images()
    (images / "mine.csv").write_text(maker.manifest(images, "unused", share=4))
    assert len(select_images(images / "mine.csv", "all", None)[1]) == 24


def test_changed_image_of_the_run_is_an_error(maker):
    images = maker.images(split="train")
    manifest = maker.root / "manifest.csv"
    manifest.write_text(maker.manifest(images, "validation"))
    changed = images / load_manifest(images).images[2].path
    changed.write_bytes((images / load_manifest(images).images[1].path).read_bytes())
    with pytest.raises(
        DatasetError, match=rf"lacks 1 of the 16 validation images in .* the first is train/NORMAL/{changed.name}"
    ):
        select_images(images, "validation", manifest)


def test_images_of_the_run_are_found_by_content(maker):
    # Paths are images/train/... in a manifest beside the folder, and train/... in the folder itself.
    images, run = maker.images(split="train"), maker.run()
    text = maker.manifest(images, "validation")
    columns, *rows = text.splitlines()
    (run / "manifest.csv").write_text("\n".join([columns, *(f"images/{row}" for row in rows)]))
    root, selected = select_images(images, "validation", run / "manifest.csv")
    assert len(selected) == 16
    assert all((root / image.path).is_file() for image in selected)


def test_copy_with_the_same_name_is_preferred(maker):
    images, run = maker.images(split="train"), maker.run()
    (run / "manifest.csv").write_text(maker.manifest(images, "validation"))
    _, before = select_images(images, "validation", run / "manifest.csv")
    copy = images / "train" / before[0].label / "0-copy.png"
    copy.write_bytes((images / before[0].path).read_bytes())
    assert select_images(images, "validation", run / "manifest.csv")[1] == before


@pytest.mark.parametrize("with_run", [True, False])
def test_validation_split_of_a_folder_needs_a_manifest(maker, with_run):
    images = maker.images()
    with pytest.raises(UsageError, match=r"cannot tell which images of .* are in the validation split"):
        select_images(images, "validation", images / "manifest.csv" if with_run else None)


def test_sample_is_balanced_and_never_of_test_images(maker):
    images, run = maker.images(split="train"), maker.run()
    (run / "manifest.csv").write_text(maker.manifest(images, "validation"))
    root, sample = draw_sample(run, images, "validation", 3, np.random.default_rng(0))
    assert root == images
    assert [image.label for image in sample] == ["NORMAL"] * 3 + ["PNEUMONIA"] * 3
    assert {image.split for image in sample} == {"validation"}
    for split in ("test", "all"):
        with pytest.raises(UsageError, match="test images are reserved for evaluations"):
            draw_sample(run, images, split, 3, np.random.default_rng(0))


def test_images_without_a_known_patient_count_as_patients():
    patients = ("a", "a", "b", "", "")
    images = [LabeledImage(f"{i}.png", "NORMAL", "", patient, "", "") for i, patient in enumerate(patients)]
    assert count_patients(images) == 4


def test_unknown_split_is_an_error(maker):
    with pytest.raises(UsageError, match="there is no split 'unused'"):
        select_images(maker.images(), "unused", None)


def test_error_for_an_empty_split_lists_the_splits(maker):
    with pytest.raises(DatasetError, match=r"no image in the split 'test' \(images: train 32\)"):
        select_images(maker.images(split="train"), "test", None)


@pytest.mark.parametrize(("normal", "pneumonia", "missing"), [(0, 6, "NORMAL"), (6, 0, "PNEUMONIA")])
def test_split_with_one_label_is_an_error(maker, normal, pneumonia, missing):
    with pytest.raises(
        DatasetError, match=rf"the split 'test' has images of one label only \(6 images\): there is no {missing} image"
    ):
        select_images(maker.images(normal=normal, pneumonia=pneumonia), "test", None)
    assert len(select_images(maker.root / "images", "test", None, both_labels=False)[1]) == 6


def test_unreadable_image_is_an_error_in_its_split_only(maker):
    images = maker.images()
    maker.images(split="train", seed=1)
    train = next((images / "train" / "NORMAL").iterdir())
    train.write_bytes(b"")
    (images / "test" / "NORMAL" / "notes.txt").write_text("not an image")
    assert len(select_images(images, "test", None)[1]) == 32
    test = next((images / "test" / "NORMAL").iterdir())
    test = images / "test" / "NORMAL" / "IM-0001-0002.png"
    test.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"^1 test image cannot be read \(test/NORMAL/IM-0001-0002.png: empty"):
        select_images(images, "test", None)


def test_missing_image_is_an_error_in_its_split_only(maker):
    images = maker.images(split="train")
    manifest = images / "split.csv"
    manifest.write_text(maker.manifest(images, "test"))
    gone = images / load_manifest(images).images[2].path
    gone.unlink()
    assert len(select_images(manifest, "train", None)[1]) == 16
    with pytest.raises(DatasetError, match=rf"^1 test image cannot be read \(train/NORMAL/{gone.name}"):
        select_images(manifest, "test", None)


def test_error_lists_at_most_five_unreadable_images():
    error = unreadable_error([(f"{i}.png", "empty") for i in range(8)], "test")
    assert error.message.startswith("8 test images cannot be read (0.png: empty; 1.png")
    assert error.message.endswith("4.png: empty; and 3 more)")


def card_that_saw(maker, split, images):
    return read_bundle(maker.bundle(maker.root / "b", seen={split: [short_hash(image.sha256) for image in images]}))[0]


def test_training_images_are_rejected_as_test_images(maker):
    images = load_manifest(maker.images()).images
    check_unseen(images[:4], card_that_saw(maker, "train", images[4:]))
    with pytest.raises(DatasetError, match=r"^'gray' used 28 of the 32 images as train images"):
        check_unseen(images, read_bundle(maker.root / "b")[0])


def test_threshold_is_not_evaluated_on_the_images_that_it_was_chosen_on(maker):
    images = load_manifest(maker.images()).images
    card = card_that_saw(maker, "validation", images[:3])
    with pytest.raises(
        ThresholdError,
        match=r"^the threshold of the operating point 'balanced' was chosen on 3 of these 32 images.*--operating-point half",
    ):
        check_thresholds(images, card, ["half", "balanced", "rule_out"])
    check_thresholds(images, card, ["half"])
    check_thresholds(images[3:], card, ["half", "balanced", "rule_out"])
