"""What a round costs on Airflow, beside the sites' own work: ``python -m tests.benchmarks.bench_airflow_overhead``.

Everything is real: the demo's portal, orchestrator, object store and warm trainer, and an Airflow of each generation:

``floor``  the same DAG with an empty trainer: from the trigger until its process says *finished*, and does nothing else
``chain``  three empty tasks one after the other, as pull → train → push would be (with ``--chain``)
``loaded`` the floor with a trainer that only computes: as much processor time as a run of the experiment takes. Its slowest
           site's computing does not count (with ``--together``)
``round``  whole rounds of an experiment: wall time minus the slowest site's loading, validating and training

A round costs what the floor costs, and on top: publish the job, look at the DAG, start the trainer, fetch the model, put
update, log and manifest, notice it, judge it, aggregate, publish the next model. The first of an experiment is left out:
it makes the initial model, too. Rounds and empty runs take turns in short blocks, and each block's rounds are compared
with its own empty runs, so that a busy machine disturbs both alike.

Each generation is measured alone, while the other Airflow idles. ``--together``: the demo's three hospitals (2.11, 3, 2.11)
in one experiment; then the floor is that of three empty runs that are triggered at the same time, until the last is done.
There the first hospital that trains takes processor time from the others, which still start their tasks. An empty trainer
does not: *loaded* says what that costs without anything of ours.

Prints medians and nine tenths quantiles in seconds, the parts of a round, the processor time that Airflow takes for a run,
and whether round − floor, the median over the blocks, is within 0.5 s; exits with 1 where it is not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from fedportal.connectors.trainer_process import ROOT
from tests.airflow.federation import HOSPITALS, AirflowSite, Federation
from tests.e2e.conftest import Stack
from tests.e2e.portal_client import Client
from tests.stage import temporary_folder
from tests.trainer_process.bench import Ear

BUDGET = 0.5
PATIENCE = 900.0
"""Seconds after which a run or an experiment is given up; a crowded machine is no failure."""
LOOK = 0.002
PLAN = {"local_epochs": 3, "augmentation": "none", "optimizer": {"treatment": "reset"},
        "network": {"channels": [8, 16, 32, 64], "strides": [1, 2, 2]}}  # fmt: skip
EMPTY = """
import json, os, socket, sys, time
if sys.argv[1] == "last":
    conf = json.loads(os.environ["FEDPORTAL_CONF"])
    begun, enough = time.monotonic(), time.process_time() + conf["work"]
    while time.process_time() < enough:
        pass
    own = time.monotonic() - begun
    host, _, path = conf["spec_url"].removeprefix("http://").partition("/")
    name, _, port = host.partition(":")
    body = json.dumps({"run": conf["run"], "records": [], "finished": True, "own": own})
    head = f"POST /{path} HTTP/1.0\\r\\nHost: {host}\\r\\nAuthorization: none\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
    with socket.create_connection((name, int(port))) as portal:
        portal.sendall((head + body).encode())
        portal.recv(1024)
"""
"""As little as a process can do that tells its end: no HTTP library, half of whose time would be its import."""
EMPTY_KINDS = {"floor": 1, "loaded": 1, "chain": 3}
"""With so many tasks."""
DAGS = """
TrainerOperator.command = __COMMAND__

for name, length in __KINDS__.items():
    with DAG(name, schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False, max_active_runs=16) as dag:
        before = None
        for number in range(length):
            task = TrainerOperator(task_id=f"t{number}", duty="last" if number == length - 1 else "not-last")
            if before is not None:
                before >> task
            before = task
    globals()[name] = dag
"""
"""Stands behind the operator in the site's own DAG file, in place of its DAGs."""
SITE_DAGS = ROOT / "trainer" / "dags" / "fedportal_dags.py"
PARTS = {
    "open, publish": "the portal: choose the sites, put their jobs into the store",
    "until it begins": "portal and Airflow: from then on until the trainer begins; the portal triggers in it",
    "fetch": "the trainer: the job and the model",
    "deliver": "the trainer: update, log, manifest",
    "notice, collect": "the portal: from the trainer's last word until the update is admitted",
    "aggregate": "the portal: merge, put the global model",
    "rest": "all else: what the trainer does beside its steps, waiting between them",
}


@dataclass
class Found:
    """Seconds of each kind of run, of the parts of the rounds, and of round − each kind of empty run in each block.
    ``cpu``: processor seconds of the Airflows for each run of a kind, their idling meanwhile included."""

    kinds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    over: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class Bench:
    """Measures at some of the hospitals, which begin and end together."""

    def __init__(self, federation: Federation, sites: Sequence[AirflowSite], client: Client, ear: Ear) -> None:
        self.federation, self.sites, self.client, self.ear = federation, sites, client, ear
        self.found = Found()

    def measure(self, *, kinds: Sequence[str], blocks: int, rounds: int) -> Found:
        for kind in kinds:
            self._empty_run(kind, f"{kind}-first")  # warms up
        for block in range(blocks):
            trained = self._trained()
            with self._cpu("round", rounds + 2):  # with the first round and the final evaluation
                whole = self._rounds(rounds)
            work = (self._trained() - trained) / len(self.sites) / (rounds + 2)
            self.found.kinds["round"] += whole
            for kind in kinds:
                load = work if kind == "loaded" else 0.0
                with self._cpu(kind, rounds):
                    empty = [self._empty_run(kind, f"{kind}-{block}-{n}", work=load) for n in range(rounds)]
                self.found.cpu[kind][-1] -= load * len(self.sites)  # computed by a child of Airflow, not by Airflow
                self.found.kinds[kind] += empty
                self.found.over[kind].append(statistics.median(whole) - statistics.median(empty))
        return self.found

    def _empty_run(self, kind: str, name: str, *, work: float = 0.0) -> float:
        """Trigger the DAG at all sites at once; return the seconds until the last one is done, but for the slowest one's
        computing. ``work``: processor seconds of it."""
        runs = {site: f"{name}-of-{len(self.sites)}-{site.slug}" for site in self.sites}
        begun = time.monotonic()
        with ThreadPoolExecutor(len(self.sites)) as pool:
            started = list(
                pool.map(lambda site: site.api.trigger(kind, runs[site], self._conf(runs[site], work)), self.sites)
            )
        if not all(started):
            raise RuntimeError(f"{name} was not started everywhere: {started}")
        while not set(runs.values()) <= (own := {post["run"]: post["own"] for post in self.ear.posts}).keys():
            if time.monotonic() > begun + PATIENCE:
                raise RuntimeError(f"{name} did not end within {PATIENCE:.0f} s")
            time.sleep(LOOK)
        return time.monotonic() - begun - max(own[run] for run in runs.values())

    def _conf(self, run: str, work: float) -> dict[str, Any]:
        return {"run": run, "spec_url": self.ear.url, "work": work}

    def _trained(self) -> float:
        """Return the processor seconds of all runs that the warm trainer has started and that have ended."""
        return self._processor(self.federation.stack.child("trainer"))[1]

    def _rounds(self, rounds: int) -> list[float]:
        """Run an experiment; return the overhead of its rounds but for the first."""
        federation, client = self.federation, self.client
        slugs = [site.slug for site in self.sites]
        title = f"Overhead at {', '.join(slugs)}"
        key = client.start(slugs, title=title, plan={**PLAN, "rounds": rounds + 1}, min_sites=len(slugs))
        experiment = client.wait(key, timeout=PATIENCE)
        if experiment["state"] != "completed":
            raise RuntimeError(f"{experiment['reason']}\n{client.sentences(key)}")
        events = [event for event in client.rows(f"/experiments/{key}/journal/") if event["kind"] == "admitted"]
        admitted = {event["round_number"]: _seconds(event["at"]) for event in events}  # the last of each round
        found, parts = [], self.found.parts
        for row in client.get(f"/experiments/{key}/rounds/"):
            if row["kind"] != "train" or row["number"] == 1:
                continue
            timings, runs = row["timings"], row["site_runs"]
            logs = {run["site"]: federation.log(key, run["site"], round=row["number"]) for run in runs}
            found.append(timings["overhead"])
            opened = timings.get("open", 0) + timings.get("publish", 0)
            begins = max(log["run begins"] for log in logs.values()) - _seconds(row["started_at"])
            parts["open, publish"].append(opened)
            parts["until it begins"].append(begins - opened)
            parts["fetch"].append(max(run["seconds"].get("pull", 0) for run in runs))
            parts["deliver"].append(max(run["seconds"].get("push", 0) for run in runs))
            parts["notice, collect"].append(admitted[row["number"]] - max(log["run ends"] for log in logs.values()))
            parts["aggregate"].append(timings.get("aggregate", 0))
            parts["rest"].append(timings["overhead"] - sum(parts[part][-1] for part in PARTS if part != "rest"))
        return found

    @contextlib.contextmanager
    def _cpu(self, kind: str, runs: int) -> Iterator[None]:
        before = self._cpu_seconds()
        yield
        self.found.cpu[kind].append((self._cpu_seconds() - before) / runs)

    def _cpu_seconds(self) -> float:
        """Return what the sites' Airflows have taken, with the children that they have waited for."""
        seconds = 0.0
        for pid in {pid for site in self.sites for pid in site.server.tree()}:
            with contextlib.suppress(OSError):
                seconds += sum(self._processor(pid))
        return seconds

    @staticmethod
    def _processor(pid: int) -> tuple[float, float]:
        """Return the processor seconds of a process, and of the children that it has waited for."""
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
        user, system, waited_user, waited_system = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields[11:15])
        return user + system, waited_user + waited_system


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--versions", type=int, nargs="*", default=[2, 3], help="of the generations measured alone")
    parser.add_argument("--together", action="store_true", help="measure three hospitals in one experiment, too")
    parser.add_argument("--blocks", type=int, default=5, help="how often empty runs and an experiment take turns")
    parser.add_argument("--rounds", type=int, default=3, help="of each experiment, and empty runs before it")
    parser.add_argument("--chain", action="store_true", help="measure a chain of three tasks, too")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    hospitals = HOSPITALS if options.together else HOSPITALS[:2]
    folder, results = temporary_folder(), []
    stack = Stack(folder, arguments=("--airflow", "--sites", str(len(hospitals)), "--rounds", "1"))
    ear = Ear()
    try:
        stack.start(timeout=PATIENCE)
        researcher = Client(stack, "researcher")
        federation = Federation(stack, Client(stack, "operator"), hospitals)
        for experiment in researcher.get("/experiments/")["results"]:
            researcher.wait(experiment["key"], timeout=PATIENCE)
        for site in federation.sites:
            _put_empty_dags(site, folder)
        for site in federation.sites:
            for kind in EMPTY_KINDS:
                site.server.wait_for_dag(kind, timeout=PATIENCE)
        groups = {f"Airflow {version}": [federation.of_generation(version)] for version in options.versions}
        if options.together:
            groups["Three hospitals together (2.11, 3, 2.11)"] = federation.sites
        for title, sites in groups.items():
            kinds = ["floor", *(["chain"] if options.chain else []), *(["loaded"] if len(sites) > 1 else [])]
            bench = Bench(federation, sites, researcher, ear)
            results.append(tell(title, bench.measure(kinds=kinds, blocks=options.blocks, rounds=options.rounds)))
        federation.close()
    finally:
        stack.stop()
        ear.close()
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 0 if all(result["within_budget"] for result in results) else 1


def _put_empty_dags(site: AirflowSite, folder: Path) -> None:
    empty = folder / "empty.py"
    empty.write_text(EMPTY)
    operator = SITE_DAGS.read_text().partition("def trainer_dag(")[0]
    text = operator + DAGS.replace("__COMMAND__", repr((sys.executable, str(empty)))).replace(
        "__KINDS__", repr(EMPTY_KINDS)
    )
    (site.server.dags / "fedportal" / "floor_dags.py").write_text(text)


def tell(title: str, found: Found) -> dict[str, object]:
    say(f"\n{title}, {len(found.kinds['round'])} rounds in {len(found.over['floor'])} blocks")
    for kind, seconds in found.kinds.items():
        say(
            f"  {kind:<18} {spread(seconds)}   Airflow's processor time {statistics.median(found.cpu[kind]):.2f} s a run"
        )
    over = {kind: statistics.median(seconds) for kind, seconds in found.over.items()}
    is_within = over["floor"] <= BUDGET
    for kind, seconds in found.over.items():
        verdict = f"   {'within' if is_within else 'OVER'} the budget of {BUDGET} s" if kind == "floor" else ""
        say(f"  round − {kind:<10} {spread(seconds)}{verdict}")
    say("  a round consists of:")
    for part, seconds in found.parts.items():
        say(f"    {part:<16} {spread(seconds)}   {PARTS[part]}")
    quantiles = {kind: statistics.median(seconds) for kind, seconds in {**found.kinds, **found.parts}.items()}
    cpu = {kind: statistics.median(seconds) for kind, seconds in found.cpu.items()}
    return {"measured": title, "p50": quantiles, "cpu": cpu, "over": over, "within_budget": is_within}


def spread(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    p90 = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    return f"p50 {statistics.median(ordered):6.3f} s  p90 {p90:6.3f} s"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
