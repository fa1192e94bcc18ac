"""Runs of a Kaapana that are started by its workflow interface for administrators, in front of its Airflow.

Kaapana names the runs that it starts and lets nobody else do so. The portal's own name of a run travels in the conf, and
a run is found by it: in memory, or among the newest runs of the workflow in Airflow's own interface. So a launch looks
before it starts, and once more after an answer that was lost. Where Airflow's own interface does not open, a run that
this process has not started itself cannot be found; it is then lost, and the orchestrator makes a new attempt.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedportal.connectors.base import LogChunk, RunState, RunStatus
from fedportal.connectors.errors import SiteError, SiteMisbehaved, SiteRefused, SiteUnreachable
from fedportal.connectors.kaapana_api import KaapanaApi
from fedportal.connectors.kaapana_check import trainer_lines
from trainer.contract import EXPLANATIONS, Exit

TRAIN = "fp-train"
TASK = "train"
CANCELLED_NOTE = "cancelled by the portal"
LOOKS = (0.5, 2.0, 4.0)
"""Seconds between the looks for a run whose launch was not answered."""
GRACE = 15.0
"""Seconds that cancelling waits for the end of the run's tasks."""
ENDED = ("Task exited with return code", "terminated with exit code", "Marking task as", "state change")
"""What Airflow writes at the end of a task's log."""
LOG_CHUNK = 256 * 1024

_OVER = frozenset({"success", "failed"})
_NOT_BEGUN = frozenset({"", "none", "scheduled", "queued"})


@dataclass(frozen=True)
class Ending:
    """How a run ended by its trainer's own words, where its log could be read."""

    exit_code: int | None = None
    message: str = ""


class AirflowRuns:
    """The runs of one site. The verbs are those of a connector; ``conf`` is asked for where a run is really started."""

    def __init__(self, api: KaapanaApi, *, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
        self._api = api
        self._sleep, self._clock = sleep, clock
        self._lock = threading.Lock()
        self._ids: dict[str, str] = {}
        self._endings: dict[str, RunStatus] = {}
        self._cancelled: set[str] = set()
        self._begun: set[str] = set()

    def launch(self, run: str, conf: Callable[[], Mapping[str, Any]]) -> bool:
        if self._find(run) is not None:
            return False
        has_session = self._api.has_session()
        if has_session and self._api.is_paused(TRAIN):
            raise SiteRefused(f"The workflow {TRAIN} is paused at the site.", remedy="Switch it on in its Airflow.")
        told = conf()
        before = set() if has_session else set(self._api.run_ids(TRAIN))
        try:
            run_id = self._api.trigger(TRAIN, told)
        except (SiteUnreachable, SiteMisbehaved) as error:
            # It may have started all the same: look before anybody starts it a second time.
            run_id = self._look_again(run, before, error)
        with self._lock:
            self._ids[run] = run_id
        return True

    def poll(self, run: str) -> RunStatus:
        if (ended := self._endings.get(run)) is not None:
            return ended
        run_id = self._find(run)
        state = None if run_id is None else self._api.run_state(TRAIN, run_id)
        if run_id is None or state is None:
            with self._lock:
                self._ids.pop(run, None)
            return RunStatus(
                RunState.LOST, message="The site no longer knows this run: it was deleted, or never began."
            )
        if state not in _OVER:
            return self._under_way(run_id, state)
        status = self._ended(run, run_id, state)
        with self._lock:
            self._endings[run] = status
        return status

    def cancel(self, run: str) -> None:
        run_id = self._find(run)
        if run_id is None:
            return
        state = self._api.run_state(TRAIN, run_id)
        if state is None or state in _OVER:
            return
        with self._lock:
            self._cancelled.add(run)
        if self._api.has_session():
            self._api.set_note(TRAIN, run_id, CANCELLED_NOTE)
        try:
            self._api.abort(TRAIN, run_id)
        except SiteUnreachable:
            # Kaapana's abort breaks off when no task has begun yet, after it has skipped them all.
            if any(task == "running" for task in self._api.task_states(TRAIN, run_id).values()):
                raise
        self._wait_until_gone(run_id)

    def logs(self, run: str, *, offset: int = 0) -> LogChunk:
        run_id = self._find(run)
        if run_id is None or not self._api.has_session():
            return LogChunk("", offset)
        data = "".join(f"{line}\n" for line in self._words(run_id)).encode()[offset:]
        if len(data) > LOG_CHUNK:
            data = data[: data.rfind(b"\n", 0, LOG_CHUNK) + 1 or LOG_CHUNK]  # whole lines, if one fits
        return LogChunk(data.decode(errors="replace"), offset + len(data))

    # --- how a run is found --------------------------------------------------------------------------

    def _find(self, run: str) -> str | None:
        """Return the site's id of a run, ``None`` where the site does not have it."""
        if (known := self._ids.get(run)) is not None:
            return known
        if not self._api.has_session():
            return None
        for candidate in self._api.newest_runs(TRAIN):
            name = _run_of(candidate.conf)
            if name:
                with self._lock:
                    self._ids.setdefault(name, candidate.run_id)
            if name == run:
                return candidate.run_id
        return None

    def _look_again(self, run: str, before: set[str], error: SiteError) -> str:
        for pause in LOOKS:
            self._sleep(pause)
            try:
                if self._api.has_session():
                    found = self._find(run)
                else:
                    fresh = [run_id for run_id in self._api.run_ids(TRAIN) if run_id not in before]
                    found = fresh[0] if len(fresh) == 1 else None
            except SiteUnreachable:
                continue
            if found is not None:
                return found
        raise error

    # --- how a run ended -----------------------------------------------------------------------------

    def _under_way(self, run_id: str, state: str) -> RunStatus:
        if state == "running":
            # Airflow calls a run running before a pod of it has begun. Asking for tasks costs the site a look at all of
            # its DAG files, so what has begun is remembered.
            if run_id not in self._begun and any(task not in _NOT_BEGUN for task in self._tasks(run_id).values()):
                self._begun.add(run_id)
            return RunStatus(RunState.RUNNING if run_id in self._begun else RunState.WAITING)
        if self._api.has_session() and self._api.is_paused(TRAIN):
            return RunStatus(
                RunState.WAITING, message=f"The workflow {TRAIN} is paused at the site: switch it on there."
            )
        return RunStatus(RunState.WAITING, message="The site has queued it.")

    def _ended(self, run: str, run_id: str, state: str) -> RunStatus:
        tasks = self._tasks(run_id)
        ending = self._ending(run_id, tasks)
        if ending.exit_code == Exit.OK:
            return RunStatus(RunState.SUCCEEDED, exit_code=0, message=ending.message)
        if ending.exit_code == Exit.CANCELLED or self._was_cancelled(run, run_id):
            message = EXPLANATIONS[Exit.CANCELLED]
            return RunStatus(RunState.CANCELLED, exit_code=int(Exit.CANCELLED), message=message)
        if state == "success" and tasks.get(TASK) == "skipped":
            return RunStatus(RunState.CANCELLED, message="Its tasks were skipped at the site.")
        if state == "success":
            return RunStatus(RunState.SUCCEEDED, exit_code=ending.exit_code, message=ending.message)
        failed = sorted(task for task, how in tasks.items() if how == "failed")
        where = f"The task {', '.join(failed)} failed at the site. " if failed and failed != [TASK] else ""
        return RunStatus(
            RunState.FAILED,
            exit_code=ending.exit_code,
            message=where + (ending.message or "The run ended without a word; the site's log of its pod says more."),
        )

    def _was_cancelled(self, run: str, run_id: str) -> bool:
        if run in self._cancelled:
            return True
        found = self._api.run_with_note(TRAIN, run_id) if self._api.has_session() else None
        return found is not None and found.note == CANCELLED_NOTE

    def _ending(self, run_id: str, tasks: Mapping[str, str]) -> Ending:
        if not self._api.has_session():
            return Ending()
        task = TASK if tasks.get(TASK) in _OVER else next((t for t, how in tasks.items() if how == "failed"), "")
        if not task:
            return Ending()
        code, message = None, ""
        for entry in trainer_lines(self._api.log(TRAIN, run_id, task)):
            if isinstance(entry.get("exit_code"), int):
                code = int(str(entry["exit_code"]))
                if entry.get("level") == "error":
                    message = str(entry.get("message") or "")
        return Ending(code, message or ("" if code is None else _explained(code)))

    def _wait_until_gone(self, run_id: str) -> None:
        """Return once the site has said that the task's process is gone; it says so in the log only."""
        end = self._clock() + GRACE
        while self._clock() < end:
            tasks = self._tasks(run_id)
            active = [task for task, how in tasks.items() if how in ("running", "queued", "scheduled")]
            if not active and self._api.run_state(TRAIN, run_id) in (*_OVER, None):
                if not self._api.has_session() or tasks.get(TASK) in ("skipped", "upstream_failed", "", None):
                    return
                if any(word in self._api.log(TRAIN, run_id, TASK) for word in ENDED):
                    return
            self._sleep(0.5)

    def _tasks(self, run_id: str) -> dict[str, str]:
        return self._api.task_states(TRAIN, run_id)

    def _words(self, run_id: str) -> Iterator[str]:
        """Yield the trainer's own lines of the log. What Kaapana writes around them may name things of the hospital."""
        for entry in trainer_lines(self._api.log(TRAIN, run_id, TASK)):
            yield json.dumps(entry, ensure_ascii=False)


def _run_of(conf: Mapping[str, Any]) -> str:
    job = conf.get("fedportal")
    return str(job.get("run") or "") if isinstance(job, dict) else ""


def _explained(code: int) -> str:
    try:
        return EXPLANATIONS[Exit(code)]
    except ValueError:
        return f"The trainer ended with exit code {code}."
