"""What befalls a hospital's Airflow while it trains: the experiment goes on with the same model, and nothing runs twice.

    python -m tests.airflow.faults                      all of it (about twenty minutes on two cores)
    python -m tests.airflow.faults --fault 500          one of them, at an Airflow 2.11 and at an Airflow 3
    python -m tests.airflow.faults --airflow 3          all of them at one generation

Each case is a whole experiment of two rounds at three hospitals with real Airflow servers, one of which has the fault in
the middle of the first round. It must complete; the feed must say what is the matter, where that is for people to know;
no two trainings of a round may be at work at a site at the same time; and the final model must be that of the
undisturbed experiment. Prints a table, exits with 1 when a case failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from tests.airflow.federation import HOSPITALS, AirflowSite, Federation
from tests.e2e.conftest import Stack
from tests.e2e.portal_client import Client
from tests.stage import temporary_folder
from trainer.contract import run_name

PLAN = {"rounds": 2, "local_epochs": 60, "seed": 7, "optimizer": {"treatment": "reset"}}
"""A round of it takes some seconds: long enough for a fault to strike in the middle."""
QUICK_SECONDS = 5.0
TRUE_SECONDS = 120.0


@dataclass
class Case:
    """An experiment that is disturbed. ``seconds``: how long a fault lasts that lasts."""

    federation: Federation
    client: Client
    key: str
    seconds: float

    def said(self, slug: str, pattern: str) -> bool:
        return any(re.search(pattern, text) for text in self.client.sentences(self.key, site=slug))

    def until_said(self, slug: str, pattern: str, *, timeout: float = 600) -> None:
        end = time.monotonic() + timeout
        while not self.said(slug, pattern):
            if time.monotonic() > end:
                raise AssertionError(f"the feed does not say {pattern!r}: {self.client.sentences(self.key, site=slug)}")
            time.sleep(0.2)


@dataclass(frozen=True)
class Fault:
    """``says``: what the feed must say of the site. ``attempts``: how many there may be in the first round; ``begins``:
    how often one run may be begun, one after the other."""

    strike: Callable[[Case, AirflowSite], None]
    about: str
    says: str = ""
    attempts: int = 1
    begins: int = 1


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def restart(case: Case, site: AirflowSite) -> None:
    _signal([site.server.pid(name) for name in site.server.services], signal.SIGTERM)


def kill_all(case: Case, site: AirflowSite) -> None:
    _signal(sorted(site.server.tree()), signal.SIGKILL)


def kill_web_server(case: Case, site: AirflowSite) -> None:
    _signal([site.server.pid(site.server.services[0])], signal.SIGKILL)


def kill_scheduler(case: Case, site: AirflowSite) -> None:
    """Its children, the task among them, live on as orphans."""
    _signal([site.server.pid("scheduler")], signal.SIGKILL)


def answer_500(case: Case, site: AirflowSite) -> None:
    """Its update is taken meanwhile, for what the object store has needs no word of Airflow's; its next run waits."""
    begun = time.monotonic()
    with site.door.answering_500():
        case.until_said(site.slug, "delivered its update")
        case.until_said(site.slug, SAYS_500)
        time.sleep(max(0.0, begun + case.seconds - time.monotonic()))


def lock_database(case: Case, site: AirflowSite) -> None:
    with closing(sqlite3.connect(site.server.folder / "airflow.db", timeout=30, isolation_level=None)) as lock:
        lock.execute("begin exclusive")
        time.sleep(case.seconds / 2)
        lock.execute("rollback")


def delete_run(case: Case, site: AirflowSite) -> None:
    """As in Airflow's web interface: Airflow 3 deletes no run that has not ended, so it is marked as failed first."""
    run = run_name(experiment=case.key, round=1, site=site.slug, attempt=1)
    if site.version == 3:
        site.fail_run(run)
    site.delete_run(run)


def pause(case: Case, site: AirflowSite) -> None:
    site.set_paused(paused=True)
    try:
        case.until_said(site.slug, SAYS_PAUSED)
    finally:
        site.set_paused(paused=False)


SAYS_500 = "It cannot be started yet: The site answers .* with 500"
SAYS_PAUSED = "The DAG fp-train is paused at the site. Switch it on"
FAULTS = {
    "500": Fault(answer_500, "its web server answers 500", says=SAYS_500),
    "paused": Fault(pause, "its DAG is paused", says=SAYS_PAUSED),
    "deleted": Fault(
        delete_run,
        "its run is deleted by hand",
        says="again in .*(it was deleted there|was ended at the site)",
        attempts=2,
    ),
    "scheduler": Fault(kill_scheduler, "kill -9 of its scheduler"),
    "web": Fault(kill_web_server, "kill -9 of its web server"),
    "killed": Fault(kill_all, "kill -9 of all of it"),
    "restarted": Fault(restart, "it is restarted", attempts=2, begins=2),
    "locked": Fault(lock_database, "its database is locked"),
}
QUICK = ("500", "deleted", "paused")
"""Those of ``make test``, each at another hospital in one experiment; they need no Airflow to be started again."""


@dataclass
class Told:
    """How a case went. ``verdict``: what was wrong, empty when all was right."""

    seconds: float = 0.0
    model: str = ""
    attempts: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    journal: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return "; ".join(self.wrong)


def suffer(
    federation: Federation, client: Client, faults: Mapping[AirflowSite, str], *, seconds: float = QUICK_SECONDS
) -> Told:
    """Run an experiment in which sites have a fault each, by name, in the middle of its first round."""
    told, begun = Told(), time.monotonic()
    slugs = [site.slug for site in federation.sites]
    title = " and ".join(faults.values()) or "undisturbed"
    key = client.start(slugs, title=title, plan=PLAN, min_sites=len(slugs))
    case = Case(federation, client, key, seconds)
    with federation.watched(key) as most:
        for site in faults:
            federation.process(key, site.slug, timeout=180)
        strikes = [Thread(target=_strike, args=(FAULTS[name], case, site, told)) for site, name in faults.items()]
        for strike in strikes:
            strike.start()
        for strike in strikes:
            strike.join()
        experiment = client.wait(key, timeout=900)
    told.seconds = round(time.monotonic() - begun, 1)
    told.journal = client.sentences(key)
    if experiment["state"] != "completed":
        told.wrong.append(f"it is {experiment['state']}: {experiment['reason']}")
        return told
    told.model = client.get(f"/experiments/{key}/models/")[-1]["sha256"]
    told.wrong += [f"{slug}: {n} trainings at the same time" for slug, n in most.items() if n > 1]
    for site in federation.sites:
        _judge(case, site, FAULTS.get(faults.get(site, "")), told)
    return told


def _strike(fault: Fault, case: Case, site: AirflowSite, told: Told) -> None:
    try:
        fault.strike(case, site)
    except AssertionError as error:
        told.wrong.append(f"{site.slug}: {error}")


def _judge(case: Case, site: AirflowSite, fault: Fault | None, told: Told) -> None:
    attempts = case.client.site_run(case.key, site.slug)["attempts"]
    told.attempts[site.slug] = len(attempts)
    if len(attempts) > (fault.attempts if fault else 1):
        told.wrong.append(f"{site.slug}: {len(attempts)} attempts")
    for run, times in case.federation.begins(case.key, site.slug).items():
        if times > (fault.begins if fault else 1):
            told.wrong.append(f"{run} was begun {times} times")
    if fault and fault.says and not case.said(site.slug, fault.says):
        told.wrong.append(f"{site.slug}: the feed does not say {fault.says!r}")


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--fault", choices=FAULTS, action="append")
    parser.add_argument("--airflow", type=int, choices=(2, 3), action="append")
    parser.add_argument("--seconds", type=float, default=TRUE_SECONDS, help="of answering 500; half of it: locked")
    options = parser.parse_args()
    folder = temporary_folder()
    stack = Stack(Path(folder), arguments=("--airflow", "--rounds", "1"))
    wrong = 0
    try:
        stack.start()
        federation, researcher = _through_doors(stack), Client(stack, "researcher")
        expected = suffer(federation, researcher, {})
        _say(f"{'undisturbed':<44} {expected.verdict or expected.model[:16]:<14} {expected.seconds:>6.1f} s")
        for name in options.fault or FAULTS:
            for version in options.airflow or (2, 3):
                site = federation.of_generation(version)
                told = suffer(federation, researcher, {site: name}, seconds=options.seconds)
                if told.model and told.model != expected.model:
                    told.wrong.append("another model")
                label = f"{FAULTS[name].about} (Airflow {version})"
                _say(
                    f"{label:<44} {'same model' if not told.wrong else 'FAILED':<14} {told.seconds:>6.1f} s, "
                    f"{told.attempts.get(site.slug, 0)} attempts"
                )
                if told.wrong:
                    wrong += 1
                    _say("\n".join(["  " + told.verdict, *("    " + line for line in told.journal)]))
        federation.close()
    finally:
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)
    _say("All experiments ended with the model of the undisturbed one." if not wrong else f"{wrong} failed.")
    return 1 if wrong else 0


def _through_doors(stack: Stack) -> Federation:
    """Let the portal reach the demo's hospitals by doors that can fail."""
    operator = Client(stack, "operator")
    federation = Federation(stack, operator, HOSPITALS)
    researcher = Client(stack, "researcher")
    for experiment in researcher.get("/experiments/")["results"]:
        researcher.wait(experiment["key"], timeout=240)
    for site in federation.sites:
        operator.send("PATCH", f"/sites/{site.slug}/", {"config": {"url": site.door.url}}).raise_for_status()
    for site in federation.sites:
        federation.wait_until_checked(site.slug)
    return federation


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
