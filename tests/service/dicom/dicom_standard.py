"""The DICOM standard of the package dicom-standard, in the form in which dicom-validator reads it.

dicom-validator downloads the standard in DocBook; the package dicom-standard has the tables of an edition of 2020 as JSON. The
names and types of attributes, their conditions and the usage of modules are converted. The enumerated values are not, nor the
content of SR documents: its attributes depend on the type of each item, which the JSON does not state.
"""

from __future__ import annotations

import html
import importlib.metadata
import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from dicom_validator.spec_reader.condition import Condition, ConditionType
from dicom_validator.spec_reader.condition_parser import ConditionParser
from dicom_validator.spec_reader.serializer import DefinitionEncoder
from dicom_validator.validator.dicom_info import DicomInfo
from pydicom.datadict import DicomDictionary

__all__ = ["read_standard"]

_FUNCTIONAL_GROUPS = ("(5200,9229)", "(5200,9230)")  # shared and per frame
_UNUSUAL_VRS = {"OB or OW": "OW", "US or SS": "US", "US or OW": "OW", "US or SS or OW": "OW"}
_WITH_GROUPS, _CONTENT = "multi-frame-functional-groups", "sr-document-content"


def read_standard(sop_classes: Collection[str]) -> DicomInfo:
    """Return the part of the standard that describes some SOP classes."""
    dictionary = {
        f"({tag >> 16:04X},{tag & 0xFFFF:04X})": {
            "name": name,
            "vr": _UNUSUAL_VRS.get(vr, vr),
            "vm": vm,
            "prop": retired,
        }
        for tag, (vr, vm, name, retired, _) in DicomDictionary.items()
    }
    parser = ConditionParser(dictionary)
    identifiers = {each["name"]: each["id"] for each in _table("ciods")}
    classes = {each["id"]: identifiers[each["ciod"]] for each in _table("sops") if each["id"] in sop_classes}
    rows = [each for each in _table("ciod_to_modules") if each["ciodId"] in classes.values()]
    macros = [each for each in _table("ciod_to_fg_macros") if each["ciodId"] in classes.values()]
    modules = _attributes(_table("module_to_attributes"), "moduleId", {each["moduleId"] for each in rows}, parser)
    modules |= _attributes(_table("macro_to_attributes"), "macroId", {each["macroId"] for each in macros}, parser)
    for tag in _FUNCTIONAL_GROUPS if _WITH_GROUPS in modules else ():
        modules[_WITH_GROUPS][tag]["items"] = {"include": [{"ref": "FuncGroup"}]}
    for attribute in modules.get(_CONTENT, {}).values():
        attribute.update(type="3")
        attribute.pop("cond", None)
        attribute.pop("items", None)
    iods = {
        uid: {
            "title": identifier,
            "modules": {
                each["moduleId"]: _usage(each, "moduleId", parser) for each in rows if each["ciodId"] == identifier
            },
            "group_macros": {
                each["macroId"]: _usage(each, "macroId", parser) for each in macros if each["ciodId"] == identifier
            },
        }
        for uid, identifier in classes.items()
    }
    encoded = json.dumps({"iods": iods, "modules": modules}, cls=DefinitionEncoder)
    return DicomInfo(dictionary=dictionary, **json.loads(encoded))


def _table(name: str) -> list[dict[str, Any]]:
    files = importlib.metadata.files("dicom-standard") or []
    file = next(each for each in files if each.name == f"{name}.json")
    found = Path(str(file.locate()))
    if not found.exists():  # installed into a folder, without the scheme of an environment
        found = Path(str(importlib.metadata.distribution("dicom-standard").locate_file(f"standard/{name}.json")))
    rows: list[dict[str, Any]] = json.loads(found.read_text(encoding="utf-8"))
    return rows


def _usage(row: dict[str, Any], key: str, parser: ConditionParser) -> dict[str, Any]:
    """Return the usage of a module or macro in an IOD."""
    usage: dict[str, Any] = {"ref": row[key], "use": row["usage"]}
    statement = row.get("conditionalStatement")
    if statement:
        usage["cond"] = _condition(f"{row['usage']} - {statement}", parser)
    return usage


def _attributes(
    rows: Iterable[dict[str, Any]], key: str, identifiers: Collection[str], parser: ConditionParser
) -> dict[str, dict[str, Any]]:
    """Return the attributes of modules or macros: {identifier: {tag: {name, type, condition, items}}}."""
    found: dict[str, dict[str, Any]] = {identifier: {} for identifier in identifiers}
    chosen = [each for each in rows if each[key] in identifiers and "xx" not in each["path"]]  # no repeating groups
    for row in sorted(chosen, key=lambda each: str(each["path"]).count(":")):
        identifier, *tags = row["path"].split(":")
        place = found[identifier]
        for tag in tags[:-1]:
            place = place.get(_tag(tag), {}).setdefault("items", {})
        attribute: dict[str, Any] = {"name": row["tag"], "type": row["type"]}
        if row["type"] in ("1C", "2C", "3"):
            condition = _condition(_text(row["description"]), parser)
            if condition.type != ConditionType.UserDefined:
                attribute["cond"] = condition
        place[_tag(tags[-1])] = attribute
    return found


def _condition(text: str, parser: ConditionParser) -> Condition:
    return parser.parse(text)


def _text(markup: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", markup))).strip()


def _tag(path: str) -> str:
    return f"({path[:4]},{path[4:]})".upper()
