"""The demo: its commands are valid, and it deletes nothing but the folder of an earlier demo."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest

from pneumoscope import demo
from pneumoscope.cli import VERBS, cli, run_and_exit
from pneumoscope.demo import RECIPES, command, lines
from pneumoscope.runs.recipe_files import packaged_recipes


def parse(line: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the command and its parameters; nothing is run."""
    name, *arguments = line
    subcommand = cli.get_command(click.Context(cli), name)
    assert subcommand
    return name, subcommand.make_context(name, list(arguments)).params


@pytest.mark.parametrize("data", [None, Path("chest_xray")])
def test_every_line_is_a_valid_command(data: Path | None) -> None:
    names = [parse(line)[0] for line in lines(data, Path("out"))]

    assert names == [
        *([] if data else ["phantom"]),
        "split",
        "train",
        "train",
        "evaluate",
        "evaluate",
        "compare",
        *([] if data else ["predict"]),
    ]
    assert set(names) <= set(VERBS)


def test_each_command_uses_the_output_of_the_previous_ones() -> None:
    parameters = [parse(line)[1] for line in lines(None, Path("out"))]
    phantom, split, *trainings, first_evaluation, second_evaluation, compare, predict = parameters
    evaluations = [first_evaluation, second_evaluation]

    assert split["data"] == phantom["folder"] == Path("out/images")
    assert split["out"] == Path("out/manifest.csv")
    assert [step["data"] for step in (*trainings, *evaluations)] == [split["out"]] * 4
    assert tuple(training["recipe"] for training in trainings) == RECIPES
    assert [evaluation["target"] for evaluation in evaluations] == [training["out"] for training in trainings]
    assert [evaluation["ledger"] for evaluation in evaluations] == [Path("out/test-ledger.jsonl")] * 2
    assert compare["runs"] == tuple(training["out"] for training in trainings)
    assert compare["out"] == Path("out/comparison")
    assert (predict["paths"], predict["bundle"]) == (("out/images/test",), None)


def test_own_images_are_used_in_place() -> None:
    _, split = parse(lines(Path("chest_xray"), Path("out"))[0])

    assert (split["data"], split["out"]) == (Path("chest_xray"), Path("out/manifest.csv"))


def test_recipes_are_packaged_recipes() -> None:
    assert set(RECIPES) <= set(packaged_recipes())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path | None, Path]]:
    """Replace the commands by a fast one, and return the arguments that `lines` is called with."""
    received: list[tuple[Path | None, Path]] = []

    def fast_lines(data: Path | None, out: Path) -> list[list[str]]:
        received.append((data, out))
        return [["recipes", "quick", "--json"]]

    monkeypatch.setattr(demo, "lines", fast_lines)
    return received


Calls = list[tuple[Path | None, Path]]
Capture = pytest.CaptureFixture[str]


def test_commands_and_the_path_of_the_report_are_printed(calls: Calls, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "new" / "demo"

    run_and_exit(command, ["--out", str(out)])

    captured = capsys.readouterr()
    assert calls == [(None, out)]
    assert '"name": "quick"' in captured.out
    assert captured.out.splitlines()[-1] == str(out.resolve() / "comparison" / "report.html")
    assert "\n$ pneumoscope recipes quick --json\n" in captured.err
    assert re.search(r"Done in \d+ seconds\. Open the report in a browser:", captured.err)


def test_earlier_demo_is_deleted(calls: Calls, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    run_and_exit(command, ["--out", str(out)])
    (out / "images").mkdir()
    (out / "images" / "old.png").write_text("")

    run_and_exit(command, ["--out", str(out)])

    assert [path.name for path in out.iterdir()] == ["DEMO"]
    assert "deletes this folder" in (out / "DEMO").read_text()


def error_of(capsys: Capture, *arguments: object) -> str:
    """Return what the demo prints to standard error when it exits with status 2."""
    with pytest.raises(SystemExit) as stop:
        run_and_exit(command, list(map(str, arguments)))
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["thesis.txt", "DEMO"])
def test_folder_of_other_files_is_kept(calls: Calls, tmp_path: Path, capsys: Capture, name: str) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    (out / name).write_text("mine")

    assert "demo' exists and was not made by an earlier demo. Choose another folder with --out" in error_of(
        capsys, "--out", out
    )
    assert (out / name).read_text() == "mine"
    assert calls == []


def test_empty_folder_and_file_are_kept(calls: Calls, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()

    for out in (tmp_path / "empty", tmp_path / "file"):
        assert "was not made by an earlier demo" in error_of(capsys, "--out", out)
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "empty").is_dir()


def test_images_inside_the_deleted_folder_are_kept(
    calls: Calls, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_and_exit(command, [])
    images = tmp_path / "demo" / "images"
    images.mkdir()
    (images / "image.png").write_text("mine")
    capsys.readouterr()

    error = error_of(capsys, "--data", images)

    assert f"the images in {str(images)!r} lie inside 'demo', which the demo deletes" in error
    assert (images / "image.png").read_text() == "mine"


def test_failing_command_stops_the_demo_with_its_status(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "lines", lambda data, out: [["recipes", "nowhere"], ["recipes"]])

    error = error_of(capsys, "--out", tmp_path / "demo")

    assert "error: there is no recipe 'nowhere'" in error
    assert "Done" not in error
