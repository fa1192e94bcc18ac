"""``make screenshots``: make the README's pictures from a demo that really runs."""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.e2e.conftest import Stack, sign_in  # noqa: E402

IMAGES = ROOT / "docs" / "images"


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        demo = Stack(Path(folder))
        demo.start()
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(base_url=demo.address, viewport={"width": 1280, "height": 960})
            sign_in(page, "researcher", demo.passwords["researcher"])
            page.goto((demo.folder / "address").read_text().strip())
            page.locator("#round-9").wait_for(timeout=300_000)
            page.wait_for_timeout(2_000)
            page.screenshot(path=IMAGES / "live.png")
            page.goto("/experiments/new/")
            page.get_by_role("button", name="preset: Brain tumour, laptop size").click()
            page.get_by_role("link", name="Review").or_(page.get_by_role("button", name="Review")).first.click()
            page.wait_for_load_state()
            page.screenshot(path=IMAGES / "compose.png")
            browser.close()
        finally:
            demo.stop()


if __name__ == "__main__":
    main()
