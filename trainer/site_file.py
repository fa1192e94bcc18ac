"""The file in which a site's administrator says where its data lie. Standard library only: each start of a task reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from trainer.contract import Exit

KEEP_DAYS = 14


class Refused(Exception):
    """A task of the site cannot begin."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class SiteFile(NamedTuple):
    """What the site's administrator decided. ``key``: the site's key (hex), from the portal's page of the site."""

    data_root: Path
    work_dir: Path
    key: str
    threads: int = 0
    socket: str = ""
    keep_days: float = KEEP_DAYS

    @classmethod
    def read(cls) -> SiteFile:
        """Read the file that ``FEDPORTAL_SITE`` names; ``FEDPORTAL_SITE_KEY`` comes before a key in it."""
        path = os.environ.get("FEDPORTAL_SITE", "")
        try:
            values = json.loads(Path(path).read_bytes())
            key = os.environ.pop("FEDPORTAL_SITE_KEY", "") or str(values.get("key") or "")
            if not bytes.fromhex(key):
                raise ValueError("it has no key of the site")
            return cls(
                data_root=Path(values["data_root"]),
                work_dir=Path(values["work_dir"]),
                key=key,
                threads=int(values.get("threads") or 0),
                socket=str(values.get("socket") or ""),
                keep_days=float(values.get("keep_days", KEEP_DAYS)),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(
                Exit.BAD_JOB, f"The site's file {path!r} cannot be used ({error}). Run the installation again."
            ) from error
