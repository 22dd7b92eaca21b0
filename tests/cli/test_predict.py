"""`pneumoscope predict`: output, exit statuses, interruption and closed pipes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from msgspec import structs
from PIL import Image, ImageDraw
from tests.conftest import LIMITS, POINTS, SIZE, halves
from tests.images import dicom, dicomdir
from tests.processes import started

from pneumoscope.bundle.bundle_folder import read_bundle
from pneumoscope.bundle.card import UncertaintyBand
from pneumoscope.cli import cli, run_and_exit
from pneumoscope.cli import predict as module
from pneumoscope.core.errors import PartialFailureError, UsageError
from pneumoscope.core.population import Population
from pneumoscope.core.prediction import Prediction
from pneumoscope.core.prediction_messages import notice
from pneumoscope.core.results import SCHEMA
from pneumoscope.imaging.sandbox.pool import DecodePool
from pneumoscope.inference.image_loader import MIN_IMAGES_FOR_POOL
from pneumoscope.inference.model import Model, load_model
from pneumoscope.inference.writers import csv_columns
from pneumoscope.runs.run_folder import find_bundle

PROGRAM = [sys.executable, "-m", "pneumoscope", "predict"]
MANY = 20_000  # more images than can be scored before the process is interrupted


@pytest.fixture(scope="module")
def bundle(shared_maker: Any) -> Path:
    """logit = 0.05 x (mean gray level - 125): gray 165 has the probability 0.846, gray 90 has 0.214."""
    folder: Path = shared_maker.bundle(shared_maker.root / "predict")
    return folder


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with images/a.png (gray 165), images/b.png (gray 90) and an empty images/c.png."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name, level in (("a", 165), ("b", 90)):
        Image.fromarray(halves(level)).save(f"images/{name}.png")
    (tmp_path / "images" / "c.png").touch()
    return tmp_path / "images"


def invoke(bundle: Path, *arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(module.command, [*map(str, arguments), "--model", str(bundle)], **options)


def invoke_json(bundle: Path, *arguments: object, **options: Any) -> list[dict[str, Any]]:
    predictions: list[dict[str, Any]] = json.loads(invoke(bundle, *arguments, "--json", **options).stdout)[
        "predictions"
    ]
    return predictions


@pytest.fixture
def run_command(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a failing command and returns its exit status, standard output and standard error."""

    def run(bundle: Path, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            run_and_exit(cli, ["predict", *map(str, arguments), "--model", str(bundle)])
        captured = capfd.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, captured.out, captured.err

    return run


# --- output ------------------------------------------------------------------------------------------------------------


def test_json_has_the_predictions_of_the_python_api(bundle: Path, images: Path) -> None:
    result = invoke(bundle, "images/b.png", "images/a.png", "--json")

    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert list(document) == ["schema", "model", "notice", "predictions"]
    assert (document["schema"], document["notice"], document["model"]["name"]) == (SCHEMA, notice(Population()), "gray")
    model = load_model(bundle)
    for prediction, path in zip(document["predictions"], ["images/b.png", "images/a.png"], strict=True):
        expected = model.predict(path)
        assert prediction["path"] == path
        assert prediction["decision"] == expected.decision
        assert prediction["probability"] == pytest.approx(expected.probability, abs=1e-6)
        assert prediction["threshold"] == expected.threshold
        assert prediction["operating_point"] == "balanced"
        assert [prediction[name] for name in ("interval", "rejection", "uncertainty", "failure")] == [None] * 4
        expected = "" if prediction["decision"] == "pneumonia" else "Other findings are not assessed"
        assert prediction["message"] == expected
        assert prediction["image"].pop("pixel_sha256") == model.predict(path).image.pixel_sha256
        assert prediction["image"] == {"width": SIZE, "height": SIZE, "format": "PNG"}
        assert prediction["model"] == document["model"]


@pytest.mark.parametrize("identified", [True, False])
def test_identifiers_can_be_left_out(maker: Any, tmp_path: Path, identified: bool) -> None:
    bundle = maker.bundle(maker.root / "identified")
    (tmp_path / "a.dcm").write_bytes(dicom(100, PatientID="CANARY-7"))
    options = [] if identified else ["--no-identifiers"]
    for form in ("--json", "--csv=-"):
        result = invoke(bundle, str(tmp_path / "a.dcm"), form, *options)
        assert result.exit_code == 0
        assert ("CANARY-7" in result.stdout) is identified


def test_json_states_rejections_as_codes_with_parameters(maker: Any, images: Path) -> None:
    bundle = maker.bundle(maker.root / "screened", rejection_limits=LIMITS)
    Image.fromarray(halves(50)).save("images/dark.png")
    Image.fromarray(halves(210)).save("images/bright.png")

    dark, bright = invoke_json(bundle, "images/dark.png", "images/bright.png")

    assert (dark["decision"], dark["probability"], dark["rejection"]["code"]) == ("rejected", None, "inverted")
    assert dark["message"].startswith("Black and white appear to be inverted. Probability of an upright chest")
    assert dark["rejection"]["parameters"] == pytest.approx({"probability": 0.196, "limit": 0.3}, abs=0.001)
    assert bright["rejection"]["code"] == "out_of_distribution"
    assert bright["rejection"]["parameters"] == pytest.approx({"distance": 2.1, "limit": 1.9})


def test_json_states_the_interval_of_a_bundle_that_has_one(maker: Any, images: Path) -> None:
    bundle = maker.bundle(maker.root / "with-intervals")
    card = json.loads((bundle / "card.json").read_text())
    card["intervals"] = {"edges": [0.0], "low": [0.1, 0.7], "high": [0.3, 0.9], "method": "venn-abers", "n": 50}
    (bundle / "card.json").write_text(json.dumps(card))

    (prediction,) = invoke_json(bundle, "images/a.png")

    assert prediction["interval"] == {
        "value": prediction["probability"],
        "low": 0.7,
        "high": 0.9,
        "method": "venn-abers",
        "n": 50,
        "level": None,
        "seed": None,
        "reason": "",
    }


def test_hint_names_the_column_of_the_csv_file(
    bundle: Path, images: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    status, out, err = run_command(bundle, "images/c.png", "--csv", "-")
    error = "error: the image could not be read. See failure_message in the CSV file"
    assert (status, err) == (3, f"Total: 1 failed\n{error}\n")
    assert "the file is empty" in out


def test_paths_of_which_none_exists_are_wrong_usage(
    bundle: Path, images: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    hint = "Pass image files, or folders that contain images\n"
    for form in ("--json", "--csv=-", "--csv=new.csv"):
        assert run_command(bundle, "nofolder", form) == (2, "", f"error: 'nofolder' does not exist. {hint}")
    _, _, err = run_command(bundle, "a", "b", "c", "d")
    assert err == f"error: 'a', 'b', 'c', … do not exist. {hint}"
    assert not Path("new.csv").exists()
    # Paths of a list that another program wrote are results, whether they exist or not.
    assert [each["decision"] for each in invoke_json(bundle, "-", input=b"gone.png\n")] == [None]


def test_an_existing_csv_file_is_replaced_with_force_only(
    bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Path("labels.csv")
    table.write_text("path,label\n")
    with monkeypatch.context() as patch:
        patch.setattr(Model, "predict_many", lambda *_, **__: pytest.fail("an image was scored"))
        error = invoke(bundle, "images/a.png", "--csv", table).exception
    assert isinstance(error, UsageError)
    assert str(error) == "'labels.csv' exists. Choose another file with --csv, or replace this one with --force"
    assert table.read_text() == "path,label\n"
    assert invoke(bundle, "images/a.png", "--csv", table, "--force").exit_code == 0
    assert table.read_bytes() == invoke(bundle, "images/a.png", "--csv", "-").stdout_bytes
    Path("-").write_text("a file of this name is another one than standard output")
    assert table.read_bytes() == invoke(bundle, "images/a.png", "--csv", "-").stdout_bytes
    for options in ((), ("--csv", "-"), ("--json",)):
        error = invoke(bundle, "images/a.png", "--force", *options).exception
        assert isinstance(error, UsageError)
        assert str(error) == "--force replaces an existing CSV file, and no file is named. Name it with --csv FILE"


def test_age_is_used_for_images_that_state_none(shared_maker: Any, tmp_path: Path) -> None:
    folder = shared_maker.bundle(shared_maker.root / "ages by option", age_range=(1, 5))
    Image.fromarray(halves(120)).save(tmp_path / "a.png")

    def run(*options: str) -> tuple[list[Any], str]:
        result = CliRunner().invoke(
            cli, ["predict", str(tmp_path / "a.png"), "--model", str(folder), *options, "--json"]
        )
        return [each["rejection"] for each in json.loads(result.stdout)["predictions"]], result.stderr

    (unknown,), warned = run()
    assert unknown is None
    assert "Age not stated" in warned
    (child,), quiet = run("--age", "3", "--require-age", "always")
    assert (child, quiet) == (None, "")
    (adult,), _ = run("--age", "40")
    assert (adult["code"], adult["parameters"]["age"]) == ("outside_age_range", 40)
    (drawn,), _ = run("--age", "40", "--heatmaps", str(tmp_path / "heatmaps"))
    assert drawn["code"] == "outside_age_range"
    with pytest.raises(UsageError, match="the age is -1 years, not from 0 to 130"):
        CliRunner().invoke(
            cli, ["predict", str(tmp_path / "a.png"), "--model", str(folder), "--age", "-1"], catch_exceptions=False
        )


def test_model_in_the_package_is_the_default(images: Path) -> None:
    document = json.loads(CliRunner().invoke(cli, ["predict", "images", "--json"]).stdout)

    card = read_bundle(find_bundle())[0]
    assert document["model"] == {
        "name": card.name,
        "version": card.version,
        "sha256": card.onnx_sha256,
        "site": "",
        "prevalence": None,
    }


def test_unreadable_files_are_reported_and_the_rest_are_processed(
    bundle: Path, images: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    status, out, err = run_command(bundle, "images/c.png", "gone.png", "images/a.png", "--json")

    assert status == 3
    assert err == "error: 2 of 3 images could not be read. Their messages state the reasons\n"
    _, _, err = run_command(bundle, "gone.png", "images/a.png", "--json")
    assert err == "error: 1 of 2 images could not be read. Its message states the reason\n"
    _, _, err = run_command(bundle, "images/c.png", "--json")
    assert err == "error: the image could not be read. Its message states the reason\n"
    empty, missing, good = json.loads(out)["predictions"]
    assert (empty["decision"], empty["failure"]["code"]) == (None, "unreadable_image")
    assert "the file is empty (0 bytes)" in empty["failure"]["message"]
    assert "No such file or directory" in missing["failure"]["message"]
    assert missing["message"].startswith(missing["failure"]["message"])
    assert (good["decision"], good["failure"]) == ("pneumonia", None)


@pytest.mark.parametrize(
    ("population", "sentence"),
    [
        (
            Population(ages=(18, 90), sites=2, view="PA"),
            "Trained on PA radiographs of adults of 18 to 90 years from 2 hospitals.",
        ),
        (Population(), "Its training population is unknown."),
    ],
)
def test_every_output_states_the_population_of_the_model(
    maker: Any, images: Path, monkeypatch: pytest.MonkeyPatch, population: Population, sentence: str
) -> None:
    bundle = maker.bundle(maker.root / "of others", population=population)
    drawn: list[str] = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *args, **kw: (drawn.append(args[2]), draw(*args, **kw))[1])

    table = invoke(bundle, "images/a.png", "--heatmaps", "heatmaps").stdout
    document = json.loads(invoke(bundle, "images/a.png", "--json").stdout)
    (row,) = csv.DictReader(io.StringIO(invoke(bundle, "images/a.png", "--csv", "-").stdout))

    notice_text = f"Research and education software. Not a medical device. {sentence}"
    assert table.splitlines()[-1] == document["notice"] == row["notice"] == notice_text
    assert notice_text in " ".join(drawn)
    assert sentence in load_model(bundle)._repr_html_()
    for text in (table, *drawn, json.dumps(document)):
        assert "1 to 5 years" not in text


def test_table_has_a_line_per_image_then_totals_model_and_notice(bundle: Path, images: Path) -> None:
    result = invoke(bundle, "images")

    assert isinstance(result.exception, PartialFailureError)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["decision", "pneumonia", "no_pneumonia", "failed"]
    # 0.8455 of 20 characters is 16 and seven eighths, 0.2142 is 4 and two eighths.
    assert lines[1] == f"pneumonia     0.846  {'█' * 16}▉     images/a.png"
    assert lines[2] == f"no_pneumonia  0.214  {'█' * 4}▎                 images/b.png"
    assert "  images/c.png  (" in lines[3]
    assert "the file is empty (0 bytes)" in lines[3]
    assert lines[4] == "Total: 1 pneumonia, 1 no_pneumonia, 1 failed"
    assert lines[5].startswith("Model: gray, version 0.1.0. Operating point: balanced")
    assert "highest Youden index on 8 validation images" in lines[5]
    assert lines[6:] == [
        "no_pneumonia: no pneumonia detected. Other findings are not assessed.",
        "Probabilities are for a prevalence of 50%; if pneumonia is less common among your patients, they are too high.",
        notice(Population()),
    ]


def test_prevalence_moves_probabilities_and_no_decision(bundle: Path, images: Path) -> None:
    """The odds at prevalence 0.2 are a quarter of those at 0.5."""
    before = json.loads(invoke(bundle, "images/a.png", "images/b.png", "--json").stdout)
    after = json.loads(invoke(bundle, "images/a.png", "images/b.png", "--json", "--prevalence", "0.2").stdout)
    for old, new in zip(before["predictions"], after["predictions"], strict=True):
        assert new["decision"] == old["decision"]
        assert (new["model"]["site"], new["model"]["prevalence"]) == ("", 0.2)
        odds = [each["probability"] / (1 - each["probability"]) for each in (old, new)]
        assert odds[1] == pytest.approx(odds[0] / 4)
    table = invoke(bundle, "images/a.png", "--prevalence", "0.2").stdout
    assert "Probabilities are for a prevalence of 20%.\n" in table


def test_prevalence_is_a_fraction_and_excludes_a_site_profile(bundle: Path, images: Path) -> None:
    for value in ("0", "1", "20", "x"):
        assert invoke(bundle, "images/a.png", "--prevalence", value).exit_code == 2
    result = invoke(bundle, "images/a.png", "--prevalence", "0.2", "--site", "site.json")
    assert isinstance(result.exception, UsageError)
    assert "cannot be combined" in str(result.exception)


def test_table_explains_uncertain_images(maker: Any, images: Path) -> None:
    band = UncertaintyBand(low=0.3, high=0.7, coverage=0.95, n_normal=30, n_pneumonia=40)
    points = {**POINTS, "balanced": structs.replace(POINTS["balanced"], uncertainty_band=band)}
    bundle = maker.bundle(maker.root / "uncertain", operating_points=points)
    Image.fromarray(halves(126)).save("images/a.png")

    line = invoke(bundle, "images/a.png").stdout.splitlines()[1]

    assert line.startswith("uncertain ")
    assert "The probability is in the uncertain range (36% to 69%), where the model would be wrong too often" in line
    assert "Read the image without the prediction" in line


def test_table_explains_rejections(maker: Any, images: Path) -> None:
    bundle = maker.bundle(maker.root / "screened", rejection_limits=LIMITS)
    Image.fromarray(halves(50)).save("images/a.png")

    lines = invoke(bundle, "images/a.png").stdout.splitlines()

    assert lines[1].startswith("rejected ")
    reason = (
        "Black and white appear to be inverted. Probability of an upright chest radiograph: 0.196; rejected below 0.300"
    )
    assert lines[1].endswith(f"  images/a.png  ({reason})")


def test_table_names_the_warnings_of_each_image(maker: Any, images: Path) -> None:
    bundle = maker.bundle(maker.root / "children", age_range=(1, 5))

    unknown = invoke(bundle, "images/a.png")
    known = invoke(bundle, "images/a.png", "--age", "3")

    assert unknown.stdout.splitlines()[1].endswith("  images/a.png  (Warning: Age not stated)")
    assert "Warning: 1 image: Age not stated: the prediction is invalid for patients outside" in unknown.stderr
    assert known.stdout.splitlines()[1].endswith("  images/a.png")


def test_heatmaps_are_numbered_in_the_order_of_the_results(bundle: Path, images: Path) -> None:
    """Images with equal names do not overwrite each other; unsafe characters are replaced; unreadable images have none."""
    Path("other").mkdir()
    (images / "a.png").rename("other/a.png")
    (images / "b.png").rename(images / "a.png")
    unsafe = images / "x; rm -rf ~ \u202e.png"
    unsafe.write_bytes((images / "a.png").read_bytes())
    paths = ["images/c.png", "other/a.png", "images/a.png", unsafe]

    result = invoke(bundle, *paths, "--heatmaps", "maps", "--json")

    assert isinstance(result.exception, PartialFailureError)
    assert sorted(path.name for path in Path("maps").iterdir()) == ["2-a.png", "3-a.png", "4-x_rm_-rf_.png"]
    (_, first), (_, second) = load_model(bundle).explain_many(["other/a.png", "images/a.png"])
    assert (Path("maps/2-a.png").read_bytes(), Path("maps/3-a.png").read_bytes()) == (first, second)
    assert result.stdout == invoke(bundle, *paths, "--json").stdout


def test_unwritable_heatmap_folder_stops_the_command(bundle: Path, images: Path) -> None:
    Path("maps").touch()
    result = CliRunner().invoke(cli, ["predict", "images", "--model", str(bundle), "--heatmaps", "maps"])
    assert result.exit_code == 2
    assert "'maps' is a file" in result.stderr


def test_heatmap_folder_with_files_is_rejected_before_images_are_scored(
    bundle: Path,
    images: Path,
    run_command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Heatmaps are numbered, so that those of two runs in one folder could not be told apart."""
    assert invoke(bundle, "images/a.png", "--heatmaps", "maps").exit_code == 0
    monkeypatch.setattr(Model, "explain_many", lambda *_: pytest.fail("images were scored"))

    status, out, err = run_command(bundle, "images/b.png", "--heatmaps", "maps")

    assert (status, out) == (2, "")
    assert err == (
        "error: 'maps' is not empty; its files would be mixed with the new heatmaps."
        " Choose a new or empty folder with --heatmaps\n"
    )
    assert [path.name for path in Path("maps").iterdir()] == ["1-a.png"]


def test_heatmap_folder_may_exist_if_it_is_empty(bundle: Path, images: Path) -> None:
    Path("maps").mkdir()
    assert invoke(bundle, "images/a.png", "--heatmaps", "maps").exit_code == 0
    assert [path.name for path in Path("maps").iterdir()] == ["1-a.png"]


def test_decisions_are_colored_on_a_terminal(bundle: Path, images: Path) -> None:
    result = invoke(bundle, "images", color=True)
    red, green, bright_red, reset = "\x1b[31m", "\x1b[32m", "\x1b[91m", "\x1b[0m"
    assert f"{red}pneumonia   {reset}" in result.stdout
    assert f"{green}no_pneumonia{reset}" in result.stdout
    assert f"{bright_red}failed      {reset}" in result.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_missing_from_the_output_encoding_are_replaced(bundle: Path, images: Path, encoding: str) -> None:
    (images / "b.png").rename(images / "Ж.png")
    completed = subprocess.run(
        [*PROGRAM, "images", "--model", bundle],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        timeout=60,
        check=False,
    )
    lines = completed.stdout.decode(encoding).splitlines()
    assert lines[1] == f"pneumonia     0.846  {'#' * 17}     images/a.png"
    assert lines[3].endswith(r"  images/\u0416.png")


def test_control_characters_in_file_names_are_escaped(bundle: Path, images: Path) -> None:
    (images / "a.png").rename(images / "\x1b[2J\udcff.png")
    result = invoke(bundle, "images")
    assert r"images/\x1b[2J\udcff.png" in result.stdout
    assert "\x1b" not in result.stdout


def test_csv_is_written_instead_of_a_table(bundle: Path, images: Path) -> None:
    result = invoke(bundle, "images/a.png", "images/b.png", "--csv", "out/table.csv")

    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        "",
        "Wrote out/table.csv: 2 images\nTotal: 1 pneumonia, 1 no_pneumonia\n",
    )
    with Path("out/table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == csv_columns()
    assert [(row["path"], row["decision"]) for row in rows] == [
        ("images/a.png", "pneumonia"),
        ("images/b.png", "no_pneumonia"),
    ]
    assert float(rows[0]["probability"]) == pytest.approx(0.8455347, abs=1e-6)
    assert list(Path("out").iterdir()) == [Path("out/table.csv")]
    printed = invoke(bundle, "images/a.png", "images/b.png", "--csv", "-")
    assert printed.stdout_bytes == Path("out/table.csv").read_bytes()
    assert not Path("-").exists()


def test_operating_point_sets_the_decision(bundle: Path, images: Path) -> None:
    """Gray 100 has the score 0.223, between the thresholds 0.2 and 0.4."""
    Image.fromarray(halves(100)).save("image.png")
    decisions = {
        name: invoke_json(bundle, "image.png", "--operating-point", name)[0]["decision"]
        for name in ("rule_out", "balanced")
    }
    assert decisions == {"rule_out": "pneumonia", "balanced": "no_pneumonia"}


# --- input -------------------------------------------------------------------------------------------------------------


def test_paths_from_standard_input_take_the_position_of_the_dash(bundle: Path, images: Path) -> None:
    predictions = invoke_json(bundle, "gone.png", "-", "images/b.png", input=b"images/b.png\r\n\nimages/a.png")
    assert [prediction["path"] for prediction in predictions] == [
        "gone.png",
        "images/b.png",
        "images/a.png",
        "images/b.png",
    ]


def test_paths_from_standard_input_may_be_invalid_utf8(bundle: Path, images: Path) -> None:
    (images / "a.png").rename(images / "\udcff.png")
    result = invoke(bundle, "-", "--json", input=b"images/\xff.png\n")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["predictions"][0]["path"] == "images/\udcff.png"


def test_assumptions_override_headers_of_all_images(bundle: Path, images: Path) -> None:
    (images / "hand.dcm").write_bytes(dicom(100, BodyPartExamined="HAND", ViewPosition="ZZ"))
    path = str(images / "hand.dcm")
    assert invoke_json(bundle, path)[0]["rejection"]["code"] == "body_part_not_chest"
    assert "1 image rejected because of the DICOM header; --assume chest overrides it" in invoke(bundle, path).stderr
    assert invoke_json(bundle, path, "--assume", "chest")[0]["rejection"]["code"] == "view_not_understood"
    (prediction,) = invoke_json(bundle, path, "--assume", "chest", "--assume", "frontal")
    assert (prediction["decision"], prediction["warnings"]) == ("no_pneumonia", ["assumed_chest", "assumed_frontal"])
    csv_output = invoke(bundle, path, "--assume", "chest", "--assume", "frontal", "--csv", "-").stdout
    assert "assumed_chest assumed_frontal" in csv_output
    table = invoke(bundle, path, "--assume", "chest", "--assume", "frontal")
    assert "DICOM header overridden: assumed to be a chest radiograph" in table.stderr
    assert "Hint" not in table.stderr
    assert invoke(bundle, path, "--assume", "hand").exit_code == 2


def test_images_of_a_dicomdir_are_predicted(bundle: Path, images: Path) -> None:
    folder = images / "disc"
    folder.mkdir()
    (folder / "im1").write_bytes(dicom(100))
    dicomdir(str(folder / "DICOMDIR"), ("IM1",), ("IM2",))
    result = invoke(bundle, str(folder / "DICOMDIR"))
    assert result.exit_code == 3 or isinstance(result.exception, PartialFailureError)
    assert "Total: 1 no_pneumonia, 1 failed" in result.stdout


def test_skipped_files_are_counted_on_standard_error(bundle: Path, images: Path) -> None:
    (images / "notes.txt").touch()
    (images / ".hidden.png").touch()
    result = invoke(bundle, "images", "--json")
    assert "Skipped 2 files. Hidden: 1 (.hidden.png). Not an image: 1 (notes.txt)\n" in result.stderr
    assert len(json.loads(result.stdout)["predictions"]) == 3


def _noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8))


def _encode(file_format: str, image: Image.Image, *frames: Image.Image) -> bytes:
    """Return the bytes of a file; further frames are rotated, because some writers merge equal frames."""
    file = io.BytesIO()
    options = {"save_all": True, "append_images": [frame.rotate(180) for frame in frames]} if frames else {}
    image.save(file, file_format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jpeg", b"", "the file is empty (0 bytes)"),
        ("text.jpeg", b"no radiograph at all", "not an image (20 bytes)"),
        ("truncated.png", _encode("PNG", _noise())[:300], "the pixels cannot be decoded"),
        ("animated.webp", _encode("WEBP", _noise(), _noise()), "2 frames"),
        ("pages.tiff", _encode("TIFF", _noise(), _noise()), "2 frames"),
        ("huge.bmp", b"BM" + struct.pack("<IIIIiiHH6I", 0, 0, 54, 40, 65535, 65535, 1, 8, *[0] * 6), "75,000,000 pixels"),
        ("header.dcm", b"\0" * 128 + b"DICM", "the DICOM header cannot be read"),
    ],
)  # fmt: skip
def test_malformed_files_do_not_stop_the_others(
    bundle: Path,
    images: Path,
    run_command: Callable[..., tuple[int, str, str]],
    name: str,
    content: bytes,
    reason: str,
) -> None:
    (images / name).write_bytes(content)
    status, out, _ = run_command(bundle, f"images/{name}", "images/a.png", "--json")
    malformed, good = json.loads(out)["predictions"]
    assert (status, good["decision"]) == (3, "pneumonia")
    assert (malformed["path"], malformed["decision"], malformed["probability"]) == (f"images/{name}", None, None)
    assert reason in malformed["failure"]["message"]


@pytest.mark.parametrize("name", ["image.jpeg", "image.txt", "image"])
def test_format_of_a_named_file_is_detected_by_content(bundle: Path, images: Path, name: str) -> None:
    (images / "a.png").rename(images / name)
    assert invoke_json(bundle, f"images/{name}")[0]["image"]["format"] == "PNG"


# --- usage errors ------------------------------------------------------------------------------------------------------


def test_no_images_is_a_usage_error(
    bundle: Path, images: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    (images / "empty").mkdir()
    status, out, err = run_command(bundle, "images/empty")
    assert (status, out) == (2, "")
    assert err == "error: no images found in 'images/empty'. Pass image files, or folders that contain images\n"


def test_json_and_csv_cannot_be_combined(
    bundle: Path, images: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    status, out, err = run_command(bundle, "images", "--json", "--csv", "table.csv")
    assert (status, out) == (2, "")
    assert err == "error: --json and --csv cannot be combined. Choose one of them\n"


def test_json_takes_no_file_name(bundle: Path, images: Path, run_command: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = run_command(bundle, "images", "--json", "results.json")
    assert (status, out) == (2, "")
    assert err == (
        "error: 'results.json' is not an image, and --json takes no file name. --json writes to standard output. "
        "Redirect it: pneumoscope predict PATH --json > results.json\n"
    )


def test_missing_bundle_and_unknown_operating_point_are_usage_errors(
    bundle: Path, images: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    status, out, err = run_command(images, "images")
    assert (status, out) == (2, "")
    assert f"error: {str(images)!r} is not a bundle" in err
    status, out, err = run_command(bundle, "images", "--operating-point", "rulein")
    assert (status, out) == (2, "")
    assert "no operating point 'rulein'. Did you mean 'rule_in'?" in err


def test_unwritable_csv_is_reported_before_images_are_scored(
    bundle: Path, images: Path, run_command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "predict_many", lambda *_, **__: pytest.fail("an image was scored"))
    (images.parent / "file").touch()
    status, out, err = run_command(bundle, "images", "--csv", "file/table.csv")
    assert (status, out) == (1, "")
    assert "cannot write 'file/table.csv'" in err


# --- progress ----------------------------------------------------------------------------------------------------------


class Terminal:
    """A stream that claims to be a terminal."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def isatty(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@pytest.mark.parametrize(
    ("count", "options", "terminal", "shown"),
    [
        (9, ["--json"], True, True),
        (9, ["--csv", "t.csv"], True, True),
        (8, ["--json"], True, False),  # too few images
        (9, [], True, False),  # the table itself shows progress
        (9, [], False, True),
    ],
)
def test_progress_is_shown_for_many_images_without_a_visible_table(
    bundle: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    options: list[str],
    terminal: bool,
    shown: bool,
) -> None:
    calls: list[tuple[int, int]] = []

    class Progress:
        def __init__(self, description: str) -> None:
            assert description == "scoring images"

        def __enter__(self) -> Callable[[int, int], None]:
            return lambda done, total: calls.append((done, total))

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(module, "image_progress", Progress)
    if terminal:
        monkeypatch.setattr(sys, "stdout", Terminal(sys.stdout))
    arguments = [*["images/a.png"] * count, *options, "--model", str(bundle)]
    module.command.main(arguments, standalone_mode=False)
    assert calls == ([(done, count) for done in range(1, count + 1)] if shown else [])


# --- interruption ------------------------------------------------------------------------------------------------------


def _repeated(images: Path, count: int = MANY) -> bytes:
    return "\n".join([str(images / "a.png")] * count).encode()


def test_ctrl_c_completes_the_json_document(bundle: Path, images: Path) -> None:
    with started(
        [*PROGRAM, "-", "--json", "--model", bundle],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(_repeated(images))
        process.stdin.close()
        out = b"".join(process.stdout.readline() for _ in range(40))
        process.send_signal(signal.SIGINT)
        out += process.stdout.read()
        err = process.stderr.read().decode()
    predictions = json.loads(out)["predictions"]
    assert process.returncode == 130
    assert 20 < len(predictions) < MANY
    assert all(prediction["decision"] == "pneumonia" for prediction in predictions)
    assert err == f"Interrupted after {len(predictions):,} of {MANY:,} images\n"


def test_ctrl_c_keeps_finished_rows_of_the_csv_file(
    bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal arrives while the third image is scored."""
    predict_many = Model.predict_many

    def interrupted(self: Model, paths: Any, **options: Any) -> Iterator[Prediction]:
        for number, prediction in enumerate(predict_many(self, paths, **options)):
            if number == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield prediction

    monkeypatch.setattr(Model, "predict_many", interrupted)
    before = signal.getsignal(signal.SIGINT)
    result = invoke(bundle, "-", "--csv", "table.csv", input=_repeated(images, 200), standalone_mode=False)
    assert isinstance(result.exception, click.Abort)
    assert str(result.exception) == "Interrupted after 3 of 200 images"
    with Path("table.csv").open(newline="", encoding="utf-8") as file:
        assert [row["decision"] for row in csv.DictReader(file)] == ["pneumonia"] * 3
    assert signal.getsignal(signal.SIGINT) is before


def test_second_ctrl_c_stops_at_once(bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted_twice(self: Model, paths: Any, **options: Any) -> Iterator[Prediction]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        yield pytest.fail("the command continued")

    monkeypatch.setattr(Model, "predict_many", interrupted_twice)
    result = invoke(bundle, "images", "--csv", "table.csv", standalone_mode=False)
    assert isinstance(result.exception, click.Abort)
    assert list(Path().iterdir()) == [Path("images")]


@pytest.mark.parametrize("options", [["--json"], []])
def test_closed_pipe_ends_the_command_silently(bundle: Path, images: Path, options: list[str]) -> None:
    with started(
        [*PROGRAM, "-", *options, "--model", bundle],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(_repeated(images))
        process.stdin.close()
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


# --- decoding ----------------------------------------------------------------------------------------------------------


def test_warnings_of_decoders_are_not_printed(
    bundle: Path, images: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    """Pillow warns between its limit on pixels and twice that limit, before the file is refused."""
    Image.new("1", (12_000, 8_000)).save(images / "large.png")
    status, _, err = run_command(bundle, "images/large.png")
    assert status == 3
    assert "Warning" not in err


def test_many_images_are_decoded_in_worker_processes_and_a_few_in_this_one(
    bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[DecodePool] = []
    monkeypatch.setattr(DecodePool, "start", lambda pool: pools.append(pool))
    few, many = (["images/a.png"] * count for count in (MIN_IMAGES_FOR_POOL, MIN_IMAGES_FOR_POOL + 1))
    assert invoke(bundle, *few).exit_code == 0
    assert pools == []
    assert invoke(bundle, *many).exit_code == 0
    assert len(pools) == 1
