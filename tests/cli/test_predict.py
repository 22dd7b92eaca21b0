"""`predict` as a shell sees it: what is printed and written, exit statuses, Ctrl-C and closed pipes."""

import csv
import io
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tests.conftest import SIZE, halves
from tests.processes import started

from pneumoscope.bundle.card import read_bundle
from pneumoscope.cli import cli, run_and_exit
from pneumoscope.cli import predict as module
from pneumoscope.core.errors import PartialFailureError
from pneumoscope.core.i18n import NOTICE
from pneumoscope.core.results import SCHEMA
from pneumoscope.imaging.sandbox import DecodePool
from pneumoscope.inference.model import MIN_IMAGES_FOR_POOL, load_model
from pneumoscope.inference.writers import csv_columns
from pneumoscope.runs.run_folder import find_bundle

PROGRAM = [sys.executable, "-m", "pneumoscope", "predict"]


@pytest.fixture(scope="module")
def bundle(shared_maker):
    """logit = 0.05 x (mean grey - 125); grey 165 has the probability 0.846, grey 90 0.214."""
    return shared_maker.bundle(shared_maker.root / "predict")


@pytest.fixture
def images(tmp_path, monkeypatch):
    """The current folder: images/a.png (grey 165), images/b.png (90), and an empty images/c.png."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name, level in (("a", 165), ("b", 90)):
        Image.fromarray(halves(level)).save(f"images/{name}.png")
    (tmp_path / "images" / "c.png").touch()
    return tmp_path / "images"


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8))


def file_of(kind, image, *others):
    """Its bytes; the second of two frames is turned, so that no writer takes them for one."""
    file = io.BytesIO()
    more = {"save_all": True, "append_images": [other.rotate(180) for other in others]} if others else {}
    image.save(file, kind, **more)
    return file.getvalue()


def invoke(bundle, *arguments, **options):
    return CliRunner().invoke(module.command, [*map(str, arguments), "--model", str(bundle)], **options)


def exits(capfd, bundle, *arguments):
    """Status, standard output, standard error."""
    with pytest.raises(SystemExit) as stop:
        run_and_exit(cli, ["predict", *map(str, arguments), "--model", str(bundle)])
    found = capfd.readouterr()
    return stop.value.code, found.out, found.err


# --- what is given back ------------------------------------------------------------------------------------------------


def test_json_is_what_python_says(bundle, images):
    result = invoke(bundle, "images/b.png", "images/a.png", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    data = json.loads(result.stdout)
    assert list(data) == ["schema", "model", "notice", "predictions"]
    assert (data["schema"], data["notice"], data["model"]["name"]) == (SCHEMA, NOTICE, "grey")
    model = load_model(bundle)
    for found, path in zip(data["predictions"], ["images/b.png", "images/a.png"], strict=True):
        expected = model.predict(path)
        assert found["path"] == path
        assert (found["decision"], found["reason"], found["error"]) == (expected.decision, "", "")
        assert found["probability"] == pytest.approx(expected.probability, abs=1e-6)
        assert found["threshold"] == expected.threshold
        assert (found["interval"], found["interval_reason"]) == (None, "this bundle states none")
        assert found["image"] == {"width": SIZE, "height": SIZE, "format": "PNG"}
        assert found["model"] == data["model"]
        assert found["notice"] == NOTICE


def test_what_cannot_be_read_is_an_error_of_its_own_and_the_others_are_done(bundle, images, capfd):
    status, out, err = exits(capfd, bundle, "images/c.png", "gone.png", "images/a.png", "--json")
    assert status == 3
    assert err == "error: 2 of 3 images could not be read; each has an error of its own\n"
    found = json.loads(out)["predictions"]
    assert [(image["decision"], image["error"]) for image in found] == [
        (None, "the file is empty (0 bytes)"),
        (None, "No such file or directory"),
        ("pneumonia", ""),
    ]


def test_the_table_is_for_people(bundle, images):
    result = invoke(bundle, "images")
    assert isinstance(result.exception, PartialFailureError)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["decision", "pneumonia", "normal", "failed"]
    # 0.8455 of 20 characters is 16 and seven eighths, 0.2142 is 4 and two eighths
    assert lines[1] == f"pneumonia  0.846  {'█' * 16}▉     images/a.png"
    assert lines[2] == f"normal     0.214  {'█' * 4}▎                 images/b.png"
    assert lines[3].endswith("  images/c.png  (the file is empty (0 bytes))")
    assert lines[4] == "in all: 1 pneumonia, 1 normal, 1 failed"
    assert "model grey, version 0.1.0" in lines[5]
    assert "highest Youden index on 8 validation images" in lines[5]
    assert lines[6] == NOTICE


def test_heatmaps_are_numbered_as_the_results_are(bundle, images):
    """Of two images of one name both are there; a name is cut to letters, digits, - and _; what cannot be read has none."""
    Path("other").mkdir()
    (images / "a.png").rename("other/a.png")
    (images / "b.png").rename(images / "a.png")
    hostile = images / "x; rm -rf ~ \u202e.png"
    hostile.write_bytes((images / "a.png").read_bytes())

    result = invoke(bundle, "images/c.png", "other/a.png", "images/a.png", hostile, "--heatmaps", "maps", "--json")

    assert isinstance(result.exception, PartialFailureError)
    assert sorted(path.name for path in Path("maps").iterdir()) == ["2-a.png", "3-a.png", "4-x_rm_-rf_.png"]
    model = load_model(bundle)
    (_, first), (_, second) = model.explain_many(["other/a.png", "images/a.png"])
    assert (Path("maps/2-a.png").read_bytes(), Path("maps/3-a.png").read_bytes()) == (first, second)
    plain = invoke(bundle, "images/c.png", "other/a.png", "images/a.png", hostile, "--json")
    assert result.stdout == plain.stdout


def test_heatmaps_that_cannot_be_written_end_the_work(bundle, images):
    Path("maps").touch()
    result = CliRunner().invoke(cli, ["predict", "images", "--model", str(bundle), "--heatmaps", "maps"])
    assert result.exit_code == 2
    assert "'maps' is a file" in result.stderr


def test_without_a_model_the_one_that_comes_with_the_package_scores(images):
    result = CliRunner().invoke(cli, ["predict", "images", "--json"])
    card = read_bundle(find_bundle())[0]
    assert json.loads(result.stdout)["model"] == {
        "name": card.name,
        "version": card.version,
        "sha256": card.onnx_sha256,
    }


def test_decisions_have_their_colours_on_a_terminal(bundle, images):
    result = invoke(bundle, "images", color=True)
    red, green, bright, reset = "\x1b[31m", "\x1b[32m", "\x1b[91m", "\x1b[0m"
    assert f"{red}pneumonia{reset}" in result.stdout
    assert f"{green}normal   {reset}" in result.stdout
    assert f"{bright}failed   {reset}" in result.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_where_blocks_and_names_cannot_be_shown_something_else_is(bundle, images, encoding):
    (images / "b.png").rename(images / "Ж.png")
    ran = subprocess.run(
        [*PROGRAM, "images", "--model", bundle],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        timeout=60,
    )
    lines = ran.stdout.decode(encoding).splitlines()
    assert lines[1] == f"pneumonia  0.846  {'#' * 17}     images/a.png"
    assert lines[3].endswith(r"  images/\u0416.png")


def test_a_strangers_name_does_not_move_the_cursor(bundle, images):
    (images / "a.png").rename(images / "\x1b[2J\udcff.png")
    result = invoke(bundle, "images")
    assert r"images/\x1b[2J\udcff.png" in result.stdout
    assert "\x1b" not in result.stdout


def test_csv_is_written_and_nothing_printed(bundle, images):
    result = invoke(bundle, "images/a.png", "images/b.png", "--csv", "out/table.csv")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    with Path("out/table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == csv_columns()
    assert [(row["path"], row["decision"]) for row in rows] == [
        ("images/a.png", "pneumonia"),
        ("images/b.png", "normal"),
    ]
    assert float(rows[0]["probability"]) == pytest.approx(0.8455347, abs=1e-6)
    assert list(Path("out").iterdir()) == [Path("out/table.csv")]


def test_the_operating_point_reaches_the_model(bundle, images):
    """Grey 100: logit -1.25, score 0.223."""
    Image.fromarray(halves(100)).save("image.png")
    found = {
        name: json.loads(invoke(bundle, "image.png", "--json", "--operating-point", name).stdout)["predictions"][0]
        for name in ("rule_out", "balanced")
    }
    assert {name: image["decision"] for name, image in found.items()} == {"rule_out": "pneumonia", "balanced": "normal"}


# --- which images -------------------------------------------------------------------------------------------------------


def test_a_list_on_standard_input_stands_where_its_dash_does(bundle, images):
    given = b"images/b.png\r\n\nimages/a.png"
    result = invoke(bundle, "gone.png", "-", "images/b.png", "--json", input=given)
    found = [image["path"] for image in json.loads(result.stdout)["predictions"]]
    assert found == ["gone.png", "images/b.png", "images/a.png", "images/b.png"]


def test_a_listed_name_need_not_be_text(bundle, images):
    (images / "a.png").rename(images / "\udcff.png")
    result = invoke(bundle, "-", "--json", input=b"images/\xff.png\n")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["predictions"][0]["path"] == "images/\udcff.png"


def test_files_that_are_left_out_are_counted_on_standard_error(bundle, images):
    (images / "notes.txt").touch()
    (images / ".hidden.png").touch()
    result = invoke(bundle, "images", "--json")
    assert "2 files were left out: hidden, or no images by name or content\n" in result.stderr
    assert len(json.loads(result.stdout)["predictions"]) == 3


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("empty.jpeg", b"", "the file is empty (0 bytes)"),
        ("text.jpeg", b"no radiograph at all", "not an image (20 bytes)"),
        ("cut.png", file_of("PNG", noise())[:300], "the pixels cannot be decoded"),
        ("animated.webp", file_of("WEBP", noise(), noise()), "it has 2 frames"),
        ("pages.tiff", file_of("TIFF", noise(), noise()), "it has 2 frames"),
        ("huge.bmp", b"BM" + struct.pack("<IIIIiiHH6I", 0, 0, 54, 40, 65535, 65535, 1, 8, *[0] * 6), "75,000,000 pixels"),
        ("header.dcm", b"\0" * 128 + b"DICM", "the DICOM header cannot be read"),
    ],
)  # fmt: skip
def test_no_strangers_file_stops_the_others(bundle, images, capfd, name, content, why):
    (images / name).write_bytes(content)
    status, out, _ = exits(capfd, bundle, f"images/{name}", "images/a.png", "--json")
    bad, good = json.loads(out)["predictions"]
    assert (status, good["decision"]) == (3, "pneumonia")
    assert (bad["path"], bad["decision"], bad["probability"]) == (f"images/{name}", None, None)
    assert why in bad["error"]


@pytest.mark.parametrize("name", ["image.jpeg", "image.txt", "image"])
def test_a_file_that_is_named_is_told_by_its_content(bundle, images, name):
    (images / "a.png").rename(images / name)
    assert json.loads(invoke(bundle, f"images/{name}", "--json").stdout)["predictions"][0]["image"]["format"] == "PNG"


# --- refusals ----------------------------------------------------------------------------------------------------------


def test_no_image_is_the_callers_fault(bundle, images, capfd):
    (images / "empty").mkdir()
    status, out, err = exits(capfd, bundle, "images/empty")
    assert (status, out) == (2, "")
    assert err == "error: there is no image to score. Name images, or folders that hold some\n"


def test_json_and_csv_do_not_go_together(bundle, images, capfd):
    status, out, err = exits(capfd, bundle, "images", "--json", "--csv", "table.csv")
    assert (status, out) == (2, "")
    assert err.startswith("error: --json prints and --csv writes: they do not go together.")


def test_a_bundle_that_is_none_and_a_point_that_is_not_there(bundle, images, capfd):
    status, out, err = exits(capfd, images, "images")
    assert (status, out) == (2, "")
    assert "is not a bundle" in err
    status, out, err = exits(capfd, bundle, "images", "--operating-point", "rulein")
    assert (status, out) == (2, "")
    assert "no operating point 'rulein'. Did you mean 'rule_in'?" in err


def test_a_table_that_cannot_be_written_is_told_before_images_are_scored(bundle, images, capfd, monkeypatch):
    monkeypatch.setattr(
        "pneumoscope.inference.model.Model._predict_batch", lambda *_: pytest.fail("an image was scored")
    )
    (images.parent / "file").touch()
    status, out, err = exits(capfd, bundle, "images", "--csv", "file/table.csv")
    assert (status, out) == (1, "")
    assert "cannot write 'file/table.csv'" in err


# --- progress ----------------------------------------------------------------------------------------------------------


class Terminal:
    def __init__(self, stream):
        self.stream = stream

    def isatty(self):
        return True

    def __getattr__(self, name):
        return getattr(self.stream, name)


@pytest.mark.parametrize(
    ("count", "options", "terminal", "shown"),
    [
        (9, ["--json"], True, True),
        (9, ["--csv", "t.csv"], True, True),
        (8, ["--json"], True, False),
        (9, [], True, False),  # the images themselves are seen to go by
        (9, [], False, True),
    ],
)
def test_progress_is_for_more_than_a_few_images_that_nobody_sees(
    bundle, images, monkeypatch, count, options, terminal, shown
):
    seen = []

    class Progress:
        def __init__(self, words):
            assert words == "scoring images"

        def __enter__(self):
            return lambda done, total: seen.append((done, total))

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(module, "image_progress", Progress)
    if terminal:
        monkeypatch.setattr(sys, "stdout", Terminal(sys.stdout))
    arguments = [*["images/a.png"] * count, *options, "--model", str(bundle)]
    module.command.main(arguments, standalone_mode=False)
    assert seen == ([(done, count) for done in range(1, count + 1)] if shown else [])


# --- whoever stops listening, or stops us --------------------------------------------------------------------------------


def many(images, count=20_000):
    """The same image many times: more than can be done before somebody stops it."""
    return "\n".join([str(images / "a.png")] * count).encode()


def test_ctrl_c_closes_the_document(bundle, images):
    with started(
        [*PROGRAM, "-", "--json", "--model", bundle],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdin.write(many(images))
        process.stdin.close()
        out = b"".join(process.stdout.readline() for _ in range(40))
        process.send_signal(signal.SIGINT)
        out += process.stdout.read()
        err = process.stderr.read().decode()
    done = json.loads(out)["predictions"]
    assert process.returncode == 130
    assert 20 < len(done) < 20_000
    assert all(image["decision"] == "pneumonia" for image in done)
    assert err == f"{len(done)} of 20000 images were done\nstopped\n"


def test_ctrl_c_leaves_a_whole_table(bundle, images, monkeypatch):
    """The signal comes while the third image is awaited."""
    from pneumoscope.inference.model import Model

    whole = Model.predict_many

    def interrupted(self, paths, **options):
        for place, prediction in enumerate(whole(self, paths, **options)):
            if place == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield prediction

    monkeypatch.setattr(Model, "predict_many", interrupted)
    before = signal.getsignal(signal.SIGINT)
    result = invoke(bundle, "-", "--csv", "table.csv", input=many(images, 200), standalone_mode=False)
    assert isinstance(result.exception, click.Abort)
    assert "3 of 200 images were done" in result.stderr
    with Path("table.csv").open(newline="", encoding="utf-8") as file:
        assert [row["decision"] for row in csv.DictReader(file)] == ["pneumonia"] * 3
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_breaks_off(bundle, images, monkeypatch):
    from pneumoscope.inference.model import Model

    def stuck(self, paths, **options):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        yield pytest.fail("went on")

    monkeypatch.setattr(Model, "predict_many", stuck)
    result = invoke(bundle, "images", "--csv", "table.csv", standalone_mode=False)
    assert isinstance(result.exception, click.Abort)
    assert list(Path().iterdir()) == [Path("images")]


@pytest.mark.parametrize("options", [["--json"], []])
def test_a_closed_pipe_is_no_news(bundle, images, options):
    with started(
        [*PROGRAM, "-", *options, "--model", bundle],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdin.write(many(images))
        process.stdin.close()
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


# --- decoders ----------------------------------------------------------------------------------------------------------


def test_what_decoders_warn_about_is_not_printed(bundle, images, capfd):
    """Pillow warns between its limit on pixels and twice that limit, before the file is refused."""
    Image.new("1", (12_000, 8_000)).save(images / "large.png")
    status, _, err = exits(capfd, bundle, "images/large.png")
    assert status == 3
    assert "Warning" not in err


def test_many_images_are_decoded_in_worker_processes_and_a_few_in_this_one(bundle, images, monkeypatch):
    started = []
    monkeypatch.setattr(DecodePool, "start", lambda pool: started.append(pool))
    few, many = (["images/a.png"] * count for count in (MIN_IMAGES_FOR_POOL, MIN_IMAGES_FOR_POOL + 1))
    assert invoke(bundle, *few).exit_code == 0
    assert started == []
    assert invoke(bundle, *many).exit_code == 0
    assert len(started) == 1
