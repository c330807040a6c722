"""A real browser on this machine, and what it complains of while it shows a page."""

import shutil
from contextlib import contextmanager

from playwright.sync_api import expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE = {"width": 375, "height": 667}


@contextmanager
def chromium():
    """A browser without a window; `./run test` installs one as root on Debian."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    assert found, "the page is tested in a browser: install chromium (apt-get install chromium)"
    expect.set_options(timeout=300_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@contextmanager
def visiting(browser, url, **options):
    """A page in a context of its own, which at its end has had nothing to complain of.

    Args:
        browser: the browser.
        url: what relative addresses start from.
        options: of the context, such as `java_script_enabled`.
    """
    context = browser.new_context(base_url=url, viewport=PHONE, **options)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    # A 404, 401 or 422 is told by the page itself; that the browser notes it is no complaint.
    left = [one for one in complaints if "the server responded with a status of 4" not in one]
    assert not left, left
    context.close()


def fits(page):
    """Whether nothing is wider than the screen."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
