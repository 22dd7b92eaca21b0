"""Recipes: validation with the field in the error, overrides, and TOML round trips."""

import sys
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.core.errors import RecipeError, UnknownNameError
from pneumoscope.core.population import Population
from pneumoscope.runs.recipe import DataOptions, RejectionOptions
from pneumoscope.runs.recipe_files import known_recipes, packaged_recipes, read_recipe

TOML = 'name = "one"\n[network]\nname = "resnet18"\n[optimizer]\nname = "{}"\n'


@pytest.mark.parametrize("name", packaged_recipes())
def test_packaged_recipe_round_trips_through_toml(name, tmp_path):
    recipe = read_recipe(name)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())

    assert read_recipe(str(path)) == recipe
    assert recipe.name == name
    assert recipe.about


@given(st.text(max_size=50))
def test_any_text_round_trips_through_toml(about):
    text = read_recipe("quick").model_copy(update={"about": about}).to_toml()

    assert tomllib.loads(text)["about"] == about


def install_recipes(folder, monkeypatch, names, code=""):
    """Write the distribution `other`, whose entry point names a package of recipes, and add it to the path."""
    package = folder / "other_recipes"
    package.mkdir()
    package.joinpath("__init__.py").write_text(code)
    for name in names:
        package.joinpath(f"{name}.toml").write_text(read_recipe("quick", ["training.seed=7"]).to_toml())
    metadata = folder / "other-1.0.dist-info"
    metadata.mkdir()
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    metadata.joinpath("entry_points.txt").write_text("[pneumoscope.recipes]\nother = other_recipes\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "other_recipes", raising=False)


def test_recipes_of_another_distribution_are_known_and_replace_none(tmp_path, monkeypatch):
    install_recipes(tmp_path, monkeypatch, ["theirs", "quick", "alexnet-sgd"])

    assert read_recipe("theirs").training.seed == 7
    assert read_recipe("quick").training.seed == 0
    assert known_recipes() == known_recipes() | packaged_recipes()


def test_distribution_whose_recipes_cannot_be_read_is_named(tmp_path, monkeypatch):
    install_recipes(tmp_path, monkeypatch, [], "import no_such_module")

    assert read_recipe("quick").name == "quick"
    with pytest.raises(
        RecipeError, match=r"cannot read the recipes of the distribution 'other': .*no_such_module"
    ) as error:
        read_recipe("theirs")
    assert "pip uninstall other" in str(error.value.hint)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", "no field 'training.epoch'. Did you mean 'training.epochs'?"),
        ("optimizer.lr=1", "no field 'optimizer.lr'. Did you mean 'optimizer.learning_rate'?"),
        ("training.patience=3", "no field 'training.patience'. Did you mean 'training.early_stopping'?"),
        ("network.pretrained=true", "no field 'network.pretrained'. Did you mean 'network.weights'?"),
        ("optimiser.name=sgd", "no field 'optimiser'. Did you mean 'optimizer.name'?"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate: .* greater than 0 \\(it is -1\\)"),
        ("training.epochs=three", "training.epochs: .* \\(it is 'three'\\)"),
        ("optimizer.name=lion", "optimizer.name: .*'sgd', 'rmsprop', 'adam' or 'adamw' \\(it is 'lion'\\)"),
        ("network.freeze=convolutions", "images cannot be augmented"),
        ("optimizer.warmup_epochs=8", "warmup_epochs: 8.0 must be less than training.epochs .8."),
        ("name=a/b", "name: .* \\(it is 'a/b'\\)"),
        ("name.x=1", "'name' is a value, not a table"),
        ("epochs", "--set 'epochs' is not KEY=VALUE"),
    ],
)
def test_invalid_override_is_an_error_with_its_field(override, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe("quick", [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["population.ages=[9, 3]"], r"population.ages: \[9, 3\] is not a minimum and a maximum age"),
        (["population.ages=[-1, 3]"], r"population.ages: \[-1, 3\] is not a minimum and a maximum age"),
        (["population.sites=0"], "population.sites: .*greater than or equal to 1"),
        (["population.view=lateral"], "population.view: .*'frontal', 'PA' or 'AP'"),
        (['population.sentence="a\\nb"'], "population.sentence: it contains characters that are not printable"),
        ([f"population.sentence={'x' * 301}"], "population.sentence: .*at most 300 characters"),
    ],
)
def test_population_that_is_not_one_is_rejected(overrides, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe("quick", overrides)


@pytest.mark.parametrize(
    ("optimizer", "field"),
    [("sgd", "beta1=0.5"), ("rmsprop", "weight_decay=0.1"), ("adam", "momentum=0.9"), ("adam", "decay=0.5")],
)
def test_option_of_another_optimizer_is_rejected(optimizer, field, tmp_path):
    (tmp_path / "one.toml").write_text(TOML.format(optimizer))
    with pytest.raises(RecipeError, match=f"optimizer.{field.partition('=')[0]}: '{optimizer}' has no such option"):
        read_recipe(str(tmp_path / "one.toml"), [f"optimizer.{field}"])


def test_override_is_a_toml_value_or_a_plain_string():
    recipe = read_recipe("quick", ["training.epochs=3", "training.select=loss", "augmentation.flip=true"])

    assert (recipe.training.epochs, recipe.training.select, recipe.augmentation.flip) == (3, "loss", True)


@pytest.mark.parametrize("value", ["none", '"none"'])
def test_none_unsets_a_field_that_has_no_value_by_default(value, tmp_path):
    overrides = [f"{field}={value}" for field in ("data.age_range", "training.prevalence", "population.sites")]

    recipe = read_recipe("default", [*overrides, "rejection.age_steps=0"])

    assert (recipe.data.age_range, recipe.training.prevalence, recipe.population.sites) == (None, None, None)
    assert recipe.network.weights == "imagenet"
    assert read_recipe("default", [f"network.weights={value}"]).network.weights == "none"
    (tmp_path / "saved.toml").write_text(recipe.to_toml())
    assert read_recipe(str(tmp_path / "saved.toml")) == recipe


def test_none_for_a_field_with_a_value_is_an_error():
    with pytest.raises(RecipeError, match=r"training.epochs: .* \(it is 'none'\)"):
        read_recipe("default", ["training.epochs=none"])


def test_baseline_has_no_fact_of_any_data_set():
    """In contrast to `default`, which it otherwise equals in method."""
    baseline, default = read_recipe("baseline"), read_recipe("default")

    assert baseline.declared_population() == Population()
    assert (baseline.data, baseline.training.prevalence) == (DataOptions(), None)
    assert (baseline.training.precision, baseline.rejection) == ("auto", RejectionOptions(steps=5000))
    for table in ("network", "optimizer", "augmentation"):
        assert getattr(baseline, table) == getattr(default, table)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], Population()),
        (["data.age_range=[18, 90]"], Population(ages=(18, 90))),
        (
            ["data.age_range=[18, 90]", "population.ages=[20, 80]", "population.sites=2"],
            Population(ages=(20, 80), sites=2),
        ),
    ],
)
def test_ages_of_the_population_are_the_age_range_unless_stated(overrides, expected):
    assert read_recipe("quick", overrides).declared_population() == expected


def test_error_for_an_unknown_recipe_suggests_the_closest_name():
    with pytest.raises(UnknownNameError, match=r"no recipe 'quik'. Did you mean 'quick'\?"):
        read_recipe("quik")


def test_file_that_is_not_toml_is_an_error(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("name = ")

    with pytest.raises(RecipeError, match=r"broken.toml is not TOML"):
        read_recipe(str(path))


def test_missing_table_is_an_error(tmp_path):
    path = tmp_path / "short.toml"
    path.write_text('name = "short"\n')

    with pytest.raises(RecipeError, match=r"short.toml: network: Field required"):
        read_recipe(str(path))


def test_recipe_in_another_encoding_is_an_error(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes('name = "übung"'.encode("latin-1"))

    with pytest.raises(RecipeError, match=r"cannot read '.*latin.toml' as a recipe"):
        read_recipe(str(path))


def test_calibration_on_augmented_images_needs_an_augmentation(tmp_path):
    (tmp_path / "one.toml").write_text(TOML.format("sgd"))
    with pytest.raises(RecipeError, match=r'calibrate: "augmented" needs an \[augmentation\] table'):
        read_recipe(str(tmp_path / "one.toml"), ["training.calibrate=augmented"])
    assert read_recipe("quick", ["training.calibrate=augmented"]).training.calibrate == "augmented"


def test_border_mask_must_be_less_than_a_quarter_of_the_image():
    with pytest.raises(RecipeError, match=r"border_mask: 56 pixels must be less than a quarter of image_size \(224\)"):
        read_recipe("default", ["network.border_mask=56"])
    assert read_recipe("default", ["network.border_mask=55"]).network.border_mask == 55


def test_calibration_on_augmented_images_needs_more_than_a_border_swap():
    options = ['augmentation={"border_swap" = 0.5}', "training.calibrate=augmented"]
    with pytest.raises(RecipeError, match=r'calibrate: "augmented" needs an \[augmentation\] table'):
        read_recipe("quick", options)


def test_consistency_needs_augmentation():
    with pytest.raises(
        RecipeError, match=r"training\.consistency: compares augmented copies; it needs an \[augmentation\]"
    ):
        read_recipe("quick", ["augmentation={}", "training.consistency=1"])


def test_flip_averaging_needs_training_with_flips():
    with pytest.raises(
        RecipeError, match=r"network\.flip_averaging: needs training with mirror images; set augmentation\.flip"
    ):
        read_recipe("default", ["augmentation.flip=false"])


def test_age_range_is_ordered_and_round_trips_through_toml(tmp_path):
    recipe = read_recipe("quick", ["data.age_range=[1, 5]"])
    (tmp_path / "aged.toml").write_text(recipe.to_toml())
    assert read_recipe(str(tmp_path / "aged.toml")).data.age_range == (1, 5)
    with pytest.raises(RecipeError, match=r"age_range: \[5, 1\] is not a minimum and a maximum age"):
        read_recipe("quick", ["data.age_range=[5, 1]"])


@pytest.mark.parametrize(
    "name", ["arch", "model", "img_size", "wd", "eps", "rho", "gamma", "step_size", "random_state", "hflip"]
)
def test_name_of_another_library_leads_to_a_field_that_exists(name):
    with pytest.raises(RecipeError, match="Did you mean") as caught:
        read_recipe("quick", [f"training.{name}=1"])
    table, _, field = caught.value.hint.split("'")[1].partition(".")
    assert field in read_recipe("quick").model_dump()[table]
