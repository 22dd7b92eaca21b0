"""Labels of metrics, the glossary of the pages, and sentences about intervals."""

from __future__ import annotations

from collections.abc import Iterable

from pneumoscope.core.comparison import SeedSpread
from pneumoscope.core.interval import Interval
from pneumoscope.core.result_forms import method_name

__all__ = [
    "CLASS_CALIBRATION",
    "CLASS_METRICS",
    "CLASS_PAIR_METRICS",
    "ETIOLOGIES",
    "GLOSSARY",
    "METRICS",
    "PAIR_METRICS",
    "images_of",
    "interval_note",
    "means_note",
]

# In the order of tables and figures. Keys are those of `Evaluation` and `OperatingPointResult`.
METRICS = {
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "negative_predictive_value": "Negative predictive value",
    "f1": "F1",
    "balanced_accuracy": "Balanced accuracy",
    "mcc": "MCC",
    "positive_likelihood_ratio": "Positive likelihood ratio",
    "negative_likelihood_ratio": "Negative likelihood ratio",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "brier": "Brier score",
    "expected_calibration_error": "Calibration error",
    "calibration_slope": "Calibration slope",
    "calibration_intercept": "Calibration intercept",
    "observed_expected_ratio": "O/E",
    "precision_at_prevalence": "Precision at the stated prevalence",
    "negative_predictive_value_at_prevalence": "Negative predictive value at the stated prevalence",
}
# Metrics of `PairedTest`, as they are written within a sentence.
PAIR_METRICS = {
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}
# Metrics over several classes, and those that pairs of their models are tested by; see `MulticlassEvaluation`.
CLASS_METRICS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_auroc": "Macro AUROC",
    "macro_auprc": "Macro AUPRC",
    "macro_f1": "Macro F1",
    "macro_specificity": "Macro specificity",
    "macro_precision": "Macro precision",
    "brier": "Brier score",
    "log_loss": "Log loss",
    "expected_calibration_error": "Calibration error",
}
# Metrics of one class against the rest that are computed from its probability.
CLASS_CALIBRATION = (
    "expected_calibration_error",
    "calibration_slope",
    "calibration_intercept",
    "observed_expected_ratio",
)
CLASS_PAIR_METRICS = {"accuracy": "accuracy", "macro_auroc": "macro AUROC"}
ETIOLOGIES = ("normal", "bacteria", "virus")
GLOSSARY = {
    "Image": "one chest radiograph.",
    "Score": "output of the network before calibration, 0 to 1.",
    "Probability": "score calibrated on validation images, 0 to 1.",
    "Operating point": "threshold on the score: an image is predicted as pneumonia if its score is at or above it."
    " half is a score of 0.5; balanced, rule_out and rule_in are chosen on validation images, and so are sens=0.95 and spec=0.9,"
    " which reach that sensitivity or specificity there; 0.3 is a probability.",
    "Accuracy": "fraction of all images that are classified correctly.",
    "Sensitivity": "fraction of pneumonia images that are predicted as pneumonia; also called recall.",
    "Specificity": "fraction of normal images that are not predicted as pneumonia.",
    "Precision": "fraction of images predicted as pneumonia that are pneumonia; also called positive predictive value.",
    "Negative predictive value": "fraction of the images not predicted as pneumonia that are normal.",
    "Precision at the stated prevalence": "precision among images of which the stated fraction shows pneumonia.",
    "Negative predictive value at the stated prevalence": "the same for the negative predictive value.",
    "F1": "harmonic mean of precision and sensitivity.",
    "Balanced accuracy": "mean of sensitivity and specificity.",
    "MCC": "Matthews correlation coefficient of predictions and labels, \N{MINUS SIGN}1 to 1; 0 is chance.",
    "Positive likelihood ratio": "factor by which the decision pneumonia raises the odds of pneumonia: sensitivity /"
    " (1 \N{MINUS SIGN} specificity); 1 is uninformative.",
    "Negative likelihood ratio": "factor by which another decision lowers the odds of pneumonia: (1 \N{MINUS SIGN} sensitivity) /"
    " specificity; 1 is uninformative, lower is better.",
    "AUROC": "probability that a pneumonia image scores above a normal image; 0.5 is chance.",
    "AUPRC": "average precision over all sensitivities; chance is the prevalence of pneumonia.",
    "Brier score": "mean squared difference of probability and label; 0 is perfect, lower is better.",
    "Calibration error": "mean absolute difference of probability and observed rate over bins; lower is better.",
    "Calibration slope": "slope of a logistic regression of the labels on the logits of the probabilities; 1 is perfect, below 1"
    " the probabilities are too extreme.",
    "Calibration intercept": "intercept of that regression with a slope of 1, also called calibration-in-the-large; 0 is perfect,"
    " below 0 the probabilities are too high on average.",
    "O/E": "observed number of pneumonias divided by the number that the probabilities expect; 1 is perfect.",
    "Net benefit": "true positives per image, minus false positives per image times the odds of the threshold probability; 0 is"
    " to treat no one.",
    "95% interval": "confidence interval: 95% of the intervals of repeated studies contain the true value.",
    "McNemar's test": "compares two runs on the images that only one of them classifies correctly.",
    "DeLong's test": "compares two AUROCs measured on the same images.",
    "Holm p": "p value corrected for the number of pairs: the probability of any false positive is below 5%.",
    "Etiology": "cause of the pneumonia according to the image's file name: bacteria or virus.",
}


def images_of(split: str) -> str:
    """Return the term for the images of a split, such as "test images"."""
    return {"test": "test images", "validation": "validation images", "train": "training images"}.get(split, "images")


def interval_note(intervals: Iterable[tuple[str, Interval]]) -> str:
    """Return a sentence on the methods, such as "95% intervals: Wilson (accuracy); percentile bootstrap by patient, seed 0
    (F1)."

    Args:
        intervals: Labels and intervals. Those without ends are skipped.

    Returns:
        The sentence; empty if no interval has ends.
    """
    labels: dict[str, list[str]] = {}
    adjusted: set[str] = set()
    levels = set()
    for label, interval in intervals:
        if interval.low is None:
            continue
        levels.add(f"{interval.level:.0%}")
        # The design effect differs between metrics; the note states only that intervals were adjusted for it.
        method, design_effect, _ = interval.method.partition(", design effect")
        method = method_name(method)
        method = method if interval.seed is None else f"{method}, seed {interval.seed}"
        if design_effect:
            adjusted.add(method)
        if label not in labels.setdefault(method, []):
            labels[method].append(label)
    if not labels:
        return ""
    parts = [
        method
        + (", adjusted for repeated patients" if method in adjusted else "")
        + (f" ({', '.join(labels[method])})" if len(labels) > 1 else "")
        for method in labels
    ]
    return f"{' and '.join(sorted(levels))} intervals: {'; '.join(parts)}."


def means_note(spreads: Iterable[SeedSpread]) -> str:
    """Return a sentence on the metrics whose means have intervals; empty if all have one, or a separate reason."""
    reasons = dict.fromkeys(spread.mean.reason for spread in spreads if spread.lacks_method)
    return " ".join(f"{reason[:1].upper()}{reason[1:]}." for reason in reasons)
