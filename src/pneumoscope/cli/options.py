"""Options shared by several commands, and the command line recorded in results."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, get_args

import click

from pneumoscope.core.prediction_codes import ASSUMPTIONS, AgeRequirement

__all__ = [
    "accelerator_option",
    "assume_option",
    "compared_point_option",
    "database_option",
    "devices_option",
    "evaluation_name_option",
    "json_option",
    "ledger_option",
    "loggers_option",
    "margin_option",
    "model_option",
    "model_options",
    "operating_point_option",
    "overrides_option",
    "power_option",
    "prevalence_option",
    "recorded_command",
    "reject_for_folds",
    "require_age_option",
    "require_result_folder",
    "result_folder_option",
    "seed_option",
    "site_option",
    "target_argument",
]

_Command = Callable[..., None]
_Decorator = Callable[[_Command], _Command]

target_argument = click.argument("target", metavar="RUN|BUNDLE", type=click.Path(path_type=Path))
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
    """Return the option that rejects images if the age of the patient is unknown."""
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
    """Return the options of a command that loads a model; it receives them as `model`, the arguments of `load_model`.

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


def result_folder_option(name: str) -> _Decorator:
    """Return the option for the folder of NAME.json and NAME.md."""
    return click.option("--out", type=click.Path(path_type=Path), help=f"Folder for {name}.json and {name}.md.")


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
    """Raise UsageError if a folder for results contains other files, such as images.

    Args:
        out: Folder, which need not exist.
        own_file: File name of earlier results that may be replaced; empty if there are none.
    """
    from pneumoscope.core.errors import UsageError

    if out.is_dir() and any(out.iterdir()) and not (own_file and (out / own_file).is_file()):
        raise UsageError(f"{str(out)!r} has other files", hint="Choose a new or empty folder with --out")


def reject_for_folds(targets: Iterable[Path], used: Collection[str]) -> None:
    """Raise UsageError if cross-validations are given together with an option that they do not support.

    Args:
        targets: Folders and files given to the command.
        used: Parameters of the command that cross-validations support.
    """
    from click.core import ParameterSource

    from pneumoscope.core.errors import UsageError
    from pneumoscope.evaluation.comparison.cross_validation import is_cross_validation

    if not any(map(is_cross_validation, targets)):
        return
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in used and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise UsageError(
                f"{parameter.opts[0]} does not work with a cross-validation",
                hint=f"Leave {parameter.opts[0]} out: folds are compared by the evaluations of their own validation images",
            )


compared_point_option = click.option(
    "--operating-point",
    default="",
    metavar="NAME|NUMBER",
    help="Operating point of the threshold metrics, also a custom one of the evaluations, such as 0.3 or sens=0.95.  [default:"
    " half, the threshold of 0.5, which predictions of every tool have; balanced if an evaluation lacks it; or else the only"
    " one that all have. `predict` and `report` use balanced]",
)
evaluation_name_option = click.option(
    "--evaluation",
    default="test",
    metavar="NAME",
    show_default=True,
    help="Name of the evaluation of each run, a folder in RUN/evaluation/.",
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

    Options at their defaults are omitted, as is --json, which only affects the printed output.
    """
    context = click.get_current_context()
    words = ["pneumoscope", context.command.name or ""]
    for parameter in context.command.params:
        value = context.params[parameter.name or ""]
        if parameter.name == "as_json" or value in (None, (), parameter.get_default(context)):
            continue
        if isinstance(parameter, click.Option) and parameter.is_flag:
            words += (parameter.opts if value else parameter.secondary_opts)[:1]
            continue
        for each in value if isinstance(value, tuple) else (value,):
            words += [str(each)] if isinstance(parameter, click.Argument) else [parameter.opts[0], str(each)]
    return shlex.join(words)
