"""Read the configuration of the exchange with other nodes from a TOML file."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from PIL import ImageFont
from pydantic import BaseModel, Field, ValidationError

from pneumoscope.core.errors import UsageError
from pneumoscope.core.files import read_error_reason
from pneumoscope.core.prediction_codes import AgeRequirement
from pneumoscope.service.dicom.configuration import (
    ConfigurationTable,
    Destination,
    DicomConfiguration,
    Name,
    ResultSettings,
    SiteRule,
    Source,
    Webhook,
)
from pneumoscope.service.dicom.node_settings import DicomSettings, parse_peer, tls_contexts

__all__ = ["read_configuration"]

_MAX_FILE_BYTES = 2**20
_WithFiles = TypeVar("_WithFiles", Destination, Source, Webhook)


class _Node(ConfigurationTable):
    port: int = Field(ge=0, le=65535)
    host: str = "127.0.0.1"
    ae_title: str = "PNEUMOSCOPE"
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None


class _Peer(ConfigurationTable):
    name: Name
    ae_title: str
    host: str
    port: int = Field(ge=1, le=65535)


class _Fhir(ConfigurationTable):
    secret_file: Path


class _File(ConfigurationTable):
    node: _Node | None = None
    peers: tuple[_Peer, ...] = ()
    quiet_seconds: float = Field(default=60, ge=0, le=3600)
    require_age: AgeRequirement | None = None
    rules: tuple[SiteRule, ...] = ()
    destinations: tuple[Destination, ...] = (Destination(peer="sender"),)
    results: ResultSettings = ResultSettings()
    sources: tuple[Source, ...] = ()
    webhooks: tuple[Webhook, ...] = ()
    fhir: _Fhir | None = None


def read_configuration(file: Path) -> DicomConfiguration:
    """Return the configuration in a TOML file; paths in it are relative to its folder.

    Raises:
        UsageError: The file cannot be read or is invalid.
    """
    name = f"the DICOM configuration {str(file)!r}"
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise UsageError(f"{name} is longer than 1 MiB")
        parsed = _File.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {name}: {read_error_reason(error)}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name} is not TOML: {error}") from error
    except ValidationError as error:
        message, suggestion = _describe(error)
        hint = "See docs/how-to/pacs.md, section Configuration file"
        raise UsageError(f"{name}: {message}", hint=f"{suggestion} {hint}".lstrip()) from error
    folder = file.parent
    return DicomConfiguration(
        node=_node(parsed, folder),
        quiet_seconds=parsed.quiet_seconds,
        rules=parsed.rules,
        destinations=tuple(_with_absolute_paths(each, folder) for each in parsed.destinations),
        results=_with_font(parsed.results, folder),
        sources=tuple(_with_absolute_paths(each, folder) for each in parsed.sources),
        webhooks=tuple(_with_absolute_paths(each, folder) for each in parsed.webhooks),
        fhir_secret_file=folder / parsed.fhir.secret_file if parsed.fhir else None,
        require_age=parsed.require_age,
    )


def _with_font(results: ResultSettings, folder: Path) -> ResultSettings:
    """Return the settings with the font's absolute path, after checking that the font covers the languages."""
    hint = "On Debian, install fonts-noto-cjk or fonts-wqy-zenhei, and set font in [results] to its file (.ttc)"
    if results.font is None:
        if "zh-Hant" in results.languages:
            raise UsageError("[results]: the language zh-Hant needs a font", hint=hint)
        return results
    file = folder / results.font
    try:
        font = ImageFont.truetype(file, 24)
    except (OSError, ValueError) as error:
        raise UsageError(f"[results]: the font {str(file)!r} cannot be read", hint=hint) from error
    missing = bytes(font.getmask("\U0010fffd"))  # an unassigned code point, drawn with the glyph for missing characters
    for sample in ("A", *("\u80ba" for language in results.languages if language == "zh-Hant")):
        if bytes(font.getmask(sample)) == missing:
            raise UsageError(f"[results]: the font {str(file)!r} has no {sample!r}", hint=hint)
    return results.model_copy(update={"font": file})


def _describe(error: ValidationError) -> tuple[str, str]:
    """Return the first error of a file, and a suggestion, which may be empty.

    Unknown keys come first, since a misspelled key is also reported as missing.
    """
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    place, message = _place(first["loc"]), first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        closest = difflib.get_close_matches(str(first["loc"][-1]), _field_names(ConfigurationTable), n=1)
        return f"{place}: unknown name", f"Did you mean {closest[0]!r}?" if closest else ""
    if first["type"] == "missing":
        return f"{place} is missing", ""
    if first["type"] in ("tuple_type", "list_type") and len(first["loc"]) == 1:
        return f"{place}: write [[{place}]] with two brackets", ""
    return f"{place}: {message}" if place else message, ""


def _place(location: Sequence[int | str]) -> str:
    """Return the location of a value, such as "node.port" or "rules (table 1).action" for the first table [[rules]]."""
    text = ""
    for part in location:
        text += f" (table {part + 1})" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _field_names(model: type[BaseModel]) -> set[str]:
    """Return the field names of a model and all models derived from it."""
    return set(model.model_fields).union(*map(_field_names, model.__subclasses__()))


def _node(parsed: _File, folder: Path) -> DicomSettings | None:
    if parsed.node is None:
        if parsed.peers:
            raise UsageError("peers without [node]: no peer could connect", hint="Add [node] with a port")
        return None
    node = parsed.node
    files = [node.tls_certificate, node.tls_key, node.tls_client_ca]
    if any(files) and not all(files):
        raise UsageError("TLS needs all of tls_certificate, tls_key and tls_client_ca", hint="See [node]")
    if not parsed.peers:
        raise UsageError(
            "[node] has no peers, so no node could connect",
            hint="Add a [[peers]] entry for each node that may send images",
        )
    peers = (parse_peer(f"{peer.name}={peer.ae_title}@{_bracketed(peer.host)}:{peer.port}") for peer in parsed.peers)
    server, client = tls_contexts(*(folder / each for each in files if each)) if all(files) else (None, None)
    return DicomSettings(
        host=node.host,
        port=node.port,
        ae_title=node.ae_title,
        peers=tuple(peers),
        tls=server,
        client_tls=client,
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _with_absolute_paths(record: _WithFiles, folder: Path) -> _WithFiles:
    paths = {name: folder / value for name, value in record if isinstance(value, Path)}
    return record.model_copy(update=paths)
