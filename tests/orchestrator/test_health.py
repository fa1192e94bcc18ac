"""Site checks: who is due, what is stored, who is woken."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.utils import timezone

from fedportal.connectors.base import CheckReport
from fedportal.connectors.checking import take_steps, watcher
from fedportal.connectors.errors import SiteUnreachable
from fedportal.experiments.models import Experiment
from fedportal.orchestrator import health
from fedportal.sites.models import CHECK_WITHIN, Dataset, Health, Site
from tests.factories import make_site
from tests.orchestrator.fakes import Federation
from tests.orchestrator.rows import make_engine, make_running, run_to_end

pytestmark = pytest.mark.django_db


def due_site(slug: str = "a", **fields) -> Site:
    site = make_site(slug, healthy=False, **fields)
    site.check_due_at = timezone.now() - timedelta(seconds=1)
    site.save()
    return site


def test_a_check_stores_its_steps_and_the_datasets_that_it_found(federation: Federation):
    check = health.check(due_site(), federation.tools)
    site = Site.objects.get(slug="a")
    assert (check.ok, site.health) == (True, Health.HEALTHY)
    assert Dataset.objects.get(site=site).train_cases == 8
    assert site.check_due_at > timezone.now()


def test_a_site_that_cannot_be_asked_has_a_failed_check_with_the_reason(federation: Federation):
    federation["a"].trouble = SiteUnreachable("No route to it.", remedy="Look at the firewall.")
    check = health.check(due_site(), federation.tools)
    assert not check.ok
    assert check.first_problem["message"] == "No route to it."
    assert check.first_problem["remedy"] == "Look at the firewall."


def test_a_configuration_that_fits_no_connector_is_a_failed_check(federation: Federation):
    def refuse(_site):
        raise ValueError("the configuration does not fit a connector of kind 'local'")

    federation.tools.connector = refuse
    assert not health.check(due_site(), federation.tools).ok


def test_a_check_is_claimed_by_one(federation: Federation):
    site = due_site()
    other = Site.objects.get(pk=site.pk)
    assert health._claim(site)
    assert not health._claim(other)


def test_a_check_whose_orchestrator_died_is_made_again(federation: Federation):
    site = due_site()
    health._claim(site)
    again = Site.objects.get(pk=site.pk).check_due_at
    assert again <= timezone.now() + CHECK_WITHIN


@pytest.mark.parametrize("why", ["not due", "never", "retired"])
def test_what_is_not_due_is_not_checked(federation: Federation, why: str):
    site = due_site()
    site.check_due_at = None if why == "never" else timezone.now() + timedelta(hours=1 if why == "not due" else -1)
    site.retired_at = timezone.now() if why == "retired" else None
    site.save()
    assert health.check_due(federation.tools) == []


def test_a_site_that_is_well_again_wakes_the_experiments_that_wait_for_it(federation: Federation):
    for site in federation.sites.values():
        site.auto = True
    experiment = make_running(federation, min_sites=3)
    site = Site.objects.get(slug="c")
    federation["c"].problem = "Down."
    health.check(site, federation.tools)
    engine = make_engine(federation)
    engine.drive(experiment.pk)
    waiting = Experiment.objects.get(pk=experiment.pk)
    assert "Hospital c: Down." in waiting.reason
    assert Site.objects.get(slug="c").check_due_at <= federation.clock() or waiting.due_at > federation.clock()
    assert not engine.advance(experiment.pk)
    federation["c"].problem = ""
    health.check(Site.objects.get(slug="c"), federation.tools)
    assert engine.advance(experiment.pk), "it was woken, long before it was due"
    assert run_to_end(engine, federation, experiment).state == "completed"


def test_a_check_tells_how_far_it_is_step_by_step(federation: Federation):
    site, seen = due_site(), []
    health._claim(site)

    def look(sentence: str) -> str:
        steps = Site.objects.get(pk=site.pk).steps_under_way
        seen.append([(step["name"], step["ok"], step["is_next"]) for step in steps])
        return sentence

    acts = [("Name", lambda: look("found")), ("Login", lambda: look("passed")), ("Data", lambda: look("there"))]
    connector = SimpleNamespace(check=lambda: CheckReport(steps=take_steps(*acts)))
    federation.tools.connector = lambda _: connector
    health.check(site, federation.tools)
    assert seen == [
        [("Name", None, True), ("Login", None, False), ("Data", None, False)],
        [("Name", True, False), ("Login", None, True), ("Data", None, False)],
        [("Name", True, False), ("Login", True, False), ("Data", None, True)],
    ]
    site = Site.objects.get(pk=site.pk)
    assert (site.steps_under_way, site.check_progress, site.checking_since) == ([], [], None)
    assert watcher.get() is None


def test_nothing_after_a_failed_step_is_told_to_be_under_way(federation: Federation):
    told = []
    token = watcher.set(lambda steps: told.append([step.name for step in steps if step.ok is None]))

    def fail() -> str:
        raise SiteUnreachable("No route.")

    steps = take_steps(("Name", fail), ("Login", lambda: "passed"))
    watcher.reset(token)
    assert told == [["Name", "Login"]]
    assert [step.ok for step in steps] == [False, None]


def test_a_check_is_known_to_be_under_way_from_its_claim_to_its_end(federation: Federation):
    site = due_site()
    assert health._claim(site)
    assert Site.objects.get(slug="a").is_being_checked
    health.check(site, federation.tools)
    assert not Site.objects.get(slug="a").is_being_checked
