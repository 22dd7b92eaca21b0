"""The same pixels under two patients: both identities are kept and found, until a person decides for one of them."""

import dataclasses
import sqlite3
from datetime import UTC, datetime, timedelta

import alembic.command
import alembic.config
import pytest
from sqlalchemy import inspect, select
from tests.service.storage.identities import JANE, counts, events, jane, store

from pneumoscope.core.errors import ConflictError, ImageOfTwoPatientsError
from pneumoscope.core.identity import Identity
from pneumoscope.core.prediction import PatientAge
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.predictions import word_forms
from pneumoscope.service.storage.database import DATABASE_FILE, write_transaction
from pneumoscope.service.storage.pseudonyms import Pseudonymizer
from pneumoscope.service.storage.queries import Filter
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.retention import Retention
from pneumoscope.service.storage.studies import sorted_studies, summarize_study
from pneumoscope.service.storage.tables import patients

BOB = Identity(
    patient_id="R-204", issuer_of_patient_id="A", patient_name="Roe^Robert", patient_birth_date="2022-03-04",
    patient_sex="M", accession_number="ACC-9", study_instance_uid="1.2.9", study_date="2026-02-03",
    study_description="thorax", series_instance_uid="1.2.9.1", sop_instance_uid="1.2.9.1.1", station_name="DX9",
)  # fmt: skip
PAIR = (JANE, BOB)
CONFLICT = ("image_of_two_patients",)


def two_patients(repository, **fields):
    store(repository, "a", JANE, **fields)
    return store(repository, "a", BOB, **fields)


def others(stored):
    return [each.identity for each in stored.other_identities]


def key_of(stored, patient):
    keys = {stored.identity: stored.patient_key} | {each.identity: each.patient_key for each in stored.other_identities}
    return keys[patient]


def found_by(repository, **conditions):
    return [(each.id, each.identity) for each in repository.find(Filter(**conditions)).predictions]


def test_image_of_another_patient_is_a_conflict_and_stays_with_the_first(repository):
    stored = two_patients(repository)
    assert (stored.identity, others(stored), stored.conflicts) == (JANE, [BOB], CONFLICT)
    assert repository.get(stored.id) == stored
    assert repository.find(Filter()).total == 1
    assert counts(repository) == (2, 2, 2)
    assert verify(repository.engine).predictions == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"patient_id": "78"},
        {"issuer_of_patient_id": "B"},
        {"patient_name": "Roe^Adam"},
        {"patient_birth_date": "1950-01-01"},
        {"patient_id": "", "issuer_of_patient_id": "", "patient_name": "Roe^Adam"},
    ],
)
def test_other_identifier_name_or_birth_date_is_another_patient(repository, changes):
    store(repository, "a", JANE)
    other = jane(sop_instance_uid="9", study_instance_uid="1.9", **changes)
    stored = store(repository, "a", other)
    assert (stored.identity, others(stored)) == (JANE, [other])
    assert "image_of_two_patients" in stored.conflicts


@pytest.mark.parametrize("uid", [JANE.sop_instance_uid, ""])
def test_other_patient_of_the_same_instance_is_a_correction(repository, uid):
    store(repository, "a", JANE)
    stored = store(repository, "a", dataclasses.replace(BOB, sop_instance_uid=uid))
    assert (stored.identity.patient_id, stored.other_identities) == ("R-204", ())
    assert events(repository)[-1][0] == "identity_changed"


@pytest.mark.parametrize(
    "where", ["jane", "77", "ACC1", "robert", "R-204", "acc-9", "roe r-204"], ids=lambda words: words.replace(" ", "+")
)
def test_search_finds_the_image_by_each_patient(repository, where):
    stored = two_patients(repository)
    store(repository, "b", jane(patient_id="1", patient_name="Poe^Ann", study_instance_uid="3", accession_number="3"))
    assert found_by(repository, search=word_forms(where)) == [(stored.id, JANE)]


def test_search_does_not_mix_the_words_of_two_patients(repository):
    two_patients(repository)
    assert found_by(repository, search=word_forms("jane roe")) == []


@pytest.mark.parametrize("patient", PAIR, ids=["first", "second"])
@pytest.mark.parametrize("order", ["newest", "urgency"])
def test_filters_by_patient_and_study_list_the_image_under_that_patient(repository, patient, order):
    stored = two_patients(repository)
    key = key_of(stored, patient)
    page = repository.find(Filter(patient_key=key), order=order, by_study=True)
    (listed,) = page.predictions
    assert (listed.id, listed.identity, listed.conflicts, page.total) == (stored.id, patient, CONFLICT, 1)
    assert others(listed) == [each for each in PAIR if each != patient]
    assert found_by(repository, study_key=listed.study_key) == [(stored.id, patient)]
    assert repository.count_images(Filter(patient_key=key)).images == 1


@pytest.mark.parametrize("patient", PAIR, ids=["first", "second"])
def test_studies_of_both_patients_have_the_image_with_the_conflict(repository, patient):
    stored = two_patients(repository)
    prior = dataclasses.replace(
        patient, study_instance_uid="1.8", accession_number="8", study_date="2025-01-01", sop_instance_uid="1.8.1"
    )
    store(repository, "prior", prior, probability=0.1, decision="no_pneumonia")
    found = sorted_studies(repository.studies_of_patient(key_of(stored, patient)))
    assert [(each.identity.study_instance_uid, each.conflicts) for each in found] == [
        (patient.study_instance_uid, CONFLICT),
        ("1.8", ()),
    ]
    assert {each.identity.patient_id for each in found} == {patient.patient_id}
    assert found[0].prediction_id == stored.id


def test_uploads_that_are_repeated_change_nothing(repository):
    stored = two_patients(repository)
    log = events(repository)
    for identity in (JANE, BOB, JANE, BOB):
        assert store(repository, "a", identity, file="again") == stored
    assert events(repository) == log


@pytest.mark.parametrize(
    "chosen", [*PAIR, jane(patient_id="5", patient_name="Poe^Ann")], ids=["first", "second", "third"]
)
def test_decision_of_a_person_ends_the_conflict_and_is_not_undone(repository, chosen):
    stored = two_patients(repository)
    decided = repository.set_identity(stored.id, chosen, user="me", etags=[stored.etag])
    assert (decided.identity, decided.other_identities, decided.conflicts) == (chosen, (), ())
    for identity in (*PAIR, *PAIR):
        assert store(repository, "a", identity, file="again").identity == chosen
    # A later header of the chosen patient does not bring the other one back, either.
    store(repository, "a", dataclasses.replace(chosen, station_name="DX2"))
    if chosen in PAIR:
        for identity in PAIR:
            if identity != chosen:
                assert store(repository, "a", identity).other_identities == ()
    assert {each.identity.patient_id for each in repository.find(Filter()).predictions} == {chosen.patient_id}
    assert counts(repository)[:2] == (1, 1)


def test_decision_with_another_etag_is_not_stored(repository):
    first = store(repository, "a", JANE)
    stored = store(repository, "a", BOB)
    with pytest.raises(ConflictError):
        repository.set_identity(stored.id, JANE, user="me", etags=[first.etag])
    assert others(repository.get(stored.id)) == [BOB]


def test_audit_log_has_the_conflict_and_the_decision_without_values(repository):
    stored = two_patients(repository)
    repository.set_identity(stored.id, JANE, user="me")
    different = [name for name in dataclasses.asdict(JANE) if getattr(JANE, name) != getattr(BOB, name)]
    assert events(repository)[1:] == [
        ("identity_conflict", stored.id, {"fields": different}),
        ("identity_resolved", stored.id, {"fields": different}),
    ]
    assert "issuer_of_patient_id" not in different
    assert verify(repository.engine).predictions == 1


def test_corrected_header_of_the_second_instance_ends_the_conflict(repository):
    two_patients(repository)
    corrected = jane(sop_instance_uid=BOB.sop_instance_uid, study_instance_uid=BOB.study_instance_uid)
    stored = store(repository, "a", corrected)
    assert (stored.identity, stored.conflicts) == (JANE, ())
    assert counts(repository)[:2] == (1, 1)
    assert "patient_id" in events(repository)[-1][2]["fields"]


def test_corrected_header_of_the_first_instance_ends_the_conflict(repository):
    two_patients(repository)
    stored = store(repository, "a", dataclasses.replace(BOB, sop_instance_uid=JANE.sop_instance_uid))
    assert (stored.identity.patient_id, stored.conflicts) == ("R-204", ())
    assert counts(repository)[:2] == (1, 1)


def test_header_of_the_second_instance_is_corrected_beside_the_first(repository):
    two_patients(repository)
    corrected = dataclasses.replace(BOB, patient_id="R-205")
    stored = store(repository, "a", corrected)
    assert (stored.identity, others(stored)) == (JANE, [corrected])
    assert events(repository)[-1] == ("identity_changed", stored.id, {"fields": ["patient_id"]})


def test_three_patients_are_kept(repository):
    two_patients(repository)
    third = dataclasses.replace(BOB, patient_id="3", patient_name="Poe^Ann", sop_instance_uid="3")
    stored = store(repository, "a", third)
    assert (stored.identity, others(stored)) == (JANE, [BOB, third])
    assert repository.set_identity(stored.id, third, user="me").other_identities == ()
    assert counts(repository)[:2] == (1, 1)


def test_age_in_the_second_header_does_not_replace_that_of_the_first(repository):
    store(repository, "a", JANE, age=PatientAge(1))
    assert store(repository, "a", BOB, age=PatientAge(5)).age == PatientAge(1)
    assert store(repository, "a", BOB, age=PatientAge(5), file="again").age == PatientAge(1)


def test_rejection_by_the_second_header_does_not_hide_the_prediction_of_the_first(repository):
    first = store(repository, "a", JANE, age=PatientAge(1))
    rejected = store(repository, "a", BOB, age=PatientAge(30), code="outside_age_range")
    listed = repository.find(Filter(latest=True)).predictions
    assert {each.id for each in listed} == {first.id, rejected.id}
    assert all("image_of_two_patients" in each.conflicts for each in listed)
    for patient, own in zip(PAIR, (first, rejected), strict=True):
        study = study_of(repository, first.id, patient)
        assert (study.decision, study.prediction_id, study.images) == (own.decision, own.id, 1)
        assert study.identity.patient_id == patient.patient_id
    assert verify(repository.engine).predictions == 2


def study_of(repository, id, patient):
    (found,) = repository.studies_of_patient(key_of(repository.get(id), patient)).values()
    return summarize_study(found)


def test_prediction_is_shown_with_the_patient_whose_header_made_it(repository):
    """An age of 30 years contradicts the dates of the first patient, and so does one of a year those of the second."""
    bob = dataclasses.replace(BOB, patient_birth_date="1996-02-03")
    jane = dataclasses.replace(JANE, patient_birth_date="2025-01-02")
    first = store(repository, "a", jane, age=PatientAge(1))
    rejected = store(repository, "a", bob, age=PatientAge(30), code="outside_age_range")
    for each, own, other in ((first, jane, bob), (rejected, bob, jane)):
        stored = repository.get(each.id)
        assert (stored.identity, others(stored), stored.conflicts) == (own, [other], CONFLICT)
        assert found_by(repository, patient_key=stored.patient_key, latest=True) == [(each.id, own)]
        assert found_by(repository, patient_key=stored.patient_key) == [(each.id, own)]
    assert sorted(found_by(repository), key=str) == sorted([(first.id, jane), (rejected.id, bob)], key=str)
    assert found_by(repository, search=word_forms("roe")) == [(rejected.id, bob)]
    assert found_by(repository, search=word_forms("doe")) == [(first.id, jane)]


def test_one_prediction_under_two_headers_has_the_age_of_each(repository):
    store(repository, "a", JANE, age=PatientAge(1))
    stored = store(repository, "a", BOB, age=PatientAge(5))
    for patient, years in zip(PAIR, (1, 5), strict=True):
        (listed,) = repository.find(Filter(patient_key=key_of(stored, patient))).predictions
        assert listed.age == PatientAge(years)
    assert repository.set_identity(stored.id, BOB, user="me").age == PatientAge(5)
    assert verify(repository.engine).predictions == 1


def test_new_prediction_of_the_first_patient_does_not_hide_that_of_the_second(repository):
    first = store(repository, "a", JANE, age=PatientAge(1))
    rejected = store(repository, "a", BOB, age=PatientAge(30), code="outside_age_range")
    required = store(repository, "a", dataclasses.replace(JANE, station_name="DX2"), code="age_required")
    listed = repository.find(Filter(latest=True)).predictions
    assert {each.id for each in listed} == {rejected.id, required.id}
    assert repository.count_images(Filter(latest=True)).images == 2
    assert study_of(repository, first.id, BOB).prediction_id == rejected.id
    repository.set_identity(first.id, BOB, user="me")
    assert found_by(repository, latest=True) == [(rejected.id, BOB)]
    (found,) = repository.studies([repository.get(rejected.id).study_key]).values()
    assert summarize_study(found).prediction_id == rejected.id


def test_prediction_from_a_header_that_a_person_overruled_is_not_listed_for_any_patient(repository):
    first = store(repository, "a", JANE, age=PatientAge(30), code="outside_age_range")
    bobs = store(repository, "a", BOB, age=PatientAge(1), decision="no_pneumonia", probability=0.1)
    repository.set_identity(first.id, JANE, user="me")
    again = store(repository, "a", BOB, file="again", age=PatientAge(1), operating_point="sensitive")
    assert found_by(repository, latest=True) == [(first.id, JANE)]
    assert [repository.get(each.id).identity for each in (first, bobs, again)] == [JANE, None, None]
    (found,) = repository.studies([repository.get(first.id).study_key]).values()
    assert [each.id for each in found] == [first.id]


def test_corrected_header_makes_the_current_prediction_of_the_patient(repository):
    store(repository, "a", JANE, age=PatientAge(1))
    store(repository, "a", BOB, age=PatientAge(30), code="outside_age_range")
    corrected = jane(sop_instance_uid=BOB.sop_instance_uid, study_instance_uid=BOB.study_instance_uid)
    required = store(repository, "a", corrected, code="age_required")
    assert found_by(repository, latest=True) == [(required.id, JANE)]
    newer = store(repository, "a", corrected, code="age_required", operating_point="sensitive")
    assert found_by(repository, latest=True) == [(newer.id, JANE)]


REQUIRED = {"code": "age_required"}
ENTERED = {"age": PatientAge(3, "entered")}


def enter(repository, earlier):
    """Predict an image again with the age of `ENTERED`, as the viewer does for the patient of a prediction."""
    again = dataclasses.replace(
        earlier, decision="pneumonia", probability=0.75, rejection=None, identity=None, **ENTERED
    )
    return repository.submit(again, b"again", user="me", earlier_id=earlier.id).result(60)[0]


def test_entered_age_is_that_of_its_patient_only(repository):
    earlier = store(repository, "a", JANE, **REQUIRED)
    assert store(repository, "a", BOB, **REQUIRED).id == earlier.id
    entered = enter(repository, earlier)
    assert (entered.id == earlier.id, entered.identity) == (False, JANE)
    sha256 = earlier.image.pixel_sha256
    assert [repository.entered_age(sha256, each) for each in (*PAIR, None)] == [3, None, 3]
    assert repository.entered_age(sha256, jane(issuer_of_patient_id="B")) is None
    assert study_of(repository, earlier.id, BOB).rejections == {"age_required": 1}
    repository.set_identity(earlier.id, BOB, user="me")
    assert found_by(repository, latest=True) == [(earlier.id, BOB)]
    assert [repository.entered_age(sha256, each) for each in (*PAIR, None)] == [None, None, None]


def test_entered_age_stays_with_the_patient_who_is_chosen(repository):
    earlier = store(repository, "a", JANE, age=PatientAge(1))
    required = store(repository, "a", BOB, **REQUIRED)
    entered = enter(repository, required)  # the viewer shows it with the second patient
    assert repository.get(entered.id).identity == BOB
    sha256 = earlier.image.pixel_sha256
    assert [repository.entered_age(sha256, each) for each in PAIR] == [None, 3]
    repository.set_identity(earlier.id, BOB, user="me")
    assert found_by(repository, latest=True) == [(entered.id, BOB)]
    assert repository.entered_age(sha256, BOB) == 3


@pytest.mark.parametrize("how", ["person", "header", "cleared"])
def test_entered_age_does_not_hold_for_another_patient_of_an_image(repository, how):
    earlier = store(repository, "a", JANE, **REQUIRED)
    entered = enter(repository, earlier)
    sha256 = earlier.image.pixel_sha256
    assert repository.entered_age(sha256, JANE) == 3
    other = dataclasses.replace(BOB, sop_instance_uid=JANE.sop_instance_uid)
    if how == "header":
        store(repository, "a", other, **REQUIRED)
    else:
        if how == "cleared":
            repository.set_identity(entered.id, Identity(), user="me")
        repository.set_identity(entered.id, other, user="me")
    assert repository.entered_age(sha256, other) is None
    assert found_by(repository, latest=True) == [(earlier.id, other)]


def test_entered_age_holds_with_a_correction_of_the_same_patient(repository):
    earlier = store(repository, "a", JANE, **REQUIRED)
    entered = enter(repository, earlier)
    repository.set_identity(entered.id, jane(study_description="thorax", patient_name="Doe^Jane^Mary"), user="me")
    assert repository.entered_age(earlier.image.pixel_sha256, JANE) == 3
    assert [each for each, _ in found_by(repository, latest=True)] == [entered.id]


def test_identities_of_a_document_are_limited_and_counted(repository):
    store(repository, "a", JANE)
    for day in range(1, 26):
        patient = dataclasses.replace(
            BOB, patient_id=f"T-{day}", sop_instance_uid=f"5.{day}", study_instance_uid=f"4.{day}"
        )
        stored = store(repository, "a", patient, file=str(day))
    assert (len(stored.other_identities), stored.other_identity_count) == (20, 25)
    assert [each.patient_id for each in others(stored)] == [f"T-{day}" for day in range(1, 21)]
    (last,) = repository.find(Filter(search=word_forms("T-25"))).predictions
    assert last.identity == JANE
    with repository.storage.read_transaction() as connection:
        key = connection.execute(select(patients.c.patient_key).where(patients.c.patient_id == "T-25")).scalar_one()
    (listed,) = repository.find(Filter(patient_key=key)).predictions
    assert (listed.identity.patient_id, len(listed.other_identities), listed.other_identity_count) == ("T-25", 20, 25)
    assert others(listed)[0] == JANE
    repeated = dataclasses.replace(BOB, patient_id="T-25", sop_instance_uid="5.25", study_instance_uid="4.25")
    assert store(repository, "a", repeated, file="again") == stored
    assert counts(repository)[2] == 26


@pytest.mark.parametrize(("chosen", "decision"), [(JANE, "pneumonia"), (BOB, "rejected")], ids=["first", "second"])
def test_prediction_under_the_header_of_the_chosen_patient_is_the_current_one(repository, chosen, decision):
    first = store(repository, "a", JANE, age=PatientAge(1))
    rejected = store(repository, "a", BOB, age=PatientAge(30), code="outside_age_range")
    repository.set_identity(first.id, chosen, user="me")
    (listed,) = repository.find(Filter(latest=True)).predictions
    assert (listed.id, listed.decision) == ({"pneumonia": first.id, "rejected": rejected.id}[decision], decision)
    store(repository, "a", JANE, file="again", age=PatientAge(1))
    store(repository, "a", BOB, file="again", age=PatientAge(30), code="outside_age_range")
    assert [each.id for each in repository.find(Filter(latest=True)).predictions] == [listed.id]
    assert verify(repository.engine).predictions == 2


def test_both_predictions_stay_if_a_person_chooses_neither_patient(repository):
    first = store(repository, "a", JANE, age=PatientAge(1))
    store(repository, "a", BOB, age=PatientAge(30), code="outside_age_range")
    repository.set_identity(first.id, jane(patient_id="5", patient_name="Poe^Ann"), user="me")
    assert repository.find(Filter(latest=True)).total == 2


@pytest.mark.parametrize("patient", PAIR, ids=["first", "second"])
def test_image_is_not_deleted_with_one_of_its_patients(repository, patient):
    stored = two_patients(repository)
    (listed,) = repository.find(Filter(patient_key=key_of(stored, patient))).predictions
    for remove, key in ((repository.remove_study, listed.study_key), (repository.remove_patient, listed.patient_key)):
        with pytest.raises(ImageOfTwoPatientsError, match="under another patient"):
            remove(key, user="me")
    assert repository.get(stored.id) == stored
    assert [event for event, _, _ in events(repository)] == ["predicted", "identity_conflict"]


def test_deleting_the_image_deletes_both_identities(repository):
    repository.remove(two_patients(repository).id, user="me")
    assert counts(repository) == (0, 0, 0)


def test_both_identities_expire(tmp_path, database):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    repository = PredictionRepository(tmp_path / "data", database, now=lambda: now)
    stored = two_patients(repository)
    now += timedelta(days=40)
    assert Retention(repository).expire_identities(timedelta(days=30)) == 1
    expired = repository.get(stored.id)
    assert (expired.identity, expired.other_identities, expired.conflicts) == (None, (), ())
    assert counts(repository) == (0, 0, 0)
    repository.close()


def test_migration_does_not_show_an_earlier_prediction_of_one_patient_as_that_of_the_other(tmp_path, database):
    """Before, nothing recorded under which header a prediction was made: each study is rejected until a person decides."""
    repository = PredictionRepository(tmp_path / "data", database)
    first = store(repository, "a", JANE, age=PatientAge(1))
    store(repository, "a", BOB, age=PatientAge(30), code="outside_age_range")
    entered = enter(repository, store(repository, "b", jane(sop_instance_uid="7"), **REQUIRED))
    with write_transaction(repository.engine) as connection:
        config = alembic.config.Config()
        config.set_main_option("script_location", "pneumoscope.service.storage:migrations")
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "0013")
        names = inspect(connection).get_table_names()
        alembic.command.upgrade(config, "head")
    assert "header_predictions" not in names
    (of_bob,) = repository.studies_of_patient(key_of(repository.get(first.id), BOB)).values()
    assert summarize_study(of_bob).decision == "rejected"
    assert repository.entered_age(entered.image.pixel_sha256, jane(sop_instance_uid="7")) == 3
    assert repository.entered_age(first.image.pixel_sha256, JANE) is None
    repository.close()


VALUES = sorted({value for each in PAIR for value in dataclasses.asdict(each).values() if len(value) > 2})


def written(folder):
    """Return the texts of the tables and files in which a value stays."""
    with sqlite3.connect(folder / DATABASE_FILE) as database:
        dump = "\n".join(database.iterdump())
    database.close()
    return [dump, *(file.read_bytes().decode("latin-1") for file in (folder / "blobs").rglob("*") if file.is_file())]


@pytest.mark.parametrize("how", ["expired", "deleted", "resolved"])
def test_no_value_of_the_second_patient_stays_in_the_database(tmp_path, how):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    folder = tmp_path / "data"
    repository = PredictionRepository(folder, now=lambda: now)
    stored = two_patients(repository, name="file")
    assert [value for value in VALUES if value in written(folder)[0]] == VALUES  # the search can find them
    now += timedelta(days=40)
    if how == "expired":
        Retention(repository).expire_images(timedelta(days=30))
        Retention(repository).expire_identities(timedelta(days=30))
    elif how == "deleted":
        repository.remove(stored.id, user="me")
    else:
        repository.set_identity(stored.id, JANE, user="me")
    gone = VALUES if how != "resolved" else [each for each in VALUES if each in dataclasses.asdict(BOB).values()]
    gone = [each for each in gone if how != "resolved" or each not in dataclasses.asdict(JANE).values()]
    left = written(folder)
    assert len(gone) > 8
    assert [value for value in gone if any(value in each for each in left)] == []
    repository.close()


def test_pseudonyms_replace_both_identities(tmp_path):
    folder = tmp_path / "data"
    repository = PredictionRepository(folder)
    pseudonymizer = Pseudonymizer(b"k" * 32)
    for identity in PAIR:
        stored = store(repository, "a", pseudonymizer.identity(identity), file="image")
    assert stored.conflicts == CONFLICT
    left = written(folder)
    assert [value for value in VALUES if len(value) > 3 and any(value in each for each in left)] == []
    for words in ("Doe Jane", "Roe", "R-204", "77"):
        assert repository.find(Filter(search=pseudonymizer.search(words))).total == 1
    repository.close()


def test_migration_keeps_the_identity_of_each_image(tmp_path, database):
    """Down and up again: the identity of the image stays, and that of the other patient is removed."""
    repository = PredictionRepository(tmp_path / "data", database)
    stored = two_patients(repository)
    with write_transaction(repository.engine) as connection:
        config = alembic.config.Config()
        config.set_main_option("script_location", "pneumoscope.service.storage:migrations")
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "0010")
        columns = {each["name"] for each in inspect(connection).get_columns("instances")}
        alembic.command.upgrade(config, "head")
    migrated = repository.get(stored.id)
    assert "number" not in columns
    assert (migrated.identity, migrated.conflicts) == (JANE, ())
    assert counts(repository) == (1, 1, 1)
    repository.close()
