"""Of which code a trainer is: a text that both sides compute, so that the portal sees who lags behind."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

ELSEWHERE = ("dags", "phantoms", "kaapana/extension", "kaapana/processing-containers")
"""Folders that not every site has: what a trainer does is not in them."""


@cache
def code_digest(*, dags: bool = False) -> str:
    """Return a text that changes with the trainer's code; with ``dags`` also with the DAGs of a plain Airflow."""
    root = Path(__file__).resolve().parents[1]
    left_out = [root / folder for folder in ELSEWHERE if not (dags and folder == "dags")]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if not any(path.is_relative_to(folder) for folder in left_out):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
