"""The flow of images from a data set to an evaluation, counted by hand."""

from pathlib import Path

from pneumoscope.core.image_flow import ImageCount, ImageFlow
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import Manifest
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
