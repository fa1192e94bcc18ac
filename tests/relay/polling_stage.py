"""A federation of hospitals that poll: the processes of :class:`tests.stage.Stage`, and a polling process for each site."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.stage import HOST, ROOT, Stage, free_port

INTERVAL = 0.5
"""Seconds between two polls; Kaapana makes one every five."""


class PollingStage(Stage):
    """``sites``: their slugs. Each site gets data, a row with a token of its own, and later its process."""

    def __init__(self, folder: Path, *, sites: Sequence[str], settings: str = "fedportal.settings") -> None:
        super().__init__(folder, settings=settings)
        self.sites = tuple(sites)
        self.relay_address = ""

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    def set_up_polling(self, *, size: int = 16, train: int = 2, validation: int = 1) -> None:
        """Make database, data and sites. Needs the store; leaves Django loaded in this process."""
        data = self.folder / "hospitals"
        arguments = ["--out", data, "--site-names", ",".join(self.sites), "--sites", len(self.sites), "--size", size]
        counts = ["--train", train, "--validation", validation, "--workers", 1]
        command = [sys.executable, "-m", "trainer", "phantoms", *map(str, [*arguments, *counts])]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        os.environ.update(self.environment)
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        from fedportal.sites import services

        for slug in self.sites:
            config = {"instance_name": f"{slug}.example", "host": f"{slug}.example", "port": 443}
            services.register(slug=slug, name=slug.title(), connector="kaapana-pull", config=config)

    def open_site(
        self, slug: str, *, warm: bool = True, address: str = "", environment: Mapping[str, str] = {}, **settings: Any
    ) -> None:
        """Let a site poll. It gets what its administrator would: the portal's definition and the site's key."""
        from fedportal.sites.connection import handout_of, key_of
        from fedportal.sites.models import Site

        site = Site.objects.get(slug=slug)
        work = self.folder / "work" / slug
        work.mkdir(parents=True, exist_ok=True)
        values = {
            "definition": handout_of(site),
            "instance_name": site.config["instance_name"],
            "site_key": key_of(site),
            "data_root": str(self.folder / "hospitals" / slug),
            "work_dir": str(work),
            "socket": self.environment["FEDPORTAL_TRAINER_SOCKET"] if warm else "",
            "interval": INTERVAL,
            **settings,
        }
        file = self.folder / f"{slug}.json"
        file.write_text(json.dumps(values))
        command = ["-m", "tests.relay.pulling_site", "--portal", address or self.address, "--settings", str(file)]
        self.spawn(f"site-{slug}", command, **environment)

    def start_file_relay(self) -> str:
        """Start the process that relays files, unless it is there; return its address."""
        if self.relay_address:
            return self.relay_address
        port = free_port()
        command = ["-m", "uvicorn", "fedportal.asgi:application", "--host", HOST, "--port", str(port)]
        self.spawn("relay", [*command, "--lifespan", "off", "--no-access-log"], FEDPORTAL_FILE_RELAY="1")
        address = f"http://{HOST}:{port}"
        self.wait_for(lambda: _answers(f"{address}/ui/healthz/"))
        self.relay_address = address
        return address

    def wait_until_checked(self, *, timeout: float = 90) -> None:
        """Wait until the orchestrator's checks say that every site is ready. Raises ``TimeoutError``."""
        from fedportal.sites.models import Site

        end = time.monotonic() + timeout
        while True:
            checks = {site.slug: site.last_check for site in Site.objects.filter(slug__in=self.sites)}
            if all(check is not None and check.ok for check in checks.values()):
                return
            if time.monotonic() > end:
                problems = {slug: check and check.first_problem for slug, check in checks.items()}
                logs = [self.log(f"site-{slug}", 5) for slug in self.sites]
                raise TimeoutError(f"{problems}\n{logs}\n{self.log('orchestrator')}")
            time.sleep(0.3)

    def wait_for(self, ready: Any, *, timeout: float = 60) -> None:
        self._wait(ready, timeout)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
