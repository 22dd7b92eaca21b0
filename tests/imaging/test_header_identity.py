"""The identity in a DICOM header: names in the character sets of the world, dates, and hostile values."""

import io

import pydicom
import pytest
from pydicom import Dataset, dcmread, dcmwrite
from tests.images import dicom

from pneumoscope.core.identity import (
    IDENTITY_FIELDS,
    Identity,
    age_at_study,
    combine,
    display_name,
    normalize_text,
    search_words,
)
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.header_identity import read_identity
from pneumoscope.imaging.sandbox.pool import DecodePool

HEADER = {
    "PatientID": " 0077 ", "IssuerOfPatientID": "A", "PatientName": "Doe^Jane^^^", "PatientBirthDate": "20210131",
    "PatientSex": "f", "AccessionNumber": "ACC1", "StudyInstanceUID": "1.2.3", "StudyDate": "2026.01.02",
    "StudyDescription": "chest  pa", "SeriesInstanceUID": "1.2.3.1", "SOPInstanceUID": "1.2.3.1.1", "StationName": "DX1",
}  # fmt: skip
IDENTITY = Identity(
    patient_id="0077", issuer_of_patient_id="A", patient_name="Doe^Jane", patient_birth_date="2021-01-31", patient_sex="F",
    accession_number="ACC1", study_instance_uid="1.2.3", study_date="2026-01-02", study_description="chest pa",
    series_instance_uid="1.2.3.1", sop_instance_uid="1.2.3.1.1", station_name="DX1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _invalid_values_are_written(monkeypatch):
    for mode in ("reading_validation_mode", "writing_validation_mode"):
        monkeypatch.setattr(pydicom.config.settings, mode, pydicom.config.IGNORE)


def test_every_field_is_read_from_its_element():
    assert decode(dicom(100, **HEADER)).identity == IDENTITY
    assert all(IDENTITY.stated().get(name) for name in IDENTITY_FIELDS)


def test_worker_process_returns_the_identity():
    with DecodePool(workers=1) as pool:
        assert pool.decode(dicom(100, **HEADER)).identity == IDENTITY


# PS3.5 annexes H to K, and Windows code pages in which software writes without stating it.
@pytest.mark.parametrize(
    ("character_set", "encoded", "name"),
    [
        (["", "ISO 2022 IR 87"], b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada^Tarou=山田^太郎"),
        (["", "ISO 2022 IR 149"], b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7", "Hong^Gildong=洪^吉洞"),
        (["", "ISO 2022 IR 58"], b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab", "Zhang^XiaoDong=张^小东"),
        (["ISO_IR 100"], b"Buc^J\xe9r\xf4me", "Buc^Jérôme"),
        (["ISO_IR 144"], "Люксембург".encode("iso8859-5"), "Люксембург"),
        (["ISO_IR 192"], "Wang^XiaoDong=王^小東".encode(), "Wang^XiaoDong=王^小東"),
        (["GB18030"], "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
        (["GBK"], "王^小东".encode("gbk"), "王^小东"),
        ([], "王^小東".encode(), "王^小東"),  # UTF-8 without a character set
        ([], b"Buc^J\xe9r\xf4me", "Buc^Jérôme"),  # Latin-1 without a character set
    ],
)
def test_name_is_read_in_its_character_set(character_set, encoded, name):
    dataset = Dataset()
    if character_set:
        dataset.SpecificCharacterSet = character_set
    dataset.PatientName = "PLACEHOLDER"
    file = io.BytesIO()
    dcmwrite(file, dataset, implicit_vr=False, little_endian=True)
    padded = encoded + b" " * (len(encoded) % 2)
    content = file.getvalue()
    stated = b"PN" + len("PLACEHOLDER ").to_bytes(2, "little") + b"PLACEHOLDER "
    assert stated in content
    content = content.replace(stated, b"PN" + len(padded).to_bytes(2, "little") + padded)
    header = dcmread(io.BytesIO(content), force=True)
    assert read_identity(header).patient_name == name


@pytest.mark.parametrize("keyword", ["PatientID", "AccessionNumber", "StudyDescription", "StationName"])
def test_text_without_a_character_set_may_be_utf_8(keyword):
    header = Dataset()
    setattr(header, keyword, "胸部".encode().decode("latin-1"))
    assert list(read_identity(header).stated().values()) == ["胸部"]


def test_empty_header_has_no_identity():
    assert read_identity(Dataset()) is None
    header = Dataset()
    header.PatientID, header.PatientName, header.StudyDate = " ", "^^", None
    assert read_identity(header) is None


def test_date_that_is_not_understood_is_kept_as_stated():
    header = Dataset()
    header.PatientBirthDate = "99999999"
    assert read_identity(header).patient_birth_date == "99999999"


def test_hostile_values_are_cut_and_cleaned():
    header = Dataset()
    header.PatientID = "a\0b\r\nc\x1b[31m"
    header.StudyDescription = "x" * 100_000
    header.AccessionNumber = ["1", "2"]
    identity = read_identity(header)
    assert identity.patient_id == "a b c [31m"
    assert len(identity.study_description) == 256
    assert identity.accession_number == "1\\2"


def test_representation_has_no_values():
    assert repr(Identity(patient_name="Doe^Jane", patient_id="7")) == "Identity(patient_id, patient_name)"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Doe^Jane", "Doe Jane"), ("Wang^XiaoMing=王^小明", "Wang XiaoMing (王小明)"), ("=王^小明", "王小明"), ("", ""),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada Tarou (山田太郎, やまだ たろう)"), ("Doe^Jane^M^Dr", "Doe Jane M Dr"),
    ],
)  # fmt: skip
def test_name_is_shown_without_separators(name, shown):
    assert display_name(name) == shown


def test_words_are_compared_without_case_accents_and_separators():
    assert search_words("MÜLLER^Zoë=王^小明") == ["muller", "zoe", "王", "小明"]
    assert search_words(" ") == []
    assert search_words("한글") == search_words("한글")


def test_text_is_composed():
    assert normalize_text("e\u0301  x\t") == "é x"


@pytest.mark.parametrize(
    ("stated", "entered", "combined"),
    [
        (None, None, None),
        (Identity(patient_id="1"), None, Identity(patient_id="1")),
        (None, Identity(patient_id="1"), Identity(patient_id="1")),
        # The name that was entered may be another patient's.
        (Identity(patient_id="1"), Identity(patient_id="2", patient_name="Doe"), Identity(patient_id="1")),
        (Identity(patient_sex="F"), Identity(patient_id="2"), Identity(patient_id="2", patient_sex="F")),
        (
            Identity(study_instance_uid="1"), Identity(patient_id="2", accession_number="7", study_date="2026-01-01"),
            Identity(patient_id="2", study_instance_uid="1"),
        ),
        (
            Identity(study_date="2026-01-01"), Identity(accession_number="7"),
            Identity(accession_number="7", study_date="2026-01-01"),
        ),
    ],
)  # fmt: skip
def test_entered_identity_completes_that_of_the_header(stated, entered, combined):
    assert combine(stated, entered) == combined


def test_age_follows_from_the_dates():
    dates = Identity(patient_birth_date="2021-01-31", study_date="2026-01-31")
    assert age_at_study(dates) == 5
    assert age_at_study(None) is age_at_study(Identity(patient_birth_date="2021-01-31")) is None
    assert age_at_study(Identity(patient_birth_date="31.1.2021", study_date="2026-01-31")) is None
