"""Compare runs, bundles and predictions of other tools on the same test images.

Runs and existing evaluations need only their result files, not the weights.
"""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pneumoscope import __version__
from pneumoscope.core.comparison import Comparison, PairedTest, RunGroup, RunSummary
from pneumoscope.core.errors import UsageError
from pneumoscope.core.files import write_atomically
from pneumoscope.core.multiclass_results import MulticlassComparison
from pneumoscope.core.result_forms import to_json
from pneumoscope.core.with_figures import attach_source
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.predictions_file import PredictionColumns
from pneumoscope.evaluation.comparison import run_groups
from pneumoscope.evaluation.comparison.comparability import (
    check_comparable,
    difference_sentences,
    joint_notice,
    ledger_sentence,
    prevalence_sentences,
    rejection_sentences,
    summarize_run,
    with_unique_names,
)
from pneumoscope.evaluation.comparison.cross_validation import compare_folds, is_cross_validation
from pneumoscope.evaluation.comparison.default_point import default_operating_point
from pneumoscope.evaluation.comparison.inputs import (
    EvaluatedRun,
    ScoringOptions,
    decisions,
    expand_runs,
    read_evaluated,
)
from pneumoscope.evaluation.comparison.paired_findings import RunScores, findings, paired_tests, training_sentence
from pneumoscope.evaluation.custom_points import FIXED_POINT, canonical_names
from pneumoscope.evaluation.metrics import positives

__all__ = ["compare", "compare_evaluated", "write_comparison"]

_COMPARISON_FILE = "comparison.json"
_COMPARISON_TABLE = "comparison.csv"
_TABLE_COLUMNS = ("run", "metric", "value", "low", "high", "method", "n")


def compare(
    runs: Sequence[str | Path],
    *,
    operating_point: str = "",
    evaluation: str = "test",
    data: str | Path | None = None,
    labels: LabelMapping | None = None,
    split: str = "test",
    columns: PredictionColumns = PredictionColumns(),  # noqa: B008  immutable
    prevalence: float | None = None,
    ledger: str | Path | None = None,
    out: str | Path | None = None,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare runs, bundles and predictions of other tools on the same test images.

    Args:
        runs: Run folders with `run.json` and `evaluation/NAME/`, or folders of such runs; folders of an evaluation;
            bundles, "default" for the model in the package; and CSV files with the predictions of other tools. Bundles
            and CSV files are evaluated first, on `data`. Duplicate names are replaced by the names of folders or files.
            Runs of one recipe with different seeds are compared by their means; see `run_groups`. Cross-validations, as
            created by `train --folds`, are only compared with each other, on their validation images; see
            `cross_validation`.
        operating_point: Operating point of the threshold metrics and of the McNemar tests. A custom one, such as "0.3"
            or "sens=0.95", must be in every existing evaluation; for bundles and CSV files it must be a probability. If
            empty: "half" if all evaluations have it, else "balanced", else the only one that they share.
        evaluation: Name of the evaluation of each run; for cross-validations always "validation".
        data, labels, split: Labeled images for bundles and CSV files; see `evaluate`.
        columns: Names of the columns of the CSV files.
        prevalence: Prevalence of pneumonia for additional precision and negative predictive values.
        ledger: The test ledger, which records the evaluations of bundles and CSV files.
        out: Folder for comparison.json, comparison.csv and the evaluations of bundles and CSV files; None writes no
            files.
        command: The command line, for the record.
        progress: Called with the number of images scored by a bundle and the total.
        note: Called with each remark about the data.

    Returns:
        The metrics of each run, a paired test of each pair, and the findings as sentences. Notebooks display the
        comparison as a table; `Comparison.to_dataframe()` returns the metrics as a pandas DataFrame, and
        `Comparison.figures` contains the figures.

    Raises:
        UsageError: No runs are given.
        RunError: A file is missing or malformed, two runs have the same name, or the runs were evaluated on different
            images.
        UnknownNameError: A run was not evaluated at this operating point, or none is given and the evaluations share
            none, or several without a default.
        PneumoscopeError: A bundle or CSV file cannot be evaluated; see `evaluate` and `evaluate_predictions`.
        StorageError: The results cannot be written.
    """
    if not runs:
        raise UsageError(
            "there are no runs to compare", hint="Give at least one run folder: pneumoscope compare RUN... --out DIR"
        )
    targets = [Path(run) for run in runs]
    if not operating_point:
        operating_point = default_operating_point(targets, evaluation, first=FIXED_POINT, columns=columns)
    (operating_point,) = canonical_names([operating_point])
    if any(map(is_cross_validation, targets)):
        comparison = compare_folds(targets, operating_point, command, prevalence)
    else:
        options = ScoringOptions(
            data=None if data is None else Path(data),
            labels=labels,
            split=split,
            columns=columns,
            ledger=None if ledger is None else Path(ledger),
            progress=progress,
            note=note,
        )
        evaluated = with_unique_names(
            read_evaluated(
                expand_runs(targets), evaluation, operating_point, options, None if out is None else Path(out)
            )
        )
        check_comparable(evaluated)
        comparison = compare_evaluated(evaluated, evaluation, operating_point, prevalence, command)
    if out is not None:
        write_comparison(comparison, Path(out))
    return comparison


def compare_evaluated(
    runs: Sequence[EvaluatedRun],
    evaluation: str,
    operating_point: str,
    prevalence: float | None = None,
    command: str = "",
) -> Comparison:
    """Return the comparison of evaluations of the same images; see `compare` for the arguments."""
    summaries = tuple(summarize_run(run, operating_point, prevalence) for run in runs)
    groups, pairs, sentences = _findings(runs, summaries, operating_point)
    first = runs[0].evaluation
    comparison = Comparison(
        images={
            "sha256": first.images_sha256,
            "n": first.n,
            "patients": first.patients,
            "unknown_patients": first.unknown_patients,
            "counts": dict(first.counts),
        },
        operating_point=operating_point,
        runs=summaries,
        pairs=pairs,
        sentences=(
            *sentences,
            *difference_sentences(runs, groups, operating_point),
            *prevalence_sentences(summaries, groups, operating_point, prevalence),
            *rejection_sentences(runs),
            *ledger_sentence(runs),
        ),
        evaluation=evaluation,
        groups=groups,
        prevalence=prevalence,
        command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        notice=joint_notice(runs),
    )
    return attach_source(comparison, runs)


def _findings(
    runs: Sequence[EvaluatedRun], summaries: Sequence[RunSummary], operating_point: str
) -> tuple[tuple[RunGroup, ...], tuple[PairedTest, ...], tuple[str, ...]]:
    """Return the groups of seeds, the paired tests, and the findings as sentences."""
    images = runs[0].images
    labels, patients = positives(images), [image.patient for image in images]
    scores = [_run_scores(run, operating_point) for run in runs]
    compared = run_groups.group_runs(runs)
    if not any(each.is_group for each in compared):
        pairs = paired_tests(scores, labels, patients)
        training = training_sentence([run.record is not None for run in runs])
        names, accuracies = [row.name for row in summaries], [row.test["accuracy"] for row in summaries]
        return (), pairs, findings(names, accuracies, pairs, training)
    return run_groups.group_findings(compared, summaries, run_groups.RunScoring(scores, labels, patients))


def _run_scores(run: EvaluatedRun, operating_point: str) -> RunScores:
    decided = decisions(run.images, run.evaluation.operating_points[operating_point].threshold)
    return RunScores(run.name, decided == positives(run.images), np.array([image.logit for image in run.images]))


def write_comparison(comparison: Comparison | MulticlassComparison, out: Path) -> None:
    """Write comparison.json and comparison.csv to a folder, which is created if missing.

    Raises:
        StorageError: A file cannot be written.
    """
    write_atomically(out / _COMPARISON_TABLE, _table(comparison))
    write_atomically(out / _COMPARISON_FILE, to_json(comparison))


def _table(comparison: Comparison | MulticlassComparison) -> str:
    """Return the comparison as CSV, one row per run and metric."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _TABLE_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(comparison.rows())
    return out.getvalue()
