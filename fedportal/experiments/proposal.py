"""Which sites a draft begins with when nobody has chosen any."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fedportal.accounts.models import User
from fedportal.experiments.models import Experiment
from fedportal.experiments.readiness import dataset_problem, site_problem
from fedportal.sites.models import Dataset, Site

MOST_UNASKED = 10
"""More sites than these are nobody's choice unless somebody chose them before."""


@dataclass(frozen=True)
class Proposal:
    """Datasets of one task, one of each site; ``reason`` ends a sentence on the draft: why it begins with these."""

    datasets: list[Dataset]
    reason: str


def propose(owner: User) -> Proposal:
    """Return what is ready of the owner's last experiment; else every ready site, or none when they are many."""
    ready = _ready()
    if again := [dataset for dataset in _of_last_experiment(owner) if dataset in ready]:
        return Proposal(again, f"with the sites of your last experiment that are ready ({len(again)})")
    datasets = _of_most_common_task(ready)
    if not datasets:
        return Proposal([], "without a site, for none has a dataset that is in order")
    if len(datasets) > MOST_UNASKED:
        return Proposal([], f"without a site, for {len(datasets)} are ready: choose them under “Sites and datasets”")
    return Proposal(datasets, f"with every site that is ready ({len(datasets)})")


def _ready() -> list[Dataset]:
    return [
        dataset
        for site in Site.objects.hospitals().with_last_check().prefetch_related("datasets")
        if not site_problem(site)
        for dataset in sorted(site.datasets.all(), key=lambda dataset: dataset.name)
        if not dataset_problem(dataset)
    ]


def _of_last_experiment(owner: User) -> list[Dataset]:
    own = Experiment.objects.heads().filter(owner=owner).exclude(participations=None)
    last = own.order_by("-created_at", "-pk").first()
    return [part.dataset for part in last.participations.select_related("dataset")] if last else []


def _of_most_common_task(ready: list[Dataset]) -> list[Dataset]:
    """Return one dataset of every site, all with the most common task; brain tumours win a tie."""
    if not ready:
        return []
    sites = Counter(signature for signature, _ in {(dataset.task_signature, dataset.site_id) for dataset in ready})
    best = max(sites, key=lambda signature: (sites[signature], "FLAIR" in signature[0], signature))
    first: dict[int, Dataset] = {}
    for dataset in ready:
        if dataset.task_signature == best:
            first.setdefault(dataset.site_id, dataset)
    return list(first.values())
