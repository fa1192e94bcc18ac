"""A site that is not reached: its runs wait for one question, its page says since when, and the others go on."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from django.utils import timezone

from fedportal.connectors.base import RunState, RunStatus
from fedportal.connectors.breaker import OPENS_AFTER, Breaker, Contact, Guarded
from fedportal.connectors.errors import SiteUnreachable
from fedportal.experiments.states import SiteRunState as S
from fedportal.orchestrator.contacts import book_contacts
from fedportal.orchestrator.steps.watching import watch
from fedportal.sites.models import Site
from tests.factories import make_site
from tests.orchestrator.fakes import Federation
from tests.orchestrator.snapshots import model, site_run, snapshot, texts


class Counted:
    """Says how often a site is really called."""

    def __init__(self, site) -> None:
        self.site, self.calls = site, 0

    def __getattr__(self, name):
        return getattr(self.site, name)

    def poll(self, run: str) -> RunStatus:
        self.calls += 1
        return self.site.poll(run)


@pytest.fixture
def calls(federation: Federation) -> dict[str, Counted]:
    """The federation's sites behind breakers, counting their calls."""
    counted = {slug: Counted(site) for slug, site in federation.sites.items()}
    breakers = {slug: Breaker(federation.clock.monotonic) for slug in counted}
    federation.tools.connector = lambda site: Guarded(counted[site.slug], breakers[site.slug])
    return counted


def experiments(federation: Federation, count: int):
    """So many experiments that all have a run at the sites a and b."""
    found = []
    for number in range(count):
        s = snapshot(incoming=model(federation), site_runs=(site_run("a", S.RUNNING), site_run("b", S.RUNNING)))
        runs = tuple(
            replace(run, current=replace(run.attempt, run=f"fp-{number:04d}-r1-{run.site.slug}-a1"))
            for run in s.site_runs
        )
        for run in runs:
            federation[run.site.slug].states[run.attempt.run] = RunStatus(RunState.RUNNING)
        found.append(replace(s, key=f"{number:04d}", site_runs=runs))
    return found


def look(federation: Federation, all_of_them, *, seconds: float, every: float = 0.5) -> None:
    for _ in range(int(seconds / every)):
        federation.clock.tick(every)
        for s in all_of_them:
            watch(replace(s, now=federation.clock.now), federation.tools)


def test_a_dead_site_is_asked_once_for_all_its_runs_and_the_others_go_on(federation: Federation, calls) -> None:
    many = experiments(federation, 10)
    federation["a"].trouble = SiteUnreachable("a is dead.")
    look(federation, many, seconds=2)
    assert calls["a"].calls < 2 * len(many), "at first nobody knows"
    dead, alive = calls["a"].calls, calls["b"].calls
    look(federation, many, seconds=120)
    tries = calls["a"].calls - dead
    assert 2 <= tries <= 8, "5, 10, 20, 40, 60 s"
    assert calls["b"].calls - alive > 10 * len(many)
    federation["a"].trouble = None
    look(federation, many, seconds=75)
    before = calls["a"].calls
    look(federation, many, seconds=30)
    assert calls["a"].calls - before >= len(many), "all its runs are asked for again"


def test_people_are_told_when_the_breaker_opens(federation: Federation, calls) -> None:
    (s,) = experiments(federation, 1)
    federation["a"].trouble = SiteUnreachable("a is dead.")
    said = []
    for _ in range(40):
        federation.clock.tick(0.5)
        said.append(texts(watch(replace(s, now=federation.clock.now), federation.tools).changes))
    assert any("Hospital A: a is dead. Trying again." in text for text in said)
    assert calls["a"].calls >= OPENS_AFTER


def test_every_run_of_a_site_hears_soon_that_it_is_back(federation: Federation, calls) -> None:
    many = experiments(federation, 5)
    federation["a"].trouble = SiteUnreachable("a is dead.")
    look(federation, many, seconds=200)
    federation["a"].trouble = None
    before = calls["a"].calls
    while calls["a"].calls == before:
        look(federation, many, seconds=0.5)
    look(federation, many, seconds=3)
    assert calls["a"].calls - before >= len(many), "within 3 s of the first answer"


# --- what is booked -------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_site_keeps_since_when_it_is_not_reached_until_it_is(federation: Federation) -> None:
    make_site("a")
    Site.objects.update(last_contact_at=timezone.now() - timedelta(hours=2))
    news = {"a": Contact(reached=900.0, silent=600.0, next_try=40.0, reason="It is dead.")}
    federation.tools.contacts = lambda: news
    book_contacts(federation.tools)
    site = Site.objects.get()
    since = site.unreached_since
    assert abs((timezone.now() - since).total_seconds() - 600) < 60
    assert abs((timezone.now() - site.last_contact_at).total_seconds() - 900) < 60
    assert 0 < site.next_try_in <= 40
    news["a"] = Contact(silent=1.0, next_try=60.0, reason="It is dead.")  # as a restarted orchestrator knows it
    book_contacts(federation.tools)
    assert Site.objects.get().unreached_since == since
    news["a"] = Contact(reached=0.0)
    book_contacts(federation.tools)
    site = Site.objects.get()
    assert (site.unreached_since, site.unreached_because, site.next_try_at) == (None, "", None)
    assert (timezone.now() - site.last_contact_at).total_seconds() < 60


@pytest.mark.django_db
def test_an_older_contact_does_not_replace_a_newer_one(federation: Federation) -> None:
    make_site("a")
    newest = timezone.now()
    Site.objects.update(last_contact_at=newest)
    federation.tools.contacts = lambda: {"a": Contact(reached=50.0)}
    book_contacts(federation.tools)
    assert Site.objects.get().last_contact_at == newest


def test_without_news_no_row_is_touched(federation: Federation) -> None:
    book_contacts(federation.tools)  # there is no database here: a query would fail
