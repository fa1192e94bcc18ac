"""What can go wrong while weights are read, judged and merged; every text is fit for a researcher."""

from __future__ import annotations


class AggregationError(Exception):
    """The updates could not be aggregated."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason or str(type(self).__doc__)
        super().__init__(self.reason)


class WeightsError(AggregationError):
    """The file is not a readable safetensors file."""


class NothingToAggregate(AggregationError):
    """No site contributed an update that was trained on at least one case."""


class AggregationRefused(AggregationError):
    """The strategy, its options and the contributions do not go together."""


class AggregationFailed(AggregationError):
    """The process that aggregates stopped before it finished."""


def quoted(key: str) -> str:
    """Return a key from a foreign file, printable and short enough for a sentence."""
    text = key if key.isprintable() else ascii(key)[1:-1]
    return f"“{text if len(text) <= 120 else text[:117] + '…'}”"
