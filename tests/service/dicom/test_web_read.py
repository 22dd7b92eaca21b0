"""QIDO-RS and WADO-RS: a DICOMweb client finds and retrieves stored images and their results, and nothing names a patient."""

import asyncio
import hashlib
import io
import itertools
import json
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pydicom
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydicom.uid import JPEGBaseline8Bit, generate_uid
from tests.conftest import SIZE
from tests.images import dicom, png
from tests.service.conftest import (
    AT_ONCE,
    TOKEN,
    insert_token_of_service,
    post,
    predicted,
    problem,
    repository_with_token,
    served,
)

from pneumoscope.core.errors import GoneError
from pneumoscope.inference.model import load_model
from pneumoscope.service.app import create_app
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.dicom import stored_instances, web_read
from pneumoscope.service.dicom.matching import parse_query
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.pseudonyms import Pseudonymizer
from pneumoscope.service.storage.repository import PredictionRepository

ANY_SYNTAX = 'multipart/related; type="application/dicom"; transfer-syntax=*'
MULTIPART = re.compile(r'multipart/related; type="(\S+)"; boundary=(\w+)')
STUDY, SERIES, INSTANCE = "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"


def instance(level=100, **elements):
    """A DICOM file with a new study, unless it is given."""
    uids = {STUDY: generate_uid(), SERIES: generate_uid(), INSTANCE: generate_uid()}
    return dicom(level, **uids | {"PatientID": "7", "PatientName": "Doe^Jane", "PatientAge": "003Y"} | elements)


def uids(content):
    header = pydicom.dcmread(io.BytesIO(content))
    return header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID


def search(client, path="studies", **parameters):
    """Return the results of a search as data sets."""
    answer = client.get(f"/dicom-web/{path}", params=parameters)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/dicom+json"), answer.text
    return [pydicom.Dataset.from_json(each) for each in answer.json()]


def address(study, series="", instance="", rest=""):
    path = f"/dicom-web/studies/{study}"
    path += f"/series/{series}" if series else ""
    path += f"/instances/{instance}" if instance else ""
    return path + rest


def parts(answer):
    """Return (Content-Type, content) of the parts of a response."""
    assert answer.status_code == 200, answer.text
    media_type, boundary = MULTIPART.fullmatch(answer.headers["Content-Type"]).groups()
    first, *found, last = answer.content.split(f"--{boundary}".encode())
    assert (first, last) == (b"", b"--\r\n")
    heads_and_contents = [each.removesuffix(b"\r\n").partition(b"\r\n\r\n") for each in found]
    types = [head.decode().strip().removeprefix("Content-Type: ") for head, _, _ in heads_and_contents]
    assert all(each.startswith(media_type) for each in types)
    return [(name, content) for name, (_, _, content) in zip(types, heads_and_contents, strict=True)]


def images(found):
    """Return those that are not results."""
    return [each for each in found if each.get("Manufacturer") != "pneumoscope"]


@pytest.fixture
def app(model):
    settings = Settings(max_images=8, max_body_bytes=10**7, dicom=AT_ONCE)
    return create_app(model, PredictionRepository(None), settings)


# --- QIDO-RS -------------------------------------------------------------------------------------------------------------


def test_search_lists_a_study_with_its_attributes(client):
    sent = instance(StudyDate="20260131", StudyTime="101530", AccessionNumber="A1", StudyID="S1", PatientSex="F",
                    PatientBirthDate="20230115", ReferringPhysicianName="House^Gregory")  # fmt: skip
    post(client, sent)
    (found,) = search(client)
    expected = pydicom.dcmread(io.BytesIO(sent))
    for keyword in (STUDY, "StudyDate", "StudyTime", "AccessionNumber", "StudyID", "PatientID", "PatientName",
                    "PatientSex", "PatientBirthDate", "ReferringPhysicianName"):  # fmt: skip
        assert found[keyword].value == expected[keyword].value, keyword
    assert found.RetrieveURL == f"http://127.0.0.1:8000{address(uids(sent)[0])}"
    assert "DX" in found.ModalitiesInStudy


def test_results_are_instances_of_the_study_of_the_image(client):
    pytest.importorskip("highdicom", reason="[pacs] is not installed")
    sent = instance()
    post(client, sent)
    study, _, image = uids(sent)
    (found,) = search(client)
    assert (found.ModalitiesInStudy, found.NumberOfStudyRelatedSeries, found.NumberOfStudyRelatedInstances) == (
        ["DX", "OT", "SR"], 3, 3
    )  # fmt: skip
    series = search(client, f"studies/{study}/series")
    assert {each.Modality for each in series} == {"DX", "OT", "SR"}
    listed = search(client, f"studies/{study}/instances")
    assert [each.SOPInstanceUID for each in images(listed)] == [image]
    retrieved = [pydicom.dcmread(io.BytesIO(content)) for _, content in parts(client.get(address(study)))]
    keywords = ("SOPClassUID", INSTANCE, SERIES, STUDY, "Modality", "SeriesNumber", "SeriesDescription", "InstanceNumber",
                "PatientID", "SeriesDate", "SeriesTime", "Manufacturer")  # fmt: skip
    for one, other in zip(listed, retrieved, strict=True):
        # The search states the same as the object.
        assert {each: one.get(each) for each in keywords} == {
            each: other.get(each) or one.get(each) for each in keywords
        }


def test_results_are_those_of_the_latest_prediction(model):
    pytest.importorskip("highdicom", reason="[pacs] is not installed")
    with TestClient(create_app(model, PredictionRepository(None)), base_url="http://127.0.0.1:8000") as client:
        sent = instance(PatientAge="")
        (first,) = post(client, sent)
        listed = {each.SOPInstanceUID for each in search(client, "instances")}
        again = client.post("/v1/predictions?age=4", files=[("images", ("a", sent))]).json()["predictions"][0]
        assert again["id"] != first["id"]
        later = {each.SOPInstanceUID for each in search(client, "instances")}
        assert len(listed) == len(later) == 3
        assert listed & later == {uids(sent)[2]}


def test_result_has_the_uid_under_which_it_is_delivered(model, tmp_path):
    pytest.importorskip("highdicom", reason="[pacs] is not installed")
    from tests.service.dicom.nodes import association, node

    repository = PredictionRepository(tmp_path / "data")
    with node(model, repository) as (client, opened), association(opened) as sender:
        sent = pydicom.dcmread(io.BytesIO(instance()))
        for _ in range(2):
            assert sender.send_c_store(sent).Status == 0
            (found,) = predicted(client)
            waiting = repository.outbox.find(["waiting"])
            delivered = {each.result_uid for each in waiting if each.kind != "rejection_note"}
            listed = {each.SOPInstanceUID for each in search(client, "instances")} - {sent.SOPInstanceUID}
            assert len(delivered) == 2
            assert listed == delivered
            repository.outbox.record_delivered(waiting, datetime.now(UTC))
            client.delete(
                f"/v1/predictions/{found['id']}"
            )  # the results are withdrawn, and have other UIDs the next time


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, "abc"),
        ({"PatientID": "1"}, "a"),
        ({"00100020": "1"}, "a"),
        ({"PatientID": "1*"}, "ac"),
        ({"PatientID": "?"}, "ab"),
        ({"PatientID": "11"}, "c"),
        ({"PatientName": "doe^jane"}, "a"),
        ({"PatientName": "DOE*"}, "ac"),
        ({"PatientName": "*ane*"}, "a"),
        ({"PatientName": "D?e^*"}, "ac"),
        ({"PatientName": "*王*"}, "b"),
        ({"PatientName": "Wang^XiaoDong"}, "b"),
        ({"PatientName": "*[jane]*"}, ""),
        ({"PatientName": "*"}, "abc"),
        ({"PatientName": ""}, "abc"),
        ({"AccessionNumber": "A1"}, "a"),
        ({"AccessionNumber": "A*"}, "ab"),
        ({"StudyDate": "20260131"}, "a"),
        ({"StudyDate": "2026-01-31"}, "a"),
        ({"StudyDate": "20260201-"}, "b"),
        ({"StudyDate": "-20260131"}, "a"),
        ({"StudyDate": "20260131-20260201"}, "ab"),
        ({"StudyDate": "2026-01-31-2026-02-01"}, "ab"),
        ({"StudyDate": "20250101-20250201"}, ""),
        ({"StudyTime": "10"}, "a"),
        ({"StudyTime": "1000-1030"}, "a"),
        ({"StudyTime": "1030-"}, ""),
        ({"ModalitiesInStudy": "CR"}, "b"),
        ({"ModalitiesInStudy": "CR,DX"}, "abc"),
        ({"ModalitiesInStudy": "MR"}, ""),
        ({"PatientSex": "F"}, "a"),
        ({"StudyDescription": "thorax*"}, "a"),
        ({"PatientID": "1", "AccessionNumber": "A2"}, ""),
        ({"PatientID": "'; DROP TABLE studies"}, ""),
        ({"PatientID": "%"}, ""),
        ({"PatientName": "_oe*"}, ""),
        ({"includefield": "all", "PatientID": "1"}, "a"),
        ({"fuzzymatching": "false", "PatientID": "1"}, "a"),
    ],
)
def test_search_matches_attributes(matched_client, parameters, expected):
    client, by_uid = matched_client
    found = search(client, **parameters)
    assert sorted(by_uid[each.StudyInstanceUID] for each in found) == sorted(expected)


@pytest.fixture(scope="module")
def matched_client(shared_maker):
    """A client of a service with the studies a, b and c."""
    folder = shared_maker.root / "matched"
    if not folder.exists():  # the tests of this module may be divided among processes
        shared_maker.bundle(folder, gain=0.05)
    sent = {
        "a": instance(90, PatientID="1", PatientName="Doe^Jane", AccessionNumber="A1", StudyDate="20260131",
                      StudyTime="101530", PatientSex="F", StudyDescription="thorax pa"),
        "b": instance(100, PatientID="2", PatientName="Wang^XiaoDong=王^小東", SpecificCharacterSet="ISO_IR 192",
                      AccessionNumber="A2", StudyDate="20260201", Modality="CR"),
        "c": instance(110, PatientID="11", PatientName="DOE^JOHN"),
    }  # fmt: skip
    settings = Settings(dicom=AT_ONCE)
    with TestClient(
        create_app(load_model(folder, threads=1), PredictionRepository(None), settings),
        base_url="http://127.0.0.1:8000",
    ) as client:
        for content in sent.values():
            post(client, content)
        yield client, {uids(content)[0]: name for name, content in sent.items()}


def test_list_of_uids_matches_each(matched_client):
    client, by_uid = matched_client
    first, second, _ = by_uid
    for separator in (",", "\\"):
        found = search(client, StudyInstanceUID=f"{first}{separator}{second}")
        assert {each.StudyInstanceUID for each in found} == {first, second}


def test_series_and_instances_are_searched_across_studies(matched_client):
    client, _ = matched_client
    (series,) = search(client, "series", Modality="CR")
    assert (series.PatientID, series.Modality) == ("2", "CR")
    (found,) = search(
        client, "instances", SOPInstanceUID=images(search(client, "instances", PatientID="2"))[0].SOPInstanceUID
    )
    assert (found.SeriesInstanceUID, found.Rows) == (series.SeriesInstanceUID, SIZE)
    assert search(client, f"studies/{found.StudyInstanceUID}/series/{series.SeriesInstanceUID}/instances") == [found]
    assert search(client, f"studies/{found.StudyInstanceUID}/series/1.2/instances") == []
    assert search(client, "studies/1.2.3/series") == []


def test_pages_contain_each_study_once_and_say_that_there_are_more(matched_client):
    client, by_uid = matched_client
    pages = [client.get("/dicom-web/studies", params={"limit": 2, "offset": offset}) for offset in (0, 2, 4)]
    found = [pydicom.Dataset.from_json(each).StudyInstanceUID for page in pages for each in page.json()]
    assert [len(page.json()) for page in pages] == [2, 1, 0]
    assert set(found) == set(by_uid)
    assert ["more than 2 results" in page.headers.get("Warning", "") for page in pages] == [True, False, False]


def reads(client, monkeypatch):
    """Return a list to which the sizes are added that are read of stored files."""
    sizes, stored = [], type(client.app.state.stored_instances.files)
    read = stored.beginning

    def record(self, prediction, size):
        sizes.append(size)
        return read(self, prediction, size)

    monkeypatch.setattr(stored, "beginning", record)
    return sizes


@pytest.mark.parametrize("parameters", [{"Modality": "XX"}, {"ModalitiesInStudy": "MR"}, {"offset": 999_999_999}, {}])
def test_search_that_reads_too_many_files_is_incomplete_with_a_warning(matched_client, monkeypatch, parameters):
    client, by_uid = matched_client
    monkeypatch.setattr(stored_instances, "MAX_FILES", 2)
    sizes = reads(client, monkeypatch)
    level = "series" if "Modality" in parameters else "studies"
    answer = client.get(f"/dicom-web/{level}", params=parameters)
    assert len(sizes) == 2
    assert len(answer.json()) == (0 if parameters else 2)
    assert answer.headers["Warning"].startswith('299 pneumoscope "The results are incomplete')
    complete = client.get("/dicom-web/studies", params={"AccessionNumber": "A1"})
    assert [by_uid[pydicom.Dataset.from_json(each).StudyInstanceUID] for each in complete.json()] == ["a"]
    assert "Warning" not in complete.headers
    monkeypatch.setattr(stored_instances, "MAX_FILES", 3)
    assert "Warning" not in client.get("/dicom-web/studies").headers


def post_study(client, count):
    """Store images of one study, each in its own series, and return their files."""
    sent = [
        instance(90 + 10 * number, StudyInstanceUID="1.2", SeriesInstanceUID=f"1.2.{number}") for number in range(count)
    ]
    post(client, *sent)
    return sent


def test_search_reads_no_more_files_of_one_study_either(client, monkeypatch):
    post_study(client, 3)
    monkeypatch.setattr(stored_instances, "MAX_FILES", 2)
    sizes = reads(client, monkeypatch)
    answer = client.get("/dicom-web/studies/1.2/instances")
    assert len(sizes) == len(images([pydicom.Dataset.from_json(each) for each in answer.json()])) == 2
    assert answer.headers["Warning"].startswith('299 pneumoscope "The results are incomplete')


def test_study_of_too_many_images_is_retrieved_by_series_only(client, monkeypatch):
    sent = post_study(client, 3)
    monkeypatch.setattr(stored_instances, "MAX_RETRIEVED", 2)
    for rest in ("", "/metadata"):
        problem(client.get(address("1.2") + rest), 413, "too_large")
        for each in sent:
            assert client.get(address(*uids(each)[:2]) + rest).status_code == 200
            assert client.get(address(*uids(each)) + rest).status_code == 200


def test_image_of_many_predictions_counts_once(model, monkeypatch):
    monkeypatch.setattr(stored_instances, "MAX_RETRIEVED", 2)
    with TestClient(create_app(model, PredictionRepository(None)), base_url="http://127.0.0.1:8000") as client:
        sent = [instance(level, PatientAge="", **{STUDY: "1.2"}) for level in (90, 110)]
        for age, each in itertools.product((2, 3, 4), sent):
            assert client.post(f"/v1/predictions?age={age}", files=[("images", ("a", each))]).status_code == 201
        assert client.get("/v1/predictions").json()["total"] == 6
        assert client.get(address("1.2"), headers={"Accept": ANY_SYNTAX}).status_code == 200
        post(client, instance(100, **{STUDY: "1.2"}))
        problem(client.get(address("1.2")), 413, "too_large")


def test_single_result_of_a_study_of_too_many_images_is_retrieved_without_reading_other_images(client, monkeypatch):
    pytest.importorskip("highdicom", reason="[pacs] is not installed")
    post_study(client, 3)
    listed = [each for each in search(client, "instances") if each.get("Manufacturer") == "pneumoscope"]
    assert len(listed) == 6
    monkeypatch.setattr(stored_instances, "MAX_RETRIEVED", 2)
    sizes = reads(client, monkeypatch)
    for each in listed:
        uid, series = each.SOPInstanceUID, each.SeriesInstanceUID
        for path in (address("1.2", series, uid), address("1.2", series)):
            ((_, content),) = parts(client.get(path))
            assert uids(content) == ("1.2", series, uid)
    assert len(sizes) == 2 * len(listed)
    other = next(each.SeriesInstanceUID for each in listed if each.SeriesInstanceUID != series)
    problem(client.get(address("1.2", other, uid)), 404, "unknown_name")


def test_one_image_of_a_study_is_retrieved_without_reading_the_others(client, monkeypatch):
    sent = post_study(client, 3)
    sizes = reads(client, monkeypatch)
    ((_, content),) = parts(client.get(address(*uids(sent[1]))))
    assert (content, len(sizes)) == (sent[1], 1)


def test_headers_of_a_study_are_read_one_after_the_other_while_they_are_sent():
    read = []

    class Stored:
        async def metadata(self, name):
            read.append(name)
            return json.dumps({"name": name}).encode()

    async def receive():
        found = []
        async for chunk in web_read.header_list(Stored(), ["a", "b", "c"], b'{"name": "a"}'):
            found.append((chunk, list(read)))
        return found

    found = asyncio.run(asyncio.wait_for(receive(), 10))
    assert [names for _, names in found] == [[], ["b"], ["b", "c"], ["b", "c"]]
    assert json.loads(b"".join(chunk for chunk, _ in found)) == [{"name": name} for name in "abc"]


def test_no_more_of_a_file_is_read_than_its_header_takes(client, monkeypatch):
    sizes = reads(client, monkeypatch)
    for extra, expected in ((0, [2**16]), (100_000, [2**16, 2**22])):
        sent = pydicom.dcmread(io.BytesIO(instance(90 + bool(extra), SeriesNumber=7)))
        sent.add_new(0x00091001, "OB", bytes(extra))  # before the series number
        file = io.BytesIO()
        sent.save_as(file, enforce_file_format=True)
        post(client, file.getvalue())
        sizes.clear()
        (found,) = images(search(client, "instances", StudyInstanceUID=sent.StudyInstanceUID))
        assert (found.SeriesNumber, found.Rows, found.BitsAllocated) == (7, SIZE, sent.BitsAllocated)
        assert sizes == expected


def test_two_searches_run_at_once(client, monkeypatch):
    running, most, lock = [], [], threading.Lock()

    def record(*_):
        with lock:
            running.append(1)
            most.append(len(running))
        time.sleep(0.2)
        with lock:
            running.pop()
        return []

    monkeypatch.setattr(type(client.app.state.stored_instances.files), "study_uids", record)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: client.get("/dicom-web/studies").status_code, range(6)))
    assert answers == 6 * [200]
    assert max(most) == 2


def test_fuzzy_matching_is_answered_with_a_warning(client):
    answer = client.get("/dicom-web/studies", params={"PatientName": "doe", "fuzzymatching": "true"})
    assert answer.headers["Warning"].startswith("299 ")
    assert "Only literal matching has been performed" in answer.headers["Warning"]


@pytest.mark.parametrize(
    "query",
    ["Rows=5", "PatientComments=CANARY", "CANARY=1", "limit=CANARY", "limit=-1", "offset=x", "StudyDate=CANARY",
     "StudyInstanceUID=CANARY", "PatientID=1&PatientID=CANARY", "PatientID=1&00100020=2", "zzzzzzzz=1"],
)  # fmt: skip
def test_search_that_is_not_understood_is_a_problem_without_its_value(client, query):
    answer = client.get(f"/dicom-web/studies?{query}")
    problem(answer, 422, "usage")
    assert "CANARY" not in answer.text


def test_many_wildcards_are_matched_at_once():
    query = parse_query([("PatientID", "*a" * 40 + "*b")], "study")
    attributes = pydicom.Dataset()
    attributes.PatientID = "a" * 64
    assert not query.matches(attributes)  # a backtracking pattern would take for ever: see the time limit of tests


# --- what is stored --------------------------------------------------------------------------------------------------------


def test_only_dicom_files_with_a_study_are_offered(client):
    bare = instance(105)[132:]  # without preamble and file meta information
    post(client, png(100), dicom(101, PatientID="7"), instance(99)[:128] + b"DICM" + instance(99)[132:])
    fields = {"study_instance_uid": "1.2", "series_instance_uid": "1.3", "sop_instance_uid": "1.4"}
    assert client.post("/v1/predictions", files=[("images", ("a", png(90)))], data=fields).status_code == 201
    client.post("/v1/predictions", files=[("images", ("bare", bare))])
    assert len(search(client)) == 1
    problem(client.get(address("1.2")), 404, "unknown_name")


def test_image_of_a_corrected_identity_is_not_offered(client):
    sent = instance()
    (found,) = post(client, sent)
    identity = found["identity"]
    for changed, is_offered in (("patient_birth_date", True), ("patient_id", False)):
        identity |= {changed: {"patient_birth_date": "2023-01-15", "patient_id": "8"}[changed]}
        body = {name: value for name, value in identity.items() if isinstance(value, str)}
        answer = client.put(f"/v1/predictions/{found['id']}/identity", json=body)
        assert answer.status_code == 200, answer.text
        assert bool(search(client)) is is_offered
        assert (client.get(address(uids(sent)[0])).status_code == 200) is is_offered


def test_removed_image_is_not_offered(client):
    sent = instance()
    (found,) = post(client, sent)
    assert client.delete(f"/v1/predictions/{found['id']}").status_code == 204
    assert search(client) == []
    problem(client.get(address(*uids(sent))), 404, "unknown_name")


def test_no_instance_is_offered_with_pseudonyms(model):
    settings = Settings(pseudonymizer=Pseudonymizer(b"k" * 32))
    with TestClient(
        create_app(model, PredictionRepository(None), settings), base_url="http://127.0.0.1:8000"
    ) as client:
        (found,) = post(client, instance())
        assert search(client) == []
        study = found["identity"]["study_instance_uid"]
        problem(client.get(address(study)), 404, "unknown_name")


def test_invalid_elements_hide_no_image(client):
    sent = pydicom.dcmread(io.BytesIO(instance()))
    sent.add_new("SeriesNumber", "LO", "ABC")
    sent["SeriesNumber"].VR = "IS"
    file = io.BytesIO()
    with pydicom.config.disable_value_validation():
        sent["SeriesNumber"]._value = "ABC"
        sent.save_as(file, enforce_file_format=True, implicit_vr=False, little_endian=True)
    post(client, file.getvalue())
    (found,) = images(search(client, "instances"))
    assert found.SOPInstanceUID == sent.SOPInstanceUID
    assert client.get(address(*uids(file.getvalue()), "/metadata")).status_code == 200


# --- WADO-RS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "accept", [ANY_SYNTAX, 'multipart/related; type="application/dicom"', "*/*", "multipart/related"]
)
def test_stored_file_is_retrieved_as_it_is(client, accept):
    sent = instance()
    post(client, sent)
    for path in (address(*uids(sent)), address(*uids(sent)[:2])):
        ((media_type, content),) = parts(client.get(path, headers={"Accept": accept}))
        assert content == sent
        assert media_type == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
    assert parts(client.get(address(uids(sent)[0]), headers={"Accept": accept}))[0][1] == sent


def test_instance_is_retrieved_without_a_multipart_body(client):
    sent = instance()
    post(client, sent)
    answer = client.get(address(*uids(sent)), headers={"Accept": "application/dicom"})
    assert (answer.content, answer.headers["Content-Type"]) == (sent, "application/dicom")
    problem(client.get(address(*uids(sent)[:2]), headers={"Accept": "application/dicom"}), 406, "usage")


@pytest.mark.parametrize(
    ("accept", "is_multipart"),
    [
        ("multipart/related;q=0, */*", False),
        ("application/*", False),
        ("application/dicom, multipart/related;q=0.9", False),
        (f"application/dicom;q=0.9, {ANY_SYNTAX}", True),
        ("application/dicom;q=0.9, */*", True),
        ("*/*;q=0.1, application/dicom", False),
        (
            'multipart/related; transfer-syntax=1.2.840.10008.1.2.4.50, application/dicom; q=0.1; transfer-syntax="*"',
            False,
        ),
    ],
)
def test_instance_is_sent_in_the_form_that_the_client_prefers(client, accept, is_multipart):
    sent = instance()
    post(client, sent)
    answer = client.get(address(*uids(sent)), headers={"Accept": accept})
    assert (parts(answer)[0][1] if is_multipart else answer.content) == sent
    assert answer.headers["Content-Type"].startswith("multipart" if is_multipart else "application/dicom")


@pytest.mark.parametrize(
    ("rest", "accept", "status"),
    [
        ("", "text/html", 406),
        ("", 'multipart/related; type="application/dicom+xml"', 406),
        ("", 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.50', 406),
        ("", f'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.50, {ANY_SYNTAX}', 200),
        ("", f"text/html, {ANY_SYNTAX};q=0", 406),
        ("", "application/dicom;q=0", 406),
        ("", f"multipart/*;q=0, {ANY_SYNTAX}", 200),  # the most specific range decides
        ("", f"{ANY_SYNTAX};q=0, multipart/*", 406),
        # Each form has its own transfer syntaxes.
        (
            "",
            'multipart/related; transfer-syntax=1.2.840.10008.1.2.4.50, application/dicom;q=0; transfer-syntax="*"',
            406,
        ),
        ("/frames/1", "multipart/related;q=0, */*", 406),
        ("/frames/1", "multipart/related; type=application/octet-stream; q=0, multipart/related", 406),
        ("/frames/1", "multipart/related; type=image/jpeg; q=0, multipart/related", 200),
        ("/metadata", "application/dicom+xml", 406),
        ("/metadata", "application/json", 200),
        ("/frames/1", "multipart/related; type=application/octet-stream", 200),
        ("/frames/1", "multipart/related; type=application/octet-stream; transfer-syntax=*", 200),
        ("/frames/1", "multipart/related; type=image/jpeg; transfer-syntax=*", 200),
        ("/frames/1", "multipart/related; type=image/jpeg", 406),
        ("/frames/1", "application/octet-stream", 406),
        ("/rendered", "image/gif", 406),
        ("/rendered", "image/*", 200),
        ("?accept=text/html", "*/*", 406),
        ("/frames/2", "*/*", 404),
        ("/frames/1,2", "*/*", 404),
        ("/frames/x", "*/*", 422),
        ("/thumbnail", "*/*", 404),
    ],
)
def test_media_type_is_negotiated(client, rest, accept, status):
    sent = instance()
    post(client, sent)
    answer = client.get(address(*uids(sent), rest), headers={"Accept": accept})
    assert answer.status_code == status, answer.text
    assert uids(sent)[0] not in (answer.text if status >= 400 else "")


def test_metadata_are_the_header_without_pixels(client):
    sent = pydicom.dcmread(io.BytesIO(instance(PatientName="Müller^Ann", SpecificCharacterSet="ISO_IR 100")))
    sent.add_new(0x00091001, "OB", bytes(2000))
    sent.add_new(0x00091002, "OB", b"1234")
    file = io.BytesIO()
    sent.save_as(file, enforce_file_format=True)
    post(client, file.getvalue())
    (found,) = client.get(address(*uids(file.getvalue()), "/metadata")).json()
    header = pydicom.Dataset.from_json(found)
    assert header.SpecificCharacterSet == "ISO_IR 192"
    assert header.PatientName == "Müller^Ann"
    assert header[0x00091002].value == b"1234"
    expected = {each.tag for each in sent} - {0x7FE00010, 0x00091001}
    assert {each.tag for each in header} == expected
    assert [header[tag].value for tag in expected - {0x00080005}] == [
        sent[tag].value for tag in expected - {0x00080005}
    ]


def test_frame_is_the_stored_pixels(client):
    sent = instance()
    post(client, sent)
    ((media_type, frame),) = parts(client.get(address(*uids(sent), "/frames/1")))
    assert media_type == "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
    assert frame == pydicom.dcmread(io.BytesIO(sent)).PixelData


def test_big_endian_frame_is_sent_in_little_endian(client):
    little = pydicom.dcmread(io.BytesIO(instance()))
    plain, values = pydicom.Dataset(), little.pixel_array.astype("<u2") * 256 + 7
    plain.update(little)
    plain.file_meta = little.file_meta
    plain.BitsAllocated = plain.BitsStored = 16
    plain.HighBit, plain.WindowCenter, plain.WindowWidth = 15, 32768, 65536
    plain.PixelData = values.astype(">u2").tobytes()
    plain["PixelData"].VR = "OW"
    plain.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    file = io.BytesIO()
    plain.save_as(file, enforce_file_format=True)
    post(client, file.getvalue())
    ((media_type, frame),) = parts(client.get(address(*uids(file.getvalue()), "/frames/1")))
    assert frame == values.tobytes()
    assert media_type.endswith("1.2.840.10008.1.2.1")


def test_compressed_frame_is_sent_as_it_is_stored(client):
    sent = pydicom.dcmread(io.BytesIO(instance()))
    picture = io.BytesIO()
    Image.fromarray(sent.pixel_array).save(picture, "JPEG")
    sent.PixelData = pydicom.encaps.encapsulate([picture.getvalue()])
    sent.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    sent["PixelData"].VR = "OB"
    sent.LossyImageCompression = "01"
    file = io.BytesIO()
    sent.save_as(file, enforce_file_format=True)
    post(client, file.getvalue())
    path = address(*uids(file.getvalue()))
    ((media_type, frame),) = parts(client.get(path + "/frames/1"))
    assert media_type == f"image/jpeg; transfer-syntax={JPEGBaseline8Bit}"
    assert frame.rstrip(b"\0") == picture.getvalue()
    accept = "multipart/related; type=application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
    problem(client.get(path + "/frames/1", headers={"Accept": accept}), 406, "usage")
    ((media_type, content),) = parts(client.get(path))
    assert (media_type, content) == (f"application/dicom; transfer-syntax={JPEGBaseline8Bit}", file.getvalue())


def test_rendered_image_is_the_decoded_image(client):
    sent = instance()
    (found,) = post(client, sent)
    path = address(*uids(sent), "/rendered")
    rendered = client.get(path, headers={"Accept": "image/png"})
    assert rendered.content == client.get(f"/v1/predictions/{found['id']}/image.png").content
    jpeg = client.get(path)
    assert jpeg.headers["Content-Type"] == "image/jpeg"
    assert Image.open(io.BytesIO(jpeg.content)).size == (SIZE, SIZE)


def test_secondary_capture_has_a_frame_and_a_rendered_image_and_the_report_has_none(client):
    pytest.importorskip("highdicom", reason="[pacs] is not installed")
    sent = instance()
    post(client, sent)
    for each in search(client, f"studies/{uids(sent)[0]}/instances"):
        path = address(each.StudyInstanceUID, each.SeriesInstanceUID, each.SOPInstanceUID)
        ((_, content),) = parts(client.get(path))
        (metadata,) = client.get(path + "/metadata").json()
        header = pydicom.Dataset.from_json(metadata)
        assert header.SOPInstanceUID == each.SOPInstanceUID
        if each.Modality == "SR":
            problem(client.get(path + "/frames/1"), 404, "unknown_name")
            problem(client.get(path + "/rendered"), 404, "unknown_name")
            assert "ContentSequence" in header
        else:
            ((_, frame),) = parts(client.get(path + "/frames/1"))
            assert frame == pydicom.dcmread(io.BytesIO(content)).PixelData
            picture = Image.open(io.BytesIO(client.get(path + "/rendered", headers={"Accept": "image/png"}).content))
            assert picture.size == (header.Columns, header.Rows)
            if each.Modality == "OT":
                assert picture.tobytes() == frame


def test_large_file_is_streamed_in_parts(client, monkeypatch):
    from pneumoscope.service.dicom import web_read

    sent = instance()
    post(client, sent)
    sizes = []

    class File(io.BytesIO):
        def read(self, size=-1):
            sizes.append(size)
            return super().read(size)

    monkeypatch.setattr(web_read, "_CHUNK_BYTES", 1000)
    monkeypatch.setattr(type(client.app.state.stored_instances.files), "open", lambda *_: File(sent))
    ((_, content),) = parts(client.get(address(*uids(sent))))
    assert content == sent
    assert set(sizes) == {1000}
    assert len(sizes) == len(sent) // 1000 + 2


def test_damaged_file_is_not_sent(model, tmp_path):
    repository = PredictionRepository(tmp_path / "data")
    with TestClient(
        create_app(model, repository), base_url="http://127.0.0.1:8000", raise_server_exceptions=False
    ) as client:
        sent = instance()
        post(client, sent)
        sha256 = hashlib.sha256(sent).hexdigest()
        stored = tmp_path / "data" / "blobs" / sha256[:2] / sha256
        stored.write_bytes(sent[:-1] + b"x")
        problem(client.get(address(*uids(sent))), 503, "storage")
        problem(client.get(address(*uids(sent), "/metadata")), 503, "storage")
        stored.unlink()
        assert search(client) == []


@pytest.mark.parametrize("accept", [ANY_SYNTAX, "application/dicom"])
def test_image_that_was_removed_since_it_was_found_is_gone(client, monkeypatch, accept):
    sent = instance()
    post(client, sent)

    def fail(*_):
        raise GoneError("removed")

    monkeypatch.setattr(type(client.app.state.stored_instances.files), "open", fail)
    problem(client.get(address(*uids(sent)), headers={"Accept": accept}), 410, "gone")


def test_body_ends_without_its_last_boundary_if_a_further_image_was_removed(model, monkeypatch):
    with TestClient(
        create_app(model, PredictionRepository(None)), base_url="http://127.0.0.1:8000", raise_server_exceptions=False
    ) as client:
        sent = [instance(level, StudyInstanceUID="1.2", SeriesInstanceUID="1.3") for level in (90, 110)]
        post(client, *sent)
        files = [io.BytesIO(sent[0])]

        def open_first(*_):
            if not files:
                raise GoneError("removed")
            return files.pop()

        monkeypatch.setattr(type(client.app.state.stored_instances.files), "open", open_first)
        answer = client.get(address("1.2", "1.3"))
        _, boundary = MULTIPART.fullmatch(answer.headers["Content-Type"]).groups()
        assert sent[0] in answer.content
        assert f"--{boundary}--".encode() not in answer.content


# --- access --------------------------------------------------------------------------------------------------------------


def test_each_retrieve_is_recorded_in_the_audit_log(model):
    for rest in ("", "/metadata", "/frames/1", "/rendered"):
        repository = repository_with_token("viewer", "reader")
        settings = Settings(loopback=False)
        app = create_app(model, repository, settings, require_token=True)
        with TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
            sent = instance()
            (found,) = post(client, sent)
            search(client)
            assert [row.event for row in read_rows(repository.engine)] == ["predicted"]
            assert client.get(address(*uids(sent), rest)).status_code == 200
            viewed = [row for row in read_rows(repository.engine) if row.event == "viewed"]
            assert [(row.user, row.prediction_id) for row in viewed] == [("viewer", found["id"])]


def test_reader_may_look_and_sender_may_not(model):
    for role, status in (("reader", 200), ("sender", 403)):
        app = create_app(model, repository_with_token("one", role), Settings(loopback=False), require_token=True)
        with TestClient(app) as client:
            problem(client.get("/dicom-web/studies"), 401, "authentication")
            answer = client.get("/dicom-web/studies", headers={"Authorization": f"Bearer {TOKEN}"})
            assert answer.status_code == status


def test_no_log_line_metric_or_error_contains_an_identifier(client, caplog):
    caplog.set_level(logging.DEBUG, "pneumoscope")
    study, series, image = "1.2.86420971", "1.2.86420972", "1.2.86420973"
    sent = instance(StudyInstanceUID=study, SeriesInstanceUID=series, SOPInstanceUID=image, PatientName="CANARY")
    (found,) = post(client, sent)
    output = ""
    for known in (study, "1.2.86420979"):
        paths = [address(known), address(known, series), address(known, series, image), address(known, "1.2.86420978"),
                 address(known, series, "1.2.86420977"), address("CANARY"), address(known, "CANARY")]  # fmt: skip
        paths += [
            f"{path}/{rest}"
            for path in paths
            for rest in ("metadata", "rendered", "frames/1", "series", "instances", "x")
        ]
        for path in paths:
            for accept in ("*/*", "text/html"):
                answer = client.get(path, headers={"Accept": accept})
                output += answer.text if answer.status_code >= 400 else ""
    for path in ("studies", "series", "instances"):
        for query in (
            "PatientName=CANARY",
            "PatientName=CANARY&PatientName=CANARY",
            "StudyDate=CANARY",
            "CANARY=1.2.86420979",
        ):
            answer = client.get(f"/dicom-web/{path}?{query}")
            output += answer.text if answer.status_code >= 400 else ""
    client.app.state.service.repository.storage.blobs.remove(found_hash(sent))
    output += client.get(address(study, series, image)).text
    output += client.get("/metrics").text + "".join(each.getMessage() for each in caplog.records)
    assert "GET,/dicom-web" not in output
    metrics = client.get("/metrics").text
    assert 'path="/dicom-web/studies/{id}/series/{id}/instances/{id}/frames/{id}"' in metrics
    assert 'path="/dicom-web/studies/{id}/series"' in metrics
    for word in ("CANARY", "8642097"):
        assert word not in output
    assert found["id"]


def found_hash(content):
    return hashlib.sha256(content).hexdigest()


# --- a real process --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dicomweb_client_looks_at_a_service(bundle, tmp_path):
    api = pytest.importorskip("dicomweb_client.api", reason="dicomweb-client is not installed")
    insert_token_of_service(tmp_path, "viewer", role="reader")
    sent = [instance(90 + 10 * number, AccessionNumber=f"A{number}") for number in range(3)]
    with served(bundle, tmp_path) as (process, client):
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        post(client, *sent)
        web = api.DICOMwebClient(f"{client.base_url}/dicom-web", headers={"Authorization": f"Bearer {TOKEN}"})
        found = [pydicom.Dataset.from_json(each) for each in web.search_for_studies(get_remaining=True, limit=2)]
        assert {each.StudyInstanceUID for each in found} == {uids(each)[0] for each in sent}
        (one,) = web.search_for_studies(
            search_filters={"AccessionNumber": "A1"}, fields=["StudyDescription"], fuzzymatching=True
        )
        study, series, image = uids(sent[1])
        assert pydicom.Dataset.from_json(one).StudyInstanceUID == study
        assert web.retrieve_instance(study, series, image) == pydicom.dcmread(io.BytesIO(sent[1]))
        assert (
            len(web.retrieve_study(study))
            == len(web.retrieve_study_metadata(study))
            == len(web.search_for_instances(study))
        )
        (frame,) = web.retrieve_instance_frames(study, series, image, [1])
        assert frame == pydicom.dcmread(io.BytesIO(sent[1])).PixelData
        assert web.retrieve_instance_rendered(study, series, image, media_types=("image/png",)).startswith(b"\x89PNG")
        process.terminate()
        assert process.wait(60) == 0
        log = process.stderr.read()
    assert study not in log
