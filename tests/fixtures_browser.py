"""A real Chromium for tests of pages. A module that uses it gives a fixture ``session``: a signed-in session's key."""

import os

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.conf import settings
from playwright.sync_api import expect, sync_playwright

PATIENCE = 120_000
"""Milliseconds for what a browser waits for on a busy machine."""
expect.set_options(timeout=PATIENCE)
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture
def open_page(live_server, session, monkeypatch):
    """Open an address in a fresh context: ``open_page("/sites/", theme="dark", width=390)``."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")  # Playwright's loop lives in this thread
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])

        def opened(address, *, theme="light", width=1280, signed_in=True, **options):
            context = browser.new_context(
                base_url=live_server.url, color_scheme=theme, viewport={"width": width, "height": 900}, **options
            )
            if signed_in:
                context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": live_server.url}])
            context.set_default_timeout(PATIENCE)
            page = context.new_page()
            page.complaints = []
            page.on("pageerror", lambda error: page.complaints.append(str(error)))
            page.on("console", lambda said: page.complaints.append(said.text) if said.type == "error" else None)
            page.goto(address)
            return page

        yield opened
        browser.close()


def violations(page) -> list[str]:
    found = Axe().run(page, options={"runOnly": RULES}).response["violations"]
    return [f"{rule['id']}: {node['target']} {node['html'][:120]}" for rule in found for node in rule["nodes"]]
