"""`pneumoscope recipes`: the list, and recipes as TOML and JSON."""

import json
import tomllib
from pathlib import Path

from click.testing import CliRunner

from pneumoscope.cli.recipes import command
from pneumoscope.runs.recipe_files import packaged_recipes, read_recipe

KNOWN = packaged_recipes() | packaged_recipes("pneumoscope.reproduction.recipes")


def invoke(*arguments):
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def test_every_recipe_is_listed_with_its_description():
    lines = dict(line.split(maxsplit=1) for line in invoke().splitlines())

    assert lines == {name: tomllib.loads(text)["about"] for name, text in KNOWN.items()}
    assert "alexnet-sgd" in lines


def test_printed_toml_is_read_back_to_an_equal_recipe(tmp_path):
    for name in KNOWN:
        (tmp_path / "mine.toml").write_text(invoke(name))
        assert read_recipe(str(tmp_path / "mine.toml")) == read_recipe(name)


def test_printed_toml_has_all_defaults():
    printed = tomllib.loads(invoke("alexnet-sgd"))

    assert printed == read_recipe("alexnet-sgd").model_dump(mode="json", exclude_none=True)
    assert (printed["optimizer"]["momentum"], printed["training"]["label_smoothing"]) == (0.0, 0.0)


def test_json_is_one_document_with_all_recipes():
    recipes = json.loads(invoke("--json"))

    assert [recipe["name"] for recipe in recipes] == list(KNOWN)
    assert recipes[0]["optimizer"]["beta1"] == 0.9


def test_json_of_one_recipe():
    assert json.loads(invoke("vgg19-adam-32", "--json")) == read_recipe("vgg19-adam-32").model_dump(mode="json")


def test_recipe_file_is_printed_with_its_defaults(tmp_path):
    path = Path(tmp_path / "mine.toml")
    path.write_text('name = "mine"\n[network]\nname = "resnet18"\n')

    assert tomllib.loads(invoke(str(path)))["training"]["epochs"] == 15
