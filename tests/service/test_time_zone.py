"""The web interface in a time zone: names, days of 23 and 25 hours, filters and dashboard."""

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import png, post

from pneumoscope.core.errors import UsageError
from pneumoscope.service.app import create_app
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.storage.retention import Retention
from pneumoscope.service.time_zone import find_time_zone, format_minute, local_date, start_of_day

BERLIN = ZoneInfo("Europe/Berlin")


# --- names


def test_named_time_zone_is_found():
    assert find_time_zone("Europe/Berlin").key == "Europe/Berlin"


@pytest.mark.parametrize("name", ["Europe", "Europe/Berln", "../../etc/passwd", "/etc/passwd", "x" * 5000, "a\0b"])
def test_unknown_time_zone_is_an_error_with_a_hint(name):
    with pytest.raises(UsageError, match=r"no time zone .*such as Europe/Berlin, Asia/Taipei or UTC"):
        find_time_zone(name)


@pytest.mark.parametrize(
    ("variable", "link", "expected"),
    [
        ("Asia/Taipei", "/usr/share/zoneinfo/Europe/Berlin", "Asia/Taipei"),
        (":Asia/Taipei", None, "Asia/Taipei"),
        ("CET-1CEST", "/usr/share/zoneinfo/Europe/Berlin", "UTC"),  # a rule without a name
        (None, "/usr/share/zoneinfo/Europe/Amsterdam", "Europe/Amsterdam"),  # itself a link on some systems
        (None, "../usr/share/zoneinfo/America/Argentina/Ushuaia", "America/Argentina/Ushuaia"),
        (None, "/var/db/timezone/zoneinfo/Asia/Tokyo", "Asia/Tokyo"),
        (None, "/usr/share/zoneinfo/Etc/UTC", "UTC"),
        (None, "/somewhere/else", "UTC"),
        (None, None, "UTC"),  # a copied file
    ],
)
def test_time_zone_of_the_machine_is_used_if_it_has_a_name(monkeypatch, tmp_path, variable, link, expected):
    monkeypatch.delenv("TZ", raising=False)
    if variable is not None:
        monkeypatch.setenv("TZ", variable)
    localtime = tmp_path / "localtime"
    if link is None:
        localtime.write_bytes(b"TZif")
    else:
        localtime.symlink_to(link)
    assert find_time_zone("", localtime=localtime).key == expected


@pytest.mark.slow
def test_service_does_not_start_with_an_unknown_time_zone(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "pneumoscope", "serve", "--port", "0", "--ephemeral", "--time-zone", "Mars/Olympus"],
        capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "there is no time zone 'Mars/Olympus'" in ran.stderr
    assert "such as Europe/Berlin" in ran.stderr


# --- times


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-28", 24), ("2026-03-29", 23), ("2026-10-24", 24), ("2026-10-25", 25)]
)
def test_days_have_23_or_25_hours_when_clocks_change(day, hours):
    first = date.fromisoformat(day)
    length = start_of_day(first + timedelta(days=1), BERLIN) - start_of_day(first, BERLIN)
    assert length == timedelta(hours=hours)


def test_day_without_a_midnight_begins_with_the_change():
    """In Beirut, the clocks went from 0:00 to 1:00 on 2026-03-29, that is at 22:00 UTC."""
    beirut = ZoneInfo("Asia/Beirut")
    start = start_of_day(date(2026, 3, 29), beirut)
    assert start == datetime(2026, 3, 28, 22, tzinfo=UTC)
    assert local_date(start.isoformat(), beirut) == date(2026, 3, 29)
    assert local_date((start - timedelta(seconds=1)).isoformat(), beirut) == date(2026, 3, 28)


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        ("2026-01-31T23:30:00.000000Z", "2026-02-01 00:30"),
        ("2026-07-31T23:30:00.000000Z", "2026-08-01 01:30"),
        ("2026-10-25T00:30:00.000000Z", "2026-10-25 02:30+02:00"),
        ("2026-10-25T01:30:00.000000Z", "2026-10-25 02:30+01:00"),
        ("2026-10-25T02:30:00.000000Z", "2026-10-25 03:30"),
        ("2026-03-29T01:00:00+00:00", "2026-03-29 03:00"),
    ],
)
def test_times_are_local_and_never_ambiguous(timestamp, expected):
    assert format_minute(timestamp, BERLIN) == expected


# --- pages


class Clock:
    """The time of a repository, for tests."""

    time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def client(model, clock):
    """A client of a service in Berlin."""
    app = create_app(model, PredictionRepository(None, now=clock), Settings(time_zone=BERLIN))
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as opened:
        yield opened


def send(client, clock, *times):
    """Send an image at each time, in UTC, and return the names and ids."""
    found = {}
    for level, time in enumerate(times, 100):
        clock.time = datetime.fromisoformat(f"{time}+00:00")
        found[time] = post(client, png(level))[0]["id"]
    return found


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        ("2026-03-29", "2026-03-30", ["2026-03-28T23:00:00", "2026-03-29T21:59:59"]),  # 23 hours
        ("2026-10-25", "2026-10-26", ["2026-10-24T22:00:00", "2026-10-25T22:59:59"]),  # 25 hours
    ],
)
def test_filters_select_local_days_when_clocks_change(client, clock, since, until, expected):
    outside = ["2026-03-28T22:59:59", "2026-03-29T22:00:00", "2026-10-24T21:59:59", "2026-10-25T23:00:00"]
    ids = send(client, clock, *expected, *outside)
    page = client.get(f"/?since={since}&until={until}&order=oldest").text
    assert [time for time, id in ids.items() if f'data-id="{id}"' in page] == expected
    csv = client.get(f"/worklist.csv?since={since}&until={until}").text
    assert [time for time, id in ids.items() if id in csv] == expected
    assert f"{expected[0]}.000000Z" in csv  # the export is in UTC


@pytest.mark.parametrize("value", ["2026-02-30", "2026-13-01", "2026-1-1", "0001-01-01", "x", "2026-01-01T00:00"])
def test_date_that_cannot_be_used_is_an_error(client, value):
    """With clocks east of Greenwich, the first day of the year 1 begins before it in UTC."""
    answer = client.get(f"/?since={value}&language=en")
    assert answer.status_code == 422
    assert "since is not a date" in answer.text


def test_all_pages_show_local_time_and_name_the_zone(client, clock):
    clock.time = datetime(2026, 7, 31, 22, 30, tzinfo=UTC)
    (prediction,) = post(client, png(140))
    client.put(f"/v1/predictions/{prediction['id']}/review", json={"label": "no_finding"})
    client.post("/v1/predictions", files=[("images", ("broken.dcm", b"no image"))])
    viewer = f"/images/{prediction['id']}"
    for path in ("/", viewer, f"{viewer}/report", "/unreadable"):
        page = client.get(f"{path}?language=en").text
        assert "2026-08-01 00:30" in page, path
        assert "(Europe/Berlin)" in page, path
        assert "UTC" not in page, path
        assert "2026-07-31 22:30" not in page, path
    assert "Read on 2026-08-01 00:30 (Europe/Berlin)" in client.get(f"{viewer}?language=en").text
    assert "（Europe/Berlin）" in client.get(f"{viewer}/report?language=zh-Hant").text
    dashboard = client.get("/dashboard?language=en").text
    assert "Day (Europe/Berlin)" in dashboard
    assert '<th scope="row">2026-08-01</th>' in dashboard
    assert "Created (Europe/Berlin)" in client.get("/model?language=en").text
    assert client.get(f"/v1/predictions/{prediction['id']}").json()["created"] == "2026-07-31T22:30:00.000000Z"


def test_removed_image_shows_when_in_local_time(client, clock):
    (prediction,) = post(client, png(140))
    clock.time = datetime(2026, 7, 31, 22, 30, tzinfo=UTC)
    Retention(client.app.state.service.repository).expire_images(timedelta(days=30))
    page = client.get(f"/images/{prediction['id']}?language=en").text
    assert "The image was removed on 2026-08-01 00:30 (Europe/Berlin)" in page
