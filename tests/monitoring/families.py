"""Families that have been measured: a federated run, its repeats, what stands beside them, and every case's scores."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from django.utils import timezone

from fedportal.accounts.models import User
from fedportal.experiments.models import (
    CaseScore,
    Experiment,
    Kind,
    Metric,
    Participation,
    Round,
    RoundKind,
    SiteRun,
    Subject,
)
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from tests import factories
from trainer.contract import Phase

REGIONS = ("WT", "TC", "ET")
SITES = ("graz", "mainz", "ulm")
SKILL = {"global": 0.03, "best": 0.028, "pooled": 0.05, "ensemble": -0.01, "cyclic": 0.0, "local": -0.06}
"""How much better than average each kind of model is, in Dice."""


def make_family(
    owner: User | None = None,
    *,
    sites: Sequence[str] = SITES,
    repeats: int = 1,
    cases: int = 8,
    rounds: int = 6,
    kinds: Sequence[str] = ("pooled", "local_only", "cyclic"),
    **fields: Any,
) -> Experiment:
    """A completed family with curves and case scores; returns its head."""
    head = factories.make_experiment(owner, sites=0, rounds=rounds, repeats=repeats, **fields)
    for slug in sites:
        site = factories.make_site(slug, name=slug.title())
        Participation.objects.create(experiment=head, site=site, dataset=factories.make_dataset(site))
    runs = [head]
    for number in range(1, repeats):
        runs.append(member_of(head, head, Kind.FEDERATED, turn=5 * number, beside=None))
    for seed, run in enumerate(runs):
        finish(run, seed=seed)
        add_curves(run, final=0.78 + 0.005 * seed)
        measure(run, {"global": Subject.Role.GLOBAL}, cases=cases, seed=seed, with_rows=False)
        if "local_only" in kinds:
            for part in list(head.participations.all()):
                local = member_of(head, run, Kind.LOCAL_ONLY, turn=run.turn + 1, sites=[part])
                add_curves(local, final=0.70)
                finish(local)
        if "pooled" in kinds:
            pool, _ = _pool(sites)
            pooled = member_of(head, run, Kind.POOLED, turn=run.turn + 2, sites=[pool])
            add_curves(pooled, final=0.80)
            finish(pooled)
        if "cyclic" in kinds:
            cyclic = member_of(head, run, Kind.CYCLIC, turn=run.turn + 3, rounds=rounds * len(sites))
            add_curves(cyclic, final=0.74)
            finish(cyclic)
        if kinds:
            evaluation = member_of(head, run, Kind.CROSS_SITE, turn=run.turn + 4)
            finish(evaluation)
            subjects: dict[str, str] = {"best": Subject.Role.BEST}
            subjects |= {kind: kind for kind in ("pooled", "cyclic") if kind in kinds}
            if "local_only" in kinds:
                subjects["ensemble"] = Subject.Role.ENSEMBLE
                subjects |= {f"local-{slug}": Subject.Role.LOCAL for slug in sites}
            measure(evaluation, subjects, cases=cases, seed=seed)
            measure(evaluation, {"global": Subject.Role.GLOBAL}, cases=cases, seed=seed, with_rows=False)
    head.refresh_from_db()
    return head


def _pool(sites: Sequence[str]) -> tuple[Participation, bool]:
    from fedportal.sites.models import Site

    site = Site.objects.filter(is_pool=True).first()
    if site is None:
        site = factories.make_site("pool", name="Pool of " + ", ".join(sites), is_pool=True)
        factories.make_dataset(site)
    return Participation(site=site, dataset=site.datasets.get()), True


def member_of(
    head: Experiment, run: Experiment, kind: str, *, turn: int, sites: Sequence[Participation] = (), **fields: Any
) -> Experiment:
    """A member of a family that has not begun: a repeat (``beside=None``), a baseline, a cross-site evaluation."""
    rounds = fields.pop("rounds", head.rounds_planned)
    member = Experiment.objects.create(
        owner=head.owner,
        title=f"{head.title}: {Kind(kind).label}",
        kind=kind,
        head=head,
        beside=fields.pop("beside", run),
        turn=turn,
        plan={**run.plan, "seed": turn},
        rounds_planned=rounds,
        state=ExperimentState.RUNNING,
        started_at=timezone.now() - timedelta(minutes=30),
        **fields,
    )
    for part in sites or head.participations.all():
        Participation.objects.create(experiment=member, site=part.site, dataset=part.dataset)
    return member


def finish(experiment: Experiment, *, seed: int = 0) -> None:
    Experiment.objects.filter(pk=experiment.pk).update(
        state=ExperimentState.COMPLETED,
        started_at=timezone.now() - timedelta(minutes=30),
        ended_at=timezone.now(),
        plan={**experiment.plan, "seed": seed},
    )
    experiment.refresh_from_db()


def add_curves(experiment: Experiment, *, final: float, steps: int = 12, seconds: float = 4.0) -> None:
    """Rounds whose incoming models were measured at every site, rising towards ``final``."""
    began = timezone.now() - timedelta(minutes=25)
    parts = list(experiment.participations.select_related("site"))
    wobble = random.Random(experiment.turn * 100 + len(parts))
    metrics = []
    for number in range(1, experiment.rounds_planned + 2):
        is_last = number > experiment.rounds_planned
        at = began + timedelta(seconds=seconds * number)
        opened = Round.objects.create(
            experiment=experiment,
            number=number,
            kind=RoundKind.EVALUATE if is_last else RoundKind.TRAIN,
            state=RoundState.DONE,
            started_at=at,
            dispatched_at=at,
            ended_at=at + timedelta(seconds=seconds),
        )
        for part in parts:
            run = SiteRun.objects.create(
                round=opened, participation=part, state=SiteRunState.ADMITTED, attempt=1, steps=0 if is_last else steps
            )
            level = final * (1 - 0.85 ** (number * 12 / experiment.rounds_planned)) + wobble.uniform(-0.02, 0.02)
            metrics += [
                Metric(
                    experiment=experiment,
                    site_run=run,
                    site=part.site.slug,
                    attempt=1,
                    round_number=number,
                    phase=Phase.INCOMING,
                    name="dice",
                    region=region,
                    value=level + offset,
                    at=at + timedelta(seconds=1),
                )
                for region, offset in (("mean", 0.0), ("WT", 0.05), ("TC", -0.02), ("ET", -0.03))
            ]
    Metric.objects.bulk_create(metrics)


def pseudonym(site: str, number: int) -> str:
    return hashlib.sha256(f"{site}/{number}".encode()).hexdigest()[:16]


def measure(
    experiment: Experiment,
    subjects: dict[str, str],
    *,
    cases: int = 8,
    seed: int = 0,
    with_rows: bool = True,
    value: Callable[[str, str, int, str], float | None] | None = None,
) -> None:
    """Write the scores of some subjects on every site's cases, harder cases being hard for all of them.

    ``value`` (subject, site, case, region) gives the Dice in place of what is drawn.
    """
    rows = []
    for name, role in subjects.items():
        home = name.removeprefix("local-") if role == Subject.Role.LOCAL else ""
        if with_rows:
            Subject.objects.create(experiment=experiment, name=name, role=role, site=home)
        for site in experiment.participations.values_list("site__slug", flat=True):
            for number in range(cases):
                hardness = random.Random(f"{site}/{number}").betavariate(9, 3)
                for region in REGIONS:
                    noise = random.Random(f"{name}/{site}/{number}/{region}/{seed}").gauss(0, 0.03)
                    dice = min(max(hardness + SKILL[role] + 0.04 * (home == site) + noise, 0.0), 1.0)
                    if value is not None:
                        dice = value(name, site, number, region)
                    distance = None if dice is None or (number == 0 and region == "ET") else 12 * (1.05 - dice)
                    case = pseudonym(site, number)
                    for measure_name, found in (("dice", dice), ("hd95", distance)):
                        rows.append(
                            CaseScore(
                                experiment=experiment,
                                site=site,
                                subject=name,
                                case=case,
                                name=measure_name,
                                region=region,
                                value=found,
                            )
                        )
    CaseScore.objects.bulk_create(rows)
