"""What a round costs on Airflow, beside the site's own work: ``python -m tests.benchmarks.bench_airflow_overhead``.

Everything is real: the demo's portal, orchestrator, object store and warm trainer, and an Airflow of each generation:

``floor``  the same DAG with an empty trainer: from the trigger until it says *finished*
``chain``  three empty tasks one after the other, as pull → train → push would be (with ``--chain``)
``round``  whole rounds of an experiment at this one site: wall time minus the site's loading, validating and training

A round costs what the floor costs, and on top: publish the job, look at the DAG, start the trainer, fetch the model, put
update, log and manifest, notice it, judge it, aggregate, publish the next model. Empty runs and rounds take turns in
short blocks, and each block's rounds are compared with its own empty runs, so that a busy machine disturbs both alike.
Prints medians and nine tenths quantiles in seconds, the parts of a round, and whether round − floor, the median over
the blocks, is within 0.5 s; exits with 1 where it is not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from fedportal.connectors.trainer_process import ROOT
from tests.airflow.federation import HOSPITALS, AirflowSite, Federation
from tests.e2e.conftest import Stack
from tests.e2e.portal_client import Client
from tests.stage import temporary_folder
from tests.trainer_process.bench import Ear, wait_for

BUDGET = 0.5
PLAN = {"local_epochs": 3, "augmentation": "none", "optimizer": {"treatment": "reset"},
        "network": {"channels": [8, 16, 32, 64], "strides": [1, 2, 2]}}  # fmt: skip
EMPTY = """
import json, os, sys, urllib.request
if sys.argv[1] == "last":
    conf = json.loads(os.environ["FEDPORTAL_CONF"])
    body = json.dumps({"run": conf["run"], "records": [], "finished": True}).encode()
    urllib.request.urlopen(urllib.request.Request(conf["spec_url"], body, {"Authorization": "none"}))
"""
DAGS = """
TrainerOperator.command = __COMMAND__

for name, length in (("floor", 1), ("chain", 3)):
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
    "open, publish": "the portal: choose the site, put its job into the store",
    "dispatch": "the portal: look at the DAG, trigger it",
    "until it begins": "Airflow: from the trigger until the trainer begins",
    "fetch": "the trainer: the job and the model",
    "deliver": "the trainer: update, log, manifest",
    "notice, collect": "the portal: from the trainer's last word until the update is admitted",
    "aggregate": "the portal: merge, put the global model",
    "rest": "all else: what the trainer does beside its steps, waiting between them",
}


@dataclass
class Found:
    """Seconds of each kind of run, of the parts of the rounds, and of round − floor in each block."""

    kinds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    ours: list[float] = field(default_factory=list)


def measure(
    federation: Federation,
    site: AirflowSite,
    client: Client,
    ear: Ear,
    *,
    kinds: Sequence[str],
    blocks: int,
    rounds: int,
) -> Found:
    found = Found()
    for kind in kinds:
        _empty_run(site, kind, f"{kind}-first", ear)  # warms up
    for block in range(blocks):
        empty = {
            kind: [_empty_run(site, kind, f"{kind}-{block}-{number}", ear) for number in range(rounds)]
            for kind in kinds
        }
        whole = _rounds(federation, site, client, rounds, found.parts)
        for kind, seconds in {**empty, "round": whole}.items():
            found.kinds[kind] += seconds
        found.ours.append(statistics.median(whole) - statistics.median(empty["floor"]))
    return found


def _rounds(
    federation: Federation, site: AirflowSite, client: Client, rounds: int, parts: dict[str, list[float]]
) -> list[float]:
    """Run an experiment; return the overhead of its rounds but for the first, which makes the initial model, too."""
    title = f"Overhead on Airflow {site.version}"
    key = client.start([site.slug], title=title, plan={**PLAN, "rounds": rounds + 1})
    experiment = client.wait(key, timeout=120 + 60 * rounds)
    if experiment["state"] != "completed":
        raise RuntimeError(f"{experiment['reason']}\n{client.sentences(key)}")
    events = client.rows(f"/experiments/{key}/journal/")
    admitted = {event["round_number"]: _seconds(event["at"]) for event in events if event["kind"] == "admitted"}
    found = []
    for row in client.get(f"/experiments/{key}/rounds/"):
        if row["kind"] != "train" or row["number"] == 1:
            continue
        timings, run = row["timings"], row["site_runs"][0]
        log = federation.log(key, site.slug, round=row["number"])
        found.append(timings["overhead"])
        parts["open, publish"].append(timings.get("open", 0) + timings.get("publish", 0))
        parts["dispatch"].append(timings.get("dispatch", 0))
        parts["until it begins"].append(log["run begins"] - _seconds(run["attempts"][0]["launched_at"]))
        parts["fetch"].append(run["seconds"].get("pull", 0))
        parts["deliver"].append(run["seconds"].get("push", 0))
        parts["notice, collect"].append(admitted[row["number"]] - log["run ends"])
        parts["aggregate"].append(timings.get("aggregate", 0))
        parts["rest"].append(timings["overhead"] - sum(parts[part][-1] for part in PARTS if part != "rest"))
    return found


def _empty_run(site: AirflowSite, kind: str, run: str, ear: Ear) -> float:
    begun = time.monotonic()
    site.api.trigger(kind, run, {"run": run, "spec_url": ear.url})
    wait_for(lambda: any(post["run"] == run and post["finished"] for post in ear.posts), seconds=300)
    return time.monotonic() - begun


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--versions", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--blocks", type=int, default=5, help="how often empty runs and an experiment take turns")
    parser.add_argument("--rounds", type=int, default=3, help="of each experiment, and empty runs before it")
    parser.add_argument("--chain", action="store_true", help="measure a chain of three tasks, too")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    folder, results = temporary_folder(), []
    stack, ear = Stack(folder, arguments=("--airflow", "--sites", "2", "--rounds", "1")), Ear()
    try:
        stack.start(timeout=480)
        researcher = Client(stack, "researcher")
        federation = Federation(stack, Client(stack, "operator"), HOSPITALS[:2])
        for experiment in researcher.get("/experiments/")["results"]:
            researcher.wait(experiment["key"], timeout=240)
        for site in federation.sites:
            _put_empty_dags(site, folder)
        for site in federation.sites:
            if site.version in options.versions:
                site.server.wait_for_dag("chain", timeout=120)
                kinds = ("floor", "chain") if options.chain else ("floor",)
                found = measure(
                    federation, site, researcher, ear, kinds=kinds, blocks=options.blocks, rounds=options.rounds
                )
                results.append(tell(site.version, found))
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
    text = operator + DAGS.replace("__COMMAND__", repr((sys.executable, str(empty))))
    (site.server.dags / "fedportal" / "floor_dags.py").write_text(text)


def tell(version: int, found: Found) -> dict[str, object]:
    floor, whole, ours = (statistics.median(s) for s in (found.kinds["floor"], found.kinds["round"], found.ours))
    say(f"\nAirflow {version}, {len(found.kinds['round'])} rounds in {len(found.ours)} blocks")
    for kind, seconds in found.kinds.items():
        say(f"  {kind:<18} {spread(seconds)}")
    say(f"  round − floor      {spread(found.ours)}   round / floor {whole / floor:.2f}   budget {BUDGET} s")
    say("  a round consists of:")
    for part, seconds in found.parts.items():
        say(f"    {part:<16} {spread(seconds)}   {PARTS[part]}")
    quantiles = {kind: statistics.median(seconds) for kind, seconds in {**found.kinds, **found.parts}.items()}
    return {"airflow": version, "p50": quantiles, "ours": ours, "within_budget": ours <= BUDGET}


def spread(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    p90 = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    return f"p50 {statistics.median(ordered):6.3f} s  p90 {p90:6.3f} s"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
