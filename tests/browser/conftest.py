"""A real browser, and pages in it that must be without fault."""

import os
import shutil
from contextlib import contextmanager

import pytest
from playwright.sync_api import sync_playwright

PATIENCE = 10_000
"""Milliseconds."""


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium. It ends with the module, and its event loop with it: other tests run loops of their own."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        # Chromium's sandbox does not run as root, as CI does.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open a page that must run without any error, and must ask no other host for anything."""

    @contextmanager
    def open_page(address, errors=None, **settings):
        troubles, allowed = [], address.split("#")[0].rpartition("/")[0]
        context = browser.new_context(accept_downloads=True, **settings)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: None if request.url.startswith((allowed, "blob:")) else troubles.append(request.url),
        )
        page.goto(address)
        yield page
        context.close()
        assert [trouble for trouble in troubles if not (errors and errors in trouble)] == []

    return open_page


@pytest.fixture
def written(tmp_path):
    """A result as a report on disk."""

    def write(result):
        path = tmp_path / "report.html"
        path.write_text(result.to_html(), encoding="utf-8")
        return path.as_uri()

    return write
