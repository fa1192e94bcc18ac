"""The portal on PostgreSQL: where one database serves several machines, ids, locks and time behave in other ways."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.postgres import postgres

ROOT = Path(__file__).parents[1]
WHERE_DATABASES_DIFFER = (
    "tests/experiments/test_concurrency.py",
    "tests/experiments/test_foreign_words.py",
    "tests/orchestrator/test_claims.py",
    "tests/orchestrator/test_engine.py",
    "tests/monitoring/test_rows.py",
    "tests/monitoring/test_exports.py",
    "tests/monitoring/test_api.py",
    "tests/relay/test_queue.py",
    "tests/sites/test_services.py",
    "tests/accounts/test_api.py",
)
"""Locks, ids, texts, numbers and time. Any other test runs on a PostgreSQL with ``DATABASE_URL`` set to it."""

NO_STORE = ("-m", "not store")  # they would start a second one beside that of the tests around


def test_what_matters_passes_on_postgresql_too():
    with postgres() as address:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *NO_STORE, *WHERE_DATABASES_DIFFER],
            cwd=ROOT,
            env=os.environ | {"DATABASE_URL": address},
            capture_output=True,
            text=True,
            timeout=3600,
        )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
