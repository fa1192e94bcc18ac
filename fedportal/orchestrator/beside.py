"""What the orchestrator does beside the rounds, so that neither delays the other: checks, sign-ins, bundles."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from django.db import close_old_connections, connection

logger = logging.getLogger(__name__)

LOOK_EVERY = 1.0


def keep_looking(closing: threading.Event, *looks: Callable[[], object]) -> None:
    """Look for what is due until told to stop. A look starts threads for what takes long."""
    while not closing.wait(LOOK_EVERY):
        close_old_connections()
        for look in looks:
            try:
                look()
            except Exception:  # the database may be away for a while
                logger.exception("looking for due work failed")
    connection.close()
