"""A person at a screen, in either language, in light or dark: the keyboard at a desktop, taps on a phone.

Options of a list and files to upload are set by Playwright, on every screen.
"""

import json
import re
from typing import NamedTuple

import pytest
from tests.service.web.helpers import expect, record_traffic

from pneumoscope.core.i18n import translations

LOCALES = {"en": "en-GB", "zh-Hant": "zh-TW"}
SIZES = {"desktop": (1280, 800), "phone": (390, 844), "landscape": (844, 390)}
MAX_TABS = 150
SERIOUS = ("serious", "critical")
# Latin words on a Chinese page that are not English: names of formats, units, keys and products, and data of the tests.
WORDS = {
    "API", "Ann", "BMP", "CHEST", "CSV", "Cohen", "DICOM", "Doe", "English", "Enter", "Esc", "HTTP", "Instance", "JPEG", "JSON",
    "Jane", "Kappa", "PACS", "PNG", "Roe", "SHA", "Study", "TIFF", "UID", "UTC", "WEBP", "WebP", "Wilson", "balanced", "default",
    "effusion", "elsewhere", "gray", "kappa", "pneumoscope", "ward", "web",
}  # fmt: skip
LATIN = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const element = node.parentElement;
    if (element.closest("script, noscript, dialog:not([open]), [lang=en], kbd, code, .filename, .review")) continue;
    if (!element.checkVisibility()) continue;
    found.push(node.textContent.trim());
  }
  return found.filter(Boolean);
}"""


class Screen(NamedTuple):
    """A size of the screen, a language, and a color scheme."""

    size: str
    language: str
    scheme: str

    def __str__(self):
        return "-".join(self)

    @property
    def context(self):
        """Options of `browser.new_context`."""
        width, height = SIZES[self.size]
        is_phone = self.size != "desktop"
        return {
            "viewport": {"width": width, "height": height}, "has_touch": is_phone, "is_mobile": is_phone,
            "locale": LOCALES[self.language], "color_scheme": self.scheme,
        }  # fmt: skip


# Either half has every size, language and scheme; both together have every pair of two of them.
HALVES = (
    (Screen("desktop", "zh-Hant", "dark"), Screen("phone", "en", "dark"), Screen("landscape", "en", "light")),
    (Screen("desktop", "en", "light"), Screen("phone", "zh-Hant", "light"), Screen("landscape", "zh-Hant", "dark")),
)
SCREENS = HALVES[0] + HALVES[1]


def on(screens):
    """Return a decorator that runs a test with a person at each of these screens."""
    return pytest.mark.parametrize("person", screens, ids=str, indirect=True)


class Person:
    """Uses a page as its screen allows.

    Attributes:
        page: In Chromium.
        screen: Of the page.
    """

    def __init__(self, page, screen):
        self.page, self.screen = page, screen
        self._seen = record_traffic(page)
        self._has_keyboard = screen.size == "desktop"

    def text(self, message, **parameters):
        """Return a message of the UI in the language of the screen."""
        return translations(self.screen.language).gettext(message) % parameters

    def open(self, url):
        self.page.goto(str(url))

    def named(self, role, message, **options):
        """Return the element of this role with a message as its name."""
        return self.page.get_by_role(role, name=self.text(message), **options)

    def reach(self, locator):
        """Move the focus to an element, by Tab only; the page shows it. On a phone, scroll to it."""
        if not self._has_keyboard:
            locator.scroll_into_view_if_needed()
            return
        element = locator.element_handle()  # is asked faster than a locator
        for _ in range(MAX_TABS):
            if not element.evaluate("each => each.isConnected"):  # the list was updated
                element = locator.element_handle()
            if element.evaluate("each => each === document.activeElement"):
                break
            self.page.keyboard.press("Tab")
        expect(locator).to_be_focused()
        expect(locator).to_be_in_viewport()

    def activate(self, locator):
        """Press a button, follow a link, or open details."""
        self.reach(locator)
        if self._has_keyboard:
            self.page.keyboard.press("Enter")
        else:
            locator.tap()

    def tool(self, key, id):
        """Use a tool of the viewer: by its key, or by its button."""
        if self._has_keyboard:
            self.page.keyboard.press(key)
        else:
            self.page.locator(f"#{id}").tap()

    def write(self, locator, text):
        """Replace the text of a field."""
        self.reach(locator)
        if not self._has_keyboard:
            locator.tap()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text)

    def choose(self, locator, value):
        """Choose an option of a list, by Playwright: the list of options belongs to the browser."""
        self.reach(locator)
        locator.select_option(value)

    def label(self, key, label):
        """Label the image that is open: by the key, or by tapping the label."""
        if self._has_keyboard:
            self.page.keyboard.press(key)
            return
        radio = self.page.locator(f"#review-form input[value={label}]")
        radio.scroll_into_view_if_needed()
        radio.tap()

    def follow(self, locator):
        """Activate something that opens another page."""
        with self.page.expect_navigation():
            self.activate(locator)

    def check(self):
        """Check that axe finds nothing serious, the page fits the screen, logs no error, and is in one language."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
        self.page.wait_for_load_state()  # elements are found before the style sheet is loaded
        found = json.loads(json.dumps(axe.Axe().run(self.page).response))["violations"]
        nodes = [node for each in found if each["impact"] in SERIOUS for node in each["nodes"]]
        violations = [(node["html"][:120], node["failureSummary"]) for node in nodes]
        assert not violations, violations
        assert self.page.evaluate("document.documentElement.scrollWidth") <= SIZES[self.screen.size][0]
        assert [each for each in self._seen if each.startswith(("error", "warning"))] == []
        expect(self.page.locator("html")).to_have_attribute("lang", self.screen.language)
        if self.screen.language == "zh-Hant":
            found = self.foreign()
            assert not found, found

    def foreign(self):
        """Return the visible texts with English words, or with half-width punctuation between Chinese characters."""
        texts = self.page.evaluate(LATIN)
        words = [re.findall(r"(?<![\w./-])[A-Za-z]{3,}(?![\w./:-])", text) for text in texts]
        english = [text for text, found in zip(texts, words, strict=True) if set(found) - WORDS]
        return english + [
            text for text in texts if re.search(r"[\u4e00-\u9fff][,:;!?()]|[,:;!?()][\u4e00-\u9fff]", text)
        ]
