"""The generated pages are up to date, and complete."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from pneumoscope.cli import VERBS, monitor
from pneumoscope.core import errors
from pneumoscope.imaging.decode import type_reason
from pneumoscope.imaging.file_type import FileType

DOCS = Path(__file__).resolve().parents[2] / "docs"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.training,
    # pynetdicom does not close the socket of an association that is refused.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_reference", DOCS / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generator: ModuleType) -> dict[str, str]:
    pages: dict[str, str] = generator.pages()
    return pages


def test_committed_pages_are_up_to_date(pages: dict[str, str]) -> None:
    stale = [path for path, text in pages.items() if (DOCS / path).read_text(encoding="utf-8") != text]
    assert not stale, "run make docs"


def test_bodies_of_json_name_their_fields(pages: dict[str, str]) -> None:
    bodies = re.findall(r"^Body: `application/json`(.*)$", pages["reference/http-api.md"], re.MULTILINE)
    assert len(bodies) >= 5
    assert all(re.search(r"\[\w+\]\(#\w+\), with fields? `", each) for each in bodies)


def test_no_page_contains_a_python_object(pages: dict[str, str]) -> None:
    for path, text in pages.items():
        assert not re.search(r"<class '|NoneType|typing\.|object at 0x", text), path


def test_every_command_and_error_has_a_section(pages: dict[str, str]) -> None:
    assert re.findall(r"^## pneumoscope ([\w-]+)$", pages["reference/cli.md"], re.MULTILINE) == list(VERBS)
    assert set(re.findall(r"^## (\w+)$", pages["reference/errors.md"], re.MULTILINE)) == set(errors.__all__)


def test_every_exit_status_is_explained(pages: dict[str, str]) -> None:
    section = pages["reference/cli.md"].partition("## Exit status\n")[2].partition("\n## ")[0]
    of_errors = {getattr(errors, name).exit_status for name in errors.__all__}
    assert set(map(int, re.findall(r"^\| (\d+) \|", section, re.MULTILINE))) == {0, monitor.ALARM, 130} | of_errors


def test_every_error_has_an_example_unless_it_is_only_a_base_class(pages: dict[str, str]) -> None:
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", pages["reference/errors.md"], re.MULTILINE | re.DOTALL))
    without = {name for name, text in sections.items() if "error: " not in text}
    assert without == {name for name in errors.__all__ if name not in sections or "Never raised" in sections[name]}
    assert len(without) == 1


def test_http_api_lists_every_operation_and_schema(generator: ModuleType) -> None:
    document = {
        "paths": {
            "/v1/things/{id}": {
                "get": {
                    "summary": "Return a thing",
                    "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
                    "responses": {
                        "200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}}
                    },
                }
            }
        },
        "components": {
            "schemas": {
                "Thing": {
                    "description": "A thing.\n\nAttributes:\n    low, high: Ends.",
                    "properties": {
                        "low": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                        "kind": {"enum": ["a", "b"], "description": "Its kind."},
                    },
                }
            }
        },
    }
    page = generator.http_api_page(document)
    assert "[`GET /v1/things/{id}`](#get-v1thingsid)" in page
    assert "| `id` | path | string | required |" in page
    assert "| 200 | `application/json`, [Thing](#thing) |" in page
    assert "| `low` | number or null | Ends. |" in page
    assert '| `kind` | `"a"`, `"b"` | Its kind. |' in page


def test_types_of_unsupported_files_are_those_that_the_error_states(pages: dict[str, str]) -> None:
    """A file of unknown type, or a pipe, has its own reason."""
    table = pages["reference/errors.md"].partition("The parameter `type` of `unsupported_file_type`")[2]
    types = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert {"gif", "zip", "dicomdir"} <= set(types)
    assert not {"unknown", "special_file"} & set(types)
    assert not [each for each in types if type_reason(FileType(each, "other"), 1).code != "unsupported_file_type"]
