"""Header fields for subgroups, and the pseudonym of the patient."""

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from tests.images import dicom
from tests.imaging.conformance import dataset, written

from pneumoscope.imaging.header_fields import read_header_fields


def fields(tmp_path, **elements):
    path = tmp_path / "image.dcm"
    path.write_bytes(dicom(100, **elements))
    return read_header_fields(path)


def test_fields_of_a_header(tmp_path):
    header = fields(tmp_path, PatientSex="F", ViewPosition="PA", Manufacturer="Acme  Imaging", PatientAge="003Y")
    assert (header.sex, header.view, header.manufacturer, header.age.years) == ("F", "PA", "ACME IMAGING", 3)


def test_patient_is_a_hash_of_identifier_and_issuer(tmp_path):
    patients = {
        fields(tmp_path, PatientID=identifier, IssuerOfPatientID=issuer).patient
        for identifier, issuer in (("1234", "North"), ("1234", "South"), ("1235", "North"), ("1234 ", "North"))
    }
    assert len(patients) == 3  # spaces at the end are padding
    assert all(len(patient) == 16 and "1234" not in patient for patient in patients)
    assert fields(tmp_path, IssuerOfPatientID="North").patient == ""


def test_header_is_read_without_the_bytes_before_the_prefix(tmp_path):
    content = dicom(100, PatientID="1234")
    for name, beginning in (("whole", 0), ("prefix", 128), ("elements", 132)):
        (tmp_path / name).write_bytes(content[beginning:])
    assert len({read_header_fields(tmp_path / name).patient for name in ("whole", "prefix", "elements")}) == 1


def test_deflated_file_is_not_inflated(tmp_path):
    path = tmp_path / "image.dcm"
    for syntax, expected in ((ExplicitVRLittleEndian, True), (DeflatedExplicitVRLittleEndian, False)):
        path.write_bytes(written(dataset(PatientID="1234", syntax=syntax)))
        assert (read_header_fields(path) is not None) == expected


def test_other_files_have_no_header(tmp_path):
    (tmp_path / "image.png").write_bytes(b"not DICOM")
    (tmp_path / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 40)
    assert read_header_fields(tmp_path / "image.png") is None
    assert read_header_fields(tmp_path / "missing") is None
    assert read_header_fields(tmp_path / "broken.dcm") is None
