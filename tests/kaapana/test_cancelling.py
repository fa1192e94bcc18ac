"""Cancelling a run at a Kaapana's Airflow, which calls it failed before its process is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from fedportal.connectors.errors import SiteNotReady, SiteUnreachable
from fedportal.connectors.kaapana_airflow import AirflowRuns
from fedportal.connectors.kaapana_api import DagRun
from fedportal.connectors.kaapana_runs import GRACE

RUN = "fp-abcd-r1-mainz-a1"
AT_WORK, ENDED = "[...] {pod.py:7} INFO - epoch 3\n", "[...] {task.py:9} INFO - Task exited with return code -15\n"


class Site:
    """A site with one run, in place of :class:`~fedportal.connectors.kaapana_api.KaapanaApi`. Time passes by waiting."""

    def __init__(self) -> None:
        self.state: str | None = "running"
        self.tasks = {"look": "success", "train": "running"}
        self.text = AT_WORK
        self.note = ""
        self.aborts = 0
        self.now = 0.0
        self.then: Callable[[], None] = lambda: None
        """Happens at each wait."""

    def runs(self) -> AirflowRuns:
        return AirflowRuns(self, sleep=self.sleep, clock=lambda: self.now)  # type: ignore[arg-type]

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.then()

    def has_session(self) -> bool:
        return True

    def newest_runs(self, dag: str) -> Iterator[DagRun]:
        yield DagRun("fp-train-1", str(self.state), {"fedportal": {"run": RUN}}, self.note)

    def run_with_note(self, dag: str, run_id: str) -> DagRun:
        return next(self.newest_runs(dag))

    def run_state(self, dag: str, run_id: str) -> str | None:
        return self.state

    def task_states(self, dag: str, run_id: str) -> Mapping[str, str]:
        assert self.state is not None, "Kaapana has no answer to that"
        return self.tasks

    def log(self, dag: str, run_id: str, task: str) -> str:
        return self.text

    def set_note(self, dag: str, run_id: str, note: str) -> None:
        self.note = note

    def abort(self, dag: str, run_id: str) -> None:
        self.aborts += 1
        self.state, self.tasks = "failed", {"look": "success", "train": "failed"}


@pytest.fixture
def site() -> Site:
    return Site()


def change(site: Site, **values: Any) -> None:
    for name, value in values.items():
        setattr(site, name, value)


def test_cancel_waits_until_the_process_is_gone(site: Site) -> None:
    site.then = lambda: change(site, text=AT_WORK + ENDED) if site.now > 20 else None
    site.runs().cancel(RUN)
    assert site.now > 20
    assert site.aborts == 1


def test_a_process_that_goes_on_is_told_with_a_remedy_and_waited_for_again(site: Site) -> None:
    runs = site.runs()
    for process in (runs, runs, site.runs()):
        with pytest.raises(SiteNotReady, match=f"end {RUN}") as refused:
            process.cancel(RUN)
        assert refused.value.message.endswith(refused.value.remedy), "a site run shows the message alone"
        assert "pod" in refused.value.remedy
    assert site.now > 3 * GRACE
    assert site.aborts == 1, "once is enough"
    change(site, text=ENDED)
    for process in (runs, site.runs()):
        process.cancel(RUN)


def test_a_site_that_goes_away_in_the_middle_is_waited_for_again(site: Site) -> None:
    def goes_away() -> None:
        raise SiteUnreachable("It does not answer.")

    site.then = goes_away
    with pytest.raises(SiteUnreachable):
        site.runs().cancel(RUN)
    site.then = lambda: change(site, text=ENDED)
    site.runs().cancel(RUN)
    assert site.text == ENDED, "it was not believed gone because Airflow calls it failed"


def test_a_run_that_somebody_deletes_meanwhile_is_gone(site: Site) -> None:
    site.then = lambda: change(site, state=None)
    site.runs().cancel(RUN)


def test_what_has_ended_by_itself_is_not_waited_for(site: Site) -> None:
    change(site, state="failed", tasks={"train": "failed"})
    site.runs().cancel(RUN)
    assert (site.aborts, site.now, site.note) == (0, 0.0, "")


class Unnamed(Site):
    """A Kaapana that shows no confs, so that a run is known by its number alone. Another one starts in the middle of a
    start that comes to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = ["fp-train-0"]
        self.starting = self.runs()

    def has_session(self) -> bool:
        return False

    def run_ids(self, dag: str) -> list[str]:
        return list(self.ids)

    def trigger(self, dag: str, conf: Mapping[str, Any]) -> str:
        if conf["run"] == RUN:
            self.starting.launch("another", lambda: {"run": "another"})
            raise SiteUnreachable("It does not answer.")
        self.ids.append("fp-train-1")
        return self.ids[-1]


def test_a_start_that_came_to_nothing_does_not_take_the_run_of_another(site: Site) -> None:
    site = Unnamed()
    with pytest.raises(SiteUnreachable):
        site.starting.launch(RUN, lambda: {"run": RUN})
    site.starting.cancel(RUN)
    assert site.aborts == 0
