"""Runs of a Kaapana that are workflows of a project: a member of the project may start them.

A run is found again by its own name, which is in that of its workflow; so a launch looks before it starts, and once
more after an answer that was lost. Kaapana's backend asks its Airflow for states every ten seconds, and has no logs to
show: how a run ended in its trainer's words stands in the manifest, and its log comes with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from fedportal.connectors.base import LogChunk, RunState, RunStatus
from fedportal.connectors.errors import SiteError, SiteMisbehaved, SiteRefused, SiteUnreachable
from fedportal.connectors.job_queue import JobState
from fedportal.connectors.kaapana_airflow import CANCELLED_NOTE, GRACE, LOOKS, TRAIN
from fedportal.connectors.kaapana_backend import Job, KaapanaBackend, Workflow

JOBLESS = 120.0
"""Seconds after which a workflow that still has no job never gets one: the backend makes it in a thread."""
ESCAPED = frozenset("&<>\"'")
"""Characters that the backend replaces in what it is given."""
GONE = RunStatus(RunState.LOST, message="The site no longer knows this run: it was deleted, or never began.")


class WorkflowRuns:
    """The runs of one site. The verbs are those of a connector; ``conf`` is asked for where a run is really started."""

    def __init__(self, backend: KaapanaBackend, *, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
        self._backend = backend
        self._sleep, self._clock = sleep, clock
        self._lock = threading.Lock()
        self._workflows: dict[str, Workflow] = {}
        self._jobless: dict[str, float] = {}
        self._endings: dict[str, RunStatus] = {}
        self._cancelled: set[str] = set()

    def launch(self, run: str, conf: Callable[[], Mapping[str, Any]]) -> bool:
        if self._find(run) is not None:
            return False
        told = conf()
        if ESCAPED & set(str(told["fedportal"]["dataset"])):
            raise SiteRefused(
                "Kaapana would change the dataset's name on its way to the run.",
                remedy="Offer it under a name without &, <, > and quotation marks.",
            )
        try:
            workflow = self._backend.start(TRAIN, run, told)
        except (SiteUnreachable, SiteMisbehaved) as error:
            # It may have started all the same: look before anybody starts it a second time.
            workflow = self._look_again(run, error)
        with self._lock:
            self._workflows[run] = workflow
        return True

    def poll(self, run: str) -> RunStatus:
        if (ended := self._endings.get(run)) is not None:
            return ended
        workflow = self._find(run)
        if workflow is None:
            return GONE
        job = self._backend.job(workflow)
        if job is None:
            return self._without_job(run)
        with self._lock:
            self._jobless[run] = float("-inf")  # it had one; it will not get another
        status = self._status(run, job)
        if status.state.is_over:
            with self._lock:
                self._endings[run] = status
        return status

    def cancel(self, run: str) -> None:
        """End the run. Kaapana says when it has ended its job, not when the job's pod is gone."""
        end = self._clock() + GRACE
        asked = False
        while not self.poll(run).state.is_over:
            if self._clock() > end:
                raise SiteUnreachable(
                    "The site has not ended the run yet.", remedy="Abort it in Kaapana's workflow list if it goes on."
                )
            if not asked:
                asked = self._abort(run)
            self._sleep(0.5)

    def logs(self, run: str, *, offset: int = 0) -> LogChunk:
        """Return nothing: the portal shows the log that the run delivers at its end."""
        return LogChunk("", offset)

    # --- inside --------------------------------------------------------------------------------------

    def _find(self, run: str) -> Workflow | None:
        if (known := self._workflows.get(run)) is not None:
            return known
        found = self._backend.find(run)
        if found is not None:
            with self._lock:
                self._workflows.setdefault(run, found)
        return found

    def _look_again(self, run: str, error: SiteError) -> Workflow:
        for pause in LOOKS:
            self._sleep(pause)
            try:
                found = self._backend.find(run)
            except SiteUnreachable:
                continue
            if found is not None:
                return found
        raise error

    def _without_job(self, run: str) -> RunStatus:
        with self._lock:
            self._workflows.pop(run, None)
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

    def _status(self, run: str, job: Job) -> RunStatus:
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
