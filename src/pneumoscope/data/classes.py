"""The classes of a labeled data set: NORMAL and PNEUMONIA, or any two or more other classes.

A data set is binary if each label is NORMAL or PNEUMONIA, in upper or lower case. Otherwise it is multiclass, and class names
are kept as written. Two classes that appear to mean NORMAL and PNEUMONIA under other names are an error, because a multiclass
network with two classes lacks the operating points and metrics of a pneumonia model.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from pneumoscope.core.errors import DatasetError
from pneumoscope.core.names import closest_name

__all__ = ["LABELS", "MAX_CLASSES", "check_class_order", "resolve_classes", "sort_classes", "spelling_notes"]

LABELS = ("NORMAL", "PNEUMONIA")
MAX_CLASSES = 100  # more are identifiers, not classes
_SEPARATOR = "|"  # separates several classes in a label, and the classes in a saved manifest
# Lower-case names, with words separated by spaces.
_NEGATIVE = {
    *("normal", "normals", "healthy", "control", "controls", "no finding", "no findings", "none", "other", "others"),
    *("negative", "neg", "no", "false", "0"),
}
_POSITIVE = {"positive", "pos", "yes", "true", "1", "abnormal", "sick", "diseased", "opacity", "lung opacity"}
_ETIOLOGIES = {"normal", "bacteria", "virus"}
_SIMILAR = 0.8  # similarity above which a class name may be a misspelling; see `closest_name`
_NEGATIONS = {"no", "non", "not", "without", "negative", "neg", "false", "0"}


def resolve_classes(
    labels: Iterable[str], name: str, order: Sequence[str] = ()
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the classes of a data set in the order of their target index, and the class of each label.

    Args:
        labels: Label of each image.
        name: Name of the data set for messages.
        order: All classes in a custom order; by default they are sorted, numbers by value. Classes may have no images, and
            labels may differ in case.

    Returns:
        The classes, which are `LABELS` if each label is one of them, ignoring case, and `order` is empty or contains these two;
        and {label: class}.

    Raises:
        DatasetError: There is only one class, or too many; names differ only in case, or appear to mean NORMAL and PNEUMONIA; a
            label contains several classes, or is not in `order`.
    """
    found = sort_classes(labels)
    is_binary = not order or sorted(label.upper() for label in order) == [*LABELS]
    if is_binary and {label.upper() for label in found} <= set(LABELS):
        return LABELS, {label: label.upper() for label in found}
    if several := next((label for label in (*order, *found) if _SEPARATOR in label), ""):
        part = next((part for part in several.split(_SEPARATOR) if _meaning(part) == "PNEUMONIA"), "CLASS")
        raise DatasetError(
            f"{name}: the label {several!r} has several classes, and an image has one",
            hint=f"Choose the class that counts as PNEUMONIA, such as --positive {shlex.quote(part)}; or rename the label:"
            f" {_map_option(several, 'CLASS')}",
        )
    if order:
        check_class_order(order)
        by_case = {label.casefold(): label for label in order}
        if unknown := [label for label in found if label.casefold() not in by_case]:
            closest = closest_name(unknown[0], order) or "CLASS"
            etiologies = ", such as --label-column etiology" if by_case.keys() <= _ETIOLOGIES else ""
            error = DatasetError(
                f"{name}: the label {unknown[0]!r} is not one of the classes {', '.join(order)}",
                hint=f"Rename it with {_map_option(unknown[0], closest)}; name another column with --label-column{etiologies}; or"
                " leave its images out: list the others in a CSV file with the columns path and label",
            )
            error.unknown_label, error.labels = unknown[0], tuple(found)
            raise error
        return tuple(order), {label: by_case[label.casefold()] for label in found}
    _check_names(found, name)
    return tuple(found), {label: label for label in found}


def spelling_notes(names: Mapping[str, str]) -> tuple[str, ...]:
    """Return notes on labels that differ from their class name in case; none for NORMAL and PNEUMONIA.

    Args:
        names: Class of each label; see `resolve_classes`.
    """
    return tuple(
        f"the label {label!r} is the class {name!r}"
        for label, name in names.items()
        if label != name and name not in LABELS
    )


def misspelling_hint(found: Sequence[str]) -> str:
    """Return the options that rename misspelled NORMAL and PNEUMONIA; "" if a class is another one.

    A name that contains the other, such as "abnormal", is not a misspelling of it.
    """
    others = [label for label in found if label not in LABELS]
    meant = {label: closest_name(label, LABELS, _SIMILAR) for label in others}
    corrected = {meant.get(label) or label for label in found}
    if not others or len(corrected) < 2 or not all(name and name not in label.upper() for label, name in meant.items()):
        return ""
    options = " ".join(map(_map_option, meant, meant.values()))
    return f"Did you mean {' and '.join(dict.fromkeys(meant.values()))}? Correct the labels, or give {options}"


def sort_classes(labels: Iterable[str]) -> list[str]:
    """Return the distinct labels in class order: sorted, numbers by value."""
    return sorted(set(labels), key=lambda label: (int(label) if label.isdecimal() else -1, label))


def check_class_order(order: Sequence[str]) -> None:
    """Raise unless the classes are two or more distinct names.

    Raises:
        DatasetError: A name is empty or repeated, or there are fewer than two.
    """
    if len(order) < 2 or len({label.casefold() for label in order}) < len(order) or not all(order):
        raise DatasetError(
            f"the classes {', '.join(order)!r} are not two or more different names",
            hint="Example: normal,bacteria,virus",
        )


def _check_names(found: Sequence[str], name: str) -> None:
    """Raise unless the labels of a multiclass data set are valid class names."""
    if len(found) > MAX_CLASSES:
        raise DatasetError(
            f"{name} has {len(found)} different labels, such as {found[0]!r} and {found[1]!r}; the maximum is {MAX_CLASSES}",
            hint="If these are not classes, name another column with --label-column",
        )
    by_case: dict[str, str] = {}
    for label in found:
        if (other := by_case.setdefault(label.casefold(), label)) != label:
            raise DatasetError(
                f"{name}: the classes {other!r} and {label!r} differ in case only",
                hint=f"Merge them with {_map_option(label, other)}",
            )
    if len(found) == 1:
        raise DatasetError(
            f"{name} has one class only, {found[0]!r}",
            hint=f"{_mapping_hint(found) or f'Rename it, such as {_map_option(found[0], LABELS[0])}'}; or add images of another"
            " class",
        )
    if len(found) == 2 and (hint := _mapping_hint(found)):
        raise DatasetError(
            f"{name}: the classes {found[0]!r} and {found[1]!r} look like NORMAL and PNEUMONIA under other names",
            hint=f"{hint}. To train a network of two other classes, state them with --classes {shlex.quote(','.join(found))}",
        )


def _mapping_hint(found: Sequence[str]) -> str:
    """Return the options that map the labels to NORMAL and PNEUMONIA, or "" if they do not appear to mean these."""
    meanings = {label: _meaning(label) for label in found}
    if len(found) == 2 and set(meanings.values()) != set(LABELS):
        return ""
    options = [
        _map_option(label, meaning) for label, meaning in meanings.items() if meaning and label.upper() != meaning
    ]
    positive = next((label for label in found if meanings[label] == "PNEUMONIA"), "")
    short = f", or --positive {shlex.quote(positive)}" if positive and len(found) == 2 else ""
    return f"Map them with {' '.join(options)}{short}" if options else ""


def _map_option(source: str, target: str) -> str:
    return "--map " + shlex.quote(f"{source}={target}")


def _meaning(label: str) -> str:
    """Return NORMAL or PNEUMONIA for a name that usually has that meaning, otherwise ""."""
    words = re.sub(r"[\W_]+", " ", label.lower()).split()
    text = " ".join(words)
    if "pneumonia" in text:
        return "NORMAL" if _NEGATIONS & set(words) or text.startswith(("nonpneumonia", "nopneumonia")) else "PNEUMONIA"
    if text in _NEGATIVE:
        return "NORMAL"
    return "PNEUMONIA" if text in _POSITIVE else ""
