"""A patient, and predictions of images with an identity."""

import dataclasses
import hashlib
import json

from sqlalchemy import func, select
from tests.service.conftest import prediction

from pneumoscope.core.identity import Identity
from pneumoscope.core.prediction import Rejection
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.storage.tables import instances, patients, studies

JANE = Identity(
    patient_id="77", issuer_of_patient_id="A", patient_name="Doe^Jane", patient_birth_date="2021-01-31", patient_sex="F",
    accession_number="ACC1", study_instance_uid="1.2.1", study_date="2026-01-02", study_description="chest",
    series_instance_uid="1.2.1.1", sop_instance_uid="1.2.1.1.1", station_name="DX1",
)  # fmt: skip
VALUES = [value for value in dataclasses.asdict(JANE).values() if len(value) > 1]


def store(repository, pixels, identity, *, file=None, probability=0.75, decision="pneumonia", code=None, **fields):
    """Store a prediction of an image with these pixels in a file with this identity."""
    made = prediction(None if code else probability, "rejected" if code else decision, **fields)
    sha256 = hashlib.sha256(pixels.encode()).hexdigest()
    made = dataclasses.replace(made, identity=identity, image=dataclasses.replace(made.image, pixel_sha256=sha256))
    if code:
        made = dataclasses.replace(made, rejection=Rejection(code, {}))
    return repository.add(made, (file or f"{pixels} {identity and dataclasses.asdict(identity)}").encode(), user="me")[
        0
    ]


def jane(**changes):
    return dataclasses.replace(JANE, **changes)


def counts(repository):
    with repository.engine.connect() as connection:
        return tuple(
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (patients, studies, instances)
        )


def events(repository):
    return [(row.event, row.prediction_id, json.loads(row.details)) for row in read_rows(repository.engine)]
