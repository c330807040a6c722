"""The page in a real browser, on a screen as wide as a phone's, with and without JavaScript."""

import shutil
from datetime import timedelta

import pytest
from playwright.sync_api import expect

from batch_jobs.interval import Interval
from batch_jobs.runs import jobs
from tests.conftest import TRAINED, _settings_in
from tests.support.api import KEY, serving
from tests.support.browser import chromium, fits, visiting

SHEET = "entity_id,amount,country\n" + "".join(
    f"order {number},{number if number % 9 else -1},kr\n" for number in range(1, 101)
)
FILE = {"name": "orders.csv", "mimeType": "text/csv", "buffer": SHEET.encode()}


@pytest.fixture(scope="module")
def settings(tmp_path_factory, _trained_shop):
    """Settings of a shop whose two models have published."""
    folder = tmp_path_factory.mktemp("page") / "shop"
    shutil.copytree(_trained_shop, folder)
    made = _settings_in(folder)
    for hour in range(3):
        start = TRAINED + timedelta(hours=hour)
        for name in ("orders", "customers"):
            jobs.predict(made, name, Interval(start, start + timedelta(hours=1)))
    return made


@pytest.fixture(scope="module")
def browser():
    """One browser for all tests."""
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def url(settings):
    """Where a server of the shop listens, which answers requests of many rows."""
    with serving(settings, model="customers", answer=True) as client:
        yield str(client.base_url)


@pytest.mark.parametrize("scripts", [True, False])
def test_an_entity_is_looked_up_and_its_history_drawn(browser, url, scripts):
    """By typing its key, or following one that is there; nothing is wider than a phone."""
    with visiting(browser, url, java_script_enabled=scripts) as page:
        page.goto("/")
        expect(page.locator(".chip")).to_have_text("Stale")
        page.get_by_label("Key of the entity").fill("customer-7")
        page.get_by_role("button", name="Look up").click()
        expect(page.locator("article h3")).to_have_text("customer-7")
        assert float(page.locator(".score").inner_text())
        box = page.locator("svg .line").bounding_box()
        assert box["width"] > 150
        expect(page.locator("svg .dot")).to_have_count(3)
        assert not scripts or fits(page)


def test_an_unknown_entity_leads_to_one_that_exists(browser, url):
    """Keys near what was typed are a tap away; what was typed is text and nothing else."""
    with visiting(browser, url) as page:
        page.goto("/")
        page.get_by_label("Key of the entity").fill("<script>alert(1)</script>")
        page.keyboard.press("Enter")
        told = "<script>alert(1)</script> has no prediction"
        expect(page.get_by_role("status")).to_contain_text(told)
        page.locator(".keys a").first.click()
        expect(page.locator("article h3")).to_contain_text("customer-")


def test_times_are_told_where_the_reader_is(browser, url):
    """Beside UTC; what is updated in place keeps the focus where it was."""
    with visiting(browser, url, timezone_id="Asia/Kolkata") as page:
        page.goto("/?model=orders")
        expect(page.locator(".fresh time").first).to_contain_text("UTC (")
        expect(page.locator("#scores svg rect")).to_have_count(10)
        assert fits(page)
        kept = page.evaluate("""() => {
            const field = document.querySelector("#entity"), main = document.querySelector("main");
            field.focus();
            field.value = "half a key";
            const fresh = main.cloneNode(true);
            fresh.querySelector("h1").textContent = "Another title";
            update(main, fresh);
            const title = document.querySelector("h1").textContent;
            return [document.activeElement.id, field.value, title];
        }""")
        assert kept == ["entity", "half a key", "Another title"]


@pytest.mark.parametrize("scripts", [True, False])
def test_a_file_is_sent_and_followed_to_its_end(browser, url, scripts):
    """Without JavaScript the page loads itself again; rejected rows and results are there."""
    with visiting(browser, url, java_script_enabled=scripts) as page:
        page.goto("/?model=orders")
        page.locator("#file").set_input_files(FILE)
        page.get_by_role("button", name="Upload").click()
        expect(page.locator('[data-state="over"]')).to_be_visible()
        expect(page.locator("h1")).to_have_text("Done")
        expect(page.get_by_role("status")).to_contain_text("89 of 100 rows scored, 11 rejected")
        expect(page.locator("#rejected tbody tr").first).to_contain_text("amount")
        expect(page.locator("#results tbody tr")).to_have_count(20)
        assert not scripts or fits(page)
        with page.expect_download() as download:
            page.get_by_text("Download results").click()
        assert len(download.value.path().read_text().splitlines()) == 101


def test_a_file_of_other_columns_is_told_beside_its_form(browser, url):
    """What is missing and what would be right; the next file can be sent at once."""
    with visiting(browser, url) as page:
        page.goto("/?model=orders")
        page.locator("#file").set_input_files({**FILE, "buffer": b"amount,land\n1,kr\n"})
        page.get_by_role("button", name="Upload").click()
        expect(page.get_by_role("alert")).to_contain_text("missing: country; not known: land")
        expect(page.locator("#file")).to_be_visible()


def test_a_file_that_is_too_large_is_not_sent(browser, settings):
    """The browser says so; a server that cuts it off could not be heard."""
    with (
        serving(settings, model="orders", upload_bytes=2000) as client,
        visiting(browser, str(client.base_url)) as page,
    ):
        page.goto("/")
        page.locator("#file").set_input_files(FILE)
        assert "At most" in page.locator("#file").evaluate("input => input.validationMessage")
        page.locator("#file").set_input_files({**FILE, "buffer": b"amount,country\n"})
        assert page.locator("#file").evaluate("input => input.validationMessage") == ""


def test_who_has_a_key_signs_in_once(browser, settings):
    """Before that nothing is shown, and after signing out neither."""
    with (
        serving(settings, model="orders", answer=True, keys=(KEY,), hosts=("*",)) as client,
        visiting(browser, str(client.base_url)) as page,
    ):
        page.goto("/")
        page.get_by_label("Key").fill("a wrong key of some length")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("no key of this server")
        page.get_by_label("Key").fill(KEY)
        page.get_by_role("button", name="Sign in").click()
        page.locator("#file").set_input_files(FILE)
        page.get_by_role("button", name="Upload").click()
        expect(page.locator('[data-state="over"]')).to_be_visible()
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Sign out").click()
        expect(page.locator("h1")).to_have_text("Sign in")
        expect(page.get_by_text("orders")).to_have_count(0)
