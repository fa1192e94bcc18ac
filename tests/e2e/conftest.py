"""The real thing for browser tests: the demo's own stack (object store, portal, orchestrator, warm trainer, three
hospitals with data) as processes of their own, and a real Chromium."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60_000
"""Milliseconds for what a browser waits for on a busy machine."""
expect.set_options(timeout=PATIENCE)


@dataclass
class Stack:
    """A running demo. ``start`` goes on with what its folder remembers; ``kill`` is a power cut."""

    folder: Path
    arguments: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def passwords(self) -> dict[str, str]:
        return json.loads((self.folder / "demo.json").read_text())["passwords"]

    def start(self, *, timeout: float = 480) -> None:
        self.port = self.port or free_port()
        (self.folder / "address").unlink(missing_ok=True)
        command = [sys.executable, "-m", "fedportal.demo", "--headless", "--state", str(self.folder)]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), *self.arguments],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.startswith(("FEDPORTAL_", "DJANGO_"))},
        )
        self.wait_until_it_is_up(timeout)

    def wait_until_it_is_up(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the demo ended: {self.process.communicate()[1]}")
            if (self.folder / "address").exists():
                return
            time.sleep(0.2)
        raise AssertionError(f"the demo was not up within {timeout:.0f} s")

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def child(self, word: str) -> int:
        """Return the process that the demo has started with ``word`` in its command."""
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rsplit(") ", 1)[1].split()[1])
                if parent == self.process.pid and word in (entry / "cmdline").read_text():
                    return int(entry.name)
        raise AssertionError(f"the demo runs no {word}")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        self._end_runs()

    def _end_runs(self) -> None:
        """A run outlives the demo by design, and one that a test has halted would do so for ever."""
        for file in self.folder.glob("**/runs/*/pid"):
            with (file.parent / "lock").open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(int(file.read_text()), signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The demo with a short reference experiment, shared by the browser tests of a session."""
    demo = Stack(tmp_path_factory.mktemp("demo"), arguments=("--rounds", "2"))
    try:
        demo.start()
        yield demo
    finally:
        demo.stop()


@pytest.fixture(scope="module")  # not longer: its event loop stands in the way of other modules' browsers and loops
def playwright_() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def chromium(playwright_: Playwright) -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "the browser tests need Chromium (Debian: apt-get install chromium)"
    browser = playwright_.chromium.launch(
        executable_path=path,
        args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
    )
    yield browser
    browser.close()


@pytest.fixture
def open_page(chromium: Browser, stack: Stack, request: pytest.FixtureRequest) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a page as somebody: ``open_page("researcher", width=390, theme="dark")``.

    A script error or a refused resource on any of its pages fails the test.
    """
    contexts, complaints = [], []

    def complain(page: Page, message: ConsoleMessage) -> None:
        # 422 is the portal's answer to a form with a refused value; Chromium calls that an error, too
        if message.type == "error" and "status of 422" not in message.text:
            complaints.append(f"{page.url}: {message.text}")

    def open_as(
        person: str | None = "researcher", *, width: int = 1280, height: int = 900, theme: str = "light"
    ) -> Page:
        context = chromium.new_context(
            base_url=stack.address,
            viewport={"width": width, "height": height},
            color_scheme=theme,
            accept_downloads=True,
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(f"{page.url}: {error}"))
        page.on("console", lambda message: complain(page, message))
        if person is not None:
            sign_in(page, person, stack.passwords[person])
        return page

    yield open_as
    for context in contexts:
        context.close()
    assert complaints == []


def sign_in(page: Page, person: str, password: str) -> None:
    page.goto("/accounts/login/")
    page.get_by_label("User name").fill(person)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "/login/" not in url)
