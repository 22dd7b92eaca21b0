"""The configuration file of the exchange with other nodes."""

import dataclasses
import threading
from datetime import date, timedelta

import pytest
from click.testing import CliRunner
from tests.service.conftest import prediction

from pneumoscope.cli.serve import command as serve
from pneumoscope.core.errors import UsageError
from pneumoscope.core.identity import Identity
from pneumoscope.core.prediction import PatientAge
from pneumoscope.service.dicom.configuration import DicomConfiguration, SiteRule
from pneumoscope.service.dicom.configuration_file import read_configuration
from pneumoscope.service.dicom.start_checks import require_files, unresolved_hosts, warn_of_unresolved_hosts

COMPLETE = """
quiet_seconds = 30

[node]
port = 11112
host = "0.0.0.0"
ae_title = "PNEUMOSCOPE"

[[peers]]
name = "PACS"
ae_title = "ORTHANC"
host = "10.0.0.5"
port = 4242

[[peers]]
name = "CT-1"
ae_title = "CT1"
host = "::1"
port = 104

[results]
objects = ["structured_report"]
series_number = 500
series_description = "AI"

[[destinations]]
peer = "sender"

[[destinations]]
name = "archive"
url = "https://pacs.example/dicom-web/"
user = "ai"
password_file = "password"

[[rules]]
name = "children"
action = "predict"
max_age = 15.99
modalities = ["CR", "DX"]
since = 2026-01-01

[[rules]]
name = "others"
action = "exclude"
result = false
"""


def read(tmp_path, text):
    file = tmp_path / "dicom.toml"
    file.write_text(text, encoding="utf-8")
    return read_configuration(file)


def test_complete_file_is_read(tmp_path):
    found = read(tmp_path, COMPLETE)
    assert (found.quiet_seconds, found.node.port, found.node.host) == (30, 11112, "0.0.0.0")
    assert [(peer.name, peer.ae_title, peer.host, peer.port) for peer in found.peers] == [
        ("PACS", "ORTHANC", "10.0.0.5", 4242), ("CT-1", "CT1", "::1", 104),
    ]  # fmt: skip
    assert (found.results.objects, found.results.series_number) == (("structured_report",), 500)
    web = found.destinations[1]
    assert (web.url, web.password_file) == ("https://pacs.example/dicom-web", tmp_path / "password")
    assert [rule.name for rule in found.rules] == ["children", "others"]
    assert set(found.receivers) == {"PACS", "CT-1", "archive"}
    assert found.destinations_of("PACS") == ["PACS", "archive"]
    assert found.destinations_of("") == ["archive"]


def test_defaults_send_results_to_the_sender_after_60_seconds(tmp_path):
    found = read(tmp_path, "")
    assert found == DicomConfiguration()
    assert (found.node, found.quiet_seconds, found.destinations_of("PACS")) == (None, 60, ["PACS"])
    assert found.receivers == {}
    assert read(tmp_path, "destinations = []").destinations_of("PACS") == []


def test_required_age_is_read_and_left_to_the_option_if_it_is_not_stated(tmp_path):
    assert [read(tmp_path, f'require_age = "{each}"').require_age for each in ("never", "dicom", "always")] == [
        "never", "dicom", "always",
    ]  # fmt: skip
    assert read(tmp_path, "").require_age is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = 1", "port: unknown name"),
        ('[peers]\nname = "A"', r"write \[\[peers\]\] with two brackets"),
        ("[node]\nprot = 1", r"node.prot: unknown name. Did you mean 'port'\? See docs/how-to/pacs.md"),
        ("quite_seconds = 1", r"quite_seconds: unknown name. Did you mean 'quiet_seconds'\? See docs"),
        ("[node]", "node.port is missing"),
        ("[node]\nport = 70000", "node.port"),
        ("[node]\nport = 104", r"has no peers.*Add a \[\[peers\]\] entry"),
        ('[node]\nport = 104\ntls_key = "key"', "TLS needs all"),
        ('[[peers]]\nname = "A"\nae_title = "A"\nhost = "h"\nport = 1', "without \\[node\\]"),
        ("quiet_seconds = -1", "quiet_seconds"),
        ("quiet_seconds = 'soon'", "quiet_seconds"),
        ("require_age = true", "require_age: Input should be 'never', 'dicom' or 'always'. See docs/how-to/pacs.md"),
        ('require_age = "children"', "require_age: Input should be 'never', 'dicom' or 'always'"),
        ("require_aeg = 'always'", r"require_aeg: unknown name. Did you mean 'require_age'\?"),
        ('[[destinations]]\npeer = "PACS"', "'PACS' is not a peer"),
        ("[[destinations]]", r"destinations \(table 1\): needs either a peer"),
        ('[[destinations]]\nurl = "https://h/"', "needs a name"),
        ('[[destinations]]\nname = "a"\nurl = "http://pacs.example/"', "must be an https:// address"),
        ('[[destinations]]\nname = "a"\nurl = "https://h/"\nuser = "u"', "needs user and password_file"),
        ('[[destinations]]\nname = "a"\nurl = "https://u:s@h/"', "must not contain a user name or a password"),
        ('[[sources]]\nname = "a"\nurl = "https://@h/"', "must not contain a user name or a password"),
        ('[[sources]]\nname = "a"\nurl = "https://h/?key=s"', "must not contain a query"),
        ('[[destinations]]\nname = "a"\nurl = "https://h/#part"', "must not contain a fragment"),
        (
            '[[destinations]]\npeer = "sender"\nname = "a"',
            "only peer, storage_commitment and commitment_seconds can be set",
        ),
        (
            '[[destinations]]\nname = "a"\nurl = "https://h/"\ncommitment_seconds = 60',
            "commitment_seconds needs a peer",
        ),
        (
            '[[destinations]]\npeer = "sender"\ncommitment_seconds = 60',
            "commitment_seconds needs storage_commitment = true",
        ),
        (
            '[[destinations]]\nname = "a"\nurl = "https://h/"\nstorage_commitment = true',
            "storage_commitment needs a peer",
        ),
        ('[[destinations]]\npeer = "sender"\ncommitment_seconds = 1', r"destinations \(table 1\).commitment_seconds"),
        ('[[rules]]\nname = "a"\naction = "drop"', r"rules \(table 1\).action"),
        (
            '[[rules]]\nname = "a b"\naction = "exclude"',
            r"rules \(table 1\).name: .*'a b' cannot be used as a name\. Use 1",
        ),
        ('[[rules]]\nname = "a"\naction = "exclude"\nmodalities = []', r"rules \(table 1\).modalities"),
        (
            2 * '[[rules]]\nname = "a"\naction = "exclude"\n',
            "two peers, destinations, sources, rules or webhooks have the name 'a'",
        ),
        ("[results]\nobjects = []", "results.objects"),
        ('[results]\nobjects = ["heatmap"]', "results.objects"),
        ("= 1", "is not TOML"),
        ("#" * (2**20 + 1), "longer than 1 MiB"),
    ],
)
def test_wrong_file_is_an_error_that_names_the_place(tmp_path, text, words):
    with pytest.raises(UsageError, match=words):
        read(tmp_path, text)


@pytest.mark.parametrize("url", ["https://u:s3cret@h/", "https://h/?key=s3cret", "https://h/#s3cret"])
def test_error_about_an_address_does_not_repeat_its_secret(tmp_path, url):
    with pytest.raises(UsageError) as error:
        read(tmp_path, f'[[sources]]\nname = "a"\nurl = "{url}"')
    assert "s3cret" not in str(error.value)


PEER = '[node]\nport = 104\n{}[[peers]]\nname = "A"\nae_title = "A"\nhost = "{}"\nport = 104\n'


def test_missing_file_of_the_tls_of_the_node_is_an_error_that_names_it(tmp_path):
    (tmp_path / "node.pem").write_text("certificate")
    files = 'tls_certificate = "node.pem"\ntls_key = "node.key"\ntls_client_ca = "ca.pem"\n'
    with pytest.raises(UsageError, match=r"node\.key' of the DICOM node: No such file"):
        read(tmp_path, PEER.format(files, "10.0.0.5"))


WEB = '[[{}]]\nname = "archive"\nurl = "https://h/"\n'


@pytest.mark.parametrize(
    ("setting", "content", "words"),
    [
        ("token_file", None, r"cannot read the file .*secret' \(token_file of archive\): No such file"),
        ("token_file", b" \n", r"secret' is empty \(token_file of archive\)"),
        ("token_file", b"a\nb", r"secret' has several lines .*\(token_file of archive\)"),
        ("token_file", b"\xff", r"secret' \(token_file of archive\): it is not UTF-8 text"),
        ("password_file", None, r"secret' \(password_file of archive\): No such file"),
        ("ca_file", None, r"secret' \(ca_file of archive\): No such file"),
        ("ca_file", b"no certificate", r"secret' contains no certificate \(ca_file of archive\)"),
    ],
)
def test_service_does_not_start_if_a_file_of_a_destination_cannot_be_used(tmp_path, setting, content, words):
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    user = 'user = "u"\n' if setting == "password_file" else ""
    (tmp_path / "dicom.toml").write_text(f'{WEB.format("destinations")}{user}{setting} = "secret"\n')
    options = ["--ephemeral", "--dicom-config", str(tmp_path / "dicom.toml")]
    with pytest.raises(UsageError, match=words):
        CliRunner().invoke(serve, options, catch_exceptions=False)


def test_certificates_of_a_webhook_are_checked_and_files_of_a_source_are_not(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("whsec_" + 32 * "A")
    secret.chmod(0o600)
    require_files(read(tmp_path, WEB.format("sources") + 'token_file = "nowhere"\n'))
    hook = WEB.format("webhooks") + 'secret_file = "secret"\nca_file = "nowhere"\n'
    with pytest.raises(UsageError, match=r"nowhere' \(ca_file of archive\): No such file"):
        require_files(read(tmp_path, hook))


def test_hosts_without_an_address_are_named_and_not_an_error(tmp_path, caplog):
    text = PEER.format("", "no-such-host.invalid") + WEB.format("destinations").replace("//h", "//127.0.0.1")
    configuration = read(tmp_path, f'{text}[[destinations]]\nname = "b"\nurl = "https://also-none.invalid/path"\n')
    assert list(unresolved_hosts(configuration)) == [("A", "no-such-host.invalid"), ("b", "also-none.invalid")]
    warn_of_unresolved_hosts(configuration)
    for thread in threading.enumerate():
        if thread.name == "resolve-hosts":
            thread.join(60)
    assert "The host name 'no-such-host.invalid' of A has no address now" in caplog.text


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read the DICOM configuration .*No such file"):
        read_configuration(tmp_path / "nowhere.toml")


def image(**identity):
    age = identity.pop("age", None)
    stated = None if age is None else PatientAge(age, "header")
    return dataclasses.replace(prediction(age=stated), identity=Identity(**identity))


@pytest.mark.parametrize(
    ("conditions", "matching", "others"),
    [
        ({}, [{}], []),
        ({"modalities": ("DX", "cr")}, [{"modality": "CR"}], [{"modality": "OT"}, {"modality": ""}]),
        ({"modalities": ("",)}, [{"modality": ""}], [{"modality": "DX"}]),
        ({"views": ("AP",)}, [{"view": "ap"}], [{"view": "PA"}, {}]),
        ({"senders": ("PACS",)}, [{"sender": "PACS"}], [{"sender": "CT-1"}]),
        ({"stations": ("P2",)}, [{"station_name": "p2"}], [{"station_name": "P1"}, {}]),
        ({"min_age": 6}, [{"age": 6}, {"age": 80}], [{"age": 5.9}, {}]),
        ({"max_age": 6}, [{"age": 0}, {"age": 6}], [{"age": 6.1}, {}]),
        ({"min_age": 1, "max_age": 6}, [{"age": 1}], [{"age": 0.5}, {"age": 7}]),
        (
            {"since": date(2026, 1, 1), "until": date(2026, 1, 31)},
            [{"study_date": "2026-01-01"}, {"study_date": "2026-01-31"}],
            [{"study_date": "2025-12-31"}, {"study_date": "2026-02-01"}, {"study_date": "31.1.26"}, {}],
        ),
        ({"views": ("AP",), "min_age": 6}, [{"view": "AP", "age": 7}], [{"view": "AP"}, {"age": 7}]),
    ],
)
def test_rule_matches_if_all_its_conditions_hold(conditions, matching, others):
    rule = SiteRule(name="a", action="exclude", **conditions)

    def matches(fields):
        stated = {name: fields.get(name, "") for name in ("modality", "view", "sender")}
        return rule.matches(image(**{k: v for k, v in fields.items() if k not in stated}), **stated)

    assert [matches(each) for each in matching] == len(matching) * [True]
    assert [matches(each) for each in others] == len(others) * [False]


def test_first_matching_rule_decides(tmp_path):
    found = read(tmp_path, COMPLETE)
    child = image(age=3, study_date="2026-02-01")
    for fields, name in (({"modality": "DX"}, "children"), ({"modality": "OT"}, "others")):
        assert found.rule_of(child, view="", sender="", **fields).name == name
    assert found.rule_of(image(age=40, study_date="2026-02-01"), modality="DX", view="", sender="").name == "others"


def test_peers_that_are_asked_for_storage_commitment_have_their_own_time_to_report(tmp_path):
    text = """
[node]
port = 1104
[[peers]]
name = "A"
ae_title = "A"
host = "h"
port = 104
[[peers]]
name = "B"
ae_title = "B"
host = "h"
port = 104
[[destinations]]
peer = "A"
"""
    assert read(tmp_path, text).commitments == {}
    assert read(tmp_path, f"{text}storage_commitment = true").commitments == {"A": timedelta(hours=1)}
    others = '[[destinations]]\npeer = "sender"\nstorage_commitment = true'
    both = f"{text}storage_commitment = true\ncommitment_seconds = 60\n{others}"
    assert read(tmp_path, both).commitments == {"A": timedelta(minutes=1), "B": timedelta(hours=1)}
    only_others = f"{text}{others}"
    assert read(tmp_path, only_others).commitments == {"B": timedelta(hours=1)}
