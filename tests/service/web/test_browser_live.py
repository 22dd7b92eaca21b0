"""The live worklist and its filters in a real Chromium, against a real process."""

import json
import signal

import pytest
from tests.processes import free_port
from tests.service.conftest import served
from tests.service.web.helpers import (
    expect,
    expect_viewer,
    record_traffic,
    row_names,
    sign_in,
    upload,
    wait_until,
    wait_until_still,
)

pytestmark = pytest.mark.browser
NOT_LIVE = "The list is not live; reconnecting …"
# Playwright's pages are always visible; a browser reports that a tab is hidden in this way.
HIDE = """hidden => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def open_streams(client):
    (line,) = [
        line for line in client.get("/metrics").text.splitlines() if line.startswith("pneumoscope_event_streams")
    ]
    return float(line.split()[-1])


def wait_until_live(page, client, count=1):
    wait_until(page, lambda: open_streams(client) == count)


def list_requests(page):
    """Return a list that grows with each request for the list."""
    seen = []
    page.on("request", lambda each: each.resource_type == "fetch" and seen.append(each.url))
    return seen


# --- live


@pytest.mark.parametrize("viewport", [(1280, 900), (390, 844)])
@pytest.mark.parametrize("language", ["en", "zh-Hant"])
def test_list_follows_what_others_do(browser, service, viewport, language):
    context = browser.new_context(viewport={"width": viewport[0], "height": viewport[1]})
    page = context.new_page()
    seen = record_traffic(page)
    page.goto(f"{service.base_url}/?language={language}")
    wait_until_live(page, service)
    ids = upload(service, {"high.png": 180, "low.png": 90})
    expect(page.locator("tr[data-id]")).to_have_count(2)
    service.put(f"/v1/predictions/{ids['high.png']}/review", json={"label": "no_finding"})
    label = {"en": "No finding", "zh-Hant": "無異常發現"}[language]
    expect(page.locator("tr[data-name='high.png'] .review")).to_have_text(label)
    assert row_names(page) == ["low.png", "high.png"]
    service.put(f"/v1/predictions/{ids['low.png']}/identity", json={"patient_name": "Doe^Jane"})
    expect(page.locator("#list")).to_contain_text("Doe")
    service.post("/v1/predictions", files=[("images", ("broken.dcm", b"no image"))])
    expect(page.locator(".tabs a").last).to_contain_text("1")
    service.delete(f"/v1/predictions/{ids['low.png']}")
    expect(page.locator("tr[data-id]")).to_have_count(1)
    expect(page.locator("#live-status")).to_have_text("")
    assert [each for each in seen if not each.startswith(str(service.base_url))] == []
    context.close()


def test_change_while_the_page_loads_is_not_missed(page, service):
    """The stream is opened late, after an upload that the list does not have."""
    late = []
    page.route("**/events?*", lambda route: late.append(route))
    page.reload()
    wait_until(page, lambda: late)
    upload(service, {"high.png": 180})
    late[0].continue_()
    expect(page.locator("#total")).to_have_text("1 image")


def test_live_list_keeps_selection_focus_and_place(page, service):
    upload(service, {f"{level}.png": level for level in range(80, 130)})
    page.reload()
    wait_until_live(page, service)
    for _ in range(20):
        page.keyboard.press("j")
    name = page.locator("tr.selected").get_attribute("data-name")
    top = page.locator("tr.selected").bounding_box()["y"]
    upload(service, {"first.png": 185})  # the most urgent one
    expect(page.locator("#total")).to_have_text("51 images")
    assert page.locator("tr.selected").get_attribute("data-name") == name
    assert page.locator("tr.selected a").evaluate("link => link === document.activeElement")
    assert page.locator("tr.selected").bounding_box()["y"] == pytest.approx(top, abs=1)


def test_row_under_the_mouse_stays_where_it_is_without_a_selection(page, service):
    upload(service, {f"{level}.png": level for level in range(80, 130)})
    page.reload()
    wait_until_live(page, service)
    row = page.locator("tr[data-name='110.png']")
    row.scroll_into_view_if_needed()
    page.mouse.wheel(0, 200)
    wait_until(page, lambda: page.evaluate("document.getElementById('list').getBoundingClientRect().top") < 0)
    wait_until_still(page)
    top = row.bounding_box()["y"]
    upload(service, {"first.png": 185})
    expect(page.locator("#total")).to_have_text("51 images")
    assert row.bounding_box()["y"] == pytest.approx(top, abs=1)


def test_hidden_tab_has_no_connection_and_catches_up_when_it_is_shown(page, service):
    wait_until_live(page, service)
    page.evaluate(HIDE, True)
    wait_until_live(page, service, 0)
    upload(service, {"high.png": 180})
    requests = list_requests(page)
    page.wait_for_timeout(500)
    assert requests == []
    expect(page.locator("#live-status")).to_have_text("")  # not an interruption
    page.evaluate(HIDE, False)
    expect(page.locator("#total")).to_have_text("1 image")
    page.wait_for_timeout(1500)
    assert len(requests) == 1
    page.evaluate(HIDE, True)
    wait_until_live(page, service, 0)
    page.evaluate(HIDE, False)
    wait_until_live(page, service)
    page.wait_for_timeout(500)
    assert len(requests) == 1  # nothing has changed


def test_seven_tabs_work_at_once_if_one_is_shown(browser, service):
    """Chromium opens at most six connections to a host by HTTP/1.1."""
    context = browser.new_context()
    for _ in range(7):
        tab = context.new_page()
        tab.goto(f"{service.base_url}/")
        tab.evaluate(HIDE, True)
    tab.evaluate(HIDE, False)
    wait_until_live(tab, service)
    upload(service, {"high.png": 180})
    expect(tab.locator("#total")).to_have_text("1 image")
    context.close()


@pytest.mark.parametrize(("language", "notice"), [("en", NOT_LIVE), ("zh-Hant", "清單未即時更新，重新連線中…")])
def test_lost_connection_is_shown_and_the_list_catches_up(browser, bundle_folder, tmp_path, language, notice):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    port = free_port()
    with served(bundle_folder, tmp_path, "--port", str(port)) as (process, client):
        page.goto(f"{client.base_url}/?language={language}")
        wait_until_live(page, client)
        status = page.locator("#live-status")
        assert status.get_attribute("role") == "status"  # polite
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        expect(status).to_have_text(notice)
        page.wait_for_load_state()
        found = json.loads(json.dumps(axe.Axe().run(page).response))["violations"]
        assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    with served(bundle_folder, tmp_path, "--port", str(port)) as (_, client):
        upload(client, {"high.png": 180})
        expect(status).to_have_text("", timeout=100_000)
        expect(page.locator("tr[data-id]")).to_have_count(1)
    context.close()


def test_expired_session_is_shown_with_a_link_and_signing_in_makes_the_list_live_again(signed_in):
    page, client = signed_in
    wait_until_live(page, client)
    page.context.request.post(f"{client.base_url}/sign-out", headers={"Origin": str(client.base_url).rstrip("/")})
    upload(client, {"high.png": 180})
    status = page.locator("#live-status")
    expect(status).to_contain_text("Your session has expired.", timeout=100_000)
    with page.expect_popup() as popup:
        status.get_by_role("link", name="Sign in in a new tab").click()
    sign_in(popup.value)
    popup.value.close()
    expect(status).to_have_text("", timeout=100_000)
    expect(page.locator("#total")).to_have_text("1 image")


# --- filters


def test_filters_apply_at_once_and_keep_focus_address_and_search(page, service):
    upload(service)
    page.reload()
    decision = page.get_by_label("Decision")
    expect(page.get_by_role("button", name="Apply")).to_have_count(0)
    decision.focus()
    page.keyboard.type("P")  # chooses "Pneumonia"
    expect(page.locator("#total")).to_have_text("2 images")
    assert row_names(page) == ["high.png", "middle.png"]
    assert decision.evaluate("field => field === document.activeElement")
    expect(page.locator("#filter-status")).to_have_text("2 images")  # for screen readers
    page.get_by_label("Sort by").select_option("lowest")
    expect(page.locator("tr[data-id]").first).to_have_attribute("data-name", "middle.png")
    assert page.url.endswith("/?decision=pneumonia&order=lowest")
    chinese = page.get_by_role("link", name="繁體中文").get_attribute("href")
    assert "decision=pneumonia" in chinese
    page.reload()
    assert row_names(page) == ["middle.png", "high.png"]
    assert decision.input_value() == "pneumonia"
    page.get_by_role("link", name="middle.png").click()
    expect_viewer(page, "middle.png")
    page.go_back()
    expect(page.locator("#total")).to_have_text("2 images")
    assert decision.input_value() == "pneumonia"
    search = page.get_by_role("searchbox")
    search.fill("high")
    page.wait_for_timeout(300)
    assert row_names(page) == ["middle.png", "high.png"]  # nothing is searched while a name is typed
    search.press("Enter")
    expect(page.locator("#total")).to_have_text("1 image")
    assert "decision=pneumonia" in page.url
    assert "high" not in page.url
    decision.select_option("")
    expect(page.locator("#total")).to_have_text("1 image")
    expect(page.locator("#search-filters input[name=decision]")).to_have_count(0)


def test_filter_chosen_before_the_scripts_run_applies_when_they_do(page, service):
    upload(service)
    held = []
    page.route("**/static/worklist.js", lambda route: held.append(route))
    page.goto(str(service.base_url), wait_until="commit")
    page.get_by_label("Decision").select_option("pneumonia")
    expect(page.locator("#total")).to_have_text("3 images")
    wait_until(page, lambda: held)
    held[0].continue_()
    expect(page.locator("#total")).to_have_text("2 images")
    assert page.url.endswith("/?decision=pneumonia&order=urgency")


def test_filter_chosen_at_once_after_another_wins(page, service):
    """The responses arrive in any order."""
    upload(service)
    page.reload()
    held = []
    page.route("**/?decision=*", lambda route: held.append(route) if not held else route.continue_())
    decision = page.get_by_label("Decision")
    decision.select_option("pneumonia")
    wait_until(page, lambda: held)
    decision.select_option("no_pneumonia")
    held[0].continue_()
    expect(page.locator("#total")).to_have_text("1 image")
    assert row_names(page) == ["low.png"]


def test_typed_date_applies_when_it_is_complete(page, service):
    upload(service)
    page.reload()
    requests = list_requests(page)
    since = page.get_by_label("From (UTC)")
    since.focus()
    page.keyboard.type("01012099")  # the year is 2, 20 and 209 in between
    page.wait_for_timeout(500)
    assert requests == []
    assert since.evaluate("field => field.contains(document.activeElement)")
    page.keyboard.press("Enter")
    expect(page.locator(".empty-state")).to_contain_text("No images match these filters.")
    assert "since=2099-01-01" in page.url
    assert since.evaluate("field => field === document.activeElement")
    page.keyboard.press("ArrowUp")
    page.wait_for_timeout(300)
    assert len(requests) == 1
    since.fill("2026-01-31")
    page.get_by_label("Sort by").focus()
    expect(page.locator("#total")).to_have_text("3 images")
    assert "since=2026-01-31" in page.url


def test_half_a_date_changes_nothing(page, service):
    upload(service)
    page.goto(f"{service.base_url}/?since=2026-01-31")
    requests = list_requests(page)
    since = page.get_by_label("From (UTC)")
    since.focus()
    page.keyboard.press("Backspace")  # the day is gone
    page.keyboard.press("Shift+Tab")
    page.wait_for_timeout(500)
    assert requests == []
    assert "since=2026-01-31" in page.url
    expect(page.locator("#total")).to_have_text("3 images")


@pytest.mark.parametrize("language", ["en", "zh-Hant"])
def test_list_that_cannot_be_loaded_is_reported_and_the_filter_can_be_chosen_again(page, service, language):
    upload(service)
    page.goto(f"{service.base_url}/?language={language}")
    page.route("**/?decision=*", lambda route: route.abort())
    page.locator("select[name=decision]").select_option("pneumonia")
    error = {
        "en": "The list cannot be updated: The server cannot be reached.",
        "zh-Hant": "無法更新清單：無法連線至伺服器。",
    }
    expect(page.locator("#status")).to_have_text(error[language])
    page.unroute("**/?decision=*")
    page.locator("select[name=order]").select_option("lowest")
    expect(page.locator("tr[data-id]")).to_have_count(2)
    expect(page.locator("#status")).to_have_text("")


def test_filters_work_without_scripts(browser, service):
    upload(service)
    context = browser.new_context(java_script_enabled=False, locale="en-GB")
    page = context.new_page()
    page.goto(f"{service.base_url}/")
    page.get_by_label("Decision").select_option("pneumonia")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("#total")).to_have_text("2 images")
    context.close()


def local_date(page, time, zone):
    """Return the date of a time in a zone, by the browser."""
    script = "([time, zone]) => new Date(time).toLocaleDateString('sv-SE', { timeZone: zone })"
    return page.evaluate(script, [time, zone])


def test_time_zone_is_named_and_days_are_local(browser, bundle_folder, tmp_path):
    """Kiritimati is 14 hours ahead of UTC, and Niue 11 behind: their dates always differ."""
    for zone, other in (("Pacific/Kiritimati", "Pacific/Niue"), ("Pacific/Niue", "Pacific/Kiritimati")):
        (tmp_path / zone).mkdir(parents=True)
        with served(bundle_folder, tmp_path / zone, "--time-zone", zone) as (_, client):
            id = upload(client, {"high.png": 180})["high.png"]
            context = browser.new_context(locale="en-GB", timezone_id=other)  # the browser's own zone does not matter
            page = context.new_page()
            page.goto(f"{client.base_url}/")
            local = local_date(page, client.get(f"/v1/predictions/{id}").json()["created"], zone)
            expect(page.locator("tr[data-id] time")).to_contain_text(local)
            expect(page.get_by_role("columnheader", name=f"Received ({zone})")).to_be_visible()
            page.get_by_label(f"From ({zone})").fill(local)
            expect(page.locator("#filter-status")).to_have_text("1 image")
            page.get_by_role("link", name="high.png").click()
            expect_viewer(page, "high.png")
            page.keyboard.press("p")
            expect(page.locator("#save-status")).to_have_text("Saved.")
            page.reload()
            (review,) = client.get(f"/v1/predictions/{id}").json()["reviews"]
            read = local_date(page, review["time"], zone)
            expect(page.locator("#save-status")).to_contain_text(f"Read on {read} ")
            expect(page.locator("#save-status")).to_contain_text(f"({zone})")
            context.close()


def test_conflict_shows_the_other_reading_in_the_time_zone(browser, bundle_folder, tmp_path):
    with served(bundle_folder, tmp_path, "--time-zone", "Pacific/Kiritimati") as (_, client):
        ids = upload(client, {"high.png": 180})
        page = browser.new_page(locale="en-GB", timezone_id="Pacific/Niue")
        page.goto(f"{client.base_url}/images/{ids['high.png']}")
        expect_viewer(page, "high.png")
        client.put(f"/v1/predictions/{ids['high.png']}/review", json={"label": "no_finding"})
        page.keyboard.press("p")
        (review,) = client.get(f"/v1/predictions/{ids['high.png']}").json()["reviews"]
        local = local_date(page, review["time"], "Pacific/Kiritimati")
        expect(page.locator("#conflict-review")).to_contain_text(f"Read on {local} ")
        expect(page.locator("#conflict-review")).to_contain_text("(Pacific/Kiritimati) – No finding")
        page.close()


# --- the unreadable tab


@pytest.mark.parametrize("language", ["en", "zh-Hant"])
def test_list_of_unreadable_files_follows_what_others_do(browser, service, language):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    seen = record_traffic(page)
    page.goto(f"{service.base_url}/unreadable?language={language}")
    wait_until_live(page, service)
    expect(page.locator(".files")).to_have_count(0)
    service.post("/v1/predictions", files=[("images", ("broken.dcm", b"no image"))])
    expect(page.locator(".files")).to_contain_text("broken.dcm")
    expect(page.locator(".tabs a").last).to_contain_text("1")
    page.locator(".files button").focus()
    upload(service, {"high.png": 180})
    expect(page.locator(".tabs a").first).to_contain_text("1")
    assert page.locator(".files button").evaluate("button => button === document.activeElement")
    service.delete(f"/v1/unreadable/{service.get('/v1/unreadable').json()['files'][0]['id']}")
    expect(page.locator(".files")).to_have_count(0)
    assert [each for each in seen if not each.startswith(str(service.base_url))] == []
    context.close()
