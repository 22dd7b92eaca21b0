"""`pneumoscope tokens`."""

import json
import re

import pytest
from click.testing import CliRunner

from pneumoscope.cli import cli, run_and_exit
from pneumoscope.cli.tokens import command
from pneumoscope.service.auth.tokens import TokenRepository
from pneumoscope.service.storage.database import open_database


def run(folder, *arguments):
    result = CliRunner().invoke(command, [*arguments, "--data-dir", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def find(folder, secret):
    engine = open_database(folder)
    tokens = TokenRepository(engine)
    tokens.refresh()
    found = tokens.find(secret)
    engine.dispose()
    return found


def test_added_token_is_the_only_line_of_the_output(tmp_path):
    added = run(tmp_path / "records", "add", "dr.lin", "--role", "reader")
    secret = added.stdout.removesuffix("\n")
    assert re.fullmatch(r"[\w-]{43}", secret)
    user = find(tmp_path / "records", secret)
    assert (user.name, user.role) == ("dr.lin", "reader")
    assert f"Added token {user.token_id} of dr.lin, role reader in {tmp_path / 'records'}" in added.stderr
    assert "the first token. Restart a running service" in added.stderr
    second = run(tmp_path / "records", "add", "scanner-1", "--role", "sender")
    assert "first token" not in second.stderr


def test_tokens_are_listed_and_revoked(tmp_path):
    secret = run(tmp_path, "add", "dr.lin", "--role", "reader").stdout.strip()
    run(tmp_path, "add", "a", "--role", "administrator")
    listed = json.loads(run(tmp_path, "list", "--json").stdout)["tokens"]
    assert [(each["user"], each["role"], each["created_by"]) for each in listed] == [
        ("a", "administrator", "command-line"),
        ("dr.lin", "reader", "command-line"),
    ]
    id = listed[1]["id"]
    assert f"Revoked token {id} of dr.lin" in run(tmp_path, "revoke", id).stderr
    assert find(tmp_path, secret) is None
    header, first, second = run(tmp_path, "list").stdout.splitlines()
    assert header.split() == ["id", "user", "role", "added", "last", "used", "revoked"]
    assert first.split()[1:3] == ["a", "administrator"]
    assert re.fullmatch(rf"{id}  dr.lin  reader         \d{{4}}-\d\d-\d\d  never       \d{{4}}-\d\d-\d\d", second)
    assert secret not in header + first + second


def test_without_tokens_the_list_says_how_to_add_one(tmp_path):
    open_database(tmp_path).dispose()
    listed = run(tmp_path, "list")
    assert listed.stdout == ""
    assert "pneumoscope tokens add NAME --role reader" in listed.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "a b", "--role", "reader"], "'a b' is not a name of a user"),
        (["add", "local", "--role", "reader"], "reserved"),
        (["add", "a", "--role", "king"], "'king' is not one of"),
        (["add", "a"], "Missing option '--role'"),
        (["revoke", "0123abcd"], "there is no active token '0123abcd'"),
        (["list", "--data-dir", "nowhere"], "no database in 'nowhere'"),
    ],
)
def test_wrong_arguments_are_errors(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    open_database(tmp_path / "pneumoscope-data").dispose()
    with pytest.raises(SystemExit) as stop:
        run_and_exit(cli, ["tokens", *arguments])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
