"""Send what a training made to the store while the site still measures it.

The weights are final when the training ends. A hospital with 50 Mbit/s needs 12 s for 77 MB: time in which it can
validate its local model.
"""

from __future__ import annotations

import threading
from pathlib import Path

from trainer.contract import JobSpec, Stored
from trainer.job import Report
from trainer.transfer import Courier


class Delivery:
    """Update and optimizer state of one training on their way to the store.

    What does not get through beside the work is sent again after it. So a store may stay away while a long validation
    lasts, and a failure of the work itself always comes first.
    """

    def __init__(self, spec: JobSpec, courier: Courier, report: Report) -> None:
        self._spec, self._courier, self._report = spec, courier, report
        self._thread: threading.Thread | None = None
        self._stored: tuple[Stored | None, Stored | None] | None = None

    def begin(self, update: Path, optimizer: Path | None) -> None:
        """Begin to send these files, which must not change any more. Returns at once."""
        # A daemon: a run whose work has failed does not wait for an update that nobody wants.
        self._thread = threading.Thread(target=self._try, args=(update, optimizer), name="delivery", daemon=True)
        self._thread.start()

    def end(self, update: Path, optimizer: Path | None) -> tuple[Stored | None, Stored | None]:
        """Return what lies in the store of both, once it does. Raises :class:`Fault` TRANSFER_FAILED."""
        if self._thread is not None:
            self._thread.join()
        return self._stored or self._send(update, optimizer)

    def _try(self, update: Path, optimizer: Path | None) -> None:
        try:
            self._stored = self._send(update, optimizer)
        except Exception as error:
            self._report.say("the update was not sent beside the work, it will be sent after it", reason=str(error))

    def _send(self, update: Path, optimizer: Path | None) -> tuple[Stored | None, Stored | None]:
        spec, put = self._spec, self._courier.put
        return (
            put(spec.update, update, "the update") if spec.update is not None else None,
            put(spec.optimizer_out, optimizer, "the optimizer's state")
            if spec.optimizer_out is not None and optimizer is not None
            else None,
        )
