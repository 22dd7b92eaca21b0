"""How a number is written for a reader, and what each term means in one line. The same everywhere on a page."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pneumoscope.core.results import Interval

__all__ = [
    "ETIOLOGIES",
    "GLOSSARY",
    "METRICS",
    "PAIR_METRICS",
    "POINTS",
    "duration",
    "interval_note",
    "method_name",
    "p_value",
    "plain",
    "signed",
]

# In the order in which tables and figures show them. Keys are those of `Evaluation` and `OperatingPointResult`.
METRICS = {
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "negative_predictive_value": "Negative predictive value",
    "f1": "F1",
    "balanced_accuracy": "Balanced accuracy",
    "mcc": "MCC",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "brier": "Brier score",
    "expected_calibration_error": "Calibration error",
}
# What `PairedTest` compares, in the words that stand inside a sentence.
PAIR_METRICS = {"accuracy": "accuracy", "auroc": "AUROC"}
POINTS = {
    "half": "threshold 0.5",
    "balanced": "best on validation",
    "rule_out": "99% sensitivity on validation",
    "rule_in": "99% specificity on validation",
}
ETIOLOGIES = ("normal", "bacteria", "virus")
GLOSSARY = {
    "LabelledImage": "one radiograph.",
    "Score": "what the network says of an image before calibration, 0 to 1.",
    "Probability": "the score after calibration on validation images, 0 to 1.",
    "Threshold, operating point": "an image with a score at or above the threshold is called pneumonia.",
    "Accuracy": "share of all images called correctly.",
    "Sensitivity": "share of pneumonias called pneumonia. Another name is recall.",
    "Specificity": "share of normal images called normal.",
    "Precision": "share of the images called pneumonia that are. Another name is positive predictive value.",
    "Negative predictive value": "share of the images called normal that are.",
    "F1": "harmonic mean of precision and sensitivity.",
    "Balanced accuracy": "mean of sensitivity and specificity.",
    "MCC": "Matthews correlation of decisions and labels, \N{MINUS SIGN}1 to 1; 0 is guessing.",
    "AUROC": "chance that a pneumonia scores above a normal image; 0.5 is guessing.",
    "AUPRC": "average precision over all sensitivities; guessing gives the share of pneumonias.",
    "Brier score": "mean squared distance of probability and truth; 0 is perfect, lower is better.",
    "Calibration error": "mean distance of probability and observed share, over bins of images; lower is better.",
    "95% interval": "values that the images seen do not speak against; over many such studies 95% hold the true one.",
    "McNemar's test": "compares two runs by the images that only one of them calls correctly.",
    "DeLong's test": "compares two AUROCs measured on the same images.",
    "Holm p": "p corrected for the number of pairs tested, so that one false find among them stays under 5%.",
    "Etiology": "cause of the pneumonia as the image's name gives it: bacteria or virus.",
}

_PEOPLE = {"wilson": "Wilson", "delong": "DeLong", "newcombe": "Newcombe", "mcnemar": "McNemar"}


def plain(value: float) -> str:
    """A share or score with three decimals and a true minus sign."""
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """A difference with its sign."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def p_value(value: float) -> str:
    """A p value to three decimals; what would round to zero is said to be below."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Wall-clock time in the two largest units that matter."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def method_name(method: str) -> str:
    """The name of a method or test with people's names as they write them: "McNemar, exact"."""
    return re.sub("|".join(_PEOPLE), lambda found: _PEOPLE[found[0]], method)


def interval_note(intervals: Iterable[tuple[str, Interval]]) -> str:
    """How intervals were made, in one sentence: "95% intervals: Wilson (accuracy); patient bootstrap, seed 0 (F1)."

    Args:
        intervals: names in words, and the numbers; those without an interval are left out.
    """
    names: dict[str, list[str]] = {}
    widened: set[str] = set()
    levels = set()
    for name, interval in intervals:
        if interval.low is None:
            continue
        levels.add(f"{interval.level:.0%}")
        # The size of a design effect differs from number to number; that it was taken into account is what matters.
        method, effect, _ = interval.method.partition(", design effect")
        method = method_name(method)
        method = method if interval.seed is None else f"{method}, seed {interval.seed}"
        if effect:
            widened.add(method)
        if name not in names.setdefault(method, []):
            names[method].append(name)
    if not names:
        return ""
    told = {method: f"{method}, widened where patients repeat" if method in widened else method for method in names}
    parts = [told[method] + (f" ({', '.join(names[method])})" if len(names) > 1 else "") for method in names]
    return f"{' and '.join(sorted(levels))} intervals: {'; '.join(parts)}."
