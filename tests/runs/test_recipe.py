"""Recipes: errors name the field, and TOML survives a round trip."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.core.errors import RecipeError, UnknownNameError
from pneumoscope.runs.recipe import read_recipe, shipped

TOML = 'name = "one"\n[network]\nname = "resnet18"\n[optimizer]\nname = "{}"\n'


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_survives_its_own_toml(name, tmp_path):
    recipe = read_recipe(name)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())

    assert read_recipe(str(path)) == recipe
    assert recipe.name == name
    assert recipe.about


@given(st.text(max_size=50))
def test_any_text_survives_toml(about):
    text = read_recipe("quick").model_copy(update={"about": about}).to_toml()

    assert tomllib.loads(text)["about"] == about


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", "no field 'training.epoch'. Did you mean 'training.epochs'?"),
        ("optimiser.name=sgd", "no field 'optimiser'. Did you mean 'optimizer.name'?"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate: .* greater than 0 \\(it is -1\\)"),
        ("training.epochs=three", "training.epochs: .* \\(it is 'three'\\)"),
        ("optimizer.name=lion", "optimizer.name: .*'sgd', 'rmsprop', 'adam' or 'adamw' \\(it is 'lion'\\)"),
        ("network.freeze=convolutions", "images cannot be augmented"),
        ("optimizer.warmup_epochs=8", "warmup_epochs: 8.0 leaves nothing of 8 epochs"),
        ("name=a/b", "name: .* \\(it is 'a/b'\\)"),
        ("name.x=1", "'name' is a value, not a table"),
        ("epochs", "--set 'epochs' is not key=value"),
    ],
)
def test_what_is_impossible_is_named(override, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe("quick", [override])


@pytest.mark.parametrize(
    ("optimizer", "field"),
    [("sgd", "beta1=0.5"), ("rmsprop", "weight_decay=0.1"), ("adam", "momentum=0.9"), ("adam", "decay=0.5")],
)
def test_a_field_of_another_optimizer_is_refused(optimizer, field):
    with pytest.raises(RecipeError, match=f"optimizer.{field.partition('=')[0]}: '{optimizer}' has no such field"):
        read_recipe("one", [f"optimizer.{field}"], {"one": TOML.format(optimizer)})


def test_overrides_are_toml_values_or_plain_words():
    recipe = read_recipe("quick", ["training.epochs=3", "training.select=loss", "augmentation.flip=true"])

    assert (recipe.training.epochs, recipe.training.select, recipe.augmentation.flip) == (3, "loss", True)


def test_an_unknown_recipe_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"no recipe 'quik'. Did you mean 'quick'\?"):
        read_recipe("quik")


def test_a_file_that_is_no_toml_is_named(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("name = ")

    with pytest.raises(RecipeError, match=r"broken.toml is not TOML"):
        read_recipe(str(path))


def test_a_missing_table_is_named(tmp_path):
    path = tmp_path / "short.toml"
    path.write_text('name = "short"\n')

    with pytest.raises(RecipeError, match=r"short.toml: network: Field required"):
        read_recipe(str(path))


def test_a_recipe_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes('name = "übung"'.encode("latin-1"))

    with pytest.raises(RecipeError, match=r"cannot read '.*latin.toml' as a recipe"):
        read_recipe(str(path))


def test_nothing_is_calibrated_augmented_without_an_augmentation():
    with pytest.raises(RecipeError, match="calibrate: images cannot be calibrated augmented"):
        read_recipe("one", ["training.calibrate=augmented"], {"one": TOML.format("sgd")})
    assert read_recipe("quick", ["training.calibrate=augmented"]).training.calibrate == "augmented"


def test_an_edge_that_leaves_too_little_of_the_image_is_refused():
    with pytest.raises(RecipeError, match="edge: 28 pixels at each edge leave too little of 112"):
        read_recipe("default", ["network.border_mask=28"])
    assert read_recipe("default", ["network.border_mask=27"]).network.border_mask == 27


def test_a_network_says_nothing_of_mirror_images_it_never_saw():
    with pytest.raises(RecipeError, match=r"network\.mirrored: it never saw a mirrored image"):
        read_recipe("default", ["augmentation.flip=false"])


def test_ages_are_a_least_and_a_greatest_and_survive_their_toml(tmp_path):
    recipe = read_recipe("quick", ["data.age_range=[1, 5]"])
    (tmp_path / "aged.toml").write_text(recipe.to_toml())
    assert read_recipe(str(tmp_path / "aged.toml")).data.age_range == (1, 5)
    with pytest.raises(RecipeError, match="the least and the greatest age"):
        read_recipe("quick", ["data.age_range=[5, 1]"])
