"""Patients, studies and instances: what belongs together, what is moved by a correction, and what is deleted."""

import dataclasses
import itertools
import json
from datetime import UTC, datetime, timedelta

import pytest
from tests.service.storage.identities import JANE, VALUES, counts, events, jane, store

from pneumoscope.core.errors import ConflictError, UnknownNameError
from pneumoscope.core.identity import Identity
from pneumoscope.core.prediction import PatientAge
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.predictions import word_forms
from pneumoscope.service.storage.queries import Filter
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.retention import REMOVED_NAME, Retention
from pneumoscope.service.storage.studies import summarize_study


def test_identity_is_stored_and_read_back(repository):
    stored = store(repository, "a", JANE)
    assert (stored.identity, stored.conflicts) == (JANE, ())
    assert repository.get(stored.id) == stored
    assert counts(repository) == (1, 1, 1)
    assert verify(repository.engine).predictions == 1


def test_image_without_an_identity_has_no_study(repository):
    stored = store(repository, "a", None)
    assert (stored.identity, stored.study_key, stored.patient_key) == (None, None, None)
    assert counts(repository) == (0, 0, 0)


def test_same_pixels_under_another_header_are_the_same_image(repository):
    first = store(repository, "a", JANE)
    second = store(repository, "a", jane(sop_instance_uid="1.2.1.1.9", study_description="thorax"))
    assert first.id == second.id
    assert repository.find(Filter()).total == 1
    assert (second.identity.sop_instance_uid, second.identity.study_description) == ("1.2.1.1.9", "thorax")
    assert repository.image(second) == f"a {dataclasses.asdict(JANE)}".encode()  # the first file
    assert list(dict(repository.storage.blobs.stored())) == [first.image_sha256]


@pytest.mark.parametrize("code", ["outside_age_range", "lateral_view", "age_not_understood", "modality_not_supported"])
def test_header_that_rejects_an_image_makes_another_prediction(repository, code):
    rejected = store(repository, "a", JANE, code=code)
    predicted = store(repository, "a", jane(station_name="corrected"))
    assert rejected.id != predicted.id
    assert counts(repository) == (1, 1, 1)


def test_corrected_patient_id_moves_the_prediction_and_leaves_an_audit_entry(repository):
    wrong, other = store(repository, "a", JANE), store(repository, "b", jane(sop_instance_uid="2"))
    moved = store(repository, "a", jane(patient_id="78"))
    assert moved.id == wrong.id
    assert moved.patient_key != wrong.patient_key
    assert (moved.identity.patient_id, repository.get(other.id).identity.patient_id) == ("78", "77")
    assert events(repository)[-1] == ("identity_changed", wrong.id, {"fields": ["patient_id"]})
    assert moved.conflicts == ("study_instance_uid_reused",)  # half of the study is still that of the other patient
    store(repository, "b", jane(sop_instance_uid="2", patient_id="78"))
    assert repository.get(moved.id).conflicts == ()
    assert counts(repository) == (1, 1, 2)
    assert verify(repository.engine).predictions == 2


def test_another_patient_keeps_nothing_of_the_former_one(repository):
    store(repository, "a", JANE)
    moved = store(repository, "a", Identity(patient_id="78"))
    assert (moved.identity.patient_name, moved.identity.patient_birth_date) == ("", "")
    assert moved.identity.accession_number == "ACC1"


def test_header_that_states_less_removes_nothing(repository):
    store(repository, "a", JANE)
    assert store(repository, "a", Identity(station_name="DX2")).identity == jane(station_name="DX2")
    assert store(repository, "a", None, file="anonymous").identity == jane(station_name="DX2")


def test_same_file_does_not_undo_a_correction(repository):
    stored = store(repository, "a", JANE)
    repository.set_identity(stored.id, jane(patient_id="78"), user="me")
    assert store(repository, "a", JANE).identity.patient_id == "78"


def test_same_sop_instance_with_other_pixels_is_a_conflict_until_one_is_deleted(repository):
    first, second = store(repository, "a", JANE), store(repository, "b", JANE)
    assert second.conflicts == ("sop_instance_uid_reused",)
    assert repository.get(first.id).conflicts == ("sop_instance_uid_reused",)
    repository.remove(first.id, user="me")
    assert repository.get(second.id).conflicts == ()


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"patient_name": "DOE^JANE^M"}, True),
        ({"patient_name": "Jane Doe"}, True),
        ({"patient_name": ""}, True),
        ({"patient_birth_date": ""}, True),
        ({"patient_name": "Smith^Jane"}, False),  # perhaps a married name: a person decides
        ({"patient_name": "Smith^Mary"}, False),
        ({"patient_birth_date": "2020-01-01"}, False),
        ({"patient_name": "Smith^Mary", "patient_birth_date": "2020-01-01"}, False),
        ({"patient_name": "Smith^Mary", "patient_birth_date": ""}, False),
        ({"issuer_of_patient_id": "B"}, False),
        ({"issuer_of_patient_id": ""}, False),
        ({"patient_id": "078"}, False),
    ],
)
def test_patients_with_one_identifier_are_separate_if_name_and_birth_date_contradict(repository, changes, same):
    """Identifiers such as "0" are used for everybody: priors of another person would be shown."""
    new_study = {"study_instance_uid": "1.2.2", "accession_number": "ACC2", "sop_instance_uid": "3"}
    first, second = store(repository, "a", JANE), store(repository, "b", jane(**new_study, **changes))
    assert (first.patient_key == second.patient_key) is same
    is_reused = not same and second.identity.patient_id == "77" and second.identity.issuer_of_patient_id == "A"
    assert second.conflicts == (("patient_id_reused",) if is_reused else ())
    assert len(repository.studies_of_patient(first.patient_key)) == 1 + same


def test_study_uid_of_two_patients_does_not_mix_them(repository):
    first = store(repository, "a", JANE)
    second = store(repository, "b", jane(patient_id="1", patient_name="Smith^Bob", sop_instance_uid="9"))
    assert first.study_key != second.study_key
    assert second.conflicts == repository.get(first.id).conflicts == ("study_instance_uid_reused",)


def test_header_without_a_patient_joins_the_study(repository):
    anonymous = dict.fromkeys(
        ("patient_id", "issuer_of_patient_id", "patient_name", "patient_birth_date", "patient_sex"), ""
    )
    first = store(repository, "a", jane(**anonymous))
    assert first.patient_key is None
    second, third = store(repository, "b", JANE), store(repository, "c", jane(**anonymous))
    assert first.study_key == second.study_key == third.study_key
    assert repository.get(first.id).identity.patient_name == "Doe^Jane"


@pytest.mark.parametrize(
    ("shared", "same"),
    [
        ({"patient_id": "1", "accession_number": "7"}, True),
        ({"patient_id": "1", "study_date": "2026-01-02"}, True),
        ({"patient_id": "1"}, False),
        ({"accession_number": "7"}, True),
        ({"patient_name": "Doe^Jane", "study_instance_uid": "1.2"}, True),
        ({"patient_name": "Doe^Jane", "accession_number": "7"}, True),
        ({"patient_name": "Doe^Jane"}, False),
    ],
)
def test_images_without_a_uid_are_one_study_by_accession_number_or_date(repository, shared, same):
    first, second = store(repository, "a", Identity(**shared)), store(repository, "b", Identity(**shared))
    assert (first.study_key == second.study_key) is same


def test_name_is_corrected_in_place(repository):
    first = store(repository, "a", JANE)
    other = store(repository, "b", jane(sop_instance_uid="2"))
    corrected = repository.set_identity(first.id, jane(patient_name="Doe^Janet"), user="me")
    assert (corrected.patient_key, corrected.study_key) == (first.patient_key, first.study_key)
    assert repository.get(other.id).identity.patient_name == "Doe^Janet"
    assert [each.id for each in repository.find(Filter(search=(("janet",),))).predictions] == [other.id, first.id]
    assert repository.find(Filter(search=(("jane",), ("doe",)))).total == 2


def test_complete_identity_removes_values(repository):
    stored = store(repository, "a", JANE)
    named = repository.set_identity(stored.id, Identity(patient_name="Doe^Jane"), user="me")
    assert named.identity == Identity(patient_name="Doe^Jane")
    assert repository.set_identity(stored.id, Identity(), user="me").identity is None
    assert counts(repository) == (0, 0, 1)  # what was uploaded is remembered as a hash
    assert verify(repository.engine).predictions == 1


def test_identity_with_another_etag_is_not_stored(repository):
    stored = store(repository, "a", JANE)
    changed = repository.set_identity(stored.id, jane(patient_sex="O"), user="me", etags=[stored.etag])
    with pytest.raises(ConflictError):
        repository.set_identity(stored.id, JANE, user="me", etags=[stored.etag])
    assert repository.get(stored.id) == changed
    with pytest.raises(UnknownNameError):
        repository.set_identity("ab" * 16, JANE, user="me")


def test_audit_log_has_no_value_of_an_identity(repository):
    stored = store(repository, "a", JANE)
    store(repository, "a", jane(patient_id="78", accession_number="ACC2"))
    repository.set_identity(stored.id, jane(patient_name="Smith^Bob"), user="me")
    repository.remove_patient(repository.get(stored.id).patient_key, user="me")
    text = json.dumps(events(repository))
    assert [value for value in [*VALUES, "78", "ACC2", "Smith"] if f'"{value}"' in text] == []
    assert [event for event, _, _ in events(repository)] == ["predicted", *["identity_changed"] * 2, "deleted"]


def test_deleting_the_last_image_deletes_study_and_patient(repository):
    first, second = store(repository, "a", JANE), store(repository, "b", jane(study_instance_uid="2"))
    repository.remove(first.id, user="me")
    assert counts(repository) == (1, 1, 1)
    repository.remove(second.id, user="me")
    assert counts(repository) == (0, 0, 0)


def test_image_with_two_predictions_keeps_its_identity_until_both_are_deleted(repository):
    first, second = store(repository, "a", JANE, operating_point="half"), store(repository, "a", JANE)
    repository.remove(first.id, user="me")
    assert repository.get(second.id).identity == JANE


def test_study_and_patient_are_deleted_with_their_images(repository):
    first = store(repository, "a", JANE)
    store(repository, "b", jane(sop_instance_uid="2"))
    later = store(repository, "c", jane(study_instance_uid="2", accession_number="2"))
    other = store(repository, "d", Identity(patient_id="1"))
    repository.remove_study(first.study_key, user="me")
    assert {each.id for each in repository.find(Filter()).predictions} == {later.id, other.id}
    repository.remove_patient(first.patient_key, user="me")
    assert [each.id for each in repository.find(Filter()).predictions] == [other.id]
    assert list(dict(repository.storage.blobs.stored())) == [other.image_sha256]
    for remove, key in ((repository.remove_study, first.study_key), (repository.remove_patient, first.patient_key)):
        with pytest.raises(UnknownNameError):
            remove(key, user="me")


def test_identities_expire_and_predictions_stay(tmp_path, database):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    repository = PredictionRepository(tmp_path / "data", database, now=lambda: now)
    old = store(repository, "a", JANE, name="Doe Jane.dcm")
    kept = store(repository, "b", jane(sop_instance_uid="2"), operating_point="half")
    now += timedelta(days=40)
    again = store(repository, "b", jane(sop_instance_uid="2"))  # a new prediction of the image
    assert Retention(repository).expire_identities(timedelta(days=30)) == 1
    assert Retention(repository).expire_identities(timedelta(days=30)) == 0
    expired = repository.get(old.id)
    assert (expired.identity, expired.path, expired.decision) == (None, REMOVED_NAME, "pneumonia")
    assert repository.image(expired)
    assert repository.get(kept.id).identity == repository.get(again.id).identity == jane(sop_instance_uid="2")
    assert ("identity_removed", old.id, {}) in events(repository)
    assert verify(repository.engine).predictions == 3
    repository.close()


def test_identity_that_arrives_again_after_its_removal_is_kept(tmp_path, database):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    repository = PredictionRepository(tmp_path / "data", database, now=lambda: now)
    store(repository, "a", JANE)
    now += timedelta(days=40)
    assert Retention(repository).expire_identities(timedelta(days=30)) == 1
    again = store(repository, "a", JANE)
    assert again.identity == JANE
    now += timedelta(days=20)
    assert Retention(repository).expire_identities(timedelta(days=30)) == 0
    assert repository.get(again.id).identity == JANE
    now += timedelta(days=20)
    assert Retention(repository).expire_identities(timedelta(days=30)) == 1
    assert repository.get(again.id).identity is None
    assert verify(repository.engine).predictions == 1
    repository.close()


NAMES = {
    "a": Identity(patient_name="Wang^XiaoMing=王^小明", patient_id="A123"),
    "b": Identity(patient_name="Müller^Jörg", patient_id="100%_x", accession_number="ACC-7"),
    "c": Identity(patient_name="O'Neil^Zoë^Mary Ann", patient_id="Z 9"),
}


FOUND = {
    "wang": "a", "小明": "a", "王小明": "a", "王小": "a", "王 小明": "a", "小王": "",
    "XIAOMING Wang": "a", "muller": "b", "MÜLLER jorg": "b",
    "acc-7": "b", "0%_": "b", "%": "b", "_": "b", "a12": "a", "zoe mary": "c", "o'neil": "c", "z 9": "c",
    "\\": "", "wang muller": "", "a.PNG": "a", "": "abc",
}  # fmt: skip


def test_search_finds_words_of_names_numbers_and_files(repository):
    ids = {store(repository, name, identity, name=f"file {name}.png").id: name for name, identity in NAMES.items()}
    pages = {text: repository.find(Filter(search=word_forms(text))).predictions for text in FOUND}
    assert {text: "".join(sorted(ids[each.id] for each in page)) for text, page in pages.items()} == FOUND


def test_filters_by_study_and_patient(repository):
    first = store(repository, "a", JANE)
    later = store(repository, "b", jane(study_instance_uid="2", accession_number="2"))
    store(repository, "c", None)
    found = [each.id for each in repository.find(Filter(study_key=first.study_key)).predictions]
    assert found == [first.id]
    assert {each.id for each in repository.find(Filter(patient_key=first.patient_key)).predictions} == {
        first.id,
        later.id,
    }
    assert repository.count_images(Filter(patient_key=first.patient_key)).images == 2


@pytest.mark.parametrize("order", ["urgency", "highest", "lowest", "newest", "oldest"])
def test_images_of_one_study_stand_together_on_every_page(repository, order):
    for number in range(30):
        uid = str(number * 7 % 8)
        identity = None if uid == "0" else Identity(study_instance_uid=uid, patient_id=uid)
        store(repository, str(number), identity, probability=(number * 13 % 31) / 31)
    listed, after = [], ""
    while True:
        page = repository.find(Filter(), order=order, limit=7, after=after, by_study=True)
        listed += page.predictions
        if not (after := page.next):
            break
    groups = [list(group) for _, group in itertools.groupby(listed, key=lambda each: each.study_key or each.id)]
    assert sorted(map(len, groups)) == [*[1] * 4, *[3] * 2, *[4] * 5]  # none is split
    # Groups are where their first image would be, and in a group the order is the same.
    alone = [each.id for each in repository.find(Filter(), order=order, limit=200).predictions]
    for group in groups:
        assert [each.id for each in group] == sorted((each.id for each in group), key=alone.index)
    first = [group[0].id for group in groups]
    assert first == sorted(first, key=alone.index)


def test_decision_of_a_study_is_that_of_its_most_suspicious_frontal_image(repository):
    store(repository, "a", JANE, probability=0.1, decision="no_pneumonia")
    store(repository, "b", jane(sop_instance_uid="2"), code="lateral_view")
    uncertain = store(repository, "c", jane(sop_instance_uid="3"), probability=0.45, decision="uncertain")
    (found,) = repository.studies([uncertain.study_key]).values()
    study = summarize_study(found)
    assert (study.decision, study.probability, study.prediction_id) == ("uncertain", 0.45, uncertain.id)
    assert (study.images, study.rejections, study.reviewed) == (3, {"lateral_view": 1}, 0)
    for number, probability in enumerate((0.7, 0.9, 0.8)):
        store(repository, f"d{number}", jane(sop_instance_uid=f"4{number}"), probability=probability)
    (found,) = repository.studies([uncertain.study_key]).values()
    assert (summarize_study(found).decision, summarize_study(found).probability) == ("pneumonia", 0.9)
    assert summarize_study(found).identity == jane(series_instance_uid="", sop_instance_uid="", station_name="")


def test_study_counts_the_latest_prediction_of_an_image(repository):
    """An image with a corrected age is no longer pneumonia."""
    stored = store(repository, "a", JANE)
    store(repository, "a", jane(station_name="2"), code="outside_age_range")
    (found,) = repository.studies([stored.study_key]).values()
    study = summarize_study(found)
    assert (len(found), study.images, study.decision, study.rejections) == (2, 1, "rejected", {"outside_age_range": 1})
    assert study.probability is None


def test_image_does_not_rename_the_patient_of_others(repository):
    first = store(repository, "a", JANE)
    second = store(repository, "b", jane(patient_name="Doe^Jane^Mary", patient_sex="O", sop_instance_uid="2"))
    assert first.patient_key == second.patient_key
    assert (second.identity.patient_name, second.identity.patient_sex) == ("Doe^Jane", "F")


def test_header_without_a_patient_joins_no_study_of_two_patients(repository):
    store(repository, "a", JANE)
    store(repository, "b", jane(patient_id="1", patient_name="Smith^Bob", sop_instance_uid="9"))
    third = store(repository, "c", Identity(study_instance_uid="1.2.1"))
    assert third.patient_key is None


def test_person_removes_the_patient_of_an_image(repository):
    stored = store(repository, "a", JANE)
    store(repository, "b", jane(sop_instance_uid="2"))
    anonymous = Identity(study_instance_uid="1.2.1")
    changed = repository.set_identity(stored.id, anonymous, user="me")
    assert (changed.identity, changed.patient_key) == (anonymous, None)
    assert "patient_id" in events(repository)[-1][2]["fields"]


def test_name_that_contradicts_is_another_patient_without_a_number(repository):
    store(repository, "a", Identity(patient_name="Doe^Jane", patient_birth_date="2021-01-31", patient_sex="F"))
    other = store(repository, "a", Identity(patient_name="Roe^Adam"))
    assert other.identity == Identity(patient_name="Roe^Adam")


def test_another_person_with_the_same_number_keeps_nothing_of_the_former_one(repository):
    store(
        repository,
        "a",
        Identity(patient_id="1", patient_name="Doe^Jane", patient_birth_date="1950-01-01", patient_sex="F"),
    )
    other = store(repository, "a", Identity(patient_id="1", patient_name="Roe^Mark"))
    assert other.identity == Identity(patient_id="1", patient_name="Roe^Mark")


def test_number_of_two_patients_is_assigned_to_neither(repository):
    named = [
        store(repository, name, Identity(patient_id="1", patient_name=name, study_instance_uid=name))
        for name in ("Doe^Jane", "Roe^Mark")
    ]
    third = store(repository, "c", Identity(patient_id="1", study_instance_uid="3"))
    assert third.patient_key not in {each.patient_key for each in named}
    assert third.conflicts == ("patient_id_reused",)


def test_removed_identity_does_not_come_back_with_the_same_upload(repository):
    stored = store(repository, "a", JANE)
    assert repository.set_identity(stored.id, Identity(), user="me").identity is None
    assert store(repository, "a", JANE, file="again").identity is None
    assert store(repository, "a", jane(patient_id="78")).identity.patient_id == "78"


def test_number_that_was_missing_completes_the_identity(repository):
    unknown = jane(accession_number="", issuer_of_patient_id="")
    store(repository, "a", unknown)
    completed = store(repository, "a", Identity(accession_number="ACC1", issuer_of_patient_id="A"))
    assert completed.identity == JANE


def test_uploads_that_were_applied_do_not_undo_a_correction(repository):
    store(repository, "a", JANE)
    second = jane(patient_id="78")
    stored = store(repository, "a", second)
    repository.set_identity(stored.id, jane(patient_id="79"), user="me")
    assert store(repository, "a", second, file="again").identity.patient_id == "79"


def test_fields_that_are_sent_with_a_known_file_are_stored(repository):
    store(repository, "a", None, file="plain")
    assert store(repository, "a", Identity(patient_id="77"), file="plain").identity.patient_id == "77"


def test_blank_images_of_two_patients_stay_two_images(repository):
    first = store(repository, "black", JANE, code="blank")
    second = store(repository, "black", jane(patient_id="88", sop_instance_uid="5"), code="blank")
    assert first.id != second.id
    assert repository.get(first.id).identity.patient_id == "77"


def test_prediction_that_is_made_again_counts_for_the_study(repository):
    """An age that was mistyped in between does not hide it."""
    first = store(repository, "a", JANE, age=PatientAge(3, "entered"))
    store(repository, "a", JANE, age=PatientAge(30, "entered"), code="outside_age_range")
    again = store(repository, "a", JANE, age=PatientAge(3, "entered"))
    assert (again.id, again.last_predicted > first.last_predicted) == (first.id, True)
    (found,) = repository.studies([first.study_key]).values()
    assert summarize_study(found).decision == "pneumonia"
    assert events(repository)[-1][:2] == ("predicted_again", first.id)
    assert verify(repository.engine).predictions == 2


def test_age_of_a_corrected_header_replaces_the_former_one(repository):
    store(repository, "a", JANE, age=PatientAge(1))
    corrected = store(repository, "a", jane(patient_id="2"), age=PatientAge(5))
    assert corrected.age == PatientAge(5)
    assert verify(repository.engine).predictions == 1


def test_age_that_contradicts_the_dates_is_a_conflict(repository):
    stored = store(repository, "a", JANE, age=PatientAge(30))
    assert stored.conflicts == ("age_contradicts_dates",)
    assert repository.set_identity(stored.id, jane(patient_birth_date="1996-01-01"), user="me").conflicts == ()


def test_identity_of_an_expired_image_that_is_sent_again_expires_again(tmp_path):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    repository = PredictionRepository(tmp_path / "data", now=lambda: now)
    store(repository, "a", JANE, name="removed")
    for changes in ({}, {"station_name": "DX2"}):
        stored = store(repository, "a", jane(**changes))
        now += timedelta(days=40)
        assert Retention(repository).expire_identities(timedelta(days=30)) == 1
        assert repository.get(stored.id).identity is None
    repository.close()
