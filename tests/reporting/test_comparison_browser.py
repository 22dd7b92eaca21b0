"""The comparison page in Chromium: desktop and phone widths, light and dark mode, and print.

Set PNEUMOSCOPE_SCREENSHOTS to a folder to save screenshots.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser
# Texts with a contrast (WCAG 2) to their background below 4.5, as "ratio: text".
CONTRAST = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return c.startsWith('color(srgb')
    ? [m[0]*255, m[1]*255, m[2]*255, m[3] ?? 1] : [m[0], m[1], m[2], m[3] ?? 1] };
  const over = (top, under) => [0, 1, 2].map(i => top[i]*top[3] + under[i]*(1 - top[3])).concat(1);
  const light = c => { const l = c.slice(0, 3).map(v => v/255)
    .map(v => v <= .04045 ? v/12.92 : ((v + .055)/1.055)**2.4);
    return .2126*l[0] + .7152*l[1] + .0722*l[2] };
  const ground = e => { const layers = [];
    for (let n = e; n; n = n.parentElement) layers.push(parse(getComputedStyle(n).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]) };
  const bad = []; let seen = 0;
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    if (!e.getClientRects().length) continue;
    const style = getComputedStyle(e), under = ground(e);
    const ink = over(parse(e instanceof SVGElement ? style.fill : style.color), under);
    const [low, high] = [light(ink), light(under)].sort((a, b) => a - b);
    const ratio = (high + .05) / (low + .05); seen++;
    if (ratio < 4.5) bad.push(ratio.toFixed(2) + ': ' + e.textContent.trim().slice(0, 40));
  }
  return [seen, bad];
}"""
UNLABELED = """() => [...document.querySelectorAll('svg, img')].filter(e => e.getAttribute('aria-hidden') !== 'true'
  && !(e.getAttribute('role') === 'img' && e.getAttribute('aria-label')) && !e.getAttribute('alt')).length"""
# Labels of plots in which a text extends beyond the plot.
CUT_OFF = """() => [...document.querySelectorAll('svg.plot')].filter(svg => { const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].some(t => { const r = t.getBoundingClientRect();
    return r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1 })
  }).map(svg => svg.getAttribute('aria-label').slice(0, 60))"""
WIDTHS = """() => [document.documentElement.scrollWidth,
  [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length]"""


@pytest.fixture
def report(three: tuple[Any, Any, Path]) -> Path:
    return three[2]


@pytest.fixture(params=[(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")], ids=lambda p: f"{p[0]}-{p[1]}")
def opened(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[tuple[Any, int, str, list[str]]]:
    """Return the page, its width, its color scheme, and all requests, console messages and errors."""
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    events: list[str] = []
    page.on("request", lambda request: events.append(request.url))
    page.on("console", lambda message: events.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error: {error}"))
    page.goto(report.as_uri())
    if folder := os.environ.get("PNEUMOSCOPE_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"comparison-{width}-{scheme}.png", full_page=True)
    yield page, width, scheme, events
    page.close()


def test_the_page_is_legible_and_makes_no_requests(opened: tuple[Any, int, str, list[str]], report: Path) -> None:
    page, width, scheme, events = opened
    assert [url for url in events if url != "data:,"] == [report.as_uri()]
    body, scrolling = page.evaluate(WIDTHS)
    assert body == width
    assert scrolling > 0 or width > 390
    assert page.evaluate(UNLABELED) == 0
    assert page.evaluate(CUT_OFF) == []
    texts, low_contrast = page.evaluate(CONTRAST)
    assert texts > 500
    assert low_contrast == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(251, 251, 250)", "dark": "rgb(16, 18, 21)"}[scheme]


def test_figures_follow_dark_mode_including_referenced_markers(opened: tuple[Any, int, str, list[str]]) -> None:
    page, _, scheme, _ = opened
    strokes = page.evaluate(
        "[...document.querySelectorAll('[stroke=\"#1f58d6\"]')].map(e => getComputedStyle(e).stroke)"
    )
    assert len(strokes) > 10
    assert set(strokes) == {{"light": "rgb(31, 88, 214)", "dark": "rgb(74, 130, 245)"}[scheme]}


def test_print_is_light_and_includes_collapsed_details(browser: Any, report: Path) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(report.as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 30, 33)"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    heights = page.evaluate("[...document.querySelectorAll('details pre')].map(e => e.getBoundingClientRect().height)")
    assert len(heights) == 3
    assert min(heights) > 50
    assert page.pdf().startswith(b"%PDF")
    page.close()
