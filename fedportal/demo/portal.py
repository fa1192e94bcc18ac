"""The demo's people, hospitals and experiment, made with the same services that the pages use."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import django
from django.apps import apps

from fedportal.demo.state import DemoError

CHECK_TIMEOUT = 120.0
TITLE = "Reference experiment"


def set_up() -> None:
    """Load Django in this process. The environment must be complete by then."""
    if not apps.ready:
        django.setup()


def site_key(slug: str) -> str:
    """Return a hospital's key (hex), as its page shows it to operators."""
    from django.conf import settings

    from trainer.contract import site_key

    return site_key(settings.FEDPORTAL_ATTEMPT_SECRET, slug).hex()


def prepare(
    *,
    hospitals: Sequence[tuple[str, str, str]],
    connection: Callable[[str], dict[str, Any]],
    passwords: Mapping[str, str],
    rounds: int,
    seed: int,
) -> Any:
    """Create people, hospitals and the reference experiment unless they exist; return the experiment.

    An experiment with the same sites, rounds and seed is used again, whether it has ended or not, so that a second
    ``make demo`` continues the first.
    """
    from fedportal.experiments import baselines, services
    from fedportal.experiments.models import Baseline, Experiment

    people = ensure_people(passwords)
    sites = [ensure_hospital(hospital, connection, people["steward"]) for hospital in hospitals]
    datasets = [wait_for_dataset(site) for site in sites]
    slugs = {site.slug for site in sites}
    for experiment in Experiment.objects.filter(title=TITLE, rounds_planned=rounds).order_by("-pk"):
        same_sites = set(experiment.participations.values_list("site__slug", flat=True)) == slugs
        if same_sites and experiment.plan.get("seed") == seed:
            return experiment
    experiment = services.create_draft(owner=people["researcher"], preset="laptop", title=TITLE, participants=datasets)
    # Data at real Airflow servers cannot be pooled, and three servers on one machine are slow enough with one run.
    chosen = [] if baselines.problems(experiment) else Baseline.values
    question = "Can hospitals train one model for brain tumours without sharing an image?"
    services.update_draft(
        experiment=experiment,
        by=people["researcher"],
        fields={"question": question, "baselines": chosen},
        plan={"rounds": rounds, "seed": seed},
    )
    experiment.refresh_from_db()
    return experiment


def start(experiment: Any) -> None:
    """Start the experiment, or resume it and its baselines where they failed. A paused one stays paused."""
    from fedportal.experiments import services
    from fedportal.experiments.states import ExperimentState

    experiment.refresh_from_db()
    if experiment.is_draft:
        services.start(experiment=experiment, by=experiment.owner)
        return
    for member in experiment.family.filter(state=ExperimentState.FAILED):
        services.resume(experiment=member, by=experiment.owner)


def has_ended(experiment: Any) -> bool:
    experiment.refresh_from_db()
    return not experiment.is_active and not experiment.is_draft


def family_has_ended(experiment: Any) -> bool:
    """Whether the experiment and all its baselines have ended; baselines start only after it has completed."""
    from fedportal.experiments.states import ExperimentState

    if not has_ended(experiment):
        return False
    return experiment.status is not ExperimentState.COMPLETED or not any(run.is_active for run in experiment.family)


def compared(experiment: Any) -> dict[str, Any]:
    """Return how the baselines ended, and each model's mean Dice over all sites and per site, as on the page."""
    from fedportal.monitoring.comparison import MEASURES, Comparison, Scores
    from fedportal.monitoring.families import family_of

    family = family_of(experiment)
    dice = next(measure for measure in MEASURES if measure.name == "dice")
    lines = Comparison(family, Scores(family, dice), measure=dice).lines
    return {
        "baselines": {run.title: run.state for run in family.members if run.pk != experiment.pk},
        "comparison": {
            line.contender.key: {
                "mean": line.mean.value,
                "sites": {cell.site: cell.estimate.value for cell in line.cells},
            }
            for line in lines
        },
    }


def summary(experiment: Any, *, answers_at: float) -> dict[str, Any]:
    """Return what a script needs to know about an ended experiment; seconds are wall-clock time."""
    from fedportal.experiments.models import Metric, RoundKind

    final, best = experiment.newest_model, experiment.best_model
    rounds = experiment.rounds.filter(kind=RoundKind.TRAIN, state="done")
    overheads = [r.timings["overhead"] for r in rounds if "overhead" in r.timings]
    first = Metric.objects.filter(experiment=experiment, phase="train").order_by("at").first()
    live = first is not None and experiment.started_at.timestamp() >= answers_at - 60
    return {
        "experiment": experiment.key,
        "state": experiment.state,
        "reason": experiment.reason,
        "rounds": rounds.count(),
        "seconds": round(experiment.duration.total_seconds(), 2) if experiment.duration else None,
        "seconds_to_first_point": round(first.at.timestamp() - answers_at, 2) if live else None,
        "final_dice": final and final.dice,
        "final_dice_per_region": final and final.scores.get("all", {}).get("dice"),
        "best_dice": best and best.dice,
        "best_round": best and best.round_number,
        "overhead_seconds_p50": round(statistics.median(overheads), 3) if overheads else None,
        "overhead_seconds_per_round": [round(value, 3) for value in overheads],
        "model_sha256": final and final.sha256,
    }


def ensure_people(passwords: Mapping[str, str]) -> dict[str, Any]:
    from fedportal.accounts.models import Role, User

    people = {}
    for name, first in (("researcher", "Rosa"), ("steward", "Stefan"), ("operator", "Olga")):
        user, created = User.objects.get_or_create(
            username=name,
            defaults={
                "role": Role(name),
                "first_name": first,
                "last_name": "Demo",
                "is_superuser": name == "operator",
            },
        )
        if created:
            user.set_password(passwords[name])
            user.save()
        people[name] = user
    return people


def ensure_hospital(hospital: tuple[str, str, str], connection: Callable[[str], dict[str, Any]], steward: Any) -> Any:
    from fedportal.sites import services
    from fedportal.sites.models import Site

    slug, name, city = hospital
    try:
        return Site.objects.get(slug=slug)
    except Site.DoesNotExist:
        return services.register(slug=slug, name=name, city=city, stewards=[steward], **connection(slug))


def wait_for_dataset(site: Any) -> Any:
    """Wait until the orchestrator has checked the site; return the dataset that it found."""
    end = time.monotonic() + CHECK_TIMEOUT
    while time.monotonic() < end:
        if dataset := site.datasets.filter(is_available=True).first():
            return dataset
        time.sleep(0.1)
    check = site.last_check
    problem = check.first_problem["message"] if check and not check.ok else "the orchestrator has not checked it"
    raise DemoError(f"{site.name} has no dataset: {problem}")
