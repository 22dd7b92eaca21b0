"""Signing in on another device and managing tokens in a real Chromium, as people do."""

import json
import re

import pytest
from tests.openid import write_configuration
from tests.service.conftest import served
from tests.service.web.helpers import expect

pytestmark = pytest.mark.browser
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")


def serious_violations(page):
    page.wait_for_load_state()
    found = json.loads(json.dumps(axe.Axe().run(page).response))["violations"]
    return [(each["id"], each["nodes"][0]["html"][:120]) for each in found if each["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("size", [(390, 844), (844, 390)])
def test_phone_signs_in_with_the_code_of_a_computer(browser, signed_in, size):
    page, client = signed_in
    page.get_by_role("link", name="Another device").click()
    page.get_by_role("button", name="Create a code").click()
    expect(page.locator(".qr-code")).to_be_visible()
    assert serious_violations(page) == []
    code = page.locator(".sign-in-code").inner_text()
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, has_touch=True, locale="en-GB")
    phone = context.new_page()
    phone.goto(f"{client.base_url}/sign-in#code={code}")  # the address in the QR code
    button = phone.get_by_role("button", name="Sign in with a code")
    expect(button).to_be_focused()
    expect(phone.get_by_label("Sign-in code")).to_have_value(code)
    assert "#" not in phone.url  # the code is not in the history
    assert serious_violations(phone) == []
    assert phone.evaluate("document.documentElement.scrollWidth") <= size[0]
    phone.keyboard.press("Enter")
    expect(phone.get_by_role("heading", name="Worklist")).to_be_visible()
    expect(phone.locator(".user")).to_have_text("ward-3")
    context.close()


def test_reader_signs_in_at_the_identity_provider(browser, bundle_folder, tmp_path, issuer):
    pytest.importorskip("authlib", reason="[openid] is not installed")
    file = write_configuration(tmp_path, issuer, display_name="Clinic")
    with served(bundle_folder, tmp_path, "--openid-connect", str(file)) as (_, client):
        assert client.get("/v1/predictions").status_code == 401  # without a token in the database
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        page.goto(f"{client.base_url}/dashboard")
        assert serious_violations(page) == []
        page.get_by_role("link", name="Sign in with Clinic").click()
        page.wait_for_url(f"{issuer}/**")
        page.locator("input[name=sub]").fill("1")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Dashboard")).to_be_visible()
        expect(page.locator(".user")).to_have_text("dr.lin")
        page.reload()
        expect(page.locator(".user")).to_have_text("dr.lin")
        cookies = {each["name"]: each for each in context.cookies()}
        assert cookies["pneumoscope"]["sameSite"] == "Strict"
        context.close()


def test_administrator_adds_and_revokes_a_token_with_the_keyboard(browser, signed_in):
    page, client = signed_in
    page.get_by_role("link", name="Tokens").focus()
    page.keyboard.press("Enter")
    page.get_by_label("User").focus()
    page.keyboard.type("dr.lin")
    page.keyboard.press("Enter")
    secret = page.locator(".new-secret code").inner_text()
    assert re.fullmatch(r"[\w-]{43}", secret)
    other = browser.new_context(locale="en-GB").new_page()
    other.goto(f"{client.base_url}/")
    other.get_by_label("Access token").fill(secret)
    other.keyboard.press("Enter")
    expect(other.get_by_role("heading", name="Worklist")).to_be_visible()
    expect(other.get_by_role("link", name="Tokens")).to_have_count(0)
    row = page.get_by_role("row", name="dr.lin")
    row.locator("summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("row", name="dr.lin")).to_contain_text("Revoked")
    other.get_by_role("link", name="Dashboard").click()
    expect(other.get_by_role("heading", name="Sign in")).to_be_visible()
    other.context.close()
