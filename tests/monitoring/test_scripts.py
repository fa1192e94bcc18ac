"""The scripts of the live page in a real Chromium: points are known by their identity, lines come back by themselves."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

pytestmark = pytest.mark.browser
STATIC = Path(__file__).resolve().parents[2] / "static"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path == "/":
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>scripts</title>")
        else:
            super().do_GET()


@contextmanager
def _served() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=STATIC))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with _served() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        yield page
        browser.close()


STORE = """
    const { SeriesStore } = await import("/js/series.js");
    const store = new SeriesStore();
    const point = (attempt, round, step, value) => [attempt, round, step, round - 1 + step / 10, step, value];
    const add = (points, site = "mainz", phase = "train", name = "loss") =>
      store.add([{ site, phase, name, region: "", points }]);
    const seen = (site = "mainz", phase = "train", name = "loss") =>
      store.points(site, phase, name, "").map(([attempt, round, step, , , value]) => [attempt, round, step, value]);
"""


def run(page: Page, script: str):
    return page.evaluate("async () => {" + STORE + script + "}")


def test_a_point_that_comes_twice_is_one_point(page):
    script = "const first = add([point(1, 1, 1, 0.5)]); return [first, add([point(1, 1, 1, 0.5)]), seen()]"
    assert run(page, script) == [True, False, [[1, 1, 1, 0.5]]]


def test_points_stand_in_the_order_of_their_steps_however_they_come(page):
    script = "add([point(1, 2, 1, 3)]); add([point(1, 1, 2, 2)]); seen(); add([point(1, 1, 1, 1)]); return seen()"
    assert run(page, script) == [[1, 1, 1, 1], [1, 1, 2, 2], [1, 2, 1, 3]]


ROWS = "const old = [point(1, 1, 1, 1), point(1, 1, 2, 2)], fresh = [point(2, 1, 1, 9)], next = [point(1, 2, 1, 5)];"


@pytest.mark.parametrize("order", ["add(old); add(fresh); add(next);", "add(next); add(fresh); add(old);"])
def test_a_newer_attempt_replaces_the_older_one_in_its_round_in_any_order(page, order):
    assert run(page, ROWS + order + "return seen()") == [[2, 1, 1, 9], [1, 2, 1, 5]]


def test_a_newer_attempt_replaces_all_that_the_site_measured_in_the_round_but_nothing_of_another_site(page):
    script = """
        add([point(1, 1, 0, 0.3)], "mainz", "incoming", "dice"); add([point(1, 1, 1, 1)], "ulm");
        add([point(2, 1, 1, 9)]);
        return [seen("mainz", "incoming", "dice"), seen("ulm").length, store.size]"""
    assert run(page, script) == [[], 1, 2]


def test_progress_is_that_of_the_round_that_is_asked_for(page):
    script = "add([point(1, 3, 5, 1)]); return [store.progress('mainz', 3), store.progress('mainz', 4), store.progress('ulm', 3)]"
    assert run(page, script) == [0.5, 0, 0]


SOCKETS = """
    const { Tail } = await import("/js/socket.js");
    const opened = [], statuses = [], messages = [];
    class FakeSocket extends EventTarget {
      constructor(address) { super(); this.address = address; opened.push(this); }
      close() {}
      say(data) { this.dispatchEvent(new MessageEvent("message", { data: JSON.stringify(data) })); }
      end(code) { this.dispatchEvent(new CloseEvent("close", { code })); }
    }
    window.WebSocket = FakeSocket;
    let cursor = 0;
    new Tail(() => `ws://portal/?after=${cursor}`, {
      message: (data) => { cursor = data.cursor; messages.push(data.cursor); },
      status: (status) => { if (statuses.at(-1) !== status) statuses.push(status); },
    });
    const until = async (done) => { for (let i = 0; i < 200 && !done(); i++) await new Promise((r) => setTimeout(r, 20)); };
"""


def test_a_lost_line_comes_back_from_its_cursor(page):
    script = """
        opened[0].say({ cursor: "1.7" }); opened[0].say({ beat: true }); opened[0].end(1006);
        await until(() => opened.length === 2);
        opened[0].say({ cursor: "9.9" });  // an echo of the dead line
        opened[1].say({ cursor: "1.8" });
        return [opened.map((s) => s.address), messages, statuses]"""
    assert page.evaluate("async () => {" + SOCKETS + script + "}") == [
        ["ws://portal/?after=0", "ws://portal/?after=1.7"],
        ["1.7", "1.8"],
        ["live", "reconnecting", "live"],
    ]


@pytest.mark.parametrize("code", [4401, 4404])
def test_a_refused_line_does_not_knock_again(page, code):
    script = f"opened[0].end({code}); await new Promise((r) => setTimeout(r, 900)); return [opened.length, statuses]"
    assert page.evaluate("async () => {" + SOCKETS + script + "}") == [1, ["refused"]]
