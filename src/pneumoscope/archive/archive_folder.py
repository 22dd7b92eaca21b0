"""Folder of an archive's results: layout, settings and prediction sets.

archive.json                  source, shard size
archive.lock                  held by the process that scores
archive.log                   one line per finished shard
listing/rows-000000.parquet   row number, shard, name, size and time of each image
listing/skipped.parquet       other files of the source
sets/KEY.json                 model, site profile, operating point, ...
cards/KEY.json                card of the model, with the changes of the site profile
sets/KEY.jsonl                the journal: one line per finished shard, with the hash of its file
predictions/model=KEY/shard-000000.parquet
heatmaps/model=KEY/shard-000000.zip

`predictions` contains only Parquet files, so that other programs can read it as one data set.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from pneumoscope.archive.journal import Entry, StoredFile, drop_torn_line, read_journal
from pneumoscope.core.errors import ArchiveError, StorageError, UnknownNameError, UsageError
from pneumoscope.core.files import is_temporary, locked, write_atomically
from pneumoscope.core.prediction_codes import AgeRequirement, Assumption

if TYPE_CHECKING:
    from pneumoscope.inference.model import Model

__all__ = ["SHARD_SIZE", "ArchiveFolder", "ArchiveSettings", "PredictionSet", "SetSettings"]

SHARD_SIZE = 256

_FORMAT = 1
_PREFIX = "model="  # prefix of set folders, which makes DuckDB, Polars and Spark add a column `model`
_SHARD = re.compile(r"shard-(\d{6,})\.(?:parquet|zip)")
_MIN_KEY = 6  # minimum characters of an abbreviated key


class ArchiveSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of `archive.json`, which never changes.

    Attributes:
        source: Location of the source.
        kind: Kind of the source, see `sources.Source`.
        shard_size: Images per shard.
        format: Version of the layout.
    """

    source: str
    kind: str
    shard_size: int
    format: int = _FORMAT


class SetSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of `sets/KEY.json`: all settings that affect the predictions of a set.

    Attributes:
        model: Name of the model.
        model_sha256, card_sha256: Hashes of the network and the card, as updated by the site profile.
        site, prevalence: Label of the site profile, and the requested prevalence; see `core.prediction.ModelInfo`.
        operating_point, require_age, assumptions: See `inference.model.load_model`.
        identifiers: Whether the table contains identifiers; see `table.IDENTIFIERS`.
        notice: Notice of the model.
        format: Version of the table.
    """

    model: str
    model_sha256: str
    card_sha256: str
    site: str
    prevalence: float | None
    operating_point: str
    require_age: AgeRequirement
    assumptions: list[Assumption]
    identifiers: bool
    notice: str
    format: int = _FORMAT

    @classmethod
    def of_model(cls, model: Model, *, identifiers: bool) -> SetSettings:
        """Return the settings of a loaded model."""
        return cls(
            model=model.facts.name,
            model_sha256=model.facts.sha256,
            card_sha256=model.card.sha256(),
            site=model.facts.site,
            prevalence=model.facts.prevalence,
            operating_point=model.operating_point_name,
            require_age=model.require_age,
            assumptions=model.assumptions,
            identifiers=identifiers,
            notice=model.notice,
        )

    @property
    def key(self) -> str:
        """Short hashes of the network and of all settings."""
        digest = hashlib.sha256(msgspec.json.encode(self)).hexdigest()
        return f"{self.model_sha256[:8]}-{digest[:8]}"


class PredictionSet:
    """Predictions of one model with particular settings.

    Attributes:
        key: Name of the set.
        settings: Settings that affect the predictions.
        path: Folder of the shards.
        heatmaps: Folder of the heatmaps, which need not exist.
        journal, card: Files of the set; see `journal` and `bundle.card`.
    """

    def __init__(self, archive: Path, settings: SetSettings) -> None:
        self.settings, self.key = settings, settings.key
        self.path = archive / "predictions" / f"{_PREFIX}{self.key}"
        self.heatmaps = archive / "heatmaps" / f"{_PREFIX}{self.key}"
        self.journal = archive / "sets" / f"{self.key}.jsonl"
        self.card = archive / "cards" / f"{self.key}.json"

    def shard_path(self, number: int) -> Path:
        """Return the path of a shard's predictions."""
        return self.path / f"shard-{number:06d}.parquet"

    def heatmaps_path(self, number: int) -> Path:
        """Return the path of a shard's heatmaps."""
        return self.heatmaps / f"shard-{number:06d}.zip"

    def finished(self, shards: int, *, heatmaps: bool = False) -> dict[int, Entry]:
        """Return the journal entries of finished shards whose files exist with the recorded sizes.

        Args:
            shards: Number of listed shards; entries beyond it are ignored.
            heatmaps: Whether a finished shard needs heatmaps.
        """
        return {
            number: entry
            for number, entry in read_journal(self.journal).items()
            if number < shards
            and _has_size(self.shard_path(number), entry.table)
            and (not heatmaps or _has_size(self.heatmaps_path(number), entry.heatmaps))
        }

    def files(self) -> dict[int, Path]:
        """Return the prediction files by shard number, including those not in the journal."""
        return _numbered(self.path, self.shard_path)

    def heatmap_files(self) -> dict[int, Path]:
        """Return the heatmap files by shard number, including those not in the journal."""
        return _numbered(self.heatmaps, self.heatmaps_path)

    def prepare(self, card: str) -> None:
        """Write the settings and the card, and remove leftovers of a killed process. The caller must hold the lock."""
        _remove_temporary_files(self.path)
        _remove_temporary_files(self.heatmaps)
        write_atomically(self.card, card)
        write_atomically(self.journal.with_suffix(".json"), _to_json(self.settings))
        drop_torn_line(self.journal)


class ArchiveFolder:
    """Folder of an archive's results.

    Attributes:
        path: Path of the folder.
        settings: Content of `archive.json`.
    """

    def __init__(self, path: Path, settings: ArchiveSettings) -> None:
        self.path, self.settings = path, settings
        self.listing = path / "listing"
        self.log = path / "archive.log"

    @classmethod
    def open(cls, path: Path) -> ArchiveFolder:
        """Open an existing folder.

        Raises:
            UsageError: The folder is not an archive.
            ArchiveError: `archive.json` is damaged.
        """
        try:
            content = (path / "archive.json").read_bytes()
        except OSError as error:
            raise UsageError(
                f"{str(path)!r} has no archive.json: {error.strerror or error}",
                hint="Create an archive with: pneumoscope archive score SOURCE --out DIR",
            ) from error
        try:
            return cls(path, msgspec.json.decode(content, type=ArchiveSettings))
        except msgspec.DecodeError as error:
            raise ArchiveError(
                f"{str(path / 'archive.json')!r} cannot be used: {error}",
                hint="Restore it from a backup, or install the version of pneumoscope that wrote it",
            ) from error

    @classmethod
    @contextlib.contextmanager
    def hold(cls, path: Path, source: str, kind: str, shard_size: int = 0) -> Iterator[ArchiveFolder]:
        """Yield the locked folder, creating it if necessary; the lock allows only one process at a time to score into it.

        Args:
            path: Path of the folder.
            source, kind, shard_size: See `ArchiveSettings`; a shard size of 0 uses the archive's, or `SHARD_SIZE`.

        Raises:
            StorageError: Another process holds the lock, or the folder cannot be written.
            UsageError: The folder contains other files, or belongs to a different source or has a different shard size.
        """
        if path.exists() and not (path / "archive.json").exists():
            _require_empty(path)
        held = StorageError(
            f"another process is scoring into {str(path)!r}",
            hint="Wait until it has ended; its progress is shown by: pneumoscope archive status",
        )
        with locked(path / "archive.lock", held):
            for each in (path, path / "listing", path / "sets", path / "cards"):
                _remove_temporary_files(each)
            if not (path / "archive.json").exists():
                new = ArchiveSettings(source=source, kind=kind, shard_size=shard_size or SHARD_SIZE)
                write_atomically(path / "archive.json", _to_json(new))
            folder = cls.open(path)
            settings = folder.settings
            if (settings.source, settings.kind) != (source, kind):
                raise UsageError(
                    f"{str(path)!r} has the results of {settings.source!r}, not of {source!r}",
                    hint="Choose another folder with --out",
                )
            if shard_size not in (0, settings.shard_size):
                raise UsageError(
                    f"{str(path)!r} has shards of {settings.shard_size:,} images, not of {shard_size:,}",
                    hint="Leave out --shard-size, or choose another folder with --out",
                )
            yield folder

    def prediction_set(self, settings: SetSettings) -> PredictionSet:
        """Return the set with these settings, which need not exist."""
        return PredictionSet(self.path, settings)

    def sets(self) -> list[PredictionSet]:
        """Return all sets, sorted by name.

        Raises:
            ArchiveError: The settings of a set are damaged.
        """
        found = []
        for file in sorted(self.path.glob("sets/*.json")):
            try:
                found.append(PredictionSet(self.path, msgspec.json.decode(file.read_bytes(), type=SetSettings)))
            except (msgspec.DecodeError, OSError) as error:
                raise ArchiveError(
                    f"{str(file)!r} cannot be used: {error}",
                    hint="Run the same `pneumoscope archive score` again. If another version wrote the file, install"
                    " that version, or choose another folder with --out",
                ) from error
        return found

    def find_set(self, key: str = "") -> PredictionSet:
        """Return the set with a name or unique prefix, or the only set if the name is empty.

        Raises:
            UsageError: There are no sets, or several match.
            UnknownNameError: No set matches.
        """
        sets = self.sets()
        if not sets:
            raise UsageError(
                f"{str(self.path)!r} has no predictions yet", hint="Run: pneumoscope archive score SOURCE --out DIR"
            )
        chosen = [each for each in sets if each.key.startswith(key)] if not key or len(key) >= _MIN_KEY else []
        if not chosen:
            raise UnknownNameError("set of predictions", key, [each.key for each in sets])
        if len(chosen) > 1:
            names = ", ".join(each.key for each in chosen)
            raise UsageError(
                f"{str(self.path)!r} has several sets of predictions: {names}", hint="Choose one with --set"
            )
        return chosen[0]


def _remove_temporary_files(folder: Path) -> None:
    """Remove temporary files left by killed processes from a folder, which need not exist."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if is_temporary(path.name):
                path.unlink()


def _has_size(path: Path, stored: StoredFile | None) -> bool:
    with contextlib.suppress(OSError):
        return stored is not None and path.stat().st_size == stored.bytes
    return False


def _numbered(folder: Path, path_of: Callable[[int], Path]) -> dict[int, Path]:
    return {
        int(match[1]): path
        for path in sorted(folder.glob("shard-*"))
        if (match := _SHARD.fullmatch(path.name)) and path == path_of(int(match[1]))
    }


def _require_empty(path: Path) -> None:
    others = [entry.name for entry in path.iterdir() if entry.name not in {"archive.lock", "archive.json"}]
    if not all(is_temporary(name, "archive.json") for name in others):
        raise UsageError(
            f"{str(path)!r} has other files and no archive.json", hint="Choose a new or empty folder with --out"
        )


def _to_json(settings: Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(settings), indent=1) + b"\n"
