"""The folder of an archive's results: its layout, its settings and its sets of predictions.

archive.json                  source, shard size
archive.lock                  held by the process that scores
archive.log                   one line per finished shard
listing/rows-000000.parquet   row number, shard, name, size and time of each image
listing/skipped.parquet       other files of the source
sets/KEY.json                 model, site profile, operating point, ...
cards/KEY.json                card of the model, with the changes of the site profile
sets/KEY.jsonl                the journal: one line per finished shard, with the hash of its file
predictions/model=KEY/shard-000000.parquet

Other programs read `predictions` as one data set, so that it has nothing but Parquet files.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from pneumoscope.archive.journal import drop_torn_line, read_journal
from pneumoscope.core.errors import ArchiveError, StorageError, UnknownNameError, UsageError
from pneumoscope.core.files import locked, write_atomically
from pneumoscope.core.prediction import AgeRequirement, Assumption

__all__ = ["ArchiveFolder", "ArchiveSettings", "PredictionSet", "SetSettings"]

_FORMAT = 1
_PREFIX = "model="  # of the folder of a set, so that DuckDB, Polars and Spark see a column `model`
_SHARD = re.compile(r"shard-(\d{6,})\.parquet")
_TEMPORARY = re.compile(r"\..+-[0-9a-f]{16}")  # of `core.files.write_atomically`
_MIN_KEY = 6  # characters of a key that a person may shorten


class ArchiveSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `archive.json`, which never changes.

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
    """The content of `sets/KEY.json`: everything but the images that the predictions of a set depend on.

    Attributes:
        model, model_sha256: Name of the model, and hash of its network.
        site: Label of the site profile, or the stated prevalence; see `core.prediction.ModelInfo`.
        operating_point, require_age, assumptions: See `inference.model.load_model`.
        identifiers: Whether the table has identifiers; see `table.IDENTIFIERS`.
        notice: The notice of the model.
        format: Version of the table.
    """

    model: str
    model_sha256: str
    site: str
    operating_point: str
    require_age: AgeRequirement
    assumptions: list[Assumption]
    identifiers: bool
    notice: str
    format: int = _FORMAT

    @property
    def key(self) -> str:
        """Short hash of the network, and one of all settings."""
        digest = hashlib.sha256(msgspec.json.encode(self)).hexdigest()
        return f"{self.model_sha256[:8]}-{digest[:8]}"


class PredictionSet:
    """The predictions of one model with its settings.

    Attributes:
        key: Its name.
        settings: What its predictions depend on.
        path: Folder of its shards.
        journal, card: Files of the set; see `journal` and `bundle.card`.
    """

    def __init__(self, archive: Path, settings: SetSettings) -> None:
        self.settings, self.key = settings, settings.key
        self.path = archive / "predictions" / f"{_PREFIX}{self.key}"
        self.journal = archive / "sets" / f"{self.key}.jsonl"
        self.card = archive / "cards" / f"{self.key}.json"

    def shard_path(self, number: int) -> Path:
        """Return the file of a shard."""
        return self.path / f"shard-{number:06d}.parquet"

    def finished(self) -> dict[int, int]:
        """Return the number of failed images of each finished shard whose file is there and has its size."""
        found = {}
        for number, entry in read_journal(self.journal).items():
            with contextlib.suppress(OSError):
                if self.shard_path(number).stat().st_size == entry.bytes:
                    found[number] = entry.failed
        return found

    def files(self) -> dict[int, Path]:
        """Return the files of shards by number, whether they are in the journal or not."""
        return {
            int(match[1]): path
            for path in sorted(self.path.glob("shard-*"))
            if (match := _SHARD.fullmatch(path.name)) and path == self.shard_path(int(match[1]))
        }

    def prepare(self, card: str) -> None:
        """Write the settings and the card, and remove what a killed process left.

        Only the holder of the lock may call this.
        """
        _remove_temporary_files(self.path)
        write_atomically(self.card, card)
        write_atomically(self.journal.with_suffix(".json"), _to_json(self.settings))
        drop_torn_line(self.journal)


class ArchiveFolder:
    """The folder of an archive's results.

    Attributes:
        path: The folder.
        settings: Content of `archive.json`.
    """

    def __init__(self, path: Path, settings: ArchiveSettings) -> None:
        self.path, self.settings = path, settings
        self.listing = path / "listing"
        self.log = path / "archive.log"

    @classmethod
    def open(cls, path: Path) -> ArchiveFolder:
        """Return an existing folder.

        Raises:
            UsageError: It is not the folder of an archive.
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
    def hold(cls, path: Path, settings: ArchiveSettings) -> Iterator[ArchiveFolder]:
        """Yield the folder with its lock, so that one process at a time scores into it; create it if it is new.

        Args:
            path: The folder.
            settings: Settings of a new archive. Of an existing one, the shard size is kept.
        Raises:
            StorageError: Another process holds the lock, or the folder cannot be written.
            UsageError: The folder has other files, or belongs to another source.
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
                write_atomically(path / "archive.json", _to_json(settings))
            folder = cls.open(path)
            if (folder.settings.source, folder.settings.kind) != (settings.source, settings.kind):
                raise UsageError(
                    f"{str(path)!r} has the results of {folder.settings.source!r}, not of {settings.source!r}",
                    hint="Choose another folder with --out",
                )
            yield folder

    def prediction_set(self, settings: SetSettings) -> PredictionSet:
        """Return the set of these settings, which need not exist."""
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
                    f"{str(file)!r} cannot be used: {error}", hint="Run the same `pneumoscope archive score` again"
                ) from error
        return found

    def find_set(self, key: str = "") -> PredictionSet:
        """Return the set of a name, or of its beginning; the only one if the name is empty.

        Raises:
            UsageError: There is no set, or there are several.
            UnknownNameError: No set has this name.
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
    """Remove the temporary files that killed processes left in a folder, which need not exist."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                path.unlink()


def _require_empty(path: Path) -> None:
    others = [entry.name for entry in path.iterdir() if entry.name not in {"archive.lock", "archive.json"}]
    if any(not name.startswith(".archive.json-") for name in others):
        raise UsageError(
            f"{str(path)!r} has other files and no archive.json", hint="Choose a new or empty folder with --out"
        )


def _to_json(settings: Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(settings), indent=1) + b"\n"
