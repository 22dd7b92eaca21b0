"""Describe where a heatmap is strongest: as lung zones and as contours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pneumoscope.inference.saliency import MIN_POSITIONS, Heatmap

__all__ = ["Zone", "contours", "zones"]

_GRID = 60  # rows and columns of the grid for measuring zones; divisible by 2 and 3
_MIN_SHARE = 0.25  # minimum share of the contributions towards pneumonia for a zone to be reported
_CONTOUR_SIDE = 96  # longer side of the grid for contours; the heatmap is smooth
_CONTOUR_LEVEL = 0.5  # fraction of the largest contribution, as in the viewer

_Floats = npt.NDArray[np.float32]
_Side = Literal["right", "left"]
_Level = Literal["upper", "middle", "lower"]
_SIDES: tuple[_Side, ...] = ("right", "left")  # the patient's right is on the left of the image
_LEVELS: tuple[_Level, ...] = ("upper", "middle", "lower")


class Zone(NamedTuple):
    """An upper, middle or lower third of one half of the image.

    Attributes:
        side: The patient's side.
        level: Third of the height.
    """

    side: _Side
    level: _Level


def zones(heatmap: Heatmap, orientation: Sequence[str]) -> tuple[Zone, ...]:
    """Return the zones with at least a quarter of the contributions towards pneumonia, strongest first.

    Zones are thirds of the height of each half of the image, since the lungs are not segmented.

    Args:
        heatmap: Heatmap of a frontal radiograph.
        orientation: Directions of rows and columns, such as ("L", "F") (PS3.3 C.7.6.1.1.1).

    Returns:
        Empty if there are no contributions towards pneumonia, they are spread over all zones, the heatmap has fewer
        than 16 positions, or the directions are not those of a frontal radiograph.
    """
    if heatmap.contributions.size < MIN_POSITIONS:
        return ()
    values = _as_displayed(np.maximum(heatmap.resized(_GRID, _GRID), 0), orientation)
    if values is None or not values.sum():
        return ()
    shares = values.reshape(3, _GRID // 3, 2, _GRID // 2).sum((1, 3)) / values.sum()
    found = [
        (shares[row, column], Zone(side, level))
        for row, level in enumerate(_LEVELS)
        for column, side in enumerate(_SIDES)
    ]
    found.sort(key=lambda each: -each[0])
    return tuple(zone for share, zone in found if share >= _MIN_SHARE)


def _as_displayed(values: _Floats, orientation: Sequence[str]) -> _Floats | None:
    """Return values with the patient's right on the left and the head at the top; None if that is impossible."""
    row, column = (each[:1] for each in orientation)
    if row in ("F", "H") and column in ("L", "R"):
        values, row, column = values.T, column, row
    if row not in ("L", "R") or column not in ("F", "H"):
        return None
    return values[:: 1 if column == "F" else -1, :: 1 if row == "L" else -1]


def contours(heatmap: Heatmap) -> list[npt.NDArray[np.float64]]:
    """Return closed contours at half of the largest contribution towards pneumonia, longest first.

    Returns:
        Arrays of (column, row) in image pixels, shape (n, 2); the last point repeats the first. The upper left corner
        of the image is (0, 0).
    Source: marching squares with linear interpolation (Lorensen and Cline 1987, in two dimensions).
    """
    width, height = heatmap.image.width, heatmap.image.height
    factor = min(1.0, _CONTOUR_SIDE / max(width, height))
    columns, rows = (max(2, round(factor * side)) for side in (width, height))
    values = heatmap.resized(columns, rows).astype(np.float64)
    level = _CONTOUR_LEVEL * heatmap.maximum
    if values.max() <= level:
        return []
    padded = np.pad(values, 1, constant_values=min(0.0, values.min()))
    following = _segments(padded > level)
    lines = []
    while following:
        start = edge = next(iter(following))
        line = [edge]
        while edge in following:
            edge = following.pop(edge)
            line.append(edge)
        assert line[-1] == start, "every contour of a padded mask is closed"
        points = np.array([_crossing(padded, edge, level) for edge in line])
        scale = width / columns, height / rows
        # Point (1, 1) of the padded grid is the center of the first cell.
        lines.append(np.clip((points - 0.5) * scale, 0, (width, height)))
    return sorted(lines, key=len, reverse=True)


_Point = tuple[int, int]
_Edge = tuple[_Point, _Point]


def _segments(inside: npt.NDArray[np.bool_]) -> dict[_Edge, _Edge]:
    """Return the grid edges crossed by contours, each mapped to the next; the inside is on the right."""
    following: dict[_Edge, _Edge] = {}
    for row in range(inside.shape[0] - 1):
        for column in range(inside.shape[1] - 1):
            corners = (row, column), (row, column + 1), (row + 1, column + 1), (row + 1, column)
            if len({bool(inside[corner]) for corner in corners}) == 1:
                continue
            # Going clockwise, a contour enters where the outside begins and leaves where the inside begins.
            exits, entries = [], []
            for first, second in zip(corners, (*corners[1:], corners[0]), strict=True):
                edge = min(first, second), max(first, second)
                if inside[first] and not inside[second]:
                    entries.append(edge)
                elif inside[second] and not inside[first]:
                    exits.append(edge)
            following.update(zip(entries, exits, strict=True))
    return following


def _crossing(values: npt.NDArray[np.float64], edge: _Edge, level: float) -> tuple[float, float]:
    """Return the point on an edge where the interpolated value equals the level, as (column, row)."""
    (row, column), (end_row, end_column) = edge
    first, second = values[edge[0]], values[edge[1]]
    fraction = (level - first) / (second - first)
    return column + fraction * (end_column - column), row + fraction * (end_row - row)
