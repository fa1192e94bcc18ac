"""Plotly's script as a static file, served from the installed plotly wheel and never copied into the repository."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.contrib.staticfiles.finders import BaseFinder
from django.core.files.storage import FileSystemStorage


class PlotlyFinder(BaseFinder):
    """Find ``plotly/plotly.min.js`` in the plotly wheel, for ``collectstatic``, ``runserver`` and WhiteNoise."""

    FILE = "plotly.min.js"
    URL = f"plotly/{FILE}"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        package = find_spec("plotly")  # found, not imported: the import costs a web process half a second
        self.folder = Path(package.submodule_search_locations[0]) / "package_data"
        self.storage = FileSystemStorage(location=self.folder)
        self.storage.prefix = "plotly"

    def check(self, **kwargs: Any) -> list:
        return []

    def find(self, path: str, find_all: bool = False, **kwargs: Any) -> str | list[str]:
        found = [str(self.folder / self.FILE)] if path == self.URL else []
        return found if find_all or not found else found[0]

    def list(self, ignore_patterns: list[str] | None) -> Iterator[tuple[str, FileSystemStorage]]:
        if not any(fnmatch(self.FILE, pattern) for pattern in ignore_patterns or []):
            yield self.FILE, self.storage
