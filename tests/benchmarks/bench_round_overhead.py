"""What a federated round costs beside the sites' own work: wall time of the round minus the slowest site's own seconds.

    python -m tests.benchmarks.bench_round_overhead [--rounds 20] [--model small|large] [--data smallest|laptop] [--through-store]

Everything is real (object store, portal, orchestrator, warm trainer, three sites on this machine). Own work of a site
is loading, training and measuring, as its manifest tells; all else counts as overhead: publishing, starting, fetching,
delivering, noticing, judging, aggregating, the database. Sites that share two cores with the portal slow each other
down, and that is in the figures, too.

A site sends its update while it measures its local model (decision 0104): what of the sending that covers is no
overhead, what it slows the measuring down is the site's own time. So the data decide: *smallest* (2 cases to train on
and 1 to measure, 16³ voxels) leaves nearly all of the sending to be seen, *laptop* (8 and 4, 40³) is the reference
experiment. The wall time of the round is printed beside.

The floor is what a bare script needs to put the same objects into the same store, in the same run: three updates at
once, then the global model. Nobody starts before a model lies there (decision 0097), so no round can cost less than the
second of the two. Sites on the portal's machine read over the shelf (decisions 0060, 0096); with ``--through-store``
weights cannot be linked, the sites' folders lie on another file system, and round and floor read them back from the
store.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.stage import SITES, Stage, temporary_folder
from trainer.transfer import Courier

HOUR = timedelta(hours=1)

MODELS = {
    "small": {
        "name": "unet",
        "channels": [8, 16, 32, 64],
        "strides": [1, 2, 2],
        "residual_units": 0,
        "norm": "instance",
    },
    "large": {
        "name": "residual_unet",
        "channels": [32, 64, 128, 256, 512],
        "strides": [2, 2, 2, 2],
        "residual_units": 2,
        "norm": "instance",
    },
}
"""123 thousand parameters, the laptop preset's network, and 19 million."""
DATA = {
    "smallest": {"size": 16, "train": 2, "validation": 1},
    "laptop": {"size": 40, "train": 8, "validation": 4},
}
"""Voxels along an edge, and cases at each site."""
PARTS = ("open", "publish", "dispatch", "wait", "collect", "aggregate")
EXPLAINED = {
    "open": "choose the sites, put their jobs",
    "publish": "what is left of publishing",
    "dispatch": "start the sites",
    "wait": "the sites start, fetch, work, deliver; their news arrive",
    "collect": "fetch and judge the updates that came last",
    "aggregate": "merge, put the global model",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=3, help="local epochs: how long the sites work")
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--data", choices=DATA, default="smallest", help="what the sites work on")
    parser.add_argument(
        "--through-store", action="store_true", help="let sites and portal read weights from the store alone"
    )
    parser.add_argument("--settings", default="fedportal.settings", help="the portal's settings module")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    folder = temporary_folder()
    elsewhere = Path(tempfile.mkdtemp(dir="/dev/shm"))
    if options.through_store:
        (folder / "work").symlink_to(elsewhere)
    found = {}
    try:
        with Stage(folder, settings=options.settings) as stage:
            stage.start("store")
            stage.set_up(**DATA[options.data])
            stage.start("trainer", "portal", "orchestrator")
            for name in options.model or MODELS:
                found[name] = measure(stage, name, options.rounds, options.epochs, reads=options.through_store)
    finally:
        for made in (folder, elsewhere):
            shutil.rmtree(made, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


def measure(stage: Stage, name: str, rounds: int, epochs: int, *, reads: bool) -> dict[str, Any]:
    plan = {
        "rounds": rounds,
        "local_epochs": epochs,
        "threads": 1,
        "augmentation": "none",
        "network": MODELS[name],
        "optimizer": {"treatment": "reset"},
    }
    experiment = stage.wait_for_end(stage.experiment(plan=plan, title=f"Overhead, {name}"), timeout=300 * rounds)
    if experiment.state != "completed":
        raise RuntimeError(f"{experiment.reason}\n{stage.journal(experiment)}")
    # The first round also makes the initial model and reads the images from their files; it is shown apart.
    first, *steady = list(experiment.rounds.filter(kind="train").order_by("number"))
    model = experiment.models.get(round_number=1)
    parts = {part: [row.timings.get(part, 0.0) for row in steady] for part in PARTS}
    sites = _at_sites(steady)
    say(
        f"\n{name}: {model.size / 4e6:.2f} million parameters ({model.size / 1e6:.1f} MB), {len(steady)} rounds, 3 sites"
    )
    overhead = [row.timings["overhead"] for row in steady]
    say(f"  overhead                 {spread(overhead)}   (first round: {first.timings['overhead']:.3f} s)")
    least = floor(stage, model.size, reads=reads)
    say(f"  floor: the store alone   {spread([updates + model for updates, model in least])}")
    say(f"    three updates          {spread([updates for updates, _ in least])}")
    say(f"    the global model       {spread([model for _, model in least])}")
    say(f"  round                    {spread([row.timings['total'] for row in steady])}")
    say(f"  slowest site's own work  {spread([row.timings['slowest_site'] for row in steady])}")
    say("  the portal's time, by part:")
    for part, values in parts.items():
        say(f"    {part:<22} {spread(values)}   {EXPLAINED[part]}")
    say("  at the slowest site, its own work and what it waited for:")
    for part, values in sites.items():
        say(f"    {part:<22} {spread(values)}")
    return {
        "overhead": overhead,
        "floor": least,
        "parts": parts,
        "sites": sites,
        "bytes": model.size,
        "load": os.getloadavg()[0],
    }


def floor(stage: Stage, size: int, *, reads: bool, times: int = 5) -> list[tuple[float, float]]:
    """Return the seconds in which a bare script moves the objects of a round: the updates, then the global model.
    Nothing is trained, judged or merged.

    ``reads``: each site also reads the global model before, and each update is read back.
    """
    store, content = stage.weed.store(), stage.folder / "floor"
    content.write_bytes(os.urandom(size))
    sha256 = store.put_file("fedportal/floor/model", content)
    found = []
    with ThreadPoolExecutor(len(SITES)) as pool:

        def at_all_sites(act: Any) -> None:
            list(pool.map(act, SITES))

        for number in range(times):
            start = time.monotonic()
            if reads:
                at_all_sites(lambda site: store.get_file("fedportal/floor/model", stage.folder / site))
            places = {site: store.open_upload(f"fedportal/floor/r{number}/{site}", size, HOUR) for site in SITES}
            at_all_sites(lambda site, places=places: Courier().put(places[site], content, "the update"))
            if reads:
                at_all_sites(lambda site, n=number: store.get_file(f"fedportal/floor/r{n}/{site}", stage.folder / site))
            middle = time.monotonic()
            store.put_file(f"fedportal/floor/r{number}/model", content, sha256=sha256)
            found.append((middle - start, time.monotonic() - middle))
    store.delete_prefix("fedportal/floor")
    return found


def _at_sites(rounds: Sequence[Any]) -> dict[str, list[float]]:
    from fedportal.orchestrator.steps.closing import OWN_WORK

    found: dict[str, list[float]] = {part: [] for part in ("pull", *OWN_WORK, "push")}
    for row in rounds:
        runs = list(row.site_runs.all())
        slowest = max(runs, key=lambda run: sum(run.seconds.get(part, 0.0) for part in OWN_WORK))
        for part in found:
            found[part].append(slowest.seconds.get(part, 0.0))
    return found


def spread(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return f"p50 {statistics.median(ordered):6.3f} s  p95 {p95:6.3f} s"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
