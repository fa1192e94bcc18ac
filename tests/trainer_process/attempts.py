"""An attempt carried out in the test's own process, with a work that stands in for the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainer.contract import (
    Exit,
    LaunchTicket,
    MetricRecord,
    Phase,
)
from trainer.exchange import Inputs, Job, exchange
from trainer.job import Outcome, Site
from trainer.reporting import Log


def reverse(inputs: Inputs) -> Outcome:
    """Stands in for the training: the update is the model backwards."""
    inputs.report.metric(MetricRecord(Phase.TRAIN, "loss", 0.25, step=3, progress=1.0))
    update = inputs.folder / "update.safetensors"
    update.write_bytes(inputs.model.read_bytes()[::-1])
    return Outcome(train_cases=8, validation_cases=4, steps=3, update=update, seconds={"train": 1.5})


def never(inputs: Inputs) -> Outcome:
    raise AssertionError("the work was started")


class Attempt:
    """Carries out a ticket in this process and keeps what it settled."""

    def __init__(self, folder: Path) -> None:
        self.shelf: Path | None = None
        self.site = Site(data_root=folder / "data", work_dir=folder / "work")
        self.settled: tuple[Exit, str] | None = None

    def __call__(
        self,
        ticket: LaunchTicket,
        work: Callable[[Inputs], Outcome] = reverse,
        *,
        patience: float = 5,
        key: str = "",
        run: str = "",
    ) -> Exit:
        job = Job(run or ticket.run, ticket.spec_url, key or ticket.key, self.site, self.shelf)
        job.folder.mkdir(parents=True)
        return exchange(job, log=Log(job.folder / "log.txt"), settle=self._settle, work=work, patience=patience)

    def _settle(self, code: Exit, message: str) -> None:
        assert self.settled is None
        self.settled = (code, message)

    @property
    def message(self) -> str:
        assert self.settled is not None
        return self.settled[1]
