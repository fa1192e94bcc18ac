"""Rows for tests. The cast: ada researches, otto operates, stella is steward, audrey audits, eve is a stranger."""

from __future__ import annotations

import itertools
from typing import Any

from fedportal.accounts.models import Role, User
from fedportal.experiments.models import Experiment, Participation
from fedportal.sites.models import Dataset, Site, SiteCheck
from trainer.contract import Network, Region, Task, TrainingPlan

_count = itertools.count(1)
PASSWORD = "correct-horse-battery"

BRAIN_LABELS = {0: "background", 1: "edema", 2: "non-enhancing tumor", 3: "enhancing tumour"}
BRAIN_CHANNELS = ("FLAIR", "T1w", "t1gd", "T2w")
BRAIN_TASK = Task(
    name="BRATS",
    channels=BRAIN_CHANNELS,
    labels=BRAIN_LABELS,
    regions=(Region("WT", (1, 2, 3)), Region("TC", (2, 3)), Region("ET", (3,))),
)


def make_user(username: str = "", role: str = Role.RESEARCHER, **fields: Any) -> User:
    username = username or f"user{next(_count)}"
    user = User(username=username, role=role, **fields)
    user.set_password(PASSWORD)
    user.save()
    return user


def ada() -> User:
    return make_user("ada", first_name="Ada")


def otto() -> User:
    return make_user("otto", Role.OPERATOR, first_name="Otto", is_superuser=True)


def stella() -> User:
    return make_user("stella", Role.STEWARD, first_name="Stella")


def audrey() -> User:
    return make_user("audrey", Role.AUDITOR, first_name="Audrey")


def eve() -> User:
    return make_user("eve", first_name="Eve")


def make_site(slug: str = "", *, healthy: bool = True, **fields: Any) -> Site:
    slug = slug or f"site{next(_count)}"
    fields.setdefault("name", f"Hospital {slug}")
    fields.setdefault(
        "config", {"data_root": f"/nowhere/{slug}/data", "work_dir": f"/nowhere/{slug}/work", "threads": 1}
    )
    site = Site.objects.create(slug=slug, check_due_at=None, **fields)
    if healthy:
        steps = [{"name": "data", "ok": True, "message": "1 dataset found", "remedy": "", "seconds": 0.1}]
        SiteCheck.objects.create(site=site, ok=True, steps=steps, version="0.1.0")
    return site


def make_dataset(site: Site, name: str = "Task01_BrainTumour", **fields: Any) -> Dataset:
    defaults: dict[str, Any] = {
        "title": "BRATS",
        "train_cases": 8,
        "validation_cases": 4,
        "channels": list(BRAIN_CHANNELS),
        "labels": {str(number): label for number, label in BRAIN_LABELS.items()},
        "spacing": [4.8, 4.8, 4.8],
        "shape": [40, 40, 40],
    }
    return Dataset.objects.create(site=site, name=name, **{**defaults, **fields})


def make_plan(**fields: Any) -> TrainingPlan:
    fields.setdefault("network", Network(channels=(4, 8), strides=(2,)))
    fields.setdefault("rounds", 2)
    fields.setdefault("local_epochs", 1)
    fields.setdefault("threads", 1)
    return TrainingPlan(task=BRAIN_TASK, **fields)


def make_experiment(owner: User | None = None, *, sites: int = 3, rounds: int = 2, **fields: Any) -> Experiment:
    """A draft with participants at ``sites`` healthy sites."""
    experiment = Experiment.objects.create(
        owner=owner or make_user(),
        title=fields.pop("title", f"Experiment {next(_count)}"),
        plan=fields.pop("plan", None) or make_plan(rounds=rounds).to_json(),
        rounds_planned=rounds,
        **fields,
    )
    for _ in range(sites):
        site = make_site()
        Participation.objects.create(experiment=experiment, site=site, dataset=make_dataset(site))
    return experiment
