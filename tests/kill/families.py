"""A run with all its baselines and the evaluation of every model, by real processes on tiny volumes: once undisturbed, once
with the orchestrator killed in a baseline's round and in the evaluation. Both end with the same models and scores. Before
the baselines begin, a case that one hospital tests on appears among the training cases of another.

    python -m tests.kill.families --json FILE
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tests.stage import Stage, temporary_folder

PLAN = {"rounds": 2, "local_epochs": 2, "threads": 1, "seed": 7, "network": {"channels": [4, 8], "strides": [2]}}
ALL = ["pooled", "local_only", "ensemble", "cyclic"]
TIMEOUT = 300


def run(stage: Stage, *, kills: bool) -> dict[str, Any]:
    """Run a family to its end; return all that is to be the same, and what a reader of the tests wants to know."""
    from fedportal.experiments import baselines

    stage.start("orchestrator")
    main = stage.wait_for_end(stage.experiment(plan=PLAN, title="Family"), timeout=TIMEOUT)
    main.compare_every = 1  # in the draft it would have had an evaluation at once
    main.save(update_fields=["compare_every"])
    described = _copy_a_tested_case(stage)
    baselines.add(experiment=main, kinds=ALL, by=main.owner)
    killed = []
    if kills:
        for kind in ("cyclic", "cross_site"):
            _wait_until_it_is_at_a_site(stage, main.family.get(kind=kind))
            stage.kill("orchestrator")
            killed.append(kind)
            stage.start("orchestrator")
    for member in main.family:
        stage.wait_for_end(member, timeout=TIMEOUT)
    stage.kill("orchestrator")
    _hospital(stage, "mainz").write_text(described)
    return {"killed": killed, **_told(main)}


def _wait_until_it_is_at_a_site(stage: Stage, experiment: Any) -> None:
    from fedportal.experiments.models import SiteRun

    end = time.monotonic() + TIMEOUT
    number = 1 if experiment.kind == "cross_site" else 2
    begun = SiteRun.objects.filter(round__experiment=experiment, round__number=number).exclude(state="run_pending")
    while time.monotonic() < end:
        experiment.refresh_from_db()
        if not experiment.is_active:
            break
        if begun.exists():
            return
        time.sleep(0.005)
    raise TimeoutError(f"{experiment.title} was never seen at a site: {experiment.reason}\n{stage.journal(experiment)}")


def _told(main: Any) -> dict[str, Any]:
    from django.db.models import Count

    from fedportal.experiments.models import CaseScore, SiteRun

    def place(member: Any) -> str:
        site = member.participations.first().site.slug
        return f"local_only {site}" if member.kind == "local_only" else member.kind

    family = {place(member): member for member in main.family}
    runs = SiteRun.objects.filter(round__experiment__in=family.values(), round__kind="train", state="admitted")
    columns = ("site", "subject", "case", "name", "region", "value")
    return {
        "states": {name: [member.state, member.reason] for name, member in family.items()},
        "models": {
            name: list(member.models.order_by("round_number").values_list("sha256", flat=True))
            for name, member in family.items()
        },
        # pseudonyms differ from family to family: cases are told apart by their order
        "scores": [
            {name: sorted(_anonymous(CaseScore.objects.filter(experiment=member).values_list(*columns)), key=str)}
            for name, member in family.items()
        ],
        "subjects": ["global", *family["cross_site"].subjects.values_list("name", flat=True)],
        "measured": sorted(
            [site, subject, name, region, count]
            for site, subject, name, region, count in family["cross_site"]
            .case_scores.values_list("site", "subject", "name", "region")
            .annotate(Count("case", distinct=True))
            .order_by()
        ),
        "steps": {
            name: sum(runs.filter(round__experiment=member).values_list("steps", flat=True))
            for name, member in family.items()
        },
        "train_cases": {
            name: sorted({run.train_cases for run in runs.filter(round__experiment=member)})
            for name, member in family.items()
        },
        "feed": list(main.events.filter(kind__startswith="baseline_").order_by("pk").values_list("text", flat=True)),
    }


def _anonymous(rows: Any) -> list[list[Any]]:
    return [[site, subject, name, region, value] for site, subject, _case, name, region, value in rows]


def _hospital(stage: Stage, slug: str) -> Path:
    return next((stage.folder / "hospitals" / slug).glob("*/dataset.json"))


def _copy_a_tested_case(stage: Stage) -> str:
    """Give one hospital a copy, under another name, of a case that another one tests on; return its old dataset.json."""
    graz, mainz = _hospital(stage, "graz"), _hospital(stage, "mainz")
    theirs, ours = json.loads(graz.read_text()), json.loads(mainz.read_text())
    copy = {}
    for what, folder in (("image", "imagesTr"), ("label", "labelsTr")):
        copy[what] = f"./{folder}/another_name.nii.gz"
        shutil.copy(graz.parent / theirs["validation"][0][what], mainz.parent / copy[what])
    before = mainz.read_text()
    mainz.write_text(json.dumps({**ours, "training": [*ours["training"], copy]}))
    return before


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--settings", default="fedportal.settings", help="the portal's settings module")
    options = parser.parse_args()
    folder = temporary_folder()
    try:
        with Stage(folder, settings=options.settings) as stage:
            stage.start("store")
            stage.set_up()
            stage.start("trainer", "portal")
            begun = time.monotonic()
            found = {"calm": run(stage, kills=False)}
            found["seconds"] = round(time.monotonic() - begun, 1)
            found["killed"] = run(stage, kills=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = json.dumps(found, indent=2)
    if options.json:
        options.json.write_text(text)
    else:
        sys.stdout.write(text + "\n")
    same = all(found["calm"][what] == found["killed"][what] for what in ("models", "scores"))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
