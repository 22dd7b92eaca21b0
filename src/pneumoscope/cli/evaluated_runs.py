"""Output of `evaluate` for a folder of runs or folds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.evaluation_tables import ledger_sentence, print_breakdown
from pneumoscope.cli.evaluation_targets import EvaluationTargets
from pneumoscope.cli.multiclass import print_class_breakdown
from pneumoscope.cli.progress import printable

if TYPE_CHECKING:
    from rich.console import Console

    from pneumoscope.core.comparison import RunGroup
    from pneumoscope.core.multiclass_results import MulticlassEvaluation
    from pneumoscope.core.results import Evaluation

__all__ = ["print_runs"]


def print_runs(
    targets: EvaluationTargets,
    evaluations: Sequence[Evaluation | MulticlassEvaluation],
    folders: Sequence[Path | None],
    *,
    as_json: bool,
) -> None:
    """Print the accuracy, AUROC and breakdown of each run in a folder, and for folds their mean; `compare` averages over seeds.

    Args:
        targets: Evaluated runs.
        evaluations: Evaluations of the runs.
        folders: Evaluation folder of each run; its name is the name of the evaluation.
        as_json: Whether to print one JSON document.
    """
    from rich.console import Console

    from pneumoscope.core.result_forms import to_json
    from pneumoscope.evaluation.comparison.cross_validation import OUT_OF_FOLD
    from pneumoscope.evaluation.comparison.run_groups import group_sentences

    names = [folder.name for folder in folders if folder]
    groups = [_mean_of_folds(targets.folder, evaluations[0], names[0])] if targets.is_folds else []
    if as_json:
        listed = list(map(dataclasses.asdict, evaluations))
        document = {"evaluations": listed, "mean": dataclasses.asdict(groups[0])} if groups else listed
        click.echo(to_json(document), nl=False)
        _print_folders(folders, as_json=True)
        return
    console = Console(markup=False)
    for run, evaluation in zip(targets.runs, evaluations, strict=True):
        click.echo(f"{run.relative_to(targets.folder)}: {_headline(evaluation)}, n = {evaluation.n}")
        for remark in evaluation.remarks:
            click.echo(printable(f"  {remark}"))
        _print_breakdown(evaluation, console)
    counts = [each.test_evaluation for each in evaluations if each.test_evaluation is not None]
    if counts:
        click.echo(ledger_sentence(max(counts)))
    for sentence in group_sentences(groups):
        click.echo(sentence)
    click.secho(evaluations[0].notice, dim=True)
    _print_folders(folders, as_json=False)
    # `compare` needs the same name for all runs; for folds, only the name of their validation images.
    if {*names} == {OUT_OF_FOLD} if targets.is_folds else len({*names}) == 1:
        chosen = "" if targets.is_folds or names[0] == "test" else f" --evaluation {names[0]}"
        click.echo(f"next    pneumoscope compare {targets.folder}{chosen} --out DIR")


def _print_folders(folders: Sequence[Path | None], *, as_json: bool) -> None:
    """Print the paths of the results; with JSON output, to standard error."""
    for folder in folders:
        click.echo(f"results {folder}", err=as_json)


def _headline(evaluation: Evaluation | MulticlassEvaluation) -> str:
    """Return the accuracy and AUROC as text."""
    from pneumoscope.core.multiclass_results import MulticlassEvaluation

    metrics = evaluation.metrics
    if isinstance(evaluation, MulticlassEvaluation):
        return f"accuracy {metrics['accuracy']}, macro AUROC {metrics['macro_auroc']}"
    name = _operating_point(evaluation)
    return f"accuracy {evaluation.operating_points[name].metrics['accuracy']} at {name}, AUROC {metrics['auroc']}"


def _operating_point(evaluation: Evaluation) -> str:
    """Return the operating point of the subgroups, or the first one if there are none."""
    return evaluation.subgroups[0].operating_point if evaluation.subgroups else next(iter(evaluation.operating_points))


def _mean_of_folds(folder: Path, evaluation: Evaluation | MulticlassEvaluation, name: str) -> RunGroup:
    """Return the mean over the folds in a folder for evaluations of this name."""
    from pneumoscope.core.multiclass_results import MulticlassEvaluation
    from pneumoscope.evaluation.comparison.cross_validation import summarize_folds
    from pneumoscope.evaluation.multiclass.cross_validation import summarize_class_folds

    if isinstance(evaluation, MulticlassEvaluation):
        return summarize_class_folds(folder, name)
    return summarize_folds(folder, name, _operating_point(evaluation))


def _print_breakdown(evaluation: Evaluation | MulticlassEvaluation, console: Console) -> None:
    from pneumoscope.core.multiclass_results import MulticlassEvaluation

    if isinstance(evaluation, MulticlassEvaluation):
        print_class_breakdown(evaluation, console)
    else:
        print_breakdown(evaluation, console)
