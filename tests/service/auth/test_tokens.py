"""Tokens: adding, finding, listing and revoking them."""

import dataclasses
import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text
from tests.service.conftest import insert_token

from pneumoscope.core.errors import StorageError, UnknownNameError, UsageError
from pneumoscope.service.audit.log import read_rows
from pneumoscope.service.auth.tokens import TokenRepository
from pneumoscope.service.auth.users import AuthenticatedUser
from pneumoscope.service.storage.database import open_database, write_transaction
from pneumoscope.service.storage.tables import tokens as table


class Clock:
    """A clock for both the time of day and the monotonic time."""

    def __init__(self):
        self.seconds = 0.0

    def now(self):
        return datetime(2026, 5, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self):
        return self.seconds


@pytest.fixture
def engine(tmp_path, database):
    opened = open_database(tmp_path, database)
    yield opened
    opened.dispose()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tokens(engine, clock):
    return TokenRepository(engine, now=clock.now, monotonic=clock.monotonic)


def test_token_identifies_its_user_and_role(tokens):
    token, secret = tokens.add("ward-3", "reader", created_by="local")
    assert tokens.find(secret) == AuthenticatedUser("ward-3", "reader", token.id)
    assert tokens.find(f" {secret} ") == tokens.find(secret)
    for wrong in ("", secret[:-1], secret + "x", "é" * 9, "\udcff"):
        assert tokens.find(wrong) is None


def test_database_contains_the_hash_of_the_secret_only(tokens, engine):
    token, secret = tokens.add("ward-3", "reader", created_by="local")
    assert len(secret) >= 43  # 256 bits
    with engine.connect() as connection:
        (row,) = connection.execute(select(table)).mappings()
        log = connection.execute(text("SELECT * FROM audit_log")).mappings().one()
    assert row["secret_sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert row["id"] == token.id
    assert secret not in str(dict(row)) + str(dict(log)) + repr(token)


def test_every_change_of_a_token_is_in_the_audit_log(tokens, engine):
    token, _ = tokens.add("ward-3", "sender", created_by="admin")
    tokens.revoke(token.id, user="other-admin")
    added, revoked = read_rows(engine)
    assert (added.event, added.user) == ("token_added", "admin")
    assert added.details == f'{{"role": "sender", "token": "{token.id}", "user": "ward-3"}}'
    assert (revoked.event, revoked.user) == ("token_revoked", "other-admin")


def test_revoked_token_is_unknown_at_once_and_stays_in_the_list(tokens, clock):
    first, secret = tokens.add("b", "reader", created_by="admin")
    second, other = tokens.add("b", "administrator", created_by="admin")
    third, _ = tokens.add("a", "sender", created_by="admin")
    assert tokens.find(secret)
    clock.seconds = 60
    assert tokens.revoke(first.id, user="admin").user == "b"
    assert tokens.find(secret) is None
    assert not tokens.is_active(first.id)
    assert tokens.find(other) == AuthenticatedUser("b", "administrator", second.id)
    assert [(each.id, each.revoked) for each in tokens.list()] == [
        (third.id, None), (second.id, None), (first.id, "2026-05-01T00:01:00.000000Z")
    ]  # fmt: skip
    with pytest.raises(UnknownNameError, match="active token"):
        tokens.revoke(first.id, user="admin")


def test_change_by_another_process_counts_after_two_seconds(tokens, engine, clock):
    other = TokenRepository(engine)
    token, secret = other.add("ward-3", "reader", created_by="admin")
    tokens.refresh()
    assert tokens.find(secret)
    other.revoke(token.id, user="admin")
    clock.seconds = 2
    tokens.refresh()
    assert tokens.find(secret)
    clock.seconds = 2.1
    tokens.refresh()
    assert tokens.find(secret) is None


def test_lookup_never_reads_the_database(tokens, monkeypatch, clock):
    """It is called on the event loop, which a slow database would stop."""
    _, secret = tokens.add("ward-3", "reader", created_by="admin")
    clock.seconds = 60
    monkeypatch.setattr("pneumoscope.service.auth.tokens.read_transaction", lambda *_: pytest.fail("it was read"))
    assert tokens.is_stale
    assert tokens.is_active(tokens.find(secret).token_id)


def test_day_of_the_latest_use_is_stored(tokens, clock):
    token, secret = tokens.add("ward-3", "reader", created_by="admin")
    assert tokens.list()[0].last_used is None
    tokens.find(secret)
    clock.seconds = 3
    tokens.refresh()
    assert tokens.list()[0].last_used == "2026-05-01"
    clock.seconds = 86400 * 2
    tokens.find(secret)
    clock.seconds += 3
    tokens.refresh()
    assert tokens.list() == [dataclasses.replace(token, last_used="2026-05-03")]


def test_token_is_found_although_its_use_cannot_be_stored(tokens, clock, monkeypatch):
    _, secret = tokens.add("ward-3", "reader", created_by="admin")
    tokens.find(secret)
    clock.seconds = 3

    def fail(*_, **__):
        raise StorageError("locked")

    monkeypatch.setattr("pneumoscope.service.auth.tokens.write_transaction", fail)
    tokens.refresh()
    assert tokens.find(secret)


@pytest.mark.parametrize("name", ["", "a b", "<me>", "x" * 65, "é", "local", "retention", "command-line"])
def test_invalid_and_reserved_names_are_rejected(tokens, name):
    with pytest.raises(UsageError, match=r"not a name|reserved"):
        tokens.add(name, "reader", created_by="admin")
    assert tokens.list() == []


def test_unknown_role_is_rejected(tokens):
    with pytest.raises(UnknownNameError, match="reader"):
        tokens.add("ward-3", "raeder", created_by="admin")


def test_two_tokens_cannot_have_one_secret(engine):
    insert_token(engine, "a", "secret", id="00000001")
    with pytest.raises(StorageError):
        insert_token(engine, "b", "secret", id="00000002")
    with write_transaction(engine) as connection:
        assert len(connection.execute(select(table)).all()) == 1
