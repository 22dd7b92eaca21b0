"""The page as a person uses it: in a real Chromium, against the real process.

Set PNEUMOSCOPE_SCREENSHOTS to a folder to keep what the browser saw.
"""

import contextlib
import io
import json
import os
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from tests.service.conftest import png
from tests.service.page.conftest import TOKEN
from tests.service.test_serve import served

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
LEVELS = {"dark.png": 60, "low.png": 90, "high.png": 180, "middle.png": 150}


@pytest.fixture
def service(paged, tmp_path):
    with served(paged, tmp_path) as (_, client):
        yield client


@pytest.fixture
def opened(browser, service):
    """A page of the service; in the end, nothing was asked of another host, and nothing complained."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB")
    page = context.new_page()
    seen = watch(page)
    page.goto(str(service.base_url))
    yield page
    context.close()
    assert [each for each in seen if not each.startswith((str(service.base_url), "blob:"))] == []


def watch(page):
    seen = []
    page.on("request", lambda asked: seen.append(asked.url))
    # That an answer was a refusal, or none came, is in the browser's console, too; it is for the page to tell.
    told = ("Failed to load resource: the server responded", "Failed to load resource: net::ERR_FAILED")
    page.on("console", lambda said: said.text.startswith(told) or seen.append(f"{said.type}: {said.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    return seen


def image(level, size=64):
    return {"name": f"{level}.png", "mimeType": "image/png", "buffer": png(level, size)}


def kept(client, images=LEVELS):
    parts = [("images", (name, png(level))) for name, level in images.items()]
    return {each["path"]: each["id"] for each in client.post("/v1/predictions", files=parts).json()["predictions"]}


def at(page, name):
    """Wait until the viewer of an image is there, with its keys."""
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    expect(page.locator("#zoom")).to_have_text(re.compile("%"))


def shown(page):
    return page.locator("tr[data-id]").evaluate_all("rows => rows.map(row => row.dataset.name)")


def greys(locator):
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


def test_picked_images_are_sent_each_with_its_progress_and_listed(opened, service):
    opened.set_input_files("#pick", [image(60), image(90), image(180)])
    expect(opened.locator("#queue [data-done=yes]")).to_have_count(3)
    expect(opened.locator("#sum")).to_have_text("3 of 3 done, 0 failed")
    expect(opened.locator("#total")).to_have_text("3 images")
    assert shown(opened) == ["60.png", "180.png", "90.png"]
    expect(opened.locator("tr[data-id] img").first).to_be_visible()
    assert (
        opened.locator("tr[data-id] img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    )
    assert service.get("/v1/predictions").json()["total"] == 3
    opened.click("#clear")
    expect(opened.locator("#sending")).to_be_hidden()


def test_a_file_that_is_no_image_says_why_in_sight_and_is_not_tried_again(opened):
    bad = {"name": "letter.txt", "mimeType": "text/plain", "buffer": b"Dear colleague"}
    opened.set_input_files("#pick", [*(image(level) for level in range(90, 100)), bad, image(100)])
    expect(opened.locator("#sum")).to_have_text("11 of 12 done, 1 failed")
    failed = opened.locator("#queue li").first
    expect(failed.locator(".name")).to_have_text("letter.txt")
    expect(failed.locator(".why")).to_contain_text("the image cannot be read")
    expect(failed.locator(".why")).to_be_in_viewport()
    expect(opened.get_by_role("button", name="Try again")).to_have_count(0)


def test_what_was_lost_on_the_way_may_be_tried_again(opened):
    lost = []

    def lose_the_first(route):
        lost.append(1)
        route.abort() if len(lost) == 1 else route.continue_()

    opened.route("**/v1/predictions", lose_the_first)
    opened.set_input_files("#pick", [image(90)])
    expect(opened.locator("#queue .why")).to_contain_text("the service cannot be reached")
    opened.get_by_role("button", name="Try again").click()
    expect(opened.locator("#sum")).to_have_text("1 of 1 done, 0 failed")
    expect(opened.locator("#queue .why")).to_have_count(0)
    expect(opened.locator("#total")).to_have_text("One image")


def test_a_folder_is_picked_with_all_below_it(opened, tmp_path):
    (tmp_path / "images/inner").mkdir(parents=True)
    (tmp_path / "images/a.png").write_bytes(png(100))
    (tmp_path / "images/inner/b.png").write_bytes(png(140))
    (tmp_path / "images/.hidden").write_bytes(b"x")
    opened.set_input_files("#folder", tmp_path / "images")
    expect(opened.locator("#queue [data-done=yes]")).to_have_count(2)
    expect(opened.locator("#total")).to_have_text("2 images")
    assert sorted(shown(opened)) == ["images/a.png", "images/inner/b.png"]


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_images_are_dropped_and_pasted(opened, kind):
    opened.locator("body").evaluate(
        """(body, [kind, bytes]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "mine.png", { type: "image/png" }));
          const options = { bubbles: true, cancelable: true };
          body.dispatchEvent(kind === "drop" ? new DragEvent("drop", { ...options, dataTransfer: transfer })
            : new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
        }""",
        [kind, list(png(140))],
    )
    expect(opened.locator("#total")).to_have_text("One image")
    assert shown(opened) == ["mine.png"]


def test_a_busy_service_is_asked_again(opened):
    turns = []

    def busy(route):
        turns.append(1)
        if len(turns) == 1:
            return route.fulfill(status=503, headers={"Retry-After": "0.1"}, content_type="application/json", body="{}")
        return route.continue_()

    opened.route("**/v1/predictions", busy)
    opened.set_input_files("#pick", [image(90)])
    expect(opened.locator("#queue [data-done=yes]")).to_have_count(1, timeout=10_000)
    assert len(turns) == 2


def test_filters_are_chosen_by_hand(opened, service):
    kept(service)
    opened.reload()
    assert shown(opened) == ["dark.png", "high.png", "middle.png", "low.png"]
    opened.select_option("select[name=decision]", "pneumonia")
    opened.select_option("select[name=order]", "lowest")
    opened.get_by_role("button", name="Show").click()
    expect(opened.locator("#total")).to_have_text("2 images")
    assert shown(opened) == ["middle.png", "high.png"]
    with opened.expect_download() as download:
        opened.get_by_role("link", name="Export as CSV").click()
    assert len(Path(download.value.path()).read_text("utf-8-sig").splitlines()) == 3


def test_a_worklist_is_read_by_keys_alone(opened, service):
    keys = kept(service)
    opened.reload()
    for key in ("j", "j", "k", "d", "a", "j", "d"):  # the first is agreed with on second thoughts, the second not
        opened.keyboard.press(key)
        opened.wait_for_timeout(200)
    read = {name: service.get(f"/v1/predictions/{keys[name]}").json()["review"] for name in LEVELS}
    assert {name: review and review["agrees"] for name, review in read.items()} == {
        "dark.png": True, "high.png": False, "middle.png": None, "low.png": None,
    }  # fmt: skip
    expect(opened.locator("tr[data-id] .review").first).to_have_text("✓ agreed")
    opened.keyboard.press("Enter")
    at(opened, "high.png")
    opened.keyboard.press("n")
    at(opened, "middle.png")
    opened.keyboard.press("p")
    at(opened, "high.png")
    opened.keyboard.press("n")
    at(opened, "middle.png")
    opened.keyboard.press("n")
    at(opened, "low.png")


@pytest.fixture
def viewed(opened, service):
    """The viewer of an image of 400 x 300 pixels, dark on the left and light on the right."""
    grey = np.full((300, 400), 100, np.uint8)
    grey[:, 200:] = 180
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    (each,) = service.post("/v1/predictions", files=[("images", ("two.png", file.getvalue()))]).json()["predictions"]
    kept(service, {"other.png": 150})
    opened.goto(f"{service.base_url}/")
    opened.get_by_role("link", name="two.png").click()
    opened.locator(".pane .image").first.evaluate("image => image.decode()")
    expect(opened.locator("#zoom")).to_have_text(
        re.compile(r"^(?!100%)\d+%$")
    )  # its script runs, and has fitted the image
    return opened, each["id"]


def test_the_image_fits_and_zooms_to_the_pixel(viewed):
    page, _ = viewed
    pane, image = (page.locator(where).first.bounding_box() for where in (".pane", ".pane .image"))
    assert image["width"] == pytest.approx(pane["width"], abs=1) or image["height"] == pytest.approx(
        pane["height"], abs=1
    )
    page.keyboard.press("1")
    assert page.locator(".pane .image").first.bounding_box()["width"] == pytest.approx(400, abs=0.5)
    expect(page.locator("#zoom")).to_have_text("100%")
    page.locator(".pane").first.hover()
    page.mouse.wheel(0, -800)
    page.wait_for_timeout(200)
    assert page.locator(".pane .image").first.bounding_box()["width"] == pytest.approx(400 * np.exp(2), rel=0.01)
    assert page.locator(".pane .image").first.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    page.keyboard.press("f")
    assert page.locator(".pane .image").first.bounding_box() == image


def test_the_image_is_moved_and_its_window_set_by_dragging(viewed):
    page, _ = viewed
    box = page.locator(".pane").first.bounding_box()
    image = page.locator(".pane .image").first
    before = image.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1] + 25)
    page.mouse.up()
    after = image.bounding_box()
    assert (after["x"] - before["x"], after["y"] - before["y"]) == pytest.approx((60, 25))
    page.locator(".pane").first.focus()
    page.keyboard.press("ArrowLeft")
    assert image.bounding_box()["x"] == pytest.approx(after["x"] + 40)
    page.keyboard.press("w")
    expect(page.locator("#drag")).to_have_attribute("aria-pressed", "true")
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 155, middle[1] + 25)
    page.mouse.up()
    assert (page.input_value("#width"), page.input_value("#level")) == ("100", "140")
    assert image.bounding_box()["x"] == pytest.approx(after["x"] + 40)  # it stayed where it was
    # Of a window from 90 to 190, grey 100 becomes 10% of white and 180 becomes 90%.
    colours = greys(page.locator(".pane .stage").first)
    row = colours[colours.shape[0] // 2, :, 0]
    assert all(np.abs(row - expected).min() <= 1 for expected in (25.5, 229.5))
    page.keyboard.press("i")
    row = greys(page.locator(".pane .stage").first)[colours.shape[0] // 2, :, 0]
    assert row[10] > row[-10]
    page.keyboard.press("0")
    assert (page.input_value("#width"), page.get_attribute("#invert", "aria-pressed")) == ("255", "false")


def test_the_heatmap_is_laid_over_as_strongly_as_wanted(viewed):
    page, _ = viewed
    stage = page.locator(".pane .stage").first
    plain = greys(stage)
    assert (plain.max(axis=2) - plain.min(axis=2)).max() <= 2  # the image is seen first, without it
    page.keyboard.press("h")
    expect(page.locator(".layer")).to_be_visible()
    expect(page.locator("#high")).to_have_text(re.compile(r"\+[0-9.]+"))
    coloured = greys(stage)
    assert (coloured.max(axis=2) - coloured.min(axis=2)).max() > 40
    page.locator("#opacity").fill("20")
    faint = greys(stage)
    assert 3 < (faint.max(axis=2) - faint.min(axis=2)).max() < (coloured.max(axis=2) - coloured.min(axis=2)).max() / 2
    page.keyboard.press("h")
    assert np.array_equal(greys(stage), plain)


def test_two_images_stand_side_by_side_and_move_together(viewed):
    page, _ = viewed
    page.select_option("#beside", label="the image without heatmap")
    first, second = page.locator(".pane .image").first, page.locator("#second .image")
    second.evaluate("image => image.decode()")
    expect(page.locator(".layer")).to_be_visible()
    plain = greys(page.locator("#second"))
    assert (plain.max(axis=2) - plain.min(axis=2)).max() <= 2
    page.keyboard.press("+")
    assert first.bounding_box()["width"] == pytest.approx(second.bounding_box()["width"])
    page.select_option("#beside", label="other.png")
    second.evaluate("image => image.decode()")
    assert first.bounding_box()["height"] == pytest.approx(second.bounding_box()["height"], abs=1)
    page.select_option("#beside", label="nothing")
    expect(page.locator("#second")).to_be_hidden()


def test_a_reading_is_kept_with_its_note(viewed, service):
    page, key = viewed
    page.fill("textarea[name=note]", "rotated <b>image</b>")
    page.get_by_label("I disagree").check()
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#saved")).to_have_text("Saved.")
    review = service.get(f"/v1/predictions/{key}").json()["review"]
    assert (review["agrees"], review["note"]) == (False, "rotated <b>image</b>")
    page.reload()
    assert page.input_value("textarea[name=note]") == "rotated <b>image</b>"
    page.locator("h1").click()
    page.keyboard.press("a")
    expect(page.locator("#saved")).to_have_text("Saved.")
    review = service.get(f"/v1/predictions/{key}").json()["review"]
    assert (review["agrees"], review["note"]) == (True, "rotated <b>image</b>")


def test_a_note_that_is_not_saved_is_not_left_unasked(viewed, service):
    page, key = viewed
    asked = []

    def stay(dialog):
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    page.click("textarea[name=note]")
    page.keyboard.type("rotated")
    page.locator(".top").get_by_role("link", name="Images").click()
    page.wait_for_timeout(300)
    assert (asked, page.input_value("textarea[name=note]")) == (["beforeunload"], "rotated")
    page.get_by_label("I agree").check()
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#saved")).to_have_text("Saved.")
    page.locator(".top").get_by_role("link", name="Images").click()
    expect(page.get_by_role("heading", name="Images", exact=True)).to_be_visible()
    assert len(asked) == 1
    assert service.get(f"/v1/predictions/{key}").json()["review"]["note"] == "rotated"


def test_a_key_of_the_worklist_keeps_the_note_that_is_there_by_now(opened, service):
    key = kept(service, {"high.png": 180})["high.png"]
    opened.reload()
    service.put(f"/v1/predictions/{key}/review", json={"agrees": True, "note": "by a colleague"})
    opened.keyboard.press("j")
    opened.keyboard.press("d")
    expect(opened.locator("tr[data-id] .review")).to_have_text("✗ disagreed")
    review = service.get(f"/v1/predictions/{key}").json()["review"]
    assert (review["agrees"], review["note"]) == (False, "by a colleague")


def test_a_image_is_deleted_only_when_it_is_meant(viewed, service):
    page, key = viewed
    page.click("#remove")
    page.get_by_role("button", name="Keep it").click()
    assert service.get(f"/v1/predictions/{key}").status_code == 200
    page.click("#remove")
    page.locator("#sure").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="Images", exact=True)).to_be_visible()
    assert service.get(f"/v1/predictions/{key}").status_code == 404


def test_keys_are_told_and_do_nothing_in_a_field(viewed, service):
    page, key = viewed
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()
    page.focus("textarea[name=note]")
    page.keyboard.type("adhi")
    assert page.input_value("textarea[name=note]") == "adhi"
    assert service.get(f"/v1/predictions/{key}").json()["review"] is None


def test_the_report_is_one_page_of_paper_with_the_notice(viewed):
    page, _ = viewed
    page.goto(f"{page.url}/report")
    expect(page.locator("#high")).to_have_text(re.compile(r"\+[0-9.]+"))
    page.locator(".layer").evaluate("image => image.decode()")
    image, heatmap = (greys(page.locator(".pictures figure").nth(place).locator("img").first) for place in (0, 1))
    assert image.shape == heatmap.shape
    assert (image.max(axis=2) - image.min(axis=2)).max() <= 2
    assert (heatmap.max(axis=2) - heatmap.min(axis=2)).max() > 40
    page.emulate_media(media="print")
    expect(page.locator(".top")).to_be_hidden()
    expect(page.locator(".notice")).to_be_visible()
    written = page.pdf()
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", written)) == 1


def test_a_person_signs_in_and_out(browser, paged, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ward-3 {TOKEN}\n")
    tokens.chmod(0o600)
    with served(paged, tmp_path, "--token-file", str(tokens)) as (_, client):
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        page.goto(f"{client.base_url}/overview")
        page.get_by_label("Your token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Dashboard")).to_be_visible()
        assert page.evaluate("document.cookie") == ""  # no script can read it
        page.get_by_role("link", name="Images").click()
        page.wait_for_url("**/")
        page.wait_for_load_state("load")
        page.set_input_files("#pick", [image(140)])
        expect(page.locator("#queue [data-done=yes]")).to_have_count(1)
        page.locator("tr[data-id] a").click()
        at(page, "140.png")
        page.keyboard.press("a")
        expect(page.locator("#saved")).to_have_text("Saved.")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        page.goto(f"{client.base_url}/")
        expect(page.get_by_label("Your token")).to_be_visible()
        context.close()


@pytest.mark.parametrize("language", ["en", "zh-Hant"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious_and_nothing_sticks_out(browser, service, width, scheme, language):
    keys = kept(service, LEVELS | {f"{level}.png": level for level in range(80, 135)})
    service.put(f"/v1/predictions/{keys['high.png']}/review", json={"agrees": True, "note": "clear"})
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, has_touch=width < 800)
    page = context.new_page()
    folder = os.environ.get("PNEUMOSCOPE_SCREENSHOTS")
    image_page = f"/images/{keys['high.png']}"
    for name, path in {
        "worklist": "/", "viewer": image_page, "report": f"{image_page}/report", "overview": "/overview", "model": "/model",
        "sign-in": "/sign-in", "error": "/images/none", "rejected": f"/images/{keys['dark.png']}",
    }.items():  # fmt: skip
        page.goto(f"{service.base_url}{path}?language={language}")
        if name == "viewer":
            page.keyboard.press("h")
            expect(page.locator(".layer")).to_be_visible()
        found = json.loads(json.dumps(Axe().run(page).response))["violations"]
        bad = [
            (each["id"], each["nodes"][0]["html"][:120]) for each in found if each["impact"] in ("serious", "critical")
        ]
        assert bad == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        box = page.locator(".notice").bounding_box()
        assert box["y"] + box["height"] <= 845, name  # always in sight
        if folder:
            page.screenshot(path=Path(folder) / f"{name}-{width}-{scheme}-{language}.png")
    context.close()


REVIEW = "**/v1/predictions/*/review"
# The browser's own answer to the first reading comes late, as that of a busy service.
LATE = """(() => {
  const real = window.fetch;
  let first = true;
  window.fetch = async (...asked) => {
    if (asked[1]?.method === "PUT" && first) {
      first = false;
      await new Promise((go) => setTimeout(go, 700));
    }
    return real(...asked);
  };
})()"""


def refuse(page, where, status, title="Not now"):
    """Answer some requests as the API would, until `page.unroute`."""
    body = json.dumps({"title": title, "detail": f"refused with {status}"})
    page.route(
        where,
        lambda route: (
            route.fulfill(status=status, content_type="application/problem+json", body=body)
            if route.request.method != "GET"
            else route.continue_()
        ),
    )


def reading(client, key):
    review = client.get(f"/v1/predictions/{key}").json()["review"]
    return review and (review["agrees"], review["note"])


@pytest.fixture
def signed(browser, paged, tmp_path):
    """A page of a service that asks for tokens, with two images, and somebody signed in; any dialog fails."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ward-3 {TOKEN}\n")
    tokens.chmod(0o600)
    with served(paged, tmp_path, "--token-file", str(tokens)) as (_, client):
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        dialogs = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.type), dialog.accept()))
        page.goto(f"{client.base_url}/")
        sign_in(page)
        yield page, client
        context.close()
        assert dialogs == []


def sign_in(page):
    page.get_by_label("Your token").fill(TOKEN)
    with page.expect_navigation():  # and its scripts run
        page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_label("Your token")).to_have_count(0)


def test_a_choice_by_mouse_is_saved_at_once_with_the_note(viewed, service):
    page, key = viewed
    page.fill("textarea[name=note]", "rotated")
    page.get_by_label("I disagree").click()
    expect(page.locator("#saved")).to_have_text("Saved.")
    assert reading(service, key) == (False, "rotated")
    page.get_by_label("I agree").click()
    page.locator(".top").get_by_role("link", name="Dashboard").click()  # it waits for the save
    expect(page.get_by_role("heading", name="Dashboard")).to_be_visible()
    assert reading(service, key) == (True, "rotated")


def test_what_a_key_could_not_save_is_told_in_sight_until_it_is_saved(opened, service):
    kept(service, {f"{level}.png": level for level in range(80, 120)})
    opened.reload()
    refuse(opened, REVIEW, 503)
    opened.keyboard.press("j")
    opened.keyboard.press("a")
    said = opened.locator("#said")
    expect(said).to_have_text("119.png: It could not be saved: refused with 503")
    assert said.evaluate("it => document.elementFromPoint(innerWidth / 2, it.getBoundingClientRect().y + 9) === it")
    expect(opened.locator("tr.at .lost")).to_have_text("not saved")
    opened.unroute(REVIEW)
    opened.keyboard.press("a")
    expect(opened.locator("tr.at .review")).to_have_text("✓ agreed")
    assert said.bounding_box()["height"] <= 1


@pytest.mark.parametrize("by", ["key", "click"])
def test_the_next_image_waits_for_the_save_and_stays_away_when_it_fails(opened, service, by):
    keys = kept(service)
    opened.goto(f"{service.base_url}/?order=highest")
    opened.add_init_script(LATE)
    opened.get_by_role("link", name="high.png").click()
    at(opened, "high.png")
    refuse(opened, REVIEW, 503)
    opened.keyboard.press("a")
    opened.keyboard.press("n") if by == "key" else opened.click("#next")
    expect(opened.locator("#saved")).to_have_text("It could not be saved: refused with 503")
    at(opened, "high.png")
    assert opened.locator("#saved span").get_attribute("lang") == "en"
    opened.unroute(REVIEW)
    opened.keyboard.press("a")
    opened.keyboard.press("n") if by == "key" else opened.click("#next")
    at(opened, "middle.png")
    assert reading(service, keys["high.png"]) == (True, "")


def test_images_stay_when_nobody_is_signed_in_any_more(signed):
    page, client = signed
    refuse(page, "**/v1/predictions", 401)
    page.set_input_files("#pick", [image(level) for level in range(80, 90)])
    expect(page.get_by_role("button", name="Try again")).to_have_count(10)
    expect(page.locator("#sum")).to_have_text("0 of 10 done, 10 failed")
    expect(page.locator("#expired")).to_contain_text("You are no longer signed in.")
    assert page.url == f"{client.base_url}/"
    expect(page.locator("#clear")).to_be_hidden()
    with page.expect_popup() as other:
        page.get_by_role("link", name="Sign in in a new tab").click()
    other.value.close()
    page.unroute("**/v1/predictions")
    page.get_by_role("button", name="Then try all again").click()
    expect(page.locator("#sum")).to_have_text("10 of 10 done, 0 failed")
    expect(page.locator("#expired")).to_be_hidden()


def test_a_note_and_a_reading_outlive_signing_in_anew_but_not_signing_out(signed):
    page, client = signed
    key = kept(client, {"high.png": 180})["high.png"]
    page.goto(f"{client.base_url}/images/{key}")
    at(page, "high.png")
    page.fill("textarea[name=note]", "rotated")
    page.context.clear_cookies()
    page.get_by_label("I disagree").click()
    sign_in(page)
    at(page, "high.png")
    expect(page.locator("#saved")).to_have_text("Not saved yet: as you left it.")
    assert (page.input_value("textarea[name=note]"), page.get_by_label("I disagree").is_checked()) == ("rotated", True)
    assert reading(client, key) is None
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#saved")).to_have_text("Saved.")
    assert reading(client, key) == (False, "rotated")
    page.reload()
    expect(page.locator("#saved")).to_contain_text("Read by ward-3 on")
    page.fill("textarea[name=note]", "typed")
    # It stays on the page, so that what it left can be looked at.
    page.evaluate("document.querySelector('.top form').addEventListener('submit', (event) => event.preventDefault())")
    assert page.evaluate("Object.keys(sessionStorage).some((name) => name.includes('draft'))")
    page.get_by_role("button", name="Sign out").click()
    assert page.evaluate("sessionStorage.length") == 0
    page.fill("textarea[name=note]", "rotated")


@pytest.mark.parametrize("note", ["", "mine"])
def test_a_reading_that_came_since_is_shown_and_not_wiped(viewed, service, note):
    page, key = viewed
    page.fill("textarea[name=note]", note)
    service.put(f"/v1/predictions/{key}/review", json={"agrees": True, "note": "by a colleague"})
    page.locator("h1").click()
    page.keyboard.press("d")
    expect(page.locator("#theirs")).to_be_visible()
    expect(page.locator("#theirs-read")).to_have_text(re.compile(r"Read on \d{4}-\d\d-\d\d \d\d:\d\d \(UTC\): agreed"))
    expect(page.locator("#theirs-note")).to_have_text("by a colleague")
    assert page.input_value("textarea[name=note]") == (note or "by a colleague")
    assert reading(service, key) == (True, "by a colleague")
    page.get_by_label("I disagree").click()
    expect(page.locator("#saved")).to_have_text("Saved.")
    expect(page.locator("#theirs")).to_be_hidden()
    assert reading(service, key) == (False, note or "by a colleague")


@pytest.mark.parametrize("where", ["worklist", "viewer"])
def test_of_two_quick_readings_the_last_one_holds(opened, service, where):
    key = kept(service, {"high.png": 180})["high.png"]
    opened.add_init_script(LATE)
    opened.goto(f"{service.base_url}/")
    if where == "viewer":
        opened.get_by_role("link", name="high.png").click()
        at(opened, "high.png")
    else:
        opened.keyboard.press("j")
    opened.keyboard.press("a")
    opened.wait_for_timeout(200)
    opened.keyboard.press("d")
    opened.wait_for_timeout(1500)
    assert reading(service, key) == (False, "")
    if where == "worklist":
        expect(opened.locator("tr.at .review")).to_have_text("✗ disagreed")


def test_without_its_script_nothing_can_be_sent_from_the_form(browser, service):
    key = kept(service, {"high.png": 180})["high.png"]
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{service.base_url}/images/{key}")
    expect(page.get_by_role("button", name="Save")).to_be_disabled()
    expect(page.locator("textarea")).to_be_disabled()
    assert page.get_attribute("#review", "method") == "post"
    expect(page.locator("noscript p")).to_be_visible()
    page.goto(f"{service.base_url}/images/{key}/report")
    expect(page.locator("noscript p")).to_be_visible()
    context.close()


def test_what_holds_no_image_is_told_in_sight(opened):
    opened.set_input_files("#pick", [{"name": "empty.png", "mimeType": "image/png", "buffer": b""}, image(90)])
    expect(opened.locator("#sum")).to_have_text("1 of 2 done, 1 failed")
    expect(opened.locator("#queue li").first).to_contain_text("empty.png")
    expect(opened.locator("#queue li").first.locator(".why")).to_have_text("failed: it is empty")
    opened.locator("body").evaluate(
        "body => body.dispatchEvent(new DragEvent('drop', { bubbles: true, dataTransfer: new DataTransfer() }))"
    )
    expect(opened.locator("#said")).to_have_text("There was no file in it.")
    assert opened.locator("#said").bounding_box()["height"] > 20


def test_the_keys_of_the_list_work_after_images_were_picked(opened, service):
    opened.focus("#pick")
    opened.set_input_files("#pick", [image(180)])
    expect(opened.locator("#total")).to_have_text("One image")
    opened.keyboard.press("j")
    opened.keyboard.press("a")
    expect(opened.locator("tr.at .review")).to_have_text("✓ agreed")


def covered(page):
    """What has the focus where the notice lies over it, "" where it does not, and None where nothing has the focus."""
    return page.evaluate(
        """() => {
          const focused = document.activeElement;
          if (focused === document.body) return null;
          const { height, bottom } = focused.getBoundingClientRect();
          const foot = document.querySelector(".foot").getBoundingClientRect().top;
          // What is higher than the screen cannot be whole in it.
          return height < foot && bottom > foot + 0.5 ? focused.outerHTML.slice(0, 200) : "";
        }"""
    )


@pytest.mark.parametrize("width", [1280, 320])
def test_what_has_the_focus_is_never_hidden_by_the_notice(browser, service, width):
    keys = kept(service, {f"{level}.png": level for level in range(80, 105)})
    context = browser.new_context(viewport={"width": width, "height": 500}, locale="en-GB")
    page = context.new_page()
    refuse(page, REVIEW, 503)
    for path in ("/", f"/images/{keys['90.png']}"):
        page.goto(f"{service.base_url}{path}")
        if path == "/":  # a message comes up above the notice
            for key in "jjja":
                page.keyboard.press(key)
            expect(page.locator("#said")).to_contain_text("refused with 503")
            page.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
            assert covered(page) == ""
        seen = 0
        for _ in range(60):
            page.keyboard.press("Tab")
            hidden = covered(page)
            if hidden is None:
                break
            assert hidden == ""
            seen += 1
        assert seen > 15
    context.close()


def test_a_long_queue_is_reached_by_keys_and_what_is_on_its_way_is_in_sight(opened):
    asked = []

    def hold_all_but_the_first(route):
        asked.append(route)
        if len(asked) == 1:
            route.continue_()

    opened.route("**/v1/predictions", hold_all_but_the_first)
    opened.set_input_files("#pick", [image(level) for level in range(80, 110)])
    expect(opened.locator("#queue progress, #queue li:has-text('judging')").first).to_be_visible()
    expect(opened.locator("#total")).to_have_text("One image", timeout=10_000)  # the list does not wait for the last
    expect(opened.locator("#queue li").first).not_to_have_attribute("data-done", "yes")
    expect(opened.locator("#queue li").last).to_have_attribute("data-done", "yes")
    found = json.loads(json.dumps(Axe().run(opened).response))["violations"]
    ids = {each["id"] for each in found}
    assert ids & {"scrollable-region-focusable", "aria-allowed-role", "region"} == set()
    assert opened.locator("#queue").evaluate("queue => queue.scrollHeight > queue.clientHeight && queue.tabIndex === 0")
    opened.keyboard.press("j")
    opened.wait_for_timeout(4000)  # it is drawn anew meanwhile
    assert opened.locator("tr.at a").evaluate("link => link === document.activeElement")
    opened.evaluate("document.activeElement.blur()")
    opened.wait_for_timeout(4000)
    expect(opened.locator("tr.at")).to_have_count(1)
    for route in asked[1:]:
        route.abort()


def test_a_key_that_is_held_is_one_reading(viewed, service):
    page, _ = viewed
    sent = []
    page.on("request", lambda asked: asked.method == "PUT" and sent.append(asked.url))
    for _ in range(4):
        page.keyboard.down("a")  # from the second on, as the key repeats
    page.keyboard.up("a")
    expect(page.locator("#saved")).to_have_text("Saved.")
    page.goto(f"{service.base_url}/")
    page.keyboard.press("j")
    for _ in range(4):
        page.keyboard.down("d")
    page.wait_for_timeout(300)
    assert len(sent) == 2


def test_of_a_image_that_was_removed_no_picture_is_offered(browser, paged, tmp_path):
    with served(paged, tmp_path) as (_, client):
        keys = kept(client, {"old.png": 180, "new.png": 150})
    file = tmp_path / "pneumoscope-data/pneumoscope.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute(
            "UPDATE predictions SET created = '2020-01-01T00:00:00.000000Z' WHERE id = ?", (keys["old.png"],)
        )
    with served(paged, tmp_path, "--keep", "1d") as (_, client):
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        seen = watch(page)
        for _ in range(50):
            page.goto(f"{client.base_url}/?order=highest")
            if page.locator(".gone").count():
                break
            page.wait_for_timeout(200)
        page.get_by_role("link", name="old.png").click()
        expect(page.get_by_text("The image was removed on")).to_be_visible()
        expect(page.locator("#reading")).to_be_enabled()
        for key in "fi1w0h+-":
            page.keyboard.press(key)
        page.keyboard.press("n")
        at(page, "new.png")
        assert page.locator("#beside option").all_inner_texts() == ["nothing", "the image without heatmap"]
        assert [each for each in seen if each.startswith("error")] == []
        context.close()


@pytest.mark.parametrize("width", [360, 320])
@pytest.mark.parametrize("language", ["en", "zh-Hant"])
def test_nothing_sticks_out_of_a_narrow_screen(browser, service, width, language):
    keys = kept(service, LEVELS | {f"{level}.png": level for level in range(80, 135)})
    service.put(f"/v1/predictions/{keys['high.png']}/review", json={"agrees": True, "note": "clear"})
    page = browser.new_page(viewport={"width": width, "height": 700})
    image_page = f"/images/{keys['high.png']}"
    for path in ("/", image_page, f"{image_page}/report", "/overview", "/model", "/sign-in"):
        page.goto(f"{service.base_url}{path}?language={language}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    page.close()


def test_at_one_to_one_each_pixel_has_its_own_grey(viewed):
    page, _ = viewed
    page.keyboard.press("1")
    row = greys(page.locator(".pane .stage").first)[20, :, 0]
    assert (row[10], row[-10]) == (100, 180)


def test_what_can_be_tried_again_is_not_cleared(opened):
    lost = []

    def lose_the_first(route):
        lost.append(1)
        route.abort() if len(lost) == 1 else route.continue_()

    opened.route("**/v1/predictions", lose_the_first)
    bad = {"name": "letter.txt", "mimeType": "text/plain", "buffer": b"Dear colleague"}
    opened.set_input_files("#pick", [image(90), image(180), bad])
    expect(opened.locator("#sum")).to_have_text("1 of 3 done, 2 failed")
    opened.click("#clear")
    expect(opened.locator("#queue li")).to_have_count(1)
    expect(opened.locator("#sum")).to_have_text("0 of 1 done, 1 failed")
    expect(opened.locator("#clear")).to_be_hidden()
    opened.get_by_role("button", name="Try again").click()
    expect(opened.locator("#sum")).to_have_text("1 of 1 done, 0 failed")


@pytest.mark.parametrize("note", ["word " * 800, "word " * 30, "影像有旋轉" * 400, "影像有旋轉" * 30])
def test_a_report_with_a_long_note_is_one_page(viewed, service, note):
    page, key = viewed
    assert service.put(f"/v1/predictions/{key}/review", json={"agrees": True, "note": note}).status_code == 200
    page.goto(f"{page.url}/report")
    expect(page.locator("#high")).to_have_text(re.compile(r"\+[0-9.]+"))
    page.emulate_media(media="print")
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", page.pdf(prefer_css_page_size=True))) == 1


def test_what_goes_wrong_is_told_in_chinese_and_what_stays_english_says_so(opened, service):
    key = kept(service, {"high.png": 180})["high.png"]
    opened.goto(f"{service.base_url}/images/{key}?language=zh-Hant")
    at(opened, "high.png")
    opened.route(f"**/v1/predictions/{key}", lambda route: route.abort())
    opened.keyboard.press("a")
    expect(opened.locator("#saved")).to_contain_text("無法連線到服務")
    assert opened.locator("#saved span").get_attribute("lang") == "zh-Hant"
    opened.unroute(f"**/v1/predictions/{key}")
    refuse(opened, REVIEW, 503)
    opened.keyboard.press("a")
    expect(opened.locator("#saved")).to_contain_text("refused with 503")
    assert opened.locator("#saved span").get_attribute("lang") == "en"
    opened.route("**/heatmap-layer.png", lambda route: route.abort())
    opened.once("dialog", lambda dialog: dialog.accept())  # the reading is not saved
    opened.goto(f"{service.base_url}/images/{key}/report")
    expect(opened.locator("#broken")).to_have_text("無法連線到服務")
