"""The display of the viewer in a real Chromium: gray levels, window/level, ruler, contour, full screen and layout."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from tests.imaging.conformance import NO_WINDOW, REFERENCE, dataset, deep, lut, written
from tests.service.conftest import served
from tests.service.web.helpers import (
    colorfulness,
    expect,
    expect_values,
    image_pixels,
    put_in_one_study,
    record_traffic,
    select_comparison,
    upload,
    wait_until,
)

pytestmark = pytest.mark.browser
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")


def saved(levels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(levels).save(file, kind)
    return file.getvalue()


def padded():
    pixels = deep() // 2 + 1000
    pixels[:, :10] = 4000
    return written(dataset(4095 - pixels, PixelPaddingValue=95, PhotometricInterpretation="MONOCHROME1"))


FILES = {
    "12 bits": lambda: written(dataset(WindowCenter=1500, WindowWidth=2500)),
    "sigmoid": lambda: written(dataset(WindowCenter=1500, WindowWidth=2500, VOILUTFunction="SIGMOID")),
    "signed": lambda: written(dataset(deep().astype(np.int16) - 2048, **NO_WINDOW)),
    "MONOCHROME1": lambda: written(dataset(4095 - deep(), PhotometricInterpretation="MONOCHROME1")),
    "VOI LUT": lambda: written(dataset(VOILUTSequence=lut(np.arange(4096, dtype=np.uint16)), **NO_WINDOW)),
    "modality LUT": lambda: written(dataset(ModalityLUTSequence=lut(np.arange(4096, dtype=np.uint16) // 2, bits=16))),
    "rescaled": lambda: written(
        dataset(RescaleSlope=0.5, RescaleIntercept=-100, WindowCenter=923.75, WindowWidth=2048)
    ),
    "padding": padded,
    "8 bits": lambda: saved(REFERENCE),
    "16 bits": lambda: saved(deep(16)),
    "JPEG": lambda: saved(REFERENCE, "JPEG"),
}


def predict(client, name, data):
    """Upload a file, and return the id of its prediction."""
    answer = client.post("/v1/predictions", files=[("images", (name, data))])
    return answer.json()["predictions"][0]["id"]


def open_viewer(page, client, id):
    """Open the viewer of an image, and wait until it shows the values."""
    page.goto(f"{client.base_url}/images/{id}")
    expect_values(page)


def canvas_levels(page, selector=".viewport"):
    """Return the gray levels on the canvas of a viewport, after the frame in which they are drawn."""
    page.evaluate("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    url = page.locator(f"{selector} canvas").first.evaluate("canvas => canvas.toDataURL()")
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return np.asarray(picture.convert("L")).astype(int)


def set_window(page, level, width):
    page.get_by_label("Level").fill(str(level))
    page.get_by_label("Width").fill(str(width))


def drag(page, start, end):
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=4)
    page.mouse.up()


def image_point(page, x, y):
    """Return the position on the page of a fraction of the image."""
    box = page.locator(".viewport .stage").first.bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def measured(page):
    """Return the lengths that the page states for screen readers."""
    return page.locator("#measurement").inner_text().split(" · ")


@pytest.mark.parametrize("kind", FILES)
def test_default_display_is_the_image_that_the_model_saw(page, service, kind):
    id = predict(service, "a file", FILES[kind]())
    image = service.get(f"/v1/predictions/{id}/image.png").content
    expected = np.asarray(Image.open(io.BytesIO(image))).astype(int)
    open_viewer(page, service, id)
    page.keyboard.press("1")
    assert np.array_equal(canvas_levels(page), expected)
    box = page.locator(".viewport .stage").first.bounding_box()
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=box))).convert("L")).astype(int)
    assert np.abs(shot - expected).max() <= 1
    # The window of the default shows the same, but a LUT has none.
    level, width = page.input_value("#window-level"), page.input_value("#window-width")
    set_window(page, float(level) + 1, width)
    set_window(page, level, width)
    assert np.abs(canvas_levels(page) - expected).max() <= (30 if kind == "VOI LUT" else 1)


def test_window_is_set_by_numbers_in_the_unit_of_the_image(page, service):
    id = predict(service, "a.dcm", written(dataset(RescaleSlope=2, RescaleIntercept=-1000, **NO_WINDOW)))
    values = 2.0 * deep() - 1000
    open_viewer(page, service, id)
    page.keyboard.press("1")
    # 12 bits rescaled: from -1000 to 7190.
    assert (page.input_value("#window-level"), page.input_value("#window-width")) == ("3095", "8190")
    set_window(page, 1000, 500)
    expected = 255 * np.clip((values - 1000) / 500 + 0.5, 0, 1)
    assert np.abs(canvas_levels(page) - expected).max() <= 1
    expect(page.locator("#window-preset")).to_have_value("Manual")
    page.get_by_label("Width").fill("0")  # no window
    page.get_by_label("Level").fill("")
    assert np.abs(canvas_levels(page) - expected).max() <= 1
    page.locator("h1").click()
    assert (page.input_value("#window-level"), page.input_value("#window-width")) == ("1000", "500")
    page.keyboard.press("i")
    assert np.abs(canvas_levels(page) - (255 - expected)).max() <= 1
    page.keyboard.press("0")
    page.keyboard.press("1")
    assert np.abs(canvas_levels(page) - 255 * (values + 1000) / 8190).max() <= 1
    expect(page.locator("#window-preset")).to_have_value("Default (as for the model)")


def test_windows_of_the_file_and_the_full_range_are_presets(page, service):
    file = dataset(
        deep() // 2, WindowCenter=[1000, 1500, 1500, 1500], WindowWidth=[2100, 800, 8, 1],
        WindowCenterWidthExplanation=["NORMAL", "<b>HARD</b>"],
    )  # fmt: skip
    open_viewer(page, service, predict(service, "a.dcm", written(file)))
    page.keyboard.press("1")
    preset = page.get_by_role("combobox", name="Window")
    assert [each for each in preset.locator("option").all_inner_texts() if each != "Manual"] == [
        "Default (as for the model)", "NORMAL (1000 / 2100)", "<b>HARD</b> (1500 / 800)",
        "Window 3 of the file (1500 / 8)",
        "Window 4 of the file (1500 / 1)", "Full range",
    ]  # fmt: skip
    values = (deep() // 2).astype(float)
    preset.select_option(label="<b>HARD</b> (1500 / 800)")
    assert (page.input_value("#window-level"), page.input_value("#window-width")) == ("1500", "800")
    assert np.abs(canvas_levels(page) - 255 * np.clip((values - 1499.5) / 799 + 0.5, 0, 1)).max() <= 1
    preset.select_option(label="Window 3 of the file (1500 / 8)")
    assert np.abs(canvas_levels(page) - 255 * np.clip((values - 1499.5) / 7 + 0.5, 0, 1)).max() <= 1
    preset.select_option(label="Window 4 of the file (1500 / 1)")
    assert np.array_equal(canvas_levels(page), 255 * (values > 1499.5))
    preset.select_option(label="Full range")
    assert np.abs(canvas_levels(page) - 255 * values / values.max()).max() <= 1
    preset.select_option(index=0)
    assert np.abs(canvas_levels(page) - 255 * np.clip((values - 999.5) / 2099 + 0.5, 0, 1)).max() <= 1


def test_details_that_8_bits_lose_become_visible(page, service):
    pixels = deep(16) // 4 + 1000
    pixels[40:50, 40:50] = pixels[40, 40]
    pixels[44:46, 44:46] += 3
    open_viewer(page, service, predict(service, "a.png", saved(pixels)))
    page.keyboard.press("1")
    assert np.ptp(canvas_levels(page)[40:50, 40:50]) == 0
    set_window(page, int(pixels[40, 40]), 10)
    assert np.ptp(canvas_levels(page)[40:50, 40:50]) > 60


def test_padding_stays_black_when_inverted(page, service):
    open_viewer(page, service, predict(service, "a.dcm", padded()))
    page.keyboard.press("1")
    page.keyboard.press("i")
    levels = canvas_levels(page)
    assert levels[:, :10].max() == 0
    assert levels[:, 10:].mean() > 50


def test_compared_image_follows_the_window_in_its_own_unit(page, service):
    first = predict(service, "first.dcm", written(dataset(**NO_WINDOW)))
    predict(service, "second.png", saved(REFERENCE // 2 + 64))
    put_in_one_study(service)
    page.goto(f"{service.base_url}/")
    page.get_by_role("link", name="first.dcm").click()
    expect_values(page)
    select_comparison(page, "second.png")
    expect_values(page, "#compare-viewport")
    page.locator("#window-level").fill(str(4095 / 2 + 16 * 20))
    page.keyboard.press("1")
    second = canvas_levels(page, "#compare-viewport")
    assert np.abs(second - np.clip(REFERENCE // 2 + 64 - 16 * 20 / 4095 * 255, 0, 255)).max() <= 1
    assert page.url.endswith(first)


def test_compared_images_of_different_shapes_have_the_same_center(page, service):
    predict(service, "wide.png", saved(REFERENCE[:60]))
    predict(service, "square.png", saved(REFERENCE))
    put_in_one_study(service)
    page.goto(f"{service.base_url}/")
    page.get_by_role("link", name="square.png").click()
    expect_values(page)
    select_comparison(page, "wide.png")
    expect_values(page, "#compare-viewport")
    page.keyboard.press("m")
    boxes = [page.locator(".viewport").nth(i).bounding_box() for i in (0, 1)]
    stages = [page.locator(".viewport .stage").nth(i).bounding_box() for i in (0, 1)]
    middles = [stage["x"] + stage["width"] / 2 - box["x"] for stage, box in zip(stages, boxes, strict=True)]
    assert middles[0] == pytest.approx(middles[1], abs=1)
    start = stages[1]["x"] + stages[1]["width"] / 4, stages[1]["y"] + 20
    drag(page, start, (start[0] + stages[1]["width"] / 2, start[1]))
    assert float(measured(page)[0].split()[0]) == pytest.approx(48, abs=0.5)
    line = page.locator("#compare-viewport .line").bounding_box()
    assert line["x"] == pytest.approx(start[0], abs=2)


def test_values_that_cannot_be_loaded_leave_the_8_bit_image(page, service):
    id = upload(service, {"high.png": 180})["high.png"]
    page.route("**/pixels", lambda route: route.abort())
    page.goto(f"{service.base_url}/images/{id}")
    expect(page.locator("#save-status")).to_have_text("The image cannot be displayed: The server cannot be reached.")
    expect(page.locator("#window-level")).to_be_disabled()
    for key in "1wi0":
        page.keyboard.press(key)
    assert 170 < image_pixels(page).mean() < 190


DETECTOR = {"ImagerPixelSpacing": [0.2, 0.1]}


@pytest.mark.parametrize(
    ("elements", "text"),
    [
        (DETECTOR, "{:.1f} mm at the detector"),
        ({"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [0.25, 0.125]}, "{:.1f} mm"),
        ({"PixelSpacing": [0.2, 0.1]}, "{:.1f} mm (calibration unknown)"),
        ({}, "{:.1f} pixels"),
    ],
)
def test_ruler_measures_in_mm_where_the_spacing_is_known(page, service, elements, text):
    open_viewer(page, service, predict(service, "a.dcm", written(dataset(**elements))))
    page.get_by_role("button", name="Measure").click()
    expect(page.locator("#measurement")).to_have_text("Drag a line on the image.")
    before = page.locator(".viewport .stage").first.bounding_box()
    horizontal, vertical = (0.1, 0.2) if elements else (1, 1)
    for start, end in (((0.25, 0.5), (0.75, 0.5)), ((0.5, 0.25), (0.5, 0.75)), ((0.2, 0.2), (0.5, 0.6))):
        drag(page, image_point(page, *start), image_point(page, *end))
        length = np.hypot(*(96 * np.subtract(end, start) * (horizontal, vertical)))
        shown = page.locator(".annotations text").last.text_content()
        assert float(shown.split()[0]) == pytest.approx(length, abs=0.15)
        assert shown == text.format(float(shown.split()[0]))
    assert len(measured(page)) == 3
    assert page.locator(".viewport .stage").first.bounding_box() == before  # the image did not move


def test_line_stays_on_its_place_when_the_image_moves(page, service):
    open_viewer(page, service, predict(service, "a.dcm", written(dataset(**DETECTOR))))
    page.keyboard.press("m")
    drag(page, image_point(page, 0.3, 0.4), image_point(page, 0.7, 0.5))
    (length,) = measured(page)
    page.keyboard.press("m")
    drag(page, image_point(page, 0.5, 0.7), image_point(page, 0.6, 0.8))  # pans
    page.keyboard.press("+")
    page.keyboard.press("h")
    expect(page.locator(".heatmap-layer")).to_be_visible()
    assert measured(page) == [length]
    viewport = page.locator(".viewport").first.bounding_box()
    line = page.locator(".annotations .line").first
    for point, ends in (((0.3, 0.4), ("x1", "y1")), ((0.7, 0.5), ("x2", "y2"))):
        shown = [float(line.get_attribute(name)) for name in ends]
        expected = np.subtract(image_point(page, *point), (viewport["x"], viewport["y"]))
        assert shown == pytest.approx(expected, abs=1)


def test_escape_and_the_button_remove_lines(page, service):
    open_viewer(page, service, predict(service, "a.dcm", written(dataset())))
    page.keyboard.press("m")
    for y in (0.3, 0.4, 0.5):
        drag(page, image_point(page, 0.3, y), image_point(page, 0.7, y))
    drag(page, image_point(page, 0.5, 0.2), image_point(page, 0.5, 0.2))  # a click is not a line
    assert len(measured(page)) == 3
    page.get_by_role("button", name="Remove last").click()
    assert len(measured(page)) == 2
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator(".annotations .line")).to_have_count(0)
    expect(page.locator("#measure")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(page.locator("#measure")).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#measurements")).to_be_hidden()


def test_ruler_is_usable_by_keyboard(page, service):
    open_viewer(page, service, predict(service, "a.dcm", written(dataset(**DETECTOR))))
    viewport = page.locator(".viewport").first
    viewport.focus()
    page.keyboard.press("m")
    page.keyboard.press("Enter")
    start = float(measured(page)[0].split()[0])
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("ArrowRight")
    assert float(measured(page)[0].split()[0]) == pytest.approx(start + 1.1, abs=0.11)  # 11 pixels of 0.1 mm
    page.keyboard.press("Enter")  # the other end
    page.keyboard.press("ArrowRight")
    assert float(measured(page)[0].split()[0]) == pytest.approx(start + 1, abs=0.11)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    before = page.locator(".viewport .stage").first.bounding_box()["x"]
    page.keyboard.press("ArrowRight")
    assert page.locator(".viewport .stage").first.bounding_box()["x"] == before - 40


@pytest.fixture
def half_dark(page, service):
    """The viewer of an image whose right half contributes four times as much as its left half."""
    gray = np.full((300, 400), 40, np.uint8)
    gray[:, 200:] = 160
    id = predict(service, "half.png", saved(gray))
    open_viewer(page, service, id)
    return page, id


def test_contour_surrounds_contributions_of_more_than_half_of_the_largest(half_dark, service):
    page, id = half_dark
    layer = service.get(f"/v1/predictions/{id}/heatmap-layer.png").content
    alpha = np.asarray(Image.open(io.BytesIO(layer)))[..., 3].astype(int)
    page.keyboard.press("c")
    path = page.locator(".contour path.towards")
    expect(path).to_have_attribute("d", re.compile("^M"))
    expect(page.locator(".heatmap-layer")).to_be_hidden()
    points = np.array(re.findall(r"([\d.]+) ([\d.]+)", path.get_attribute("d")), float)
    assert (points.min(axis=0) >= 0).all()
    columns = np.flatnonzero((alpha > 127.5).all(axis=0))
    assert points[:, 0].min() == pytest.approx(columns.min() + 0.5, abs=1)
    assert points[:, 0].max() == pytest.approx(alpha.shape[1], abs=1)
    viewport = page.locator(".viewport").first.bounding_box()
    shown = path.bounding_box()
    left, _ = image_point(page, columns.min() / alpha.shape[1], 0)
    assert shown["x"] == pytest.approx(left, abs=6)
    assert colorfulness(image_pixels(page)) > 40
    assert page.locator(".contour path.against").get_attribute("d") == ""
    page.keyboard.press("+")
    assert path.bounding_box()["height"] > viewport["height"]
    page.keyboard.press("c")
    assert colorfulness(image_pixels(page)) <= 2


def test_heatmap_that_cannot_be_loaded_is_an_error_and_is_tried_again(half_dark):
    page, _ = half_dark
    page.route("**/heatmap-layer.png", lambda route: route.abort())
    page.get_by_role("button", name="Contour").click()
    expect(page.locator("#save-status")).to_contain_text("The heatmap cannot be displayed")
    expect(page.locator("#contour-toggle")).to_have_attribute("aria-pressed", "false")
    page.unroute("**/heatmap-layer.png")
    page.get_by_role("button", name="Contour").click()
    expect(page.locator(".contour path.towards")).to_have_attribute("d", re.compile("^M"))


def test_every_key_is_listed(page, service):
    id = upload(service, {"high.png": 180})["high.png"]
    page.goto(f"{service.base_url}/images/{id}")
    expect_values(page)
    page.get_by_role("button", name="Shortcuts").click()
    keys = " ".join(page.locator("#shortcuts kbd").all_inner_texts()).split()
    assert set("jkponuhcf1wimsr0?+\N{MINUS SIGN}←↑→↓") | {"Esc"} == set(keys)
    titles = page.locator(".toolbar button").evaluate_all("buttons => buttons.map(button => button.title)")
    assert set(titles) <= set(keys)


def test_blind_reader_gets_the_same_controls_for_every_decision(browser, bundle_folder, tmp_path):
    with served(bundle_folder, tmp_path, "--blind-first") as (_, client):
        ids = upload(client)
        page = browser.new_page(locale="en-GB")
        found = set()
        for name, id in ids.items():
            open_viewer(page, client, id)
            page.keyboard.press("c")
            page.keyboard.press("h")
            expect(page.locator(".contour")).to_have_count(0)
            controls = page.locator(".image-panel").inner_text().replace(name, "")
            numbers = page.locator("#window-level, #window-width").evaluate_all("all => all.map(each => each.value)")
            found.add(json.dumps([controls, numbers]))
            expect(page.locator("#save-status")).to_have_text("")
        assert len(found) == 1
        page.close()


SIZES = {"desktop": (1280, 800), "large": (1920, 1080), "phone": (390, 844), "landscape": (844, 390)}


@pytest.fixture
def sized(browser, service):
    """A function that opens an image of 12 bits at a size of the screen."""
    contexts = []
    pixels = np.kron(deep(), np.ones((5, 4), np.uint16))
    id = predict(service, "a.dcm", written(dataset(pixels, PatientName="Doe^Jane", **DETECTOR)))

    def opened(size, scheme="light", language="en"):
        width, height = SIZES[size]
        is_phone = size in ("phone", "landscape")
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=is_phone, is_mobile=is_phone
        )
        contexts.append(context)
        page = context.new_page()
        page.seen = record_traffic(page)
        page.goto(f"{service.base_url}/images/{id}?language={language}")
        expect_values(page)
        return page

    yield opened
    for context in contexts:
        context.close()


def in_view(page, locator):
    """Return whether an element is entirely on the screen, above the notice."""
    box, footer = locator.bounding_box(), page.locator(".footer").bounding_box()
    return box["y"] >= 0 and box["y"] + box["height"] <= footer["y"] + 1


@pytest.mark.parametrize("language", ["en", "zh-Hant"])
@pytest.mark.parametrize("size", ["desktop", "large"])
def test_image_takes_the_height_of_a_desktop(sized, size, language):
    page = sized(size, language=language)
    viewport = page.locator(".viewport").first
    for locator in (
        viewport,
        page.locator(".decision-heading"),
        page.locator(".probability"),
        page.locator("#window-level"),
    ):
        assert in_view(page, locator)
    assert viewport.bounding_box()["height"] >= SIZES[size][1] - 250
    page.keyboard.press("h")
    page.keyboard.press("c")
    page.keyboard.press("m")
    assert viewport.bounding_box()["height"] >= SIZES[size][1] - 250  # no control moves the image
    page.mouse.move(SIZES[size][0] - 100, 400)
    page.mouse.wheel(0, 600)
    wait_until(page, lambda: page.evaluate("scrollY") > 0)
    assert in_view(page, viewport)  # the image stays beside the panel


def touch(page, *fingers, steps=8):
    """Move fingers over the screen; each is a start and an end."""
    session = page.context.new_cdp_session(page)

    def points(part):
        return [
            {"x": start[0] + part * (end[0] - start[0]), "y": start[1] + part * (end[1] - start[1]), "id": i}
            for i, (start, end) in enumerate(fingers)
        ]

    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": points(0)})
    for step in range(1, steps + 1):
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": points(step / steps)})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    session.detach()
    page.wait_for_timeout(800)  # a tap that follows at once would end a fling, and not be a click


def tap_until_gone(button, locator):
    """Tap a button until an element has disappeared: on a busy machine, even a late tap can end a fling, and not be a click."""
    for moment in range(100):
        if moment % 20 == 0 and locator.count():
            button.tap()
        if not locator.count():
            return
        button.page.wait_for_timeout(100)
    expect(locator).to_have_count(0)


def center(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.parametrize("size", ["phone", "landscape"])
def test_one_finger_scrolls_the_page_until_two_have_zoomed_in(sized, size):
    page = sized(size)
    image, stage = page.locator(".viewport").first, page.locator(".viewport .stage").first
    x, y = center(image)
    before = stage.bounding_box()
    touch(page, ((x, y), (x, y - 80)))
    wait_until(page, lambda: page.evaluate("scrollY") > 40)
    assert stage.bounding_box()["width"] == before["width"]
    wait_until(
        page, lambda: not page.evaluate("(scrollTo(0, 0), new Promise(end => setTimeout(() => end(scrollY), 200)))")
    )
    x, y = center(image)
    touch(page, ((x - 20, y), (x - 60, y)), ((x + 20, y), (x + 60, y)))
    assert stage.bounding_box()["width"] > 1.5 * before["width"]
    assert page.evaluate("[scrollY, visualViewport.scale]") == [0, 1]
    left = stage.bounding_box()["x"]
    touch(page, ((x, y), (x + 30, y + 20)))
    assert stage.bounding_box()["x"] == pytest.approx(left + 30, abs=1)
    assert page.evaluate("scrollY") == 0
    touch(page, ((x - 80, y), (x - 5, y)), ((x + 80, y), (x + 5, y)))  # smaller than the viewport: it fits again
    assert stage.bounding_box()["width"] == pytest.approx(before["width"], abs=1)


@pytest.mark.parametrize("language", ["en", "zh-Hant"])
@pytest.mark.parametrize("ends", [(0.1, 0.9), (0.9, 0.1), (0.2, 0.4), (0.6, 0.4)])
def test_label_of_a_line_is_entirely_in_view(sized, ends, language):
    page = sized("phone", language=language)
    page.keyboard.press("m")
    drag(page, *(image_point(page, x, 0.5) for x in ends))
    outer, label = page.locator(".viewport").first.bounding_box(), page.locator(".annotations text").bounding_box()
    assert outer["x"] <= label["x"] <= label["x"] + label["width"] <= outer["x"] + outer["width"]


@pytest.mark.parametrize("size", ["phone", "landscape"])
def test_finger_measures_and_sets_the_window(sized, size):
    page = sized(size)
    x, y = center(page.locator(".viewport").first)
    page.get_by_role("button", name="Measure").tap()
    touch(page, ((x - 40, y), (x + 40, y - 30)))
    expect(page.locator("#measurement")).to_have_text(re.compile(r"^[\d.]+ mm at the detector$"))
    tap_until_gone(page.get_by_role("button", name="Remove last"), page.locator(".annotations .line"))
    page.get_by_role("button", name="Measure").tap()
    page.get_by_role("button", name="Window/level").tap()
    width = float(page.input_value("#window-width"))
    touch(page, ((x - 20, y), (x + 20, y)))
    assert float(page.input_value("#window-width")) == pytest.approx(width + 40 * width / 255, rel=0.05)
    assert page.evaluate("scrollY") == 0


@pytest.mark.parametrize(
    ("size", "scheme"), [("desktop", "dark"), ("large", "light"), ("phone", "light"), ("landscape", "dark")]
)
def test_viewer_is_accessible_with_all_tools_on(sized, size, scheme):
    page = sized(size, scheme)
    for key in "hcmi":
        page.keyboard.press(key)
    expect(page.locator(".heatmap-layer")).to_be_visible()
    drag(page, image_point(page, 0.4, 0.4), image_point(page, 0.6, 0.5))
    page.wait_for_load_state()
    found = json.loads(json.dumps(axe.Axe().run(page).response))["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
    assert [each for each in page.seen if each.startswith(("error", "warning"))] == []
