"""Airflow killed, stopped, locked: the run goes on or fails with the right sentence, and nothing runs twice."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from threading import Event, Thread

import pytest

from fedportal.connectors.airflow import AirflowConnector
from fedportal.connectors.base import RunState
from fedportal.connectors.errors import SiteUnreachable
from tests.airflow.hospital import PATIENCE, Hospital
from tests.trainer_process.bench import Bench, wait_for
from trainer.contract import LaunchTicket

pytestmark = [pytest.mark.store, pytest.mark.slow]


def at_work(hospital: Hospital, site: AirflowConnector, ticket: LaunchTicket) -> None:
    site.launch(ticket)
    wait_for(lambda: hospital.is_alive(ticket.run), seconds=300)


def begins(hospital: Hospital, run: str) -> int:
    log = (hospital.work_dir / "runs" / run / "log.txt").read_text()
    return log.count('"run begins"')


def state_of(site: AirflowConnector, run: str) -> RunState | None:
    try:
        return site.poll(run).state
    except SiteUnreachable:
        return None


def test_a_run_outlives_an_airflow_that_is_killed_and_runs_once(hospital: Hospital, bench: Bench) -> None:
    site, ticket = hospital.connector(), bench.ticket("seconds", attempt=3)
    at_work(hospital, site, ticket)
    hospital.server.kill()
    with pytest.raises(SiteUnreachable):
        site.poll(ticket.run)
    assert hospital.is_alive(ticket.run)
    hospital.server.start(timeout=PATIENCE)
    wait_for(lambda: bench.has(ticket, "manifest.json"), seconds=300)
    # Airflow misses the heartbeats of its task, and starts it again: the task finds that all is done
    wait_for(lambda: state_of(site, ticket.run) is RunState.SUCCEEDED, seconds=300)
    assert bench.manifest(ticket).exit_code == 0
    assert begins(hospital, ticket.run) == 1


def test_a_database_that_is_locked_is_a_passing_fault(hospital: Hospital, bench: Bench) -> None:
    site, ticket = hospital.connector(), bench.ticket("quick", attempt=4)
    site.poll(ticket.run)
    taken, over = Event(), Event()

    def lock() -> None:
        with closing(sqlite3.connect(hospital.server.folder / "airflow.db", timeout=60, isolation_level=None)) as db:
            db.execute("begin exclusive")
            taken.set()
            over.wait(6)
            db.execute("rollback")

    writer = Thread(target=lock)
    writer.start()
    assert taken.wait(60)
    with suppress(SiteUnreachable):  # Airflow waits until it can write, or answers 500
        site.launch(ticket)
    over.set()
    writer.join()
    wait_for(lambda: _launched(site, ticket), seconds=300)
    wait_for(lambda: state_of(site, ticket.run) is RunState.SUCCEEDED, seconds=300)
    assert begins(hospital, ticket.run) == 1


def _launched(site: AirflowConnector, ticket: LaunchTicket) -> bool:
    try:
        site.launch(ticket)
    except SiteUnreachable:
        return False
    return True


def test_an_airflow_that_is_shut_down_ends_its_runs_or_lets_them_finish(hospital: Hospital, bench: Bench) -> None:
    site, ticket = hospital.connector(), bench.ticket("seconds", attempt=5)
    at_work(hospital, site, ticket)
    hospital.server.stop()
    hospital.server.start(timeout=PATIENCE)
    wait_for(lambda: state_of(site, ticket.run) in (RunState.SUCCEEDED, RunState.FAILED), seconds=300)
    status = site.poll(ticket.run)
    if status.state is RunState.SUCCEEDED:
        assert bench.manifest(ticket).exit_code == 0
    else:
        assert "ended at the site" in status.message
        assert not bench.has(ticket, "manifest.json")
    assert begins(hospital, ticket.run) <= 2
    assert not hospital.is_alive(ticket.run)


def test_a_run_whose_time_is_up_is_ended_once_and_for_all(hospital: Hospital, bench: Bench) -> None:
    site, ticket = hospital.connector(), bench.ticket("lasts", attempt=6)
    hospital.install("--hours", "0.002")
    try:
        at_work(hospital, site, ticket)
        wait_for(lambda: state_of(site, ticket.run) is RunState.FAILED, seconds=300)
    finally:
        hospital.install()
    assert "its time was up" in site.poll(ticket.run).message
    assert not hospital.is_alive(ticket.run)
    assert begins(hospital, ticket.run) == 1
