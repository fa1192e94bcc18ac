"""What is done with sites: register, update, check, retire. Called by pages, API, admin and the orchestrator."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import models, transaction
from django.db.models.functions import Coalesce
from django.utils import timezone

from fedportal.accounts.models import User
from fedportal.connectors.base import CheckReport, CheckStep, DatasetReport
from fedportal.sites.connection import handout_of, issued, key_of, needs_key, needs_sign_in
from fedportal.sites.models import Dataset, SignIn, SignInState, Site, SiteCheck
from fedportal.sites.threads import connection_of_a_thread
from fedportal.ui.errors import DomainError
from trainer.contract.checks import storable

logger = logging.getLogger(__name__)

CHECK_EVERY = timedelta(minutes=15)
"""How often a healthy site is checked."""
CHECK_AGAIN = timedelta(minutes=2)
"""A site with a problem is checked sooner: somebody may be fixing it."""
KEEP_CHECKS = 200


@dataclass(frozen=True)
class Trouble:
    """A site does not answer: since when, why, and when the orchestrator tries again."""

    since: datetime
    reason: str
    next_try_at: datetime


class SiteRetired(DomainError):
    """This site is retired: it is no longer checked and cannot join new experiments."""


class SiteIsPool(DomainError):
    """The portal manages this pool by itself. Change the sites whose data it reads instead."""


class NoSignIn(DomainError):
    """Nobody needs to sign in at this site: its connector takes care of that."""


class NoKey(DomainError):
    """A site with this connector needs no key."""


class NothingIssued(DomainError):
    """The portal issues no credentials to a site with this connector."""


class NoCopy(DomainError):
    """A dataset cannot hold a copy of this one."""


class SiteBusy(DomainError):
    """This site takes part in an experiment that has not ended. Wait for it to end, or cancel it first."""


def register(
    *,
    slug: str,
    name: str,
    connector: str,
    config: dict[str, Any],
    city: str = "",
    contact: str = "",
    secrets: dict[str, str] | None = None,
    stewards: list[User] | None = None,
) -> Site:
    """Register a site; its first check is due at once. Raises ``ValidationError`` for invalid values."""
    site = Site(
        slug=slug,
        name=name,
        city=city,
        contact=contact,
        connector=connector,
        config=config,
        secrets={**issued(connector), **_without_empty(secrets or {})},
        check_due_at=timezone.now(),
    )
    site.full_clean()
    with transaction.atomic():
        site.save()
        site.stewards.set(stewards or [])
    return site


@transaction.atomic
def update(
    site: Site, *, stewards: list[User] | None = None, secrets: dict[str, str] | None = None, **fields: Any
) -> Site:
    """Change a site and have it checked again; the slug never changes.

    ``secrets`` are merged over the stored ones; an empty value deletes one. A site that gets another connector loses
    the old one's secrets: this raises :class:`SiteBusy` while the site takes part in an experiment. Pools raise
    :class:`SiteIsPool`.
    """
    if site.is_pool:
        raise SiteIsPool
    if "slug" in fields and fields["slug"] != site.slug:
        raise DomainError("A site's short name cannot be changed: its runs and files are named after it.")
    values = dict(fields)
    if values.get("connector", site.connector) != site.connector:
        if site.is_busy:
            raise SiteBusy
        values["secrets"] = {**issued(values["connector"]), **_without_empty(secrets or {})}
    elif secrets:
        # locked: the site may be renewing one
        site.refresh_from_db(fields=["secrets"], from_queryset=Site.objects.select_for_update())
        values["secrets"] = _without_empty({**site.secrets, **secrets})
    if not site.is_retired:
        values["check_due_at"] = timezone.now()
    for name, value in values.items():
        setattr(site, name, value)
    site.full_clean()
    site.save(update_fields=values)  # keeps what the orchestrator wrote meanwhile
    if stewards is not None:
        site.stewards.set(stewards)
    return site


def _without_empty(secrets: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in secrets.items() if value}


def show_key(site: Site, *, by: User) -> str:
    """Return the key that the site keeps in its own environment; who viewed it is recorded."""
    if not needs_key(site):
        raise NoKey
    record_act(site, by=by, text="Viewed the site's key")
    return key_of(site)


def hand_out(site: Site, *, by: User) -> dict[str, Any]:
    """Return what people paste at the site; who viewed it is recorded."""
    missing = {name: secret for name, secret in issued(site.connector).items() if name not in site.secrets}
    if missing:  # the site was registered before its connector asked for it
        site.secrets = {**site.secrets, **missing}
        site.save(update_fields=["secrets"])
    document = handout_of(site)
    if not document:
        raise NothingIssued
    record_act(site, by=by, text="Viewed the site's definition")
    return document


def reissue(site: Site, *, by: User) -> None:
    """Replace the secrets that the portal issues to the site: the old ones stop working at once."""
    new = issued(site.connector)
    if not new:
        raise NothingIssued
    site.secrets = {**site.secrets, **new}
    site.save(update_fields=["secrets"])
    record_act(site, by=by, text="Issued new credentials for the site")


def record_act(site: Site, *, by: User, text: str) -> None:
    """Record who did something with a site: in its history, which the admin shows, and in the log."""
    LogEntry.objects.log_actions(by.pk, [site], CHANGE, text, single_object=True)
    logger.info("site %s: %s (by %s)", site.slug, text, by.get_username())


def acts(site: Site) -> models.QuerySet[LogEntry]:
    """Return what people did with a site, most recent first."""
    of_sites = ContentType.objects.get_for_model(Site)
    return LogEntry.objects.filter(content_type=of_sites, object_id=site.pk).select_related("user").order_by("-pk")


def keep_secret(slug: str, name: str, secret: str) -> None:
    """Store a secret that a site has renewed. Called by connectors, from any thread."""
    with connection_of_a_thread(), transaction.atomic():
        site = Site.objects.select_for_update().get(slug=slug)
        site.secrets = {**site.secrets, name: secret}
        site.save(update_fields=["secrets"])


def kept_secret(slug: str, name: str) -> str:
    """Return a secret of a site as it is stored now; empty if there is none. Called by connectors, from any thread."""
    with connection_of_a_thread():
        return str(Site.objects.get(slug=slug).secrets.get(name, ""))


def request_sign_in(site: Site, *, by: User) -> SignIn:
    """Ask the orchestrator to start a sign-in at the site, whose code a person confirms there. It replaces an earlier one."""
    if site.is_retired:
        raise SiteRetired
    if not needs_sign_in(site):
        raise NoSignIn
    fresh = {"state": SignInState.ASKED, "asked_at": timezone.now(), "asked_by": by, "expires_at": None}
    empty = dict.fromkeys(("address", "user_code", "message", "remedy"), "")
    sign_in, _ = SignIn.objects.update_or_create(site=site, defaults={**fresh, **empty})
    record_act(site, by=by, text="Started signing the portal in at the site")
    return sign_in


def request_check(site: Site) -> None:
    """Ask the orchestrator to check the site now. Asking twice has the effect of asking once."""
    if site.is_retired:
        raise SiteRetired
    site.check_due_at = timezone.now()
    site.save(update_fields=["check_due_at"])


def tell_progress(site: Site, steps: Sequence[CheckStep]) -> None:
    """Let the site's page show how far its check has got."""
    Site.objects.filter(pk=site.pk).update(check_progress=[asdict(step) for step in steps])


@transaction.atomic
def record_check(site: Site, report: CheckReport) -> SiteCheck:
    """Store what the orchestrator's health loop found at a site, and schedule the next check.

    Datasets are matched by name: new ones are added, known ones updated, and those that a successful check no longer
    finds become unavailable (their rows stay, experiments refer to them). A failed check says nothing about the
    datasets. Only the columns named here are written: a form saved meanwhile loses nothing.
    """
    now = timezone.now()
    datasets = [DatasetReport(**storable(asdict(found))) for found in report.datasets]
    check = SiteCheck.objects.create(
        site=site,
        at=now,
        ok=report.ok,
        steps=storable([asdict(step) for step in report.steps]),
        version=storable(report.version[:80]),
        facts=storable(report.facts),
        seconds=sum(step.seconds for step in report.steps),
    )
    for found in datasets:
        _store_dataset(site, found, now)
    if report.ok:
        site.last_contact_at = now
        site.datasets.exclude(name__in=[found.name for found in datasets]).update(is_available=False)
    due = Site.objects.values_list("check_due_at", flat=True).get(pk=site.pk)
    asked_meanwhile = due is not None and due != site.check_due_at and due <= now
    if not asked_meanwhile:
        due = None if site.is_retired else now + (CHECK_EVERY if report.ok else CHECK_AGAIN)
    site.check_due_at = due
    site.checking_since, site.check_progress = None, []
    site.save(update_fields=["last_contact_at", "check_due_at", "checking_since", "check_progress"])
    outdated = site.checks.values_list("pk", flat=True)[KEEP_CHECKS:]
    site.checks.filter(pk__in=list(outdated)).delete()
    return check


def _store_dataset(site: Site, found: DatasetReport, now: Any) -> None:
    Dataset.objects.update_or_create(
        site=site,
        name=found.name,
        defaults={
            "title": found.title[:200],
            "train_cases": found.train_cases,
            "validation_cases": found.validation_cases,
            "channels": list(found.channels),
            "labels": {str(number): label for number, label in found.labels.items()},
            "spacing": list(found.spacing),
            "shape": list(found.shape),
            "problems": list(found.problems),
            "seen_at": now,
            "is_available": True,
        },
    )


def copy_problem(dataset: Dataset, other: Dataset) -> str:
    """Return why a dataset cannot hold every case of another one; empty if it can."""
    if other.pk == dataset.pk:
        return "A dataset cannot be a copy of itself."
    if other.site_id == dataset.site_id:
        return f"{other} is at the same site. Choose datasets of other sites."
    if other.task_signature != dataset.task_signature:
        return f"{other} has different channels or labels, so this dataset cannot hold its cases."
    if other.cases > dataset.cases:
        return f"{other} has more cases than this dataset, so this dataset cannot hold all of them."
    return ""


def set_copies(dataset: Dataset, copies: Sequence[Dataset], *, by: User) -> None:
    """Record whose every case this dataset holds, so that it can serve as pooled data. Raises :class:`NoCopy`."""
    if problem := next(filter(None, (copy_problem(dataset, other) for other in copies)), ""):
        raise NoCopy(problem)
    dataset.copy_of.set(copies)
    names = ", ".join(map(str, copies)) or "no other dataset"
    record_act(dataset.site, by=by, text=f"Recorded that {dataset.name} holds every case of {names}")


def record_contact(slug: str, *, reached_at: datetime | None, trouble: Trouble | None) -> None:
    """Store when a site last answered the orchestrator, and whether it still does."""
    row = Site.objects.filter(slug=slug)
    if reached_at is not None:
        row.filter(models.Q(last_contact_at=None) | models.Q(last_contact_at__lt=reached_at)).update(
            last_contact_at=reached_at
        )
    if trouble is None:
        row.update(unreached_since=None, unreached_because="", next_try_at=None)
    else:
        # a restarted orchestrator does not know how long this has lasted
        since = Coalesce("unreached_since", models.Value(trouble.since))
        row.update(unreached_since=since, unreached_because=trouble.reason[:300], next_try_at=trouble.next_try_at)


def retire(site: Site, *, by: User) -> None:
    """Take a site out of use. Its history stays; it is no longer checked, and no experiment can choose it."""
    if site.is_pool:
        raise SiteIsPool
    if site.is_retired:
        raise SiteRetired
    if site.is_busy:
        raise SiteBusy
    site.retired_at = timezone.now()
    site.check_due_at = None
    site.save(update_fields=["retired_at", "check_due_at"])
    record_act(site, by=by, text="Retired the site")


def reinstate(site: Site, *, by: User) -> None:
    """Put a retired site back into use; it is checked at once. For any other site, do nothing."""
    if not site.is_retired:
        return
    site.retired_at = None
    site.check_due_at = timezone.now()
    site.save(update_fields=["retired_at", "check_due_at"])
    record_act(site, by=by, text="Put the site back into use")
