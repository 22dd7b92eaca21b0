"""The flow of images from a data set to an evaluation, counted by hand."""

from pathlib import Path

from pneumoscope.core.image_flow import ImageCount, ImageFlow
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.split import split_manifest
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.external_predictions import evaluate_predictions
from pneumoscope.evaluation.split_images import SplitImages
from pneumoscope.reporting.flow_diagram import duplicate_lines
from pneumoscope.runs.evaluations import read_evaluation


def test_flow_counts_images_patients_and_other_files(maker, tmp_path):
    images = maker.images(normal=12, pneumonia=20)
    maker.images(split="train", normal=6, pneumonia=8, seed=2)
    maker.images(split="val", normal=2, pneumonia=4, seed=3)
    (images / "train" / "NORMAL" / "broken.png").symlink_to("missing.png")
    (images / "train" / "NORMAL" / "notes.txt").write_text("not an image")
    evaluation, _ = evaluate(maker.run(), images)
    assert evaluation.flow == ImageFlow(
        source="images",
        skipped=1,
        unreadable=1,
        labeled=ImageCount(52, 26, 0),  # two images of each patient
        other_splits={"train": ImageCount(14, 7, 0), "validation": ImageCount(6, 3, 0)},
        evaluated=ImageCount(32, 16, 0),
        copies=0,
        contradictory=0,
    )
    assert (evaluation.flow.evaluated.images, evaluation.flow.evaluated.patients) == (evaluation.n, evaluation.patients)
    assert read_evaluation(maker.root / "runs" / "gray" / "evaluation" / "test" / "evaluation.json") == evaluation


def test_the_run_states_the_splits_of_the_other_images(maker):
    images = maker.images()
    maker.images(split="train", normal=6, pneumonia=8, seed=2)
    run = maker.run()
    (run / "manifest.csv").write_text(split_manifest(load_manifest(images), by="patient", validation=0.3).to_csv())
    splits = evaluate(run, images)[0].flow.other_splits
    assert set(splits) == {"train", "validation"}
    assert splits["train"].images + splits["validation"].images == 14
    # Images that the run does not know have the splits of their data.
    others = maker.images("others", seed=4)
    maker.images("others", split="train", normal=2, pneumonia=2, seed=5)
    evaluation, _ = evaluate(run, others, name="others")
    assert evaluation.flow.other_splits == {"train": ImageCount(4, 2, 0)}


def test_copies_contradictory_labels_and_unknown_patients_are_counted():
    rows = [
        "path,label,patient,split,sha256",
        f"a.png,NORMAL,,test,{'a' * 64}",
        f"copy.png,NORMAL,,test,{'a' * 64}",
        f"b.png,PNEUMONIA,,test,{'b' * 64}",
        f"c.png,PNEUMONIA,p,test,{'c' * 64}",
        f"other.png,NORMAL,p,train,{'b' * 64}",
    ]
    manifest = Manifest.from_csv("\n".join(rows), Path("images"), "images.csv")
    flow = SplitImages(Path("images"), manifest, "test", manifest.split("test")).flow()
    assert (flow.copies, flow.contradictory) == (1, 1)
    assert (flow.evaluated, flow.other_splits["train"]) == (ImageCount(4, 4, 3), ImageCount(1, 1, 0))
    assert duplicate_lines(flow) == ["1 identical to an earlier one", "1 with another label elsewhere"]


def test_source_is_the_stated_name_and_never_a_path(maker, tmp_path):
    images = maker.images()
    manifest = tmp_path / "A. Patient" / "images.csv"
    manifest.parent.mkdir()
    rows = [f"{images}/{image.path},{image.label},test" for image in load_manifest(images)]
    manifest.write_text("\n".join(["path,label,split", *rows]))
    evaluation, scored = evaluate(maker.bundle(tmp_path / "bundle"), manifest)
    assert evaluation.flow.source == "images.csv"
    file = tmp_path / "other.csv"
    file.write_text("\n".join(["id,probability", *(f"{image.sha256},{image.probability}" for image in scored)]))
    other, _ = evaluate_predictions(file, images, source_name="Kermany 2018")
    assert other.flow.source == "Kermany 2018"
    assert other.flow.other_splits == {}
