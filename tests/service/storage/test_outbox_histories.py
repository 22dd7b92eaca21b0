"""Random histories of one image: what a PACS holds as valid at the end is what the outbox says, once, and under one patient."""

import contextlib
import random
from datetime import timedelta

import pytest
from tests.service.storage.exchange import Exchange, header

from pneumoscope.core.errors import UsageError
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.resending import resend

STEPS = 60
# Steps by name, and how often each is chosen.
WEIGHTS = {
    "receive": 4, "receive_unreadable": 1, "delete": 1, "cancel": 4, "retry": 1, "send_again": 2, "begin": 8, "confirm": 4,
    "refuse": 1, "answer_nothing": 3, "be_killed": 2, "lose_the_image": 2,
}  # fmt: skip


class History:
    """An exchange with one PACS, of which the service sends one object at a time.

    Attributes:
        contents: Headers and withdrawn objects of what the PACS got, by UID.
        withdrawn: UIDs of the objects that notes in the PACS withdraw.
        current: Id of the current prediction; empty for a file that could not be read, and None without either.
        given_up: UIDs of objects that a person cancelled, or whose image was removed.
    """

    def __init__(self, repository, seed):
        self.exchange, self.random = Exchange(repository), random.Random(seed)
        self.contents, self.withdrawn, self.given_up = {}, set(), set()
        self.current, self.sent, self.received = None, None, 0

    @property
    def outbox(self):
        return self.exchange.outbox

    def chosen(self, *states):
        """Return a result in one of some states, or None; no rejection note."""
        found = self.exchange.results(*states)
        return self.random.choice(found) if found else None

    def arrive(self, delivery):
        content = delivery.subject.header, tuple(sorted(delivery.withdrawn_uids.values()))
        self.contents.setdefault(delivery.result_uid, set()).add(content)
        self.withdrawn.update(delivery.withdrawn_uids.values())

    def step(self, name):
        is_being_sent = name in ("confirm", "refuse", "answer_nothing", "be_killed", "lose_the_image")
        if is_being_sent and self.sent is None:
            return
        getattr(self, name)()
        if is_being_sent:
            self.sent = None

    # --- the image ---

    def copy(self, pixels):
        """Return another copy of the image, its pixels and its header."""
        self.received += 1
        stated = header(self.random.choice("ABC"), self.random.choice(["1.2.3", "1.2.4"]))
        pixels = self.random.choice(pixels)
        return self.exchange.receive(pixels, stated, settings=str(self.received)), pixels, stated

    def receive(self):
        received, pixels, stated = self.copy("1112")
        model = self.random.choice("aaab")
        self.current = self.exchange.predict(received, pixels, stated, model=model, settings=str(self.received))

    def receive_unreadable(self):
        received, _, stated = self.copy("34")
        self.exchange.fail(received, self.random.choice(["decode_error", "unreadable_image"]), stated)
        self.current = ""

    def delete(self):
        if self.current:
            self.exchange.withdraw(self.current)
            self.current = None

    # --- the delivery ---

    def due(self):
        return self.outbox.due("PACS", self.exchange.tick() + timedelta(hours=2), 100)

    def begin(self):
        if self.sent is None and (due := self.due()):
            self.sent = self.outbox.begin(self.random.choice(due[:3]).number)

    def confirm(self):
        self.arrive(self.sent)
        self.outbox.record_delivered([self.sent], self.exchange.tick())

    def refuse(self):
        self.outbox.record_failure([self.sent], "status_a700", self.exchange.tick())

    def answer_nothing(self):
        self.be_killed()
        self.outbox.record_failure([self.sent], "timeout", self.exchange.tick(), maybe_delivered=True)

    def be_killed(self):
        if self.random.random() < 0.5:
            self.arrive(self.sent)

    def lose_the_image(self):
        if self.sent.kind == "rejection_note":
            self.refuse()
        else:
            self.given_up.add(self.sent.result_uid)
            self.outbox.record_cancelled(self.sent, "gone", self.exchange.tick())

    # --- a person ---

    def cancel(self):
        if each := self.chosen("waiting"):
            self.given_up.add(each.result_uid)
            self.outbox.cancel([each.number], time=self.exchange.tick())

    def retry(self):
        if each := self.chosen("cancelled"):
            with contextlib.suppress(UsageError):  # it was replaced, or keeps no header
                self.outbox.retry([each.number], time=self.exchange.tick())

    def send_again(self):
        if each := self.chosen("delivered"):
            assert resend(self.exchange.repository.engine, [each.number], time=self.exchange.tick()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_pacs_has_what_holds_once_and_unchanged_after_any_history(seed):
    repository = PredictionRepository(None)
    history = History(repository, seed)
    for name in history.random.choices(list(WEIGHTS), list(WEIGHTS.values()), k=STEPS):
        history.step(name)
    history.step("confirm")
    while due := history.due():
        history.sent = history.outbox.begin(due[0].number)
        history.step("confirm")
    rows = {each.result_uid: each for each in history.exchange.rows()}
    notes = {uid for uid, each in rows.items() if each.kind == "rejection_note"}
    held = {uid: rows[uid] for uid in history.contents.keys() - history.withdrawn - notes}
    delivered = {uid for uid, each in rows.items() if each.state == "delivered"} - notes
    repository.close()
    assert [each.kind for each in rows.values() if each.state == "waiting"] == []
    assert {uid: len(contents) for uid, contents in history.contents.items() if len(contents) > 1} == {}
    assert delivered <= held.keys()
    # One that was cancelled, and may have arrived, holds as long as its prediction.
    others = [held[uid] for uid in held.keys() - delivered]
    assert {(each.state, each.subject.prediction_id) for each in others} <= {("cancelled", history.current)}
    subjects = [(each.kind, each.subject.prediction_id, each.subject.failure_code) for each in held.values()]
    assert len(subjects) == len(set(subjects))
    if history.current:
        kinds = {
            each.kind for uid, each in rows.items() if each.subject.prediction_id == history.current and uid in held
        }
        given_up = {rows[uid].kind for uid in history.given_up if rows[uid].subject.prediction_id == history.current}
        assert kinds | given_up >= {"secondary_capture", "structured_report"}
