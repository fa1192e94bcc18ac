"""The OpenAPI page: the summaries beside the addresses."""

from __future__ import annotations

from typing import Any


def add_summaries(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Use the first sentence of each operation's description as its summary, so that the collapsed list can be read."""
    for operations in result["paths"].values():
        for operation in operations.values():
            sentence = " ".join(operation.get("description", "").split("\n\n")[0].split()).split(". ")[0].rstrip(".")
            if sentence:
                operation.setdefault("summary", sentence.replace("``", ""))
    return result
