"""Attempts at a model, compared on validation films alone: what a choice of network, crop or augmentation is worth.

Every attempt is trained on two kinds of split: by patient, which tells how well it fits films like those it learned from, and by
block of patient numbers, which shows some of the shift that the official test films have. The test films are not touched: they
belong to `pneumoscope evaluate` and its ledger. It goes on where it stopped, and says what each attempt came to in the order in
which they stand in the file:

    recipe = "base.toml"          # a shipped recipe, or a file beside this one

    [attempts.plain]
    why = "where we start"
    set = []

    [attempts.turned]
    why = "films lie askew"
    set = ["augmentation.rotation=10"]
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import shlex
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope import __version__
from pneumoscope.errors import RecipeError
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.records import EVALUATION_FILE, read_evaluation
from pneumoscope.results import NOTICE, Evaluation
from pneumoscope.storage import write_atomically
from pneumoscope.training.fit import train
from pneumoscope.training.recipe import Recipe, read_recipe

SPLITS = ("block", "patient")
POINT = "half"  # the only threshold that validation films did not choose
METRICS = ("accuracy", "sensitivity", "specificity")


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One idea.

    Attributes:
        name: of its runs.
        why: one line for the reader.
        recipe: name or file of the recipe that it changes.
        overrides: "table.field=value" each.
    """

    name: str
    why: str
    recipe: str
    overrides: tuple[str, ...]

    def made(self, by: str, seed: int) -> Recipe:
        """The recipe of one run; the seed decides the split, too."""
        own = [f'name="{self.name}-{by}-{seed}"', f'data.by="{by}"', f"training.seed={seed}"]
        return read_recipe(self.recipe, [*self.overrides, *own])


def read_attempts(file: Path) -> list[Attempt]:
    """The attempts of a file, in its order.

    Raises:
        RecipeError: it is not as the example above.
    """
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        base = data["recipe"]
        beside = file.parent / base
        recipe = str(beside) if beside.is_file() else base
        return [
            Attempt(name, attempt["why"], recipe, tuple(attempt["set"])) for name, attempt in data["attempts"].items()
        ]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"{str(file)!r} holds no attempts: {error!r}", advice="See --help for an example") from error


def run(attempt: Attempt, by: str, seed: int, data: Path, runs: Path) -> Evaluation:
    """Train and judge on validation films what is not done yet."""
    out = runs / f"{attempt.name}-{by}-{seed}"
    judged = out / "evaluation" / "validation" / EVALUATION_FILE
    if not judged.exists():
        print(f"{out.name}: {attempt.why}", file=sys.stderr, flush=True)
        train(attempt.made(by, seed), data, out, resume=True)
        evaluate(out, data, split="validation", points=(POINT,))
    return read_evaluation(judged)


def row(attempt: Attempt, by: str, seed: int, found: Evaluation) -> dict[str, Any]:
    """What a run came to."""
    auroc, point = found.metrics["auroc"], found.points[POINT]
    return {
        "attempt": attempt.name,
        "why": attempt.why,
        "set": " ".join(attempt.overrides),
        "by": by,
        "seed": seed,
        "n": found.n,
        "auroc": auroc.value,
        "auroc_low": auroc.low,
        "auroc_high": auroc.high,
        **{name: point.metrics[name].value for name in METRICS},
        "expected_calibration_error": found.metrics["expected_calibration_error"].value,
    }


def means(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, str, int, dict[str, float]]]:
    """Attempt, why, split, runs and means over the seeds, in the order of the rows."""
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in rows:
        seen.setdefault((each["attempt"], each["by"]), []).append(each)
    for (name, by), runs in seen.items():
        yield (
            name,
            runs[0]["why"],
            by,
            len(runs),
            {metric: float(np.mean([each[metric] for each in runs])) for metric in ("auroc", *METRICS)},
        )


def table(rows: Sequence[dict[str, Any]], command: str) -> str:
    """Markdown for people."""
    lines = [
        f"Validation films only; at the score 0.5, means over seeds, each of which has a split of its own ({__version__}).",
        "",
        "| attempt | why | split by | runs | AUROC | accuracy | sensitivity | specificity |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, why, by, count, mean in means(rows):
        numbers = " | ".join(f"{mean[metric]:.4f}" for metric in ("auroc", *METRICS))
        lines.append(f"| {name} | {why} | {by} | {count} | {numbers} |")
    return "\n".join([*lines, "", f"`{command}`", "", NOTICE, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, judge, print, write after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attempts", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs; none of it need be kept")
    parser.add_argument("--out", type=Path, required=True, help="folder for validation.csv, .json and .md")
    parser.add_argument("--only", nargs="+", help="names of attempts; all are listed where they are done")
    parser.add_argument("--by", nargs="+", choices=SPLITS, default=SPLITS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    given = parser.parse_args(arguments)
    attempts = read_attempts(given.attempts)
    unknown = set(given.only or ()) - {attempt.name for attempt in attempts}
    if unknown:
        parser.error(f"there is no attempt {', '.join(sorted(unknown))}")
    command = shlex.join(["python", "benchmarks/study.py", *(sys.argv[1:] if arguments is None else arguments)])
    for attempt in attempts:
        if given.only and attempt.name not in given.only:
            continue
        for by in given.by:
            for seed in given.seeds:
                run(attempt, by, seed, given.data, given.runs)
                rows = _done(attempts, given.runs)
                _write(rows, table(rows, command), given.out)
    print(table(_done(attempts, given.runs), command))


def _done(attempts: Sequence[Attempt], runs: Path) -> list[dict[str, Any]]:
    """Every run that was ever judged, whatever was asked for now."""
    rows = []
    for attempt in attempts:
        for by in SPLITS:
            for folder in sorted(
                runs.glob(f"{attempt.name}-{by}-*"), key=lambda path: int(path.name.rsplit("-", 1)[1])
            ):
                judged = folder / "evaluation" / "validation" / EVALUATION_FILE
                if judged.exists():
                    rows.append(row(attempt, by, int(folder.name.rsplit("-", 1)[1]), read_evaluation(judged)))
    return rows


def _write(rows: Sequence[dict[str, Any]], text: str, out: Path) -> None:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out / "validation.csv", file.getvalue())
    write_atomically(out / "validation.json", json.dumps(rows, indent=2, allow_nan=False) + "\n")
    write_atomically(out / "validation.md", text)


if __name__ == "__main__":
    main()
