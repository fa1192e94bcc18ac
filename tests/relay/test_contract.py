"""The contract of connectors, for a site that polls: real relay over HTTP, real trainer processes around scripted work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedportal.connectors.base import RunState
from fedportal.connectors.kaapana_pull import KaapanaPullConnector
from fedportal.connectors.objectstore import ObjectStore
from fedportal.relay.queue import SiteQueue
from tests.connectors.contract import ConnectorContract
from tests.relay.pulling_site import PullingSite, TrainerRunner
from tests.relay.rows import polling_site, token_of
from tests.trainer_process.bench import SCRIPTED, Bench
from trainer.contract import Exit

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.store, pytest.mark.slow]
SITE_KEY = b"s" * 32
"""From which ``Bench`` derives its keys."""


class TestPollingSite(ConnectorContract):
    seconds = 60.0

    @pytest.fixture
    def site(
        self, live_server, tmp_path: Path, scripted_server: Path, object_store: ObjectStore
    ) -> Iterator[KaapanaPullConnector]:
        polling_site("mainz")
        settings = {
            "definition": {"token": token_of("mainz")},
            "instance_name": "mainz.example",
            "site_key": SITE_KEY.hex(),
            "data_root": str(tmp_path / "data"),
            "work_dir": str(tmp_path / "work"),
            "socket": str(scripted_server),
            "dialect": "sync",
        }
        for name in ("data", "work"):
            (tmp_path / name).mkdir()
        hospital = PullingSite(live_server.url, settings, TrainerRunner(settings, command=SCRIPTED))
        hospital.look()
        closing = threading.Event()

        def keep_polling() -> None:
            while not closing.wait(0.1):
                hospital.look()

        thread = threading.Thread(target=keep_polling, daemon=True)
        thread.start()
        connector = KaapanaPullConnector(
            SiteQueue("mainz", store=lambda: object_store), portal_url=live_server.url, patience=60.0
        )
        yield connector
        closing.set()
        thread.join(30)
        for job in hospital.jobs.values():
            if job.run_id and not job.is_over:
                hospital.runner.abort(job.run_id, job.dag_id)

    def test_a_failed_run_tells_code_and_reason(self, site: KaapanaPullConnector, bench: Bench) -> None:
        """Kaapana tells that a run failed, and no more; code and reason are in the manifest."""
        ticket = bench.ticket("fails")
        site.launch(ticket)
        assert self.over(site, ticket) is RunState.FAILED
        assert "its Kaapana has the log" in site.poll(ticket.run).message
        assert bench.manifest(ticket).exit_code == Exit.WRONG_LABEL
        assert "BRATS_007" in bench.manifest(ticket).message

    def test_the_log_is_read_on_from_an_offset(self, site: KaapanaPullConnector, bench: Bench) -> None:
        """The log of a polling site comes with its delivery: see ``test_queue``."""
        assert site.logs(bench.ticket("quick").run).text == ""
