"""The pages as they are answered: what stands on them, what cannot break out of them, and who gets in."""

import csv
import io
import re
from html.parser import HTMLParser

import msgspec
import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import png
from tests.service.page.conftest import BASE, TOKEN

from pneumoscope.inference.model import load_model
from pneumoscope.service.app import Settings, make_app
from pneumoscope.service.auth.tokens import Authenticator
from pneumoscope.service.storage.repository import PredictionRepository

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>.png"
NOTICE = "Not a medical device"


class Read(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def sent(client, *images, **kwargs):
    parts = [("images", (name, content)) for name, content in images]
    answer = client.post("/v1/predictions", files=parts, **kwargs)
    assert answer.status_code == 201, answer.text
    return [each["id"] for each in answer.json()["predictions"]]


def page(client, path, status=200):
    answer = client.get(path)
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "text/html; charset=utf-8"), answer.text[
        :500
    ]
    return Read(answer.text), answer


def test_the_worklist_has_what_needs_eyes_first(client):
    sent(client, ("low.png", png(90)), ("high.png", png(180)), ("dark.png", png(60)), ("read.png", png(170)))
    found, _ = page(client, "/")
    ids = {attrs["data-name"]: attrs["data-id"] for tag, attrs in found.tags if tag == "tr" and "data-id" in attrs}
    assert list(ids) == ["dark.png", "high.png", "read.png", "low.png"]  # rejected, then by probability
    client.put(f"/v1/predictions/{ids['read.png']}/review", json={"agrees": False})
    found, _ = page(client, "/")
    names = [attrs["data-name"] for tag, attrs in found.tags if tag == "tr" and "data-id" in attrs]
    assert names == ["dark.png", "high.png", "low.png", "read.png"]  # what was read needs no eyes
    assert "black and white seem to be exchanged" in found.text
    assert "disagreed" in found.text
    assert client.get(f"/v1/predictions/{ids['dark.png']}/thumbnail.png").status_code == 200


def test_filters_and_pages(client, monkeypatch):
    monkeypatch.setattr("pneumoscope.service.web.routes._ROWS", 2)
    sent(client, *((f"{level}.png", png(level)) for level in (120, 140, 160, 180, 90)))
    found, _ = page(client, "/?decision=pneumonia&order=highest")
    (following,) = [attrs["href"] for tag, attrs in found.tags if tag == "a" and attrs.get("rel") == "next"]
    names = [attrs["data-name"] for tag, attrs in found.tags if "data-name" in attrs]
    assert names == ["180.png", "160.png"]
    found, _ = page(client, following)
    assert [attrs["data-name"] for tag, attrs in found.tags if "data-name" in attrs] == ["140.png", "120.png"]
    assert ("option", {"value": "pneumonia", "selected": None}) in found.tags
    assert "No image is so" in page(client, "/?decision=uncertain")[0].text
    assert "No image is so" in page(client, "/?since=2999-01-01")[0].text


@pytest.mark.parametrize(
    "query", ["decision=ill", "reviewed=maybe", "order=best", "since=yesterday", "until=1", "after=x"]
)
def test_what_cannot_be_asked_for_is_told_on_a_page(client, query):
    sent(client, ("a.png", png()))
    found, _ = page(client, f"/?{query}", 422)
    assert "The request cannot be done" in found.text
    assert NOTICE in found.text


def test_nothing_of_a_images_name_or_note_breaks_out(client):
    (key,) = sent(client, (HOSTILE, png()))
    client.put(f"/v1/predictions/{key}/review", json={"agrees": True, "note": f"</textarea>{HOSTILE}"})
    for path in ("/", f"/images/{key}", f"/images/{key}/report"):
        found, answer = page(client, path)
        assert "<script>alert" not in answer.text
        assert not [tag for tag, attrs in found.tags if "onerror" in attrs]
        assert all(
            "src" in attrs or attrs.get("type") == "application/json" for tag, attrs in found.tags if tag == "script"
        )
        assert "<script>alert(1)</script>" in found.text


def test_pages_load_nothing_from_elsewhere_and_run_nothing_that_stands_in_them(client):
    (key,) = sent(client, ("a.png", png()))
    for path in ("/", f"/images/{key}", f"/images/{key}/report", "/overview", "/model", "/sign-in"):
        found, answer = page(client, path)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        for _, attrs in found.tags:
            assert not [name for name in attrs if name.startswith("on") or name == "style"]
            for name in ("src", "href", "action"):
                assert re.match(r"[/#]", attrs.get(name) or "/"), attrs
                if (attrs.get(name) or "").startswith("/static/"):
                    assert client.get(attrs[name].split("#")[0]).status_code == 200
        assert NOTICE in found.text
        assert answer.headers["Cache-Control"] == "no-store"


def test_the_page_of_a_image_says_what_the_api_says(client):
    (key,) = sent(client, ("a.png", png(140)))
    said = client.get(f"/v1/predictions/{key}").json()
    found, _ = page(client, f"/images/{key}")
    assert f"{100 * said['probability']:.0f}%" in found.text
    assert "pneumonia" in found.text
    assert "64 \u00d7 64, PNG" in found.text
    client.put(f"/v1/predictions/{key}/review", json={"agrees": False, "note": "rotated"})
    found, _ = page(client, f"/images/{key}/report")
    for expected in ("disagreed", "rotated", said["image_sha256"], said["model"]["sha256"], NOTICE):
        assert expected in found.text


def test_of_a_rejected_image_no_number_and_no_heatmap_is_shown(client):
    (key,) = sent(client, ("dark.png", png(60)))
    found, _ = page(client, f"/images/{key}")
    assert "no probability" in found.text
    assert "heat" not in [attrs.get("id") for _, attrs in found.tags]
    assert not [
        attrs for _, attrs in page(client, f"/images/{key}/report")[0].tags if "heatmap" in attrs.get("src", "")
    ]


def test_a_image_that_is_not_there_is_told_on_a_page(client):
    for path in ("/images/0123", "/images/0123/report", "/images/%3Cscript%3E"):
        found, answer = page(client, path, 404)
        assert "There is no such thing" in found.text
        assert "<script>" not in answer.text.replace('<script src="', "")


def test_the_worklist_as_csv_has_every_image_and_no_formula(client, monkeypatch):
    monkeypatch.setattr("pneumoscope.service.web.export._PAGE", 2)
    keys = sent(client, *((f"={level}.png", png(level)) for level in (60, 90, 120, 150, 180)))
    client.put(f"/v1/predictions/{keys[0]}/review", json={"agrees": True, "note": "=1+1"})
    answer = client.get("/worklist.csv?order=oldest")
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert re.fullmatch(
        r'attachment; filename="pneumoscope-\d{4}-\d\d-\d\d\.csv"', answer.headers["Content-Disposition"]
    )
    assert answer.content.startswith(b"\xef\xbb\xbf")  # Excel takes it for UTF-8 only so
    rows = list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"))))
    assert {row["id"] for row in rows} == set(keys)
    first = next(row for row in rows if row["id"] == keys[0])
    assert (first["path"], first["decision"], first["probability"], first["agrees"], first["note"]) == (
        "./=60.png", "rejected", "", "yes", "'=1+1",
    )  # fmt: skip
    said = client.get(f"/v1/predictions/{keys[4]}").json()
    last = next(row for row in rows if row["id"] == keys[4])
    assert float(last["probability"]) == said["probability"]
    assert len(list(csv.DictReader(io.StringIO(client.get("/worklist.csv?decision=rejected").text)))) == 1


def test_the_overview_counts_and_the_model_is_described(client):
    keys = sent(client, *((f"{level}.png", png(level)) for level in range(80, 140)))
    for key in keys[:4]:
        client.put(f"/v1/predictions/{key}/review", json={"agrees": True})
    found, _ = page(client, "/overview")
    assert "at the operating point balanced: 60." in found.text
    assert re.search(r"100% \(51.100%\)", found.text)  # 4 of 4 by Wilson
    assert "would have to lie elsewhere" in found.text
    found, _ = page(client, "/model")
    assert "mean-grey" in found.text
    assert "(serves now)" in found.text


@pytest.mark.parametrize("path", ["/overview", "/model", "/images/{id}", "/images/{id}/report"])
def test_operating_points_are_named_in_the_persons_language(client, path):
    (key,) = sent(client, ("a.png", png()))
    found, _ = page(client, f"{path.format(id=key)}?language=zh-Hant")
    assert "平衡" in found.text


def test_the_cards_labels_are_said_in_the_persons_language(paged, monkeypatch):
    model = load_model(paged, threads=1)
    counts = {"train": {"NORMAL": 3, "PNEUMONIA": 4}}
    monkeypatch.setattr(model, "card", msgspec.structs.replace(model.card, counts=counts))
    with TestClient(make_app(model, PredictionRepository(None), Authenticator({})), base_url=BASE) as opened:
        assert "3 正常, 4 肺炎" in page(opened, "/model?language=zh-Hant")[0].text


def test_whoever_read_a_image_is_named_where_names_are_known(client, stranger):
    (key,) = sent(client, ("a.png", png()))
    client.put(f"/v1/predictions/{key}/review", json={"agrees": True})
    stranger.headers["Authorization"] = f"Bearer {TOKEN}"
    (same,) = sent(stranger, ("a.png", png()))
    stranger.put(f"/v1/predictions/{same}/review", json={"agrees": True})
    for path in (f"/images/{key}", f"/images/{key}/report"):
        assert re.search(r"Read on \d{4}-\d\d-\d\d \d\d:\d\d \(UTC\)", page(client, path)[0].text)
        assert re.search(r"Read by ward-3 on \d{4}-\d\d-\d\d \d\d:\d\d \(UTC\)", page(stranger, path)[0].text)


def test_chinese_is_chosen_once_and_kept(client):
    found, answer = page(client, "/?language=zh-Hant")
    assert ("html", {"lang": "zh-Hant"}) in found.tags
    assert "並非醫療器材" in found.text
    assert "HttpOnly" in answer.headers["Set-Cookie"]
    assert ("html", {"lang": "zh-Hant"}) in page(client, "/overview")[0].tags
    assert ("html", {"lang": "en"}) in page(client, "/model?language=en")[0].tags
    assert ("html", {"lang": "en"}) in page(client, "/?language=../../x")[0].tags


def test_who_has_not_signed_in_is_asked_to_and_comes_back(stranger):
    answer = stranger.get("/images/0123?language=en")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/sign-in?next=%2Fimages%2F0123%3Flanguage%3Den")
    assert stranger.get("/worklist.csv").status_code == 303
    wrong = stranger.post("/sign-in", data={"token": "0123456789abcdeg"}, params={"next": "/overview"})
    assert (wrong.status_code, "Set-Cookie" in wrong.headers) == (401, False)
    assert "This token is not known" in wrong.text
    assert "0123456789abcdeg" not in wrong.text
    assert "/sign-in?next=%2Foverview&amp;language=zh-Hant" in wrong.text  # another language forgets no way back
    right = stranger.post("/sign-in", data={"token": TOKEN}, params={"next": "/overview"})
    assert (right.status_code, right.headers["Location"]) == (303, "/overview")
    cookie = right.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert "ward-3" in stranger.get("/").text
    assert stranger.get("/v1/predictions").status_code == 200  # pictures and scripts of the page ask the API
    stranger.post("/sign-out")
    assert stranger.get("/").status_code == 303
    assert stranger.get("/v1/predictions").status_code == 401


def test_behind_https_the_cookie_travels_so_alone(stranger):
    answer = stranger.post(f"{BASE.replace('http', 'https')}/sign-in", data={"token": TOKEN})
    assert "Secure" in answer.headers["Set-Cookie"]


@pytest.mark.parametrize("elsewhere", ["//evil.example", "/\\evil.example", "https://evil.example", "evil", "", "/a b"])
def test_nobody_is_sent_elsewhere_after_signing_in(stranger, elsewhere):
    answer = stranger.post("/sign-in", data={"token": TOKEN}, params={"next": elsewhere})
    assert answer.headers["Location"] == "/"


def test_another_sites_page_changes_nothing_with_a_persons_cookie(stranger):
    stranger.post("/sign-in", data={"token": TOKEN})
    image = {"files": [("images", ("a.png", png()))]}
    assert stranger.post("/v1/predictions", **image, headers={"Origin": "https://evil.example"}).status_code == 403
    for nothing in ({}, {"Origin": ""}):  # a browser says where it comes from
        assert stranger.post("/v1/predictions", **image, headers=nothing).status_code == 401
    (key,) = sent(stranger, ("a.png", png()), headers={"Origin": BASE})
    assert stranger.delete(f"/v1/predictions/{key}").status_code == 401
    assert stranger.get("/v1/predictions").json()["total"] == 1
    # A program's token needs no origin, whatever cookies it sends along.
    assert stranger.delete(f"/v1/predictions/{key}", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 204


def test_behind_a_proxy_it_answers_to_its_public_name_and_to_no_other(paged):
    settings = Settings(public_name="images.clinic.example")
    app = make_app(load_model(paged, threads=1), PredictionRepository(None), Authenticator({"ward-3": TOKEN}), settings)
    public = "https://images.clinic.example"
    with TestClient(app, base_url=public, follow_redirects=False) as there:
        there.post("/sign-in", data={"token": TOKEN}, headers={"Origin": public})
        sent(there, ("a.png", png()), headers={"Origin": public})
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example", "Origin": "https://evil.example"}):
            answer = there.post("/v1/predictions", files=[("images", ("b.png", png(90)))], headers=headers)
            assert answer.status_code == 403
        assert there.get("/", headers={"Host": "evil.example"}).status_code == 403
        assert there.get("/healthz", headers={"Host": "127.0.0.1:8000"}).status_code == 200
