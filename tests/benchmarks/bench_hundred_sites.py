"""A hundred hospitals polled by one orchestrator process: ``python -m tests.benchmarks.bench_hundred_sites [--sites 100]``.

Real: orchestrator, portal, database, object store, connectors, admission. Not real: the hospitals, which are one light
process that answers as a hundred Airflow servers (see ``crowd.py``), so that its work is not the orchestrator's. Of them
one in ten is slow, some fall silent in the middle of the round: dead (no connection) or mute (no answer). Half of the others
tell the portal when their runs end, as trainers do; of the other half it is found out by asking.

Prints processor time of the orchestrator as a share of one core (all its processes), threads and memory, the requests that
the hospitals saw, and the seconds from the end of a run (its manifest lies in the store) until the journal has its update.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.stage import Stage, free_port, temporary_folder

PLAN = {"rounds": 1, "threads": 1, "network": {"channels": [4, 8], "strides": [2]}}
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--work", type=float, nargs=2, default=(25.0, 60.0), help="seconds that runs last")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    folder = temporary_folder()
    try:
        with Stage(folder) as stage:
            stage.start("store")
            found = measure(stage, options.sites, options.work, options.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


def measure(stage: Stage, count: int, work: tuple[float, float], seed: int) -> dict[str, Any]:
    stage.load()
    hospitals = describe(count, work, seed)
    out = stage.folder / "crowd.jsonl"
    config = stage.folder / "crowd.json"
    config.write_text(json.dumps({"hospitals": hospitals, "out": str(out), "seed": seed}))
    stage.spawn("crowd", ["-m", "tests.benchmarks.crowd", str(config)])
    register(hospitals)
    stage.start("portal")
    process = stage.spawn("orchestrator", ["manage.py", "orchestrate"])
    alive = [row["slug"] for row in hospitals if row["kind"] in ("prompt", "slow")]
    with Sampler(process.pid) as sampler:
        experiment = stage.experiment(plan=PLAN, title="Crowd", min_sites=len(alive), deadline_minutes=30)
        begun = wait_for_runs(experiment, count, stage)
        steady = sampler.now()
        wait_for_updates(experiment, len(alive), work[1] + 120, stage)
        over = sampler.now()
    return tell(experiment, hospitals, out, sampler, begun, steady, over)


def describe(count: int, work: tuple[float, float], seed: int) -> list[dict[str, Any]]:
    """Return the hospitals: of each thirty three are slow, one dead and one mute."""
    from django.conf import settings

    from trainer.contract import site_key

    draw = random.Random(seed)
    kinds = {0: "slow", 10: "slow", 20: "slow", 5: "dead", 15: "mute"}
    slugs = [f"s{number:03d}" for number in range(count)]
    return [
        {
            "slug": slug,
            "key": site_key(settings.FEDPORTAL_ATTEMPT_SECRET, slug).hex(),
            "port": free_port(),
            "kind": kinds.get(number % 30, "prompt"),
            "tells": number % 2 == 0,
            "work": draw.uniform(*work),
        }
        for number, slug in enumerate(slugs)
    ]


def register(hospitals: list[dict[str, Any]]) -> None:
    """Register them as sites that a check has just found well."""
    from fedportal.sites.models import Site
    from tests.factories import make_dataset, make_site

    for row in hospitals:
        config = {"url": f"http://127.0.0.1:{row['port']}", "user": "fedportal"}
        site = make_site(row["slug"], connector="airflow", config=config, secrets={"password": "crowd"})
        make_dataset(site)
    Site.objects.update(check_due_at=None)


def wait_for_runs(experiment: Any, count: int, stage: Stage) -> float:
    """Return when every site has its run: seconds since the experiment was started."""
    from fedportal.experiments.models import Attempt

    begun = time.monotonic()
    while Attempt.objects.filter(launched_at__isnull=False).count() < count:
        if time.monotonic() - begun > 180:
            raise TimeoutError(f"{stage.journal(experiment)}\n{stage.log('orchestrator')}")
        time.sleep(0.2)
    return time.monotonic() - begun


def wait_for_updates(experiment: Any, count: int, patience: float, stage: Stage) -> None:
    from fedportal.experiments.models import Attempt

    end = time.monotonic() + patience
    while experiment.events.filter(kind="admitted").count() < count:
        if time.monotonic() > end:
            fields = ("run", "site_run__state", "state", "message", "heard_at")
            left = list(Attempt.objects.exclude(site_run__state="admitted").values_list(*fields))
            raise TimeoutError(f"{stage.journal(experiment)}\n{stage.log('orchestrator')}\n{left}")
        time.sleep(0.5)


class Sampler:
    """Looks at a process and its children twice a second: processor seconds, threads, memory."""

    def __init__(self, pid: int) -> None:
        self._pid, self._end = pid, threading.Event()
        self.seen: list[tuple[float, float, int, float]] = []

    def __enter__(self) -> Sampler:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def now(self) -> float:
        return time.monotonic()

    def share(self, begin: float, end: float) -> float:
        """Processor seconds per second between two moments."""
        first, *_, last = [row for row in self.seen if begin <= row[0] <= end]
        return (last[1] - first[1]) / (last[0] - first[0])

    def _look(self) -> None:
        while not self._end.wait(0.5):
            threads, memory = self._status()
            self.seen.append((time.monotonic(), self._processor(), threads, memory))

    def _processor(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        own = sum(int(field) for field in fields[11:15])  # user and system, with those of children that have ended
        return own / TICKS

    def _status(self) -> tuple[int, float]:
        rows = dict(line.split(":", 1) for line in Path(f"/proc/{self._pid}/status").read_text().splitlines())
        return int(rows["Threads"]), int(rows["VmRSS"].split()[0]) / 1024


def tell(
    experiment: Any,
    hospitals: list[dict[str, Any]],
    out: Path,
    sampler: Sampler,
    begun: float,
    steady: float,
    over: float,
) -> dict[str, Any]:
    happened = [json.loads(line) for line in out.read_text().splitlines()]
    ended = {row["slug"]: row["at"] for row in happened if row["what"] == "ended"}
    noticed = {event.site: event.at.timestamp() for event in experiment.events.filter(kind="admitted")}
    silent = {row["slug"]: row["at"] for row in happened if row["what"] == "silent"}
    asked = [row for row in happened if row["what"] == "asked"]
    first_end = min(ended.values()) - time.time() + time.monotonic()
    delays: dict[str, list[float]] = {}
    for row in hospitals:
        if row["slug"] in ended:
            group = "slow" if row["kind"] == "slow" else "told" if row["tells"] else "asked"
            delays.setdefault(group, []).append(noticed[row["slug"]] - ended[row["slug"]])
    kinds = Counter(row["kind"] for row in hospitals)
    found = {
        "sites": dict(kinds),
        "starting": begun,
        "watching": sampler.share(steady, first_end),
        "ending": sampler.share(first_end, over),
        "threads": max(row[2] for row in sampler.seen),
        "rss": max(row[3] for row in sampler.seen),
        "delays": delays,
        "load": os.getloadavg()[0],
    }
    say(f"\n{len(hospitals)} sites: {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}")
    say(f"  all started after         {begun:.1f} s")
    say(f"  processor, all at work    {100 * found['watching']:.0f} % of a core, over {first_end - steady:.0f} s")
    say(f"  processor, runs ending    {100 * found['ending']:.0f} % of a core, over {over - first_end:.0f} s")
    say(f"  threads, memory           at most {found['threads']}, {found['rss']:.0f} MiB")
    window = max(row["at"] for row in asked) - min(row["at"] for row in asked)
    say(f"  requests at the sites     {len(asked) / window:.0f} a second")
    late = Counter(row["slug"] for row in asked if row["at"] > silent.get(row["slug"], float("inf")))
    say(f"  at a mute site            {max(late.values(), default=0)} in {over - steady:.0f} s")
    names = {"told": "run ended, site tells", "asked": "run ended, site is asked", "slow": "run ended, slow site"}
    for group, label in names.items():
        values = sorted(delays.get(group, []))
        say(f"  {label:<25} {spread(values)}   ({len(values)} runs)")
    return found


def spread(values: list[float]) -> str:
    if len(values) < 2:
        return "-"
    p95 = statistics.quantiles(values, n=20, method="inclusive")[-1]
    return f"p50 {statistics.median(values):5.2f} s   p95 {p95:5.2f} s   max {max(values):5.2f} s"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
