"""Learning curves of a run."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.core.errors import StorageError
from pneumoscope.reporting.curves import curves_figure, write_curves
from pneumoscope.reporting.style import COLORS, drawing, run_style
from pneumoscope.runs.epochs import read_epochs

HEADER = "epoch,train_loss,train_accuracy,validation_loss,validation_accuracy,validation_auroc,learning_rate,seconds\n"
THREE = (
    "1,0.9,0.5,0.8,0.60,0.7,0.001,12.5\n"
    "2,0.6,0.7,0.5,0.81,0.8,0.001,12.4\n"
    "3,0.3,0.9,0.6,0.81,0.7,0.001,12.6\n"
)  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


def run(folder: Path, rows: str, header: str = HEADER) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "epochs.csv").write_text(header + rows, encoding="utf-8")
    return folder


@pytest.mark.parametrize("rows", [THREE, "1,0.9,0.5,0.8,0.6,0.7,0.001,1\n"])
def test_a_file_is_written_for_one_and_for_several_epochs(tmp_path: Path, rows: str) -> None:
    out = write_curves(run(tmp_path / "vgg19", rows), tmp_path / "new" / "curves.svg", best=1)
    assert out == tmp_path / "new" / "curves.svg"
    root = ElementTree.parse(out).getroot()
    texts = {element.text for element in root.iter(f"{SVG}text")}
    assert {"vgg19", "accuracy", "loss", "epoch", "train", "validation", "train, average"} <= texts
    assert root.findtext(f"{SVG}title").startswith("Accuracy and loss of vgg19 over ")


def test_the_label_names_the_selected_epoch(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", THREE)
    assert "epoch 3 was selected" in write_curves(folder, tmp_path / "2.svg", best=3).read_text(encoding="utf-8")


def test_same_run_gives_the_same_file(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", THREE)
    first = write_curves(folder, tmp_path / "1.svg", best=2).read_bytes()
    assert write_curves(folder, tmp_path / "2.svg", best=2).read_bytes() == first


def test_the_figure_shows_values_averages_and_the_selected_epoch(tmp_path: Path) -> None:
    epochs = read_epochs(run(tmp_path / "a", THREE))
    with drawing():
        upper, lower = curves_figure(epochs, run_style(2), title="a", best=2).axes
    lines = {line.get_label(): line for line in upper.get_lines()}
    np.testing.assert_array_equal(lines["train"].get_ydata(), [0.5, 0.7, 0.9])
    np.testing.assert_array_equal(lines["validation"].get_ydata(), [0.60, 0.81, 0.81])
    assert lines["validation"].get_color() == COLORS["run-2"][0]
    assert lines["train, average"].get_ydata()[0] == pytest.approx(0.7)
    assert lines["validation, average"].get_ydata()[0] == pytest.approx(0.74)
    assert lines["selected epoch"].get_xydata().tolist() == [[2.0, 0.81]]
    selected = {line.get_label(): line for line in lower.get_lines()}["selected epoch"]
    assert selected.get_xydata().tolist() == [[2.0, 0.5]]


def test_a_single_epoch_is_drawn_as_a_point(tmp_path: Path) -> None:
    epochs = read_epochs(run(tmp_path / "a", "1,0.9,0.5,0.8,0.6,0.7,0.001,1\n"))
    with drawing():
        upper, _ = curves_figure(epochs, run_style(0), title="a", best=1).axes
    assert upper.get_lines()[0].get_marker() == "o"


def test_an_unwritable_path_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match=r"cannot write '.*file/curves\.svg'"):
        write_curves(run(tmp_path / "a", THREE), tmp_path / "file" / "curves.svg", best=1)
