"""An inbox and an outbox in the database, without a network."""

import dataclasses
import hashlib
import itertools
import json
from datetime import UTC, datetime, timedelta

from tests.service.conftest import MODEL, prediction

from pneumoscope.core.prediction import ImageInfo
from pneumoscope.service.storage.database import write_transaction
from pneumoscope.service.storage.outbox_records import ResultSubject
from pneumoscope.service.storage.received_instances import Outcome, ReceivedInstance, finish
from pneumoscope.service.storage.records import format_time
from pneumoscope.service.storage.results import enqueue, withdraw

SOP_UID = "1.2.3.4"
KINDS = ("secondary_capture", "structured_report")


def header(patient, study="1.2.3", series="1.2.3.1"):
    elements = {
        "00100020": {"vr": "LO", "Value": [patient]},
        "0020000D": {"vr": "UI", "Value": [study]} if study else {"vr": "UI"},
        "0020000E": {"vr": "UI", "Value": [series]} if series else {"vr": "UI"},
    }
    return json.dumps(elements)


class Exchange:
    """An inbox and an outbox whose clock goes on by a second with each step."""

    def __init__(self, repository):
        self.repository, self.outbox, self.inbox = repository, repository.outbox, repository.inbox
        self._seconds = itertools.count(1)
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.inbox.now = self.tick

    def tick(self):
        self.now += timedelta(seconds=1)
        return self.now

    def receive(self, pixels, header, settings="s"):
        """Store a copy of the image, and return it as the processor gets it."""
        study = json.loads(header)["0020000D"].get("Value", [""])[0]
        instance = ReceivedInstance("PACS", "PACS", study, SOP_UID, header)
        content = f"{pixels} {header}".encode()
        self.inbox.submit(instance, content, timedelta(0), settings).result(30)
        sha256 = hashlib.sha256(content).hexdigest()
        return next((each for each in self.inbox.ready(100) if each.image_sha256 == sha256), None)

    def predict(self, received, pixels, header, *, model="a", settings="s", destinations=("PACS",), kinds=KINDS):
        """Store the prediction of a copy, and its results under a header, as the processor does; return its id."""
        found = dataclasses.replace(
            prediction(), image=ImageInfo(30, 20, "DICOM", pixels * 64),
            model=dataclasses.replace(MODEL, sha256=model * 64),
        )  # fmt: skip

        def record(connection, id):
            time = format_time(self.tick())
            subject = ResultSubject(id, "", model * 64, "balanced", SOP_UID, header)
            finish(connection, received, Outcome("predicted", settings, id), time)
            enqueue(connection, subject, destinations, kinds, time)

        return (
            self.repository.submit(found, received.image_sha256.encode(), user="PACS", callback=record).result(30)[0].id
        )

    def fail(self, received, code, header, *, model="a", **reason):
        """Store the failure of a copy, and its report with a reason."""
        with write_transaction(self.repository.engine) as connection:
            time = format_time(self.tick())
            finish(connection, received, Outcome("unreadable", "s", failure_code=code), time)
            subject = ResultSubject("", code, model * 64, "balanced", SOP_UID, header, **reason)
            enqueue(connection, subject, ["PACS"], ["structured_report"], time)

    def deliver(self):
        """Deliver what is due, and return it."""
        sent = [self.outbox.begin(each.number) for each in self.outbox.due("PACS", self.tick(), 100)]
        for each in sent:
            self.outbox.record_delivered([each], self.tick())
        return sent

    def withdraw(self, *ids):
        with write_transaction(self.repository.engine) as connection:
            withdraw(connection, ids, format_time(self.tick()))

    def rows(self, *states):
        return self.outbox.find(states or ("waiting", "delivered", "withdrawn", "cancelled"))

    def results(self, *states):
        return [each for each in self.rows(*states) if each.kind != "rejection_note"]

    def notes(self):
        """Return patient, study and withdrawn UIDs of the rejection notes that wait."""
        notes = [each for each in self.rows("waiting") if each.kind == "rejection_note"]
        return [(*patient_and_study(each), set(each.withdrawn_uids.values())) for each in notes]


def patient_and_study(delivery):
    elements = json.loads(delivery.subject.header)
    return elements["00100020"]["Value"][0], elements["0020000D"]["Value"][0]


def uids(deliveries):
    return {each.result_uid for each in deliveries}
