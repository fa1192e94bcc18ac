"""The database in threads that Django does not know of: those in which the orchestrator calls connectors."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection


@contextmanager
def connection_of_a_thread() -> Iterator[None]:
    """Use the database, and leave no connection behind in a thread that had none."""
    is_ours = connection.connection is None
    try:
        yield
    finally:
        if is_ours:
            connection.close()
