"""Operating points that evaluations have in common, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from pneumoscope.core.errors import UnknownNameError
from pneumoscope.evaluation.custom_points import FIXED_POINT
from pneumoscope.inference.decision import DEFAULT_OPERATING_POINT

__all__ = ["check_operating_point", "choose_operating_point"]

_MAX_LISTED = 3  # evaluations with the same operating points


def choose_operating_point(
    points: Mapping[str, Collection[str]], *, first: str, is_possible: Callable[[str], bool] = lambda _: True
) -> str:
    """Return `first` if all evaluations have it, else "balanced" or "half", else the only one that all have.

    Args:
        points: Operating points of each evaluation, by its path.
        first: Preferred operating point.
        is_possible: Whether models that are still to be evaluated can have an operating point.

    Raises:
        UnknownNameError: All evaluations have several others, or none.
    """
    shared = _common(points)
    common = [name for name in shared if is_possible(name)]
    for name in (first, DEFAULT_OPERATING_POINT, FIXED_POINT):
        if name in common:
            return name
    if len(common) == 1:
        return common[0]
    if common:
        message = (
            f"all evaluations have several operating points, but neither {DEFAULT_OPERATING_POINT} nor {FIXED_POINT}"
        )
    elif shared:
        message = f"bundles and files that are not evaluated yet cannot be compared at {' or '.join(shared)}"
    else:
        message = "the evaluations have no operating point in common"
    raise _error(first, points, common, message)


def check_operating_point(points: Mapping[str, Collection[str]], name: str) -> None:
    """Raise unless all evaluations have an operating point.

    Args:
        points: Operating points of each evaluation, by its path.
        name: The operating point.

    Raises:
        UnknownNameError: An evaluation lacks it.
    """
    lacking = [path for path, names in points.items() if name not in names]
    if lacking:
        message = f"the evaluation of {lacking[0]!r} has no operating point {name!r}"
        raise _error(name, points, _common(points), message)


def _common(points: Mapping[str, Collection[str]]) -> list[str]:
    """Return the operating points that all evaluations have, the usual defaults first."""
    names = list(next(iter(points.values()), ()))
    shared = [name for name in names if all(name in each for each in points.values())]
    return sorted(shared, key=lambda name: (name != DEFAULT_OPERATING_POINT, name != FIXED_POINT))


def _error(name: str, points: Mapping[str, Collection[str]], common: Sequence[str], message: str) -> UnknownNameError:
    """Return the error for an operating point that an evaluation lacks.

    Args:
        name: The operating point.
        points: Operating points of each evaluation, by its path.
        common: Those that can be chosen instead.
        message: The problem.
    """
    known = {each for names in points.values() for each in names}
    error = UnknownNameError("operating point", name, common or known, message=message)
    if name in known or not error.hint.startswith("Did you mean"):
        chosen = (
            f"Give --operating-point {' or '.join(common)}"
            if common
            else f"Evaluate again with --operating-point {name}"
            if _common(points)
            else "Evaluate them again with the same --operating-point"
        )
        error.hint = f"{_listed(points)}. {chosen}"
    return error


def _listed(points: Mapping[str, Collection[str]]) -> str:
    """Return the operating points of each evaluation as text; evaluations with the same ones are listed together."""
    paths: dict[tuple[str, ...], list[str]] = {}
    for path, names in points.items():
        paths.setdefault(tuple(names), []).append(path)
    return "; ".join(
        f"{', '.join(each[:_MAX_LISTED])}{f' and {len(each) - _MAX_LISTED} more' if len(each) > _MAX_LISTED else ''}:"
        f" {', '.join(names)}"
        for names, each in paths.items()
    )
