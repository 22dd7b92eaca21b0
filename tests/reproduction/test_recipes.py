"""The report's six recipes have the constants of the report."""

import pytest

from pneumoscope.reproduction.recipes import RUNS
from pneumoscope.runs.recipe_files import packaged_recipes, read_recipe

REPORT = {
    "alexnet-sgd": ("alexnet", "sgd", 64, 0.01),
    "alexnet-adam": ("alexnet", "adam", 64, 0.001),
    "alexnet-adam-32": ("alexnet", "adam", 32, 0.001),
    "vgg19-rmsprop": ("vgg19", "rmsprop", 64, 0.001),
    "vgg19-adam": ("vgg19", "adam", 64, 0.001),
    "vgg19-adam-32": ("vgg19", "adam", 32, 0.001),
}


@pytest.mark.parametrize("name", REPORT)
def test_recipe_has_the_constants_of_the_report(name):
    network, optimizer, batch, rate = REPORT[name]

    recipe = read_recipe(name)

    assert (recipe.name, recipe.network.name, recipe.optimizer.name) == (name, network, optimizer)
    assert (recipe.training.batch, recipe.optimizer.learning_rate) == (batch, rate)
    assert (recipe.training.epochs, recipe.training.select) == (15, "accuracy")
    assert (recipe.data.by, recipe.data.validation, recipe.network.image_size) == ("image", 0.15, 224)
    assert (recipe.optimizer.momentum, recipe.optimizer.decay) == (0.0, 0.9)
    assert (recipe.optimizer.beta1, recipe.optimizer.beta2, recipe.optimizer.epsilon) == (0.9, 0.999, 1e-7)
    assert not recipe.optimizer.weight_decay
    assert not recipe.augmentation.any


def test_report_recipes_are_the_rows_of_the_table_and_not_general_recipes():
    assert tuple(RUNS) == tuple(REPORT)
    assert set(packaged_recipes("pneumoscope.reproduction.recipes")) == set(RUNS)
    assert not set(RUNS) & set(packaged_recipes())


@pytest.mark.parametrize("name", RUNS)
def test_recipe_round_trips_through_toml(name, tmp_path):
    recipe = read_recipe(name)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())

    assert read_recipe(str(tmp_path / "recipe.toml")) == recipe
