"""Runs of a Kaapana that are started by its workflow interface for administrators, in front of its Airflow.

Kaapana names the runs that it starts and lets nobody else do so. The portal's own name of a run travels in the conf, and
a run is found by it: in memory, or among the newest runs of the workflow in Airflow's own interface. So a launch looks
before it starts, and once more after an answer that was lost. Where Airflow's own interface does not open, a run that
this process has not started itself cannot be found; it is then lost, and the orchestrator makes a new attempt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedportal.connectors.base import LogChunk, RunState, RunStatus
from fedportal.connectors.errors import SiteNotReady, SiteUnreachable
from fedportal.connectors.kaapana_api import KaapanaApi, trainer_lines
from fedportal.connectors.kaapana_runs import CANCELLED_NOTE, GONE, TRAIN, KaapanaRuns
from trainer.contract import EXPLANATIONS, Exit

TASK = "train"
ENDED = ("Task exited with return code", "terminated with exit code", "Marking task as", "state change")
"""What Airflow writes at the end of a task's log."""
LOG_CHUNK = 256 * 1024

_OVER = frozenset({"success", "failed"})
_NOT_BEGUN = frozenset({"", "none", "scheduled", "queued"})
_ACTIVE = frozenset({"running", "queued", "scheduled"})
_NEVER_BEGAN = frozenset({"skipped", "upstream_failed", ""})


@dataclass(frozen=True)
class Ending:
    """How a run ended by its trainer's own words, where its log could be read."""

    exit_code: int | None = None
    message: str = ""


class AirflowRuns(KaapanaRuns[str]):
    """A run is known by the id that the site has given it."""

    def __init__(self, api: KaapanaApi, *, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
        super().__init__(sleep=sleep, clock=clock)
        self._api = api
        self._begun: set[str] = set()

    def cancel(self, run: str) -> None:
        run_id = self._find(run)
        state = None if run_id is None else self._api.run_state(TRAIN, run_id)
        if run_id is None or state is None:
            return
        if state not in _OVER:
            self._abort(run, run_id)
        elif not self._was_cancelled(run, run_id):
            return
        # also when it was cancelled before: nobody knows whether that call waited until the process was gone
        self._wait_until(partial(self._is_gone, run_id), run)

    def logs(self, run: str, *, offset: int = 0) -> LogChunk:
        run_id = self._find(run)
        if run_id is None or not self._api.has_session():
            return LogChunk("", offset)
        data = "".join(f"{line}\n" for line in self._words(run_id)).encode()[offset:]
        if len(data) > LOG_CHUNK:
            data = data[: data.rfind(b"\n", 0, LOG_CHUNK) + 1 or LOG_CHUNK]  # whole lines, if one fits
        return LogChunk(data.decode(errors="replace"), offset + len(data))

    # --- how a run is started and found --------------------------------------------------------------

    def _prepared(self, run: str, conf: Mapping[str, Any]) -> tuple[Callable[[], str], Callable[[], str | None]]:
        start = partial(self._api.trigger, TRAIN, conf)
        if not self._api.has_session():
            return start, partial(self._only_new_run, frozenset(self._api.run_ids(TRAIN)))
        if self._api.is_paused(TRAIN):
            raise SiteNotReady(f"The workflow {TRAIN} is paused at the site.", remedy="Switch it on in its Airflow.")
        return start, partial(self._find, run)

    def _search(self, run: str) -> str | None:
        if not self._api.has_session():
            return None
        for candidate in self._api.newest_runs(TRAIN):
            name = _run_of(candidate.conf)
            if name:
                with self._lock:
                    self._known.setdefault(name, candidate.run_id)
            if name == run:
                return candidate.run_id
        return None

    def _only_new_run(self, before: frozenset[str]) -> str | None:
        others = before.union(self._known.values())  # of another experiment, started at the same time
        new = [run_id for run_id in self._api.run_ids(TRAIN) if run_id not in others]
        return new[0] if len(new) == 1 else None

    # --- how a run is --------------------------------------------------------------------------------

    def _status(self, run: str, run_id: str) -> RunStatus:
        state = self._api.run_state(TRAIN, run_id)
        if state is None:
            return GONE
        return self._ended(run, run_id, state) if state in _OVER else self._under_way(run_id, state)

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

    def _abort(self, run: str, run_id: str) -> None:
        with self._lock:
            self._cancelled.add(run)
        if self._api.has_session():
            self._api.set_note(TRAIN, run_id, CANCELLED_NOTE)
        try:
            self._api.abort(TRAIN, run_id)
        except SiteUnreachable:
            # Kaapana's abort breaks off when no task has begun yet, after it has skipped them all.
            if "running" in self._tasks(run_id).values():
                raise

    def _is_gone(self, run_id: str) -> bool:
        """Say whether the task's process is gone. Airflow calls a task failed before; it says so in the log only."""
        state = self._api.run_state(TRAIN, run_id)
        if state is None:
            return True
        tasks = self._tasks(run_id)
        if state not in _OVER or _ACTIVE.intersection(tasks.values()):
            return False
        if not self._api.has_session() or tasks.get(TASK, "") in _NEVER_BEGAN:
            return True
        log = self._api.log(TRAIN, run_id, TASK)
        return any(word in log for word in ENDED)

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
