"""Run an operation of the repository in a child process that kills itself with SIGKILL before a chosen step.

A step is whatever changes a file or the database: opening a file for writing, half of its content, synchronizing, renaming,
removing, making a directory, each SQL statement, the moments before and after a commit, and each answer to the caller.

Child processes import this module and nothing else of the tests, so that each starts in milliseconds.
"""

import io
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
from datetime import UTC, datetime, timedelta

from sqlalchemy import event

from pneumoscope.core.prediction import ImageInfo, ModelInfo, Prediction
from pneumoscope.service.storage.commitments import CommitmentReport, Commitments
from pneumoscope.service.storage.outbox_records import ResultSubject
from pneumoscope.service.storage.queries import Filter
from pneumoscope.service.storage.received_instances import Outcome, ReceivedInstance, finish
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.results import enqueue
from pneumoscope.service.storage.retention import Retention

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pytest", "alembic.runtime.migration", "sqlalchemy.dialects.postgresql.pg8000", __name__]
)
PREDICTION = Prediction(
    path="image.png",
    decision="pneumonia",
    probability=0.75,
    threshold=0.4,
    operating_point="balanced",
    image=ImageInfo(30, 20, "PNG"),
    model=ModelInfo("gray", "0.1.0", "ab" * 32),
)


class Steps:
    """Report each step to the parent process, and kill this process before the step of a number.

    Args:
        report: Connection to the parent.
        last: Number of the step; the process is killed before it.
    """

    def __init__(self, report, last):
        self.report, self.last, self.count = report, last, 0
        self.counting = False
        self.lock = threading.Lock()

    def __call__(self, name):
        with self.lock:
            if not self.counting:
                return
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
            self.report.send(name)

    def watch_files(self, folder):
        """Count changes of files below a directory."""
        changes = {"os.rename": "rename", "os.remove": "remove", "os.mkdir": "make directory"}
        fsync, open_path = os.fsync, pathlib.Path.open

        def changed(kind, arguments):
            if kind in changes and str(arguments[0]).startswith(str(folder)):
                self(f"{changes[kind]} {pathlib.Path(arguments[0]).parent.name}")

        def synchronized(handle):
            self("fsync")
            fsync(handle)

        def opened(path, mode="r", *arguments, **options):
            if mode != "wb":
                return open_path(path, mode, *arguments, **options)
            self("open for writing")
            return HalfwayWriter(io.FileIO(path, "w"), self)

        sys.addaudithook(changed)
        os.fsync, pathlib.Path.open = synchronized, opened

    def watch_database(self, engine):
        """Count statements and commits."""
        commit = engine.dialect.do_commit

        def committed(connection):
            self("commit")
            commit(connection)
            self("committed")

        engine.dialect.do_commit = committed
        event.listen(
            engine, "before_cursor_execute", lambda _, __, statement, *___: self(statement.split("\n")[0][:40])
        )


class HalfwayWriter(io.BufferedWriter):
    """A file whose content reaches the disk in two halves, with a step between them."""

    def __init__(self, raw, step):
        super().__init__(raw)
        self.step = step

    def write(self, content):
        half = len(content) // 2
        super().write(content[:half])
        self.flush()
        self.step("half of the content")
        return half + super().write(content[half:])


def images(number):
    return [b"%d of step %d" % (place, number) for place in range(2)]


def add_images(repository, number, step):
    """Add two images in one transaction: they are submitted while another one is being stored, before the steps count."""
    stage, begun, submitted = repository.storage.blobs.stage, threading.Event(), threading.Event()

    def stage_before_and_count_after(blobs):
        if begun.is_set():
            step.counting = True
        begun.set()
        assert submitted.wait(30)
        return stage(blobs)

    repository.storage.blobs.stage = stage_before_and_count_after
    repository.submit(PREDICTION, b"before", user="me")
    assert begun.wait(30)
    futures = [repository.submit(PREDICTION, each, user="me") for each in images(number)]
    submitted.set()
    for place, future in enumerate(futures):
        future.result(30)
        step(f"answer {place}")


def delete_image(repository, number, step):
    key = repository.find(Filter()).predictions[0].id
    repository.remove(key, user="me")
    step(f"answer {key}")


def expire_images(repository, number, step):
    Retention(repository).expire_images(timedelta(0))
    step("answer")


SETTINGS = "cd" * 32
KINDS = ("secondary_capture", "structured_report")


def received(number, place=0):
    """Return an instance and its file."""
    uid = f"1.2.{number}.{place}"
    return ReceivedInstance("PACS", "PACS", "1.2", uid, '{"header": 1}'), f"file {uid}".encode()


def receive_instances(repository, number, step):
    """Receive two instances, and one of them again."""
    for place in (0, 1, 0):
        instance, content = received(number, place)
        repository.inbox.submit(instance, content, timedelta(0), SETTINGS).result(30)
        step(f"answer {place}")


def process_instances(repository, number, step):
    """Predict what waits, with its results in the outbox."""
    for instance in repository.inbox.ready(100):
        content = repository.inbox.content(instance)
        assert content is not None

        def record(connection, id, instance=instance):
            time = repository.storage.time()
            finish(connection, instance, Outcome("predicted", SETTINGS, id), time)
            subject = ResultSubject(id, "", "ab" * 32, "balanced", instance.sop_instance_uid, instance.header)
            enqueue(connection, subject, ["PACS"], KINDS, time)

        repository.submit(PREDICTION, content, user="PACS", callback=record).result(30)
        repository.inbox.remove_file(instance)


def deliver_results(repository, number, step):
    """Send what is due to a PACS, which is a file that outlives the process."""
    with pacs_file(repository).open("a") as pacs:
        for due in repository.outbox.due("PACS", datetime.now(UTC), 100):
            delivery = repository.outbox.begin(due.number)
            step("send")
            pacs.write(f"{delivery.result_uid} {delivery.subject.header}\n")
            pacs.flush()
            step("sent")
            repository.outbox.record_delivered([delivery], datetime.now(UTC))


def request_commitment(repository, number, step):
    """Request storage commitment from the PACS, and record its report, which comes later."""
    commitments, hour = Commitments(repository.engine), timedelta(hours=1)
    now = datetime.now(UTC) + timedelta(minutes=1)
    request = commitments.begin("PACS", now, hour, 100)
    if request is None:
        return
    with pacs_file(repository).open("a") as pacs:
        step("send")
        pacs.write(" ".join([request.transaction_uid, *(each.result_uid for each in request.deliveries)]) + "\n")
        pacs.flush()
        step("sent")
    commitments.record_accepted(request.transaction_uid, now, hour)
    for transaction_uid, *uids in map(str.split, pacs_file(repository).read_text().splitlines()[-1:]):
        assert commitments.record_report("PACS", CommitmentReport(transaction_uid, frozenset(uids), {}), now)
        step("answer")


def pacs_file(repository):
    """Return the file that stands for a PACS, beside the data directory."""
    return repository.storage.folder.parent / "pacs.txt"


def recover(repository, number, step):
    """Nothing: opening the repository is the operation."""


def run(operation, folder, database, number, report):
    """Run an operation until the step of a number; the steps of opening count only for `recover`."""
    step = Steps(report, number)
    if operation is recover:
        step.watch_files(folder)
        step.counting = True
    repository = PredictionRepository(folder, database)
    if operation is not recover:
        step.watch_files(folder)
    step.watch_database(repository.engine)
    step.counting = operation is not add_images  # which begins to count later
    operation(repository, number, step)
    os._exit(0)


def steps_until_killed(operation, folder, database, number):
    """Run an operation in a child process, and return its steps and whether it was killed."""
    reader, writer = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=run, args=(operation, folder, database, number, writer))
    process.start()
    writer.close()
    steps = []
    try:
        while True:
            assert reader.poll(60), f"no step after {steps}"
            steps.append(reader.recv())
    except EOFError:
        process.join(60)
    finally:
        process.kill()
    assert process.exitcode in (0, -signal.SIGKILL)
    return steps, process.exitcode != 0
