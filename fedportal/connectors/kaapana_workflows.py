"""Runs of a Kaapana that are workflows of a project: a member of the project may start them.

A run is found again by its own name, which is in that of its workflow; so a launch looks before it starts, and once
more after an answer that was lost. Kaapana's backend asks its Airflow for states every ten seconds, and has no logs to
show: how a run ended in its trainer's words stands in the manifest, and its log comes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fedportal.connectors.base import LogChunk, RunState, RunStatus
from fedportal.connectors.errors import SiteRefused, SiteUnreachable
from fedportal.connectors.job_queue import JobState
from fedportal.connectors.kaapana_backend import Job, KaapanaBackend, Workflow
from fedportal.connectors.kaapana_runs import CANCELLED_NOTE, GONE, TRAIN, KaapanaRuns

JOBLESS = 120.0
"""Seconds after which a workflow that still has no job never gets one: the backend makes it in a thread."""
ESCAPED = frozenset("&<>\"'")
"""Characters that the backend replaces in what it is given."""


class WorkflowRuns(KaapanaRuns[Workflow]):
    """A run is known by its workflow."""

    def __init__(self, backend: KaapanaBackend, *, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
        super().__init__(sleep=sleep, clock=clock)
        self._backend = backend
        self._jobless: dict[str, float] = {}

    def cancel(self, run: str) -> None:
        """End the run. Kaapana says when it has ended its job, not when the job's pod is gone."""
        is_told = False

        def is_over() -> bool:
            nonlocal is_told
            if self.poll(run).state.is_over:
                return True
            is_told = is_told or self._abort(run)
            return False

        self._wait_until(is_over, run)

    def logs(self, run: str, *, offset: int = 0) -> LogChunk:
        """Return nothing: the portal shows the log that the run delivers at its end."""
        return LogChunk("", offset)

    # --- how a run is started and found --------------------------------------------------------------

    def _prepared(
        self, run: str, conf: Mapping[str, Any]
    ) -> tuple[Callable[[], Workflow], Callable[[], Workflow | None]]:
        if ESCAPED & set(str(conf["fedportal"]["dataset"])):
            raise SiteRefused(
                "Kaapana would change the dataset's name on its way to the run.",
                remedy="Offer it under a name without &, <, > and quotation marks.",
            )
        return partial(self._backend.start, TRAIN, run, conf), partial(self._backend.find, run)

    def _search(self, run: str) -> Workflow | None:
        return self._backend.find(run)

    # --- how a run is --------------------------------------------------------------------------------

    def _status(self, run: str, workflow: Workflow) -> RunStatus:
        job = self._backend.job(workflow)
        if job is None:
            return self._without_job(run)
        with self._lock:
            self._jobless[run] = float("-inf")  # it had one; it will not get another
        return self._status_of(run, job)

    def _without_job(self, run: str) -> RunStatus:
        with self._lock:
            self._known.pop(run, None)
        if self._find(run) is None:
            return GONE
        with self._lock:
            since = self._jobless.setdefault(run, self._clock())
        if self._clock() - since > JOBLESS:
            return RunStatus(
                RunState.LOST,
                message="The site has no job for this workflow: it was deleted, or could not be made. The log of "
                "kaapana-backend says why.",
            )
        return RunStatus(RunState.WAITING, message="The site is about to make a job of it.")

    def _abort(self, run: str) -> bool:
        """Ask for the end of a run; return whether there was a job to end."""
        workflow = self._find(run)
        job = None if workflow is None else self._backend.job(workflow)
        if job is None:
            return False
        with self._lock:
            self._cancelled.add(run)
        try:
            self._backend.abort(job, CANCELLED_NOTE)
        except SiteUnreachable:
            # Kaapana's abort breaks off when no task has begun yet, after it has skipped them all.
            return False
        return True

    def _status_of(self, run: str, job: Job) -> RunStatus:
        match job.status:
            case JobState.RUNNING:
                return RunStatus(RunState.RUNNING)
            case JobState.FINISHED:
                return RunStatus(RunState.SUCCEEDED, exit_code=0)
            case JobState.DELETED:
                return GONE
            case JobState.FAILED | JobState.ABORTED:
                if run in self._cancelled or job.description == CANCELLED_NOTE:
                    return RunStatus(RunState.CANCELLED, message="The run was cancelled.")
                return RunStatus(
                    RunState.FAILED, message="The run failed at the site; its Kaapana has the log (workflow list)."
                )
        return RunStatus(RunState.WAITING, message="The site has queued it.")
