"""Instances available through DICOMweb: stored images, and their results, generated as objects of the same studies.

An image is available if its file has a preamble and a readable header whose UIDs and patient match the identity in the
database. After a correction of the identity, the file names another patient or study, so it is excluded.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from fastapi.concurrency import run_in_threadpool
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from pneumoscope.core.errors import GoneError, TooLargeError, UnreadableImageError
from pneumoscope.core.identity import Identity, is_same_person
from pneumoscope.imaging.dicom_elements import MAX_HEADER_BYTES, read_first_elements
from pneumoscope.imaging.header_identity import read_identity
from pneumoscope.inference.model import Model
from pneumoscope.service.dicom.configuration import ResultSettings
from pneumoscope.service.dicom.header import read_header
from pneumoscope.service.dicom.matching import ATTRIBUTES, Level, SearchQuery
from pneumoscope.service.dicom.rendered_image import convert_image, draw_capture
from pneumoscope.service.rendering import ImageRenderer
from pneumoscope.service.storage.dicom_files import DicomFiles, PredictedFile, StudyFilter
from pneumoscope.service.storage.outbox_records import ObjectKind, result_uid
from pneumoscope.service.storage.records import StoredPrediction
from pneumoscope.service.storage.repository import PredictionRepository

__all__ = ["SearchResult", "StoredInstance", "StoredInstances"]

_BATCH = 50  # studies whose headers are read at a time
_PREFIX = slice(128, 132)  # "DICM", after the preamble
_MAX_LOADED = 2  # files partly read into memory at once, some including their pixels
MAX_SEARCHES = 2  # concurrent searches
MAX_FILES = 2000  # files whose headers one search reads
MAX_RETRIEVED = 1000  # images per retrieve, besides their results; the attributes are held in memory
_FIRST_BYTES = 64 * 2**10  # enough for most headers
_MAX_TEXT = 1024  # characters of a value in search results
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")  # other dates are unparsed text from the header
_FURTHER_ELEMENTS = (
    "SeriesNumber", "SeriesDescription", "SeriesDate", "SeriesTime", "BodyPartExamined", "InstanceNumber",
    "BitsAllocated", "NumberOfFrames",
)  # fmt: skip
_LAST_ELEMENT = 0x00280100  # BitsAllocated: the last one in file order, also after those of `header`
# Attributes taken from the database, because a header may lack them or their character set.
_IDENTITY_KEYWORDS = {
    "patient_name": "PatientName",
    "patient_birth_date": "PatientBirthDate",
    "patient_sex": "PatientSex",
    "accession_number": "AccessionNumber",
    "study_date": "StudyDate",
    "study_description": "StudyDescription",
}


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class StoredInstance:
    """A DICOM instance that can be retrieved.

    Attributes:
        prediction: Prediction of the image.
        kind: Kind of result; None for the image itself.
        attributes: Attributes for searches.
        transfer_syntax: Transfer syntax of the file.
    """

    prediction: StoredPrediction
    kind: ObjectKind | None
    attributes: Dataset
    transfer_syntax: str

    @property
    def uids(self) -> tuple[str, str, str]:
        """Study, Series and SOP Instance UID."""
        names = "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"
        study, series, instance = (str(self.attributes[name].value) for name in names)
        return study, series, instance


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class SearchResult:
    """The result of a search.

    Attributes:
        found: Studies, series or instances.
        has_more: Whether there are matches beyond the requested limit.
        is_partial: Whether the search ended before reading all files, so that studies received earlier may be missing.
    """

    found: list[Dataset]
    has_more: bool = False
    is_partial: bool = False


@dataclasses.dataclass(slots=True)
class _FileLimit:
    """The number of files whose headers may still be read; `is_exceeded` is set once files were skipped."""

    left: int
    is_exceeded: bool = False


class StoredInstances:
    """The stored instances of a service, with searches and access to their files.

    Args:
        model: Reads headers and frames, in worker processes.
        repository: Storage of predictions and images.
        renderer: Renders images and creates results.
        results: Kinds of results, and the description of their series.
        is_pseudonymized: Whether images are stored without their headers, in which case no instance is available.
    Attributes:
        files: The stored images, which it reads.
    """

    def __init__(
        self,
        model: Model,
        repository: PredictionRepository,
        renderer: ImageRenderer,
        results: ResultSettings,
        *,
        is_pseudonymized: bool,
    ) -> None:
        self._model = model
        self.files, self._renderer = DicomFiles(repository.engine, repository.storage.blobs), renderer
        self._results, self._is_pseudonymized = results, is_pseudonymized
        self._has_results = importlib.util.find_spec("highdicom") is not None  # an optional dependency
        self._loading, self._searching = asyncio.Semaphore(_MAX_LOADED), asyncio.Semaphore(MAX_SEARCHES)

    async def search(self, query: SearchQuery, level: Level, study: str = "", series: str = "") -> SearchResult:
        """Return the matching studies, series or instances, most recently received study first.

        The search also reads the headers of files that do not match or are skipped. Their number is limited, so a
        search may end early. At most two searches run at once; others wait.

        Args:
            query: Conditions and page of the results.
            level: Level of the results.
            study, series: UIDs in the path; empty if there are none.
        Raises:
            StorageError: The database or a file cannot be read.
        """
        async with self._searching:
            return await run_in_threadpool(self._search, query, level, study, series)

    def _search(self, query: SearchQuery, level: Level, study: str, series: str) -> SearchResult:
        found: list[Dataset] = []
        skipped, limit = 0, _FileLimit(MAX_FILES)
        for instances in self._studies(query.study_filter(study), limit):
            for attributes in _summaries(instances, level):
                if (series and attributes.SeriesInstanceUID != series) or not query.matches(attributes):
                    continue
                if skipped < query.offset:
                    skipped += 1
                elif len(found) == query.limit:
                    return SearchResult(found, has_more=True)
                else:
                    found.append(attributes)
        return SearchResult(found, is_partial=limit.is_exceeded)

    def instances(self, study: str, series: str = "", instance: str = "") -> list[StoredInstance]:
        """Return the instances of a study or series, or a single instance; empty if these UIDs do not exist.

        Raises:
            TooLargeError: There are too many images.
            StorageError: The database or a file cannot be read.
        """
        stored = [] if self._is_pseudonymized else self._predictions(study, series, instance)
        images = self._study_images([(each, each.identity or Identity()) for each in stored])
        found = self._with_results(images, self.files.result_uids([each.id for each in stored]))
        return [each for each in found if series in ("", each.uids[1]) and instance in ("", each.uids[2])]

    def _predictions(self, study: str, series: str, instance: str) -> list[StoredPrediction]:
        """Return the predictions of the images with these UIDs, or of the image whose result has them.

        Raises:
            TooLargeError: There are too many images to retrieve.
        """
        files = self.files.predicted(study)
        if series:
            of_series = [each for each in files if each.series_instance_uid == series]
            of_image = [each for each in of_series if instance in ("", each.sop_instance_uid)]
            if not of_image:
                # The database contains the UIDs of images, but not of all results.
                sop_uid = self._image_of_result(files, series, instance)
                return self.files.images([study], sop_uid=sop_uid) if sop_uid else []
            files = of_image
        if len({each.pixel_sha256 for each in files}) > MAX_RETRIEVED:
            raise TooLargeError(
                f"too many images; the limit of a retrieve is {MAX_RETRIEVED:,}",
                hint="Retrieve single series or instances",
            )
        return self.files.images([study], series_uid=series, sop_uid=instance)

    def _image_of_result(self, files: Sequence[PredictedFile], series: str, instance: str) -> str:
        """Return the SOP Instance UID of the image whose result has these UIDs; empty if there is none among these files."""
        if not self._has_results:
            return ""
        from pneumoscope.service.dicom.results import series_uid

        delivered = self.files.result_uids([each.prediction_id for each in files])
        kinds = {*self._results.kinds(has_heatmap=True), *self._results.kinds(has_heatmap=False)}
        for each in files:
            for kind in kinds:
                uid = _result_uid(delivered, each.prediction_id, each.sop_instance_uid, kind)
                if instance in ("", uid) and series_uid(uid) == series:
                    return each.sop_instance_uid
        return ""

    async def open(self, instance: StoredInstance) -> BinaryIO:
        """Return the file of an instance; the caller must close it.

        Raises:
            GoneError: The file was removed.
            UnreadableImageError: The file can no longer be decoded.
            StorageError: The file cannot be read.
        """
        if instance.kind is None:
            return await run_in_threadpool(self.files.open, instance.prediction)
        return io.BytesIO(await self._renderer.result(instance.prediction.id, instance.kind, instance.uids[2]))

    async def metadata(self, instance: StoredInstance) -> bytes:
        """Return an instance's header as DICOM JSON, without pixels and other long binary values; see `open`."""
        async with self._loading:
            with await self.open(instance) as file:
                return await run_in_threadpool(lambda: self._model.read_part(file.read(MAX_HEADER_BYTES), "header"))

    async def frame(self, instance: StoredInstance) -> bytes | None:
        """Return the single frame of an instance as stored, little-endian; None if it has no pixels. See `open`."""
        async with self._loading:
            with await self.open(instance) as file:
                return await run_in_threadpool(lambda: self._model.read_part(file.read(), "frame")) or None

    async def rendered(self, instance: StoredInstance, media_type: str) -> bytes | None:
        """Return an instance as image/png or image/jpeg; None if it has no pixels. See `open`."""
        if instance.kind not in (None, "secondary_capture"):
            return None
        if instance.kind is None:
            png = await self._renderer.image(instance.prediction.id)
            return png if media_type == "image/png" else await run_in_threadpool(convert_image, png, media_type)
        async with self._loading:
            with await self.open(instance) as file:
                return await run_in_threadpool(draw_capture, file, media_type)

    def _studies(self, where: StudyFilter, limit: _FileLimit) -> Iterator[list[StoredInstance]]:
        """Yield the available instances of each matching study, up to the file limit; studies without any are skipped."""
        uids = [] if self._is_pseudonymized else self.files.study_uids(where)
        for start in range(0, len(uids), _BATCH):
            batch = uids[start : start + _BATCH]
            stored: dict[str, list[tuple[StoredPrediction, Identity]]] = {uid: [] for uid in batch}
            for prediction in self.files.images(batch):
                identity = prediction.identity or Identity()
                stored[identity.study_instance_uid].append((prediction, identity))
            delivered = self.files.result_uids([each.id for study in stored.values() for each, _ in study])
            for study in stored.values():
                if images := self._study_images(study, limit):
                    yield self._with_results(images, delivered)
                if limit.is_exceeded:
                    return

    def _with_results(
        self, images: Sequence[StoredInstance], delivered: dict[tuple[str, str, str], str]
    ) -> list[StoredInstance]:
        return [*images, *(result for image in images for result in self._results_of(image, delivered))]

    def _study_images(
        self, stored: Sequence[tuple[StoredPrediction, Identity]], limit: _FileLimit | None = None
    ) -> list[StoredInstance]:
        """Return the available images of a study, and count the files read against the limit."""
        found: dict[str, StoredInstance] = {}
        for prediction, identity in stored:
            if identity.sop_instance_uid in found:
                continue  # the latest prediction of an image comes first
            if limit:
                if limit.left <= 0:
                    limit.is_exceeded = True
                    break
                limit.left -= 1
            if image := self._image(prediction, identity):
                found[identity.sop_instance_uid] = image
        return list(found.values())[::-1]

    def _image(self, prediction: StoredPrediction, identity: Identity) -> StoredInstance | None:
        """Return the image of a prediction, or None if it is not available."""
        try:
            beginning, further = self._beginning(prediction)
            header = read_header(beginning)
        except (GoneError, UnreadableImageError):
            return None
        stated = read_identity(header) or Identity()
        uids = ("study_instance_uid", "series_instance_uid", "sop_instance_uid")
        if (
            beginning[_PREFIX] != b"DICM"
            or any(getattr(stated, name) != getattr(identity, name) for name in (*uids, "patient_id"))
            or not is_same_person(stated, identity)
        ):
            return None
        header.update(further)
        for name, keyword in _IDENTITY_KEYWORDS.items():
            value = getattr(identity, name)
            if name.endswith("_date"):
                value = value.replace("-", "") if _DATE.fullmatch(value) else ""
            setattr(header, keyword, value)
        for element in header:
            if len(str(element.value)) > _MAX_TEXT:
                element.value = None
        syntax = str(header.file_meta.get("TransferSyntaxUID", ExplicitVRLittleEndian))
        return StoredInstance(prediction, None, header, syntax)

    def _beginning(self, prediction: StoredPrediction) -> tuple[bytes, Dataset]:
        """Return the beginning of a file, including the whole header, and its further elements."""
        beginning = self.files.beginning(prediction, _FIRST_BYTES)
        further = _further_elements(beginning)
        if not further.get("BitsAllocated") and len(beginning) == _FIRST_BYTES:
            beginning = self.files.beginning(prediction, MAX_HEADER_BYTES)
            further = _further_elements(beginning)
        return beginning, further

    def _results_of(
        self, image: StoredInstance, delivered: dict[tuple[str, str, str], str]
    ) -> Iterator[StoredInstance]:
        """Yield the results of an image."""
        if not self._has_results:
            return
        from pneumoscope.service.dicom.results import Result, describe

        prediction, header = image.prediction, image.attributes
        for kind in self._results.kinds(has_heatmap=self._renderer.has_heatmap(prediction)):
            uid = _result_uid(delivered, prediction.id, image.uids[2], kind)
            result = Result(uid, prediction, prediction.created, header, self._results)
            attributes = _selected(header, ATTRIBUTES["study"])
            attributes.update(describe(result, kind))
            yield StoredInstance(prediction, kind, attributes, str(ExplicitVRLittleEndian))


def _result_uid(
    delivered: Mapping[tuple[str, str, str], str], prediction_id: str, sop_instance_uid: str, kind: ObjectKind
) -> str:
    """Return the UID under which a result is delivered, or else the derived UID."""
    return delivered.get((prediction_id, sop_instance_uid, kind)) or result_uid(kind, sop_instance_uid, prediction_id)


def _further_elements(beginning: bytes) -> Dataset:
    """Return elements that only describe a series or an instance; invalid ones are omitted."""
    header, found = Dataset(), Dataset()
    with contextlib.suppress(Exception):  # as below
        header = read_first_elements(beginning, ["SpecificCharacterSet", *_FURTHER_ELEMENTS], _LAST_ELEMENT)
    for keyword in _FURTHER_ELEMENTS:
        with contextlib.suppress(Exception):  # untrusted bytes: pydicom may raise any type of error
            if keyword in header:
                setattr(found, keyword, header[keyword].value)
    return found


def _selected(source: Dataset, keywords: Sequence[str]) -> Dataset:
    selected = Dataset()
    for keyword in keywords:
        if keyword in source:
            setattr(selected, keyword, source[keyword].value)
    return selected


def _summaries(instances: Sequence[StoredInstance], level: Level) -> Iterator[Dataset]:
    """Yield the attributes of the study, its series or its instances, depending on the level."""
    study = _selected(instances[0].attributes, ATTRIBUTES["study"])
    study.ModalitiesInStudy = sorted({str(each.attributes.get("Modality") or "") for each in instances} - {""})
    series: dict[str, list[StoredInstance]] = {}
    for each in instances:
        series.setdefault(each.uids[1], []).append(each)
    study.NumberOfStudyRelatedSeries, study.NumberOfStudyRelatedInstances = len(series), len(instances)
    if level == "study":
        yield study
        return
    for members in series.values():
        of_series = _selected(members[0].attributes, ATTRIBUTES["series"])
        of_series.update(study)
        of_series.NumberOfSeriesRelatedInstances = len(members)
        if level == "series":
            yield of_series
            continue
        for each in members:
            of_instance = _selected(each.attributes, ATTRIBUTES["instance"])
            of_instance.update(of_series)
            yield of_instance
