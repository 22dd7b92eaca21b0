"""Options for the images of a command: labeled data sets, their column and label names, and predictions of other tools."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pneumoscope.data.label_mapping import LabelMapping
    from pneumoscope.data.predictions_file import PredictionColumns

__all__ = [
    "data_argument",
    "data_option",
    "images_option",
    "label_options",
    "outliers_option",
    "prediction_column_options",
    "prediction_columns",
    "split_option",
]

_Command = Callable[..., None]
_Decorator = Callable[[_Command], _Command]

_DATA_HELP = "Labeled data set: folder, manifest CSV or MedMNIST archive"
data_option = click.option("--data", required=True, type=click.Path(path_type=Path), help=f"{_DATA_HELP}.")
outliers_option = click.option(
    "--outliers",
    metavar="DIR|CSV",
    type=click.Path(path_type=Path, exists=True),
    help="Images of patients outside the age range, for a recipe with an age classifier.",
)
split_option = click.option(
    "--split",
    type=click.Choice(["validation", "train"]),
    default="validation",
    show_default=True,
    help="Test images are reserved for `pneumoscope evaluate`.",
)


def data_argument(command: _Command) -> _Command:
    """Add the data set to a command, as the argument DATA or by --data; the command receives it as `data`."""

    @functools.wraps(command)
    def run(**values: Any) -> None:
        from pneumoscope.core.errors import UsageError

        given = [each for each in (values.pop("data_path"), values.pop("data")) if each is not None]
        if len(given) != 1:
            raise UsageError(
                "DATA is given twice, as an argument and by --data" if given else "DATA is missing",
                hint="Give the labeled data set once, as the argument DATA or by --data",
            )
        command(data=given[0], **values)

    option = click.option(
        "--data",
        metavar="DATA",
        type=click.Path(path_type=Path),
        help=f"{_DATA_HELP}; instead of the argument DATA. One of the two is required.",
    )
    argument = click.argument("data_path", metavar="[DATA]", required=False, type=click.Path(path_type=Path))
    return argument(option(run))


def images_option(default: int) -> _Decorator:
    """Return the option for the sample size."""
    return click.option(
        "--images",
        type=click.IntRange(min=2),
        default=default,
        show_default=True,
        help="Size of the random sample, half of it with pneumonia.",
    )


# --- names in a data set -----------------------------------------------------------------------------------------------

# Field of `LabelMapping` and click settings, by option.
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
    """Return the options for column and label names of the data; the command receives them as `labels`, None if none is given.

    Args:
        path_column: Whether to include --path-column; False if the command defines its own.
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
    """Return the mapping given by the options, or None if none is given."""
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
    """Return the columns given by the options.

    Args:
        values: Parameter values of `prediction_column_options`.
        split: Column of the split.

    Raises:
        UsageError: A repeated option is not of the form CLASS=NAME.
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
    """Return the name of a column, or a dictionary of names by class."""
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
