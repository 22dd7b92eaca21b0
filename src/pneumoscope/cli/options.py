"""Options that several commands share, and the command line that results record."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from pneumoscope.core.prediction import ASSUMPTIONS, AgeRequirement

if TYPE_CHECKING:
    from pneumoscope.data.label_mapping import LabelMapping
    from pneumoscope.data.predictions_file import PredictionColumns

__all__ = [
    "accelerator_option",
    "assume_option",
    "compared_point_option",
    "data_option",
    "database_option",
    "devices_option",
    "evaluation_name_option",
    "images_option",
    "json_option",
    "label_options",
    "ledger_option",
    "loggers_option",
    "margin_option",
    "model_option",
    "model_options",
    "operating_point_option",
    "outliers_option",
    "overrides_option",
    "power_option",
    "prediction_column_options",
    "prediction_columns",
    "prevalence_option",
    "recorded_command",
    "refuse_for_folds",
    "require_age_option",
    "require_result_folder",
    "result_folder_option",
    "seed_option",
    "site_option",
    "split_option",
    "target_argument",
]

_Command = Callable[..., None]
_Decorator = Callable[[_Command], _Command]

target_argument = click.argument("target", metavar="RUN|BUNDLE", type=click.Path(path_type=Path))
data_option = click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="Labeled data set: folder, manifest CSV or MedMNIST archive.",
)
model_option = click.option(
    "--model",
    "bundle",
    metavar="BUNDLE|RUN",
    type=click.Path(path_type=Path),
    help="Model to use.  [default: the model in the package]",
)
operating_point_option = click.option(
    "--operating-point", default="", metavar="NAME", help="Operating point on the model card.  [default: balanced]"
)


site_option = click.option(
    "--site",
    metavar="PROFILE",
    type=click.Path(path_type=Path),
    help="Site profile of `pneumoscope accept`: calibration, thresholds and limits of a hospital.",
)

prevalence_option = click.option(
    "--prevalence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Prevalence of pneumonia among your images: probabilities are stated for it, and decisions stay the same. Not together"
    " with --site.  [default: that of the model, 0.5 for the one in the package]",
)


def require_age_option(default: str) -> _Decorator:
    """Return the option for images that are rejected if the age of the patient is unknown."""
    return click.option(
        "--require-age",
        type=click.Choice(get_args(AgeRequirement)),
        default=default,
        show_default=True,
        help="Reject images without a patient age: never, DICOM files only, or always.",
    )


assume_option = click.option(
    "--assume",
    type=click.Choice(ASSUMPTIONS),
    multiple=True,
    help="Override DICOM headers of all images: chest for another body part or an unknown modality; frontal for an unknown view"
    " or laterality. Repeat for both. Each prediction that depends on it has a warning.",
)


def model_options(require_age: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the options of a command that loads a model, which gets them as the argument `model`: those of `load_model`.

    Args:
        require_age: Default of --require-age.
    """
    options = (
        model_option, operating_point_option, site_option, prevalence_option, require_age_option(require_age), assume_option,
    )  # fmt: skip

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def collecting(*arguments: Any, **parameters: Any) -> None:
            model = {name: parameters.pop(name) for name in _MODEL_PARAMETERS}
            command(*arguments, model=model, **parameters)

        for option in reversed(options):
            option(collecting)
        return collecting

    return decorate


_MODEL_PARAMETERS = ("bundle", "operating_point", "site", "prevalence", "require_age", "assume")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
seed_option = click.option("--seed", default=0, show_default=True, help="Random seed.")
ledger_option = click.option(
    "--ledger",
    type=click.Path(path_type=Path),
    help="Test ledger.  [default: results/test-ledger.jsonl, or PNEUMOSCOPE_LEDGER]",
)
database_option = click.option(
    "--database", default="", metavar="URL", help="PostgreSQL database instead of SQLite: postgresql://user@host/name."
)

# --- labeled data sets -------------------------------------------------------------------------------------------------

# Option: its help, and the field of `LabelMapping`.
_LABEL_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "--label-column": (
        "label_column",
        {
            "metavar": "NAME",
            "help": "Column of the CSV file with the label; etiology for bacteria, virus or normal, also from file names."
            "  [default: label]",
        },
    ),
    "--path-column": (
        "path_column",
        {"metavar": "NAME", "help": "Column with the path of each image.  [default: path]"},
    ),
    "--patient-column": (
        "patient_column",
        {"metavar": "NAME", "help": "Column with the patient.  [default: patient, patient_id and similar names]"},
    ),
    "--patient-pattern": (
        "patient_pattern",
        {
            "metavar": "REGEX",
            "help": "Regular expression that is searched in each path; the group in parentheses is the patient.",
        },
    ),
    "--patients-from": (
        "patients_from",
        {
            "type": click.Choice(["folder", "header"]),
            "help": "The patient is the folder that an image is in, or that of the DICOM header.  [default: file names of the"
            " public data set, else the header]",
        },
    ),
    "--positive": (
        "positive",
        {"metavar": "CLASS", "help": "Label that counts as PNEUMONIA; all others count as NORMAL."},
    ),
    "--map": (
        "renamed",
        {
            "metavar": "SOURCE=CLASS",
            "multiple": True,
            "help": "Rename a label, such as 'No Finding=NORMAL'. Repeat for several.",
        },
    ),
    "--classes": (
        "classes",
        {"metavar": "CLASS,...", "help": "All classes, in the order of their index.  [default: sorted]"},
    ),
}


def label_options(*, path_column: bool = True) -> _Decorator:
    """Return the options for the names of another data set, which a command gets as `labels`, None if none is given.

    Args:
        path_column: Include --path-column; a command may have its own.
    """

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = {field: values.pop(field, None) for field, _ in _LABEL_OPTIONS.values()}
            if not path_column:
                values["path_column"] = given.pop("path_column")
            command(labels=_label_mapping(given), **values)

        wrapped: _Command = run
        for flag, (field, settings) in reversed(_LABEL_OPTIONS.items()):
            if path_column or field != "path_column":
                wrapped = click.option(flag, field, **settings)(wrapped)
        return wrapped

    return decorate


def _label_mapping(given: dict[str, Any]) -> LabelMapping | None:
    """Return the mapping that the options state; None if none is given."""
    from pneumoscope.core.errors import UsageError
    from pneumoscope.data.label_mapping import LabelMapping

    fields = {field: value for field, value in given.items() if value}
    if not fields:
        return None
    pairs = [pair.rpartition("=") for pair in fields.get("renamed", ())]
    if wrong := [f"{source}{target}" for source, sign, target in pairs if not sign]:
        raise UsageError(f"--map {wrong[0]!r} is not SOURCE=CLASS", hint="Example: --map 'No Finding=NORMAL'")
    if pairs:
        fields["renamed"] = tuple((source.strip(), target.strip()) for source, _, target in pairs)
    if "classes" in fields:
        fields["classes"] = tuple(name.strip() for name in fields["classes"].split(","))
    return LabelMapping(**fields)


# --- measurements on a sample ----------------------------------------------------------------------------------------

split_option = click.option(
    "--split",
    type=click.Choice(["validation", "train"]),
    default="validation",
    show_default=True,
    help="Test images are reserved for `pneumoscope evaluate`.",
)


def images_option(default: int) -> _Decorator:
    """Return the option for the size of the sample."""
    return click.option(
        "--images",
        type=click.IntRange(min=2),
        default=default,
        show_default=True,
        help="Size of the random sample, half of it with pneumonia.",
    )


def result_folder_option(name: str) -> _Decorator:
    """Return the option for the folder of NAME.json and NAME.md."""
    return click.option("--out", type=click.Path(path_type=Path), help=f"Folder for {name}.json and {name}.md.")


# --- predictions of other tools --------------------------------------------------------------------------------------


def prediction_column_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for the columns of a CSV file with the predictions of another tool."""
    helps = {
        "--path-column": "Column with the path or file name of each image, in the file of predictions and in --data.  [default:"
        " path]",
        "--id-column": "Column with an identifier instead: that of the manifest's column of the same name, the file name"
        " without extension, or the SHA-256.  [default: id, without a column path]",
        "--probability-column": "Column with the probability of pneumonia, 0 to 1. Of several classes, CLASS=NAME for each;"
        " repeat it.  [default: probability, or probability_CLASS for each class]",
        "--logit-column": "Column with a logit instead.  [default: logit, without a column probability; or logit_CLASS]",
    }
    for flag, text in reversed(helps.items()):
        if flag in ("--probability-column", "--logit-column"):
            option = click.option(flag, multiple=True, metavar="NAME|CLASS=NAME", help=text)
        else:
            option = click.option(flag, default="", metavar="NAME", help=text)
        command = option(command)
    return command


def prediction_columns(values: Mapping[str, Any], split: str = "") -> PredictionColumns:
    """Return the columns that the options name.

    Args:
        values: Values of the parameters of `prediction_column_options`.
        split: Column with the split.

    Raises:
        UsageError: An option is repeated, and not of the form CLASS=NAME.
    """
    from pneumoscope.data.predictions_file import PredictionColumns

    return PredictionColumns(
        path=values["path_column"],
        id=values["id_column"],
        probability=_value_column("--probability-column", values["probability_column"]),
        logit=_value_column("--logit-column", values["logit_column"]),
        split=split,
    )


def _value_column(flag: str, names: tuple[str, ...]) -> str | dict[str, str]:
    """Return the name of a column, or those of several classes by class."""
    from pneumoscope.core.errors import UsageError

    if len(names) < 2:
        return "".join(names)
    by_class: dict[str, str] = {}
    for text in names:
        label, sign, column = (part.strip() for part in text.partition("="))
        if not (label and sign and column) or label in by_class:
            what = f"a second column of {label}" if label in by_class else "not CLASS=NAME"
            raise UsageError(
                f"{flag} {text!r} is {what}", hint=f"Give {flag} once, or for several classes once for each, CLASS=NAME"
            )
        by_class[label] = column
    return by_class


# --- acceptance test --------------------------------------------------------------------------------------------------

margin_option = click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Largest acceptable decrease of sensitivity, specificity and fraction of accepted images.",
)
power_option = click.option(
    "--power",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.8,
    show_default=True,
    help="Target power of the test.",
)

# --- training --------------------------------------------------------------------------------------------------------

overrides_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a recipe field, such as training.epochs=3, or data.age_range=none for no range.",
)


def require_result_folder(out: Path, own_file: str = "") -> None:
    """Raise UsageError if a folder for results has other files, such as images.

    Args:
        out: The folder; it need not exist.
        own_file: File of earlier results, which may be replaced; empty if none may.
    """
    from pneumoscope.core.errors import UsageError

    if out.is_dir() and any(out.iterdir()) and not (own_file and (out / own_file).is_file()):
        raise UsageError(f"{str(out)!r} has other files", hint="Choose a new or empty folder with --out")


def refuse_for_folds(targets: Iterable[Path], used: Collection[str]) -> None:
    """Raise UsageError if cross-validations are given together with an option that they do not have.

    Args:
        targets: The folders and files of the command.
        used: Parameters of the command that cross-validations have; the others may not be given.
    """
    from click.core import ParameterSource

    from pneumoscope.core.errors import UsageError
    from pneumoscope.evaluation.cross_validation import is_cross_validation

    if not any(map(is_cross_validation, targets)):
        return
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in used and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise UsageError(
                f"{parameter.opts[0]} is given for a cross-validation, which has no such option",
                hint=f"Leave {parameter.opts[0]} out: folds are compared by the evaluations of their own validation images",
            )


compared_point_option = click.option(
    "--operating-point",
    default="half",
    show_default=True,
    metavar="NAME|NUMBER",
    help="Operating point of the threshold metrics, also a custom one of the evaluations, such as 0.3 or sens=0.95. half, the"
    " threshold of 0.5 as in the published report, is the only one that predictions of every tool have; `predict` uses balanced.",
)
evaluation_name_option = click.option(
    "--evaluation",
    default="test",
    metavar="NAME",
    show_default=True,
    help="Name of the evaluation of each run, a folder in RUN/evaluation/.",
)
outliers_option = click.option(
    "--outliers",
    metavar="DIR|CSV",
    type=click.Path(path_type=Path, exists=True),
    help="Images of patients outside the age range, for a recipe with an age classifier.",
)
accelerator_option = click.option(
    "--accelerator",
    type=click.Choice(["auto", "cpu", "gpu"]),
    default="auto",
    show_default=True,
    help="Device type; auto uses GPUs if there are any.",
)
devices_option = click.option(
    "--devices",
    type=click.IntRange(min=0),
    default=0,
    help="Devices per machine.  [default: 1 CPU process or all GPUs]",
)
loggers_option = click.option(
    "--logger",
    "loggers",
    multiple=True,
    type=click.Choice(["tensorboard", "csv", "mlflow"]),
    default=("tensorboard",),
    show_default=True,
    help="Logger of the metrics of each epoch; repeat for several. mlflow needs the extra [mlflow], and writes to the store in"
    " MLFLOW_TRACKING_URI, by default in the run folder.",
)


# --- record ----------------------------------------------------------------------------------------------------------


def recorded_command() -> str:
    """Return the command line of the running command, to record in its result.

    Options at their defaults are left out, and so is --json, which changes only what is printed.
    """
    context = click.get_current_context()
    words = ["pneumoscope", context.command.name or ""]
    for parameter in context.command.params:
        value = context.params[parameter.name or ""]
        if parameter.name == "as_json" or value in (None, (), parameter.get_default(context)):
            continue
        for each in value if isinstance(value, tuple) else (value,):
            words += [str(each)] if isinstance(parameter, click.Argument) else [parameter.opts[0], str(each)]
    return shlex.join(words)
