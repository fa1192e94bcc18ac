"""Drive the experiments: ``manage.py orchestrate``. May run several times, on one machine or on many."""

from __future__ import annotations

import signal
import threading
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from fedportal.orchestrator import health, tools
from fedportal.orchestrator.beside import keep_looking
from fedportal.orchestrator.bundles import BundleMaker
from fedportal.orchestrator.contacts import book_contacts
from fedportal.orchestrator.engine import Engine
from fedportal.orchestrator.loop import Loop, Name
from fedportal.orchestrator.sign_ins import sign_in_due


class Command(BaseCommand):
    help = "Advance running experiments and check sites, until SIGTERM; a step at hand is finished."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--once", action="store_true", help="stop when nothing is due at this moment")
        parser.add_argument("--workers", type=int, default=8, help="experiments that are advanced at the same time")

    def handle(self, *args: Any, **options: Any) -> None:
        name = Name()
        kit = tools.from_settings()
        engine = Engine(kit, worker=name.text)
        freed = engine.free_own_leases()
        bundles = BundleMaker(kit, worker=name.text)
        loop = Loop(engine, workers=options["workers"])
        closing = threading.Event()

        def stop(_signal: int, _frame: object) -> None:
            closing.set()
            loop.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        self.stderr.write(f"orchestrator {name.text} is at work" + (f", {freed} leases freed" if freed else ""))
        if options["once"]:
            for thread in health.check_due(kit):
                thread.join()
            while thread := bundles.look():
                thread.join()
        else:
            looks = [partial(look, kit) for look in (health.check_due, sign_in_due, book_contacts)]
            threading.Thread(
                target=keep_looking, args=(closing, *looks, bundles.look), name="beside", daemon=True
            ).start()
        try:
            loop.run(once=options["once"])
        finally:
            closing.set()
            kit.aggregation.close()
