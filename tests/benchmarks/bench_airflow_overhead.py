"""What Airflow costs in a round, and what we cost on top: ``python -m tests.benchmarks.bench_airflow_overhead``.

For each generation, on one real server, in turn so that a busy machine disturbs all alike:

``floor``  the same DAG with an empty trainer: from the trigger until the trainer says *finished*
``chain``  three empty tasks one after the other, as pull → train → push would be
``real``   a run of ours by the connector: look at the DAG, trigger, start by the warm trainer, fetch the model, no
           training at all, put the update, the log and the manifest, say *finished*

Prints the median and the nine tenth quantile of each, and whether real ≤ floor + 0.5 s at the median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fedportal.connectors.trainer_process import ROOT
from fedportal.connectors.weed import Weed
from tests.airflow.hospital import Hospital
from tests.trainer_process.bench import Bench, Ear, wait_for

BUDGET = 0.5
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


def measure(hospital: Hospital, bench: Bench, ear: Ear, repeats: int) -> dict[str, list[float]]:
    site, api = hospital.connector(), hospital.api
    found: dict[str, list[float]] = {"floor": [], "chain": [], "real": []}

    def timed(start: Callable[[], object], run: str) -> float:
        begun = time.monotonic()
        start()
        wait_for(lambda: any(post["run"] == run and post["finished"] for post in ear.posts), seconds=90)
        return time.monotonic() - begun

    for number in range(1, repeats + 2):
        ticket = bench.ticket("quick", attempt=number)
        times = {"real": timed(lambda: site.launch(ticket), ticket.run)}  # noqa: B023
        for kind in ("floor", "chain"):
            run = f"{kind}-{number}"
            times[kind] = timed(lambda: api.trigger(kind, run, {"run": run, "spec_url": ear.url}), run)  # noqa: B023
        if number > 1:  # the first of each warms up
            for kind, seconds in times.items():
                found[kind].append(seconds)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--versions", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as folder:
        weed = Weed(Path(folder) / "store")
        weed.start()
        ear = Ear()
        try:
            for version in options.versions:
                store = weed.store(f"bench{version}")
                store.ensure_bucket()
                bench = Bench(store, metrics_url=ear.url)
                hospital = Hospital(version, Path(folder) / f"hospital{version}")
                dags = hospital.server.dags / "fedportal"
                dags.mkdir(parents=True)
                empty = Path(folder) / "empty.py"
                empty.write_text(EMPTY)
                operator = SITE_DAGS.read_text().partition("def trainer_dag(")[0]
                (dags / "floor_dags.py").write_text(
                    operator + DAGS.replace("__COMMAND__", repr((sys.executable, str(empty))))
                )
                try:
                    hospital.start().server.wait_for_dag("chain")
                    found = measure(hospital, bench, ear, options.repeats)
                finally:
                    hospital.stop()
                ear.posts.clear()
                result = {kind: _quantiles(seconds) for kind, seconds in found.items()}
                ours = statistics.median(r - f for r, f in zip(found["real"], found["floor"], strict=True))
                holds = result["real"]["p50"] <= result["floor"]["p50"] + BUDGET
                good = good and holds
                sys.stdout.write(
                    json.dumps(
                        {"airflow": version, **result, "ours_p50": round(ours, 3), "within_budget": holds}, indent=2
                    )
                    + "\n"
                )
                sys.stdout.flush()
        finally:
            ear.close()
            weed.kill()
    return 0 if good else 1


def _quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50": round(statistics.median(ordered), 3),
        "p90": round(ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))], 3),
    }


if __name__ == "__main__":
    sys.exit(main())
