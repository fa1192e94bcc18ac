"""A pool: a site of the portal's own that reads the data of several sites on this machine. No file is copied."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath

from django.utils import timezone
from django.utils.text import Truncator

from fedportal.sites.models import ConnectorKind, Dataset, Site
from trainer.contract import POOL_DATASET


def why_no_pool(datasets: Sequence[Dataset]) -> str:
    """Return why a model cannot be trained on these datasets in one place; empty if it can."""
    if _copy_of_all(datasets) is not None:
        return ""
    elsewhere = [str(dataset.site) for dataset in datasets if dataset.site.connector != ConnectorKind.LOCAL]
    if not elsewhere:
        return ""
    return (
        f"The data of {', '.join(elsewhere)} may not leave the hospital, and no site holds a copy of all participants' "
        "data. If a site does have such a copy, an operator can say so on that site's page."
    )


def pooled_dataset(datasets: Sequence[Dataset]) -> Dataset:
    """Return one dataset with every case of ``datasets``: a pool of sites on this machine, made once, or a copy.

    Raises ``ValueError`` if there is none (:func:`why_no_pool`). Call it inside a transaction.
    """
    if all(dataset.site.connector == ConnectorKind.LOCAL for dataset in datasets):
        return _pool(sorted(datasets, key=lambda dataset: dataset.site.slug))
    copy = _copy_of_all(datasets)
    if copy is None:
        raise ValueError(why_no_pool(datasets))
    return copy


def _copy_of_all(datasets: Sequence[Dataset]) -> Dataset | None:
    wanted = {dataset.pk for dataset in datasets}
    copies = Dataset.objects.filter(is_available=True, site__retired_at=None, copy_of__in=wanted).order_by("pk")
    for copy in copies.distinct():
        if wanted <= {copy.pk, *copy.copy_of.values_list("pk", flat=True)}:
            return copy
    return None


def _pool(datasets: Sequence[Dataset]) -> Dataset:
    members = [
        {"site": dataset.site.slug, "data_root": dataset.site.config["data_root"], "dataset": dataset.name}
        for dataset in datasets
    ]
    named = "".join(f"{member['site']}/{member['dataset']}\n" for member in members)
    slug = f"pool-{hashlib.sha256(named.encode()).hexdigest()[:8]}"
    first = datasets[0]
    config = {
        "data_root": first.site.config["data_root"],
        "work_dir": str(PurePosixPath(first.site.config["work_dir"]).parent / slug),
        "threads": first.site.config.get("threads", 1),
        "pool": members,
    }
    values = {"connector": ConnectorKind.LOCAL, "config": config, "is_pool": True, "check_due_at": timezone.now()}
    site, _ = Site.objects.update_or_create(
        slug=slug, defaults=values, create_defaults={**values, "name": _name(datasets, slug)}
    )
    # The first check would find it, too, but a baseline needs the row before that.
    dataset, _ = Dataset.objects.get_or_create(
        site=site,
        name=POOL_DATASET,
        defaults={
            "title": first.title,
            "train_cases": sum(dataset.train_cases for dataset in datasets),
            "validation_cases": sum(dataset.validation_cases for dataset in datasets),
            "channels": first.channels,
            "labels": first.labels,
            "spacing": first.spacing,
            "shape": first.shape,
        },
    )
    return dataset


def _name(datasets: Sequence[Dataset], slug: str) -> str:
    """Return “Pool of Mainz, Ulm”, with the pool's short name if a pool of other datasets there has that name."""
    name = Truncator("Pool of " + ", ".join(str(dataset.site) for dataset in datasets)).chars(100)
    return f"{name} ({slug})" if Site.objects.filter(name=name).exists() else name
