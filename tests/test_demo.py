"""The demo's command lines are ones that a person could type, and it removes nothing but an earlier demo."""

import re
from pathlib import Path

import click
import pytest

from pneumoscope import demo
from pneumoscope.cli import VERBS, cli, run_and_exit
from pneumoscope.demo import RECIPES, command, lines
from pneumoscope.runs.recipe import packaged_recipes


def parsed(line):
    """The verb and its parameters, by click's own parser; nothing is run."""
    verb, *arguments = line
    context = cli.get_command(click.Context(cli), verb).make_context(verb, list(arguments))
    return verb, context.params


@pytest.mark.parametrize("data", [None, Path("chest_xray")])
def test_every_line_is_a_valid_command(data):
    found = [parsed(line) for line in lines(data, Path("out"))]

    verbs = [verb for verb, _ in found]
    assert verbs == [
        *([] if data else ["phantom"]),
        "split",
        "train",
        "train",
        "evaluate",
        "evaluate",
        "compare",
        *([] if data else ["predict"]),
    ]
    assert set(verbs) <= set(VERBS)


def test_what_one_line_makes_the_next_one_takes():
    found = [parsed(line) for line in lines(None, Path("out"))]
    (_, phantom), (_, split), (_, first), (_, second), (_, judged), (_, again), (_, compare), (_, predict) = found

    assert split["data"] == phantom["folder"] == Path("out/images")
    assert (
        split["out"] == first["data"] == second["data"] == judged["data"] == again["data"] == Path("out/manifest.csv")
    )
    assert (first["recipe"], second["recipe"]) == RECIPES
    assert compare["runs"] == (first["out"], second["out"]) == (judged["target"], again["target"])
    assert judged["ledger"] == again["ledger"] == Path("out/test-ledger.jsonl")
    assert compare["out"] == Path("out/comparison")
    assert (predict["paths"], predict["bundle"]) == (("out/images/test",), None)


def test_images_of_ones_own_are_split_where_they_are():
    _, split = parsed(lines(Path("chest_xray"), Path("out"))[0])

    assert (split["data"], split["out"]) == (Path("chest_xray"), Path("out/manifest.csv"))


def test_its_recipes_are_packaged_recipes():
    assert set(RECIPES) <= set(packaged_recipes())


@pytest.fixture
def quick(monkeypatch):
    """One verb that takes no time in the place of the demo's lines; gives what they were asked for."""
    asked = []

    def instead(data, out):
        asked.append((data, out))
        return [["recipes", "quick", "--json"]]

    monkeypatch.setattr(demo, "lines", instead)
    return asked


def test_it_shows_each_command_and_prints_where_the_report_is(quick, tmp_path, capsys):
    out = tmp_path / "made" / "demo"

    run_and_exit(command, ["--out", str(out)])

    printed, told = capsys.readouterr()
    assert quick == [(None, out)]
    assert '"name": "quick"' in printed
    assert printed.splitlines()[-1] == str(out.resolve() / "comparison" / "report.html")
    assert "\n$ pneumoscope recipes quick --json\n" in told
    assert re.search(r"Done in \d+ seconds\. Open the report in a browser:", told)


def test_an_earlier_demo_is_made_anew(quick, tmp_path):
    out = tmp_path / "demo"
    run_and_exit(command, ["--out", str(out)])
    (out / "images").mkdir()
    (out / "images" / "old.png").write_text("")

    run_and_exit(command, ["--out", str(out)])

    assert [path.name for path in out.iterdir()] == ["DEMO"]
    assert "removes this folder" in (out / "DEMO").read_text()


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        run_and_exit(command, list(map(str, arguments)))
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["thesis.txt", "DEMO"])
def test_a_folder_that_is_no_earlier_demo_is_left_alone(quick, tmp_path, capsys, name):
    out = tmp_path / "demo"
    out.mkdir()
    (out / name).write_text("mine")

    assert "demo' exists and is no earlier demo. Choose another folder with --out" in refused(capsys, "--out", out)
    assert (out / name).read_text() == "mine"
    assert quick == []


def test_an_empty_folder_and_a_file_are_left_alone_too(quick, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()

    for out in (tmp_path / "empty", tmp_path / "file"):
        assert "is no earlier demo" in refused(capsys, "--out", out)
    assert (tmp_path / "file").read_text() == "mine"


def test_images_inside_the_folder_that_would_be_removed_are_kept(quick, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_and_exit(command, [])
    images = tmp_path / "demo" / "images"
    images.mkdir()
    (images / "image.png").write_text("mine")
    capsys.readouterr()

    told = refused(capsys, "--data", images)

    assert f"the images in {str(images)!r} lie inside 'demo', which the demo empties" in told
    assert (images / "image.png").read_text() == "mine"


def test_a_line_that_fails_stops_the_demo_with_its_status(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "lines", lambda data, out: [["recipes", "nowhere"], ["recipes"]])

    told = refused(capsys, "--out", tmp_path / "demo")

    assert "error: there is no recipe 'nowhere'" in told
    assert "Done" not in told
