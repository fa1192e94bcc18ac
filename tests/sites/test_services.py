from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from fedportal.connectors.base import CheckReport, CheckStep, DatasetReport
from fedportal.experiments.models import Participation
from fedportal.sites import services
from fedportal.sites.models import Dataset, Health, Site
from fedportal.ui.errors import DomainError
from tests.factories import make_dataset, make_experiment, make_site, make_user, stella

pytestmark = pytest.mark.django_db
CONFIG = {"data_root": "/srv/mainz/data", "work_dir": "/srv/mainz/work", "threads": 2}


def register(**fields):
    return services.register(**{"slug": "mainz", "name": "Mainz", "connector": "local", "config": CONFIG, **fields})


def found(name="Task01_BrainTumour", **fields) -> DatasetReport:
    values = {"title": "BRATS", "train_cases": 8, "validation_cases": 4, "channels": ("FLAIR",), "labels": {1: "edema"}}
    return DatasetReport(name=name, **{**values, "spacing": (1.0, 1.0, 2.0), "shape": (40, 40, 40), **fields})


def report(*datasets: DatasetReport, ok: bool = True) -> CheckReport:
    last = CheckStep("datasets", ok, "2 found" if ok else "no dataset.json", "" if ok else "Put one there.", 0.5)
    return CheckReport((CheckStep("folder", True, "found", seconds=0.1), last), "0.1.0", datasets, {"gpu": None})


# --- register and update ----------------------------------------------------------------------------


def test_a_registered_site_is_checked_at_once():
    site = register(stewards=[stella()])
    assert site.check_is_pending
    assert site.health is Health.UNKNOWN
    assert [str(steward) for steward in site.stewards.all()] == ["Stella"]


@pytest.mark.parametrize("slug", ["", "Mainz", "-mainz", "mainz-", "1mainz", "mainz\n", "m" * 16, "main z", "mäinz"])
def test_a_short_name_that_cannot_be_in_a_run_name_is_refused(slug):
    with pytest.raises(ValidationError):
        register(slug=slug)
    assert not Site.objects.exists()


def test_a_name_or_short_name_is_given_once():
    register()
    with pytest.raises(ValidationError):
        register(slug="mainz2")
    with pytest.raises(ValidationError):
        register(name="Other")


def test_a_changed_site_is_checked_anew():
    site = make_site()
    services.update(site, name="Other name", config=CONFIG)
    stored = Site.objects.get()
    assert (stored.name, stored.config, stored.check_is_pending) == ("Other name", CONFIG, True)


def test_the_short_name_never_changes():
    site = make_site("mainz")
    with pytest.raises(DomainError):
        services.update(site, slug="other")
    services.update(site, slug="mainz", city="Mainz")
    assert Site.objects.get().slug == "mainz"


def test_an_update_keeps_what_the_orchestrator_wrote_meanwhile():
    site = make_site()
    services.record_check(Site.objects.get(), report())
    services.update(site, city="Mainz")
    assert Site.objects.get().last_contact_at is not None


def test_secrets_are_merged_and_forgotten_by_name():
    site = register(secrets={"user": "fed", "password": "old"})
    services.update(site, secrets={"password": "new", "token": "t"})
    assert Site.objects.get().secrets == {"user": "fed", "password": "new", "token": "t"}
    services.update(site, secrets={"token": ""})
    services.update(site, city="Mainz")
    assert Site.objects.get().secrets == {"user": "fed", "password": "new"}


# --- checks -----------------------------------------------------------------------------------------


def test_a_check_is_asked_for_and_not_made():
    site = make_site()
    services.request_check(site)
    services.request_check(site)
    assert Site.objects.get().check_is_pending
    assert site.checks.count() == 1


def test_a_good_check_is_stored_with_its_datasets():
    site = register()
    check = services.record_check(site, report(found(), found("Task05_Prostate")))
    site = Site.objects.get()
    assert (check.ok, check.version, check.facts) == (True, "0.1.0", {"gpu": None})
    assert check.seconds == pytest.approx(0.6)
    assert check.steps[0] == {"name": "folder", "ok": True, "message": "found", "remedy": "", "seconds": 0.1}
    assert site.health is Health.HEALTHY
    assert site.last_contact_at == check.at
    assert site.check_due_at - check.at == services.CHECK_EVERY
    dataset = site.datasets.get(name="Task01_BrainTumour")
    assert (dataset.cases, dataset.labels, dataset.spacing) == (12, {"1": "edema"}, [1.0, 1.0, 2.0])


def test_words_of_a_site_that_are_no_text_lose_neither_the_check_nor_the_dataset():
    site = register()
    steps = (CheckStep("folder", True, "half \ud800", seconds=0.1),)
    strange = found("tumour\0", title="\0", labels={1: "\udfff"}, problems=("case\0 has no label",))
    for _ in range(2):
        check = services.record_check(site, CheckReport(steps, "0.1\0", (strange,), {"gpu\0": ["\ud800"]}))
    check.refresh_from_db()
    assert (check.version, check.facts, check.steps[0]["message"]) == ("0.1�", {"gpu�": ["?"]}, "half ?")
    dataset = Site.objects.get().datasets.get()
    assert (dataset.name, dataset.title, dataset.labels, dataset.is_available) == ("tumour�", "�", {"1": "?"}, True)


def test_a_known_dataset_is_brought_up_to_date_and_keeps_its_row():
    site = register()
    services.record_check(site, report(found()))
    row = Dataset.objects.get()
    services.record_check(site, report(found(train_cases=9, problems=("case_3 has no label",))))
    now = Dataset.objects.get()
    assert (now.pk, now.train_cases, now.problems) == (row.pk, 9, ["case_3 has no label"])


def test_a_dataset_that_is_gone_becomes_unavailable_and_may_come_back():
    site = register()
    services.record_check(site, report(found()))
    services.record_check(site, report())
    assert Dataset.objects.get().is_available is False
    services.record_check(site, report(found()))
    assert Dataset.objects.get().is_available is True


def test_a_failed_check_says_nothing_about_datasets():
    site = register()
    services.record_check(site, report(found()))
    check = services.record_check(site, report(ok=False))
    assert Dataset.objects.get().is_available is True
    assert check.first_problem["remedy"] == "Put one there."
    assert Site.objects.get().health is Health.FAILING


def test_a_failing_site_is_looked_at_sooner_and_was_not_in_contact():
    site = register()
    check = services.record_check(site, report(ok=False))
    site = Site.objects.get()
    assert site.check_due_at - check.at == services.CHECK_AGAIN
    assert site.last_contact_at is None


def test_a_check_without_steps_is_no_good_check():
    site = register()
    assert services.record_check(site, CheckReport(())).ok is False


def test_a_check_asked_for_while_one_runs_is_not_swallowed():
    site = register()
    services.request_check(Site.objects.get())  # an operator, after the orchestrator took the site
    services.record_check(site, report())
    assert Site.objects.get().check_is_pending


def test_the_lease_that_the_orchestrator_took_is_replaced_by_the_next_date():
    site = register()
    site.check_due_at = timezone.now() + timedelta(minutes=5)
    site.save()
    check = services.record_check(site, report())
    assert Site.objects.get().check_due_at - check.at == services.CHECK_EVERY


def test_old_checks_are_dropped():
    site = register()
    for _ in range(services.KEEP_CHECKS + 3):
        newest = services.record_check(site, report())
    assert site.checks.count() == services.KEEP_CHECKS
    assert site.last_check == newest


def test_health_grows_stale():
    site = register()
    check = services.record_check(site, report())
    check.at -= timedelta(days=1, seconds=1)
    check.save()
    assert site.health is Health.STALE


def test_the_newest_checks_are_fetched_along(django_assert_num_queries):
    for _ in range(3):
        services.record_check(make_site(), report())
    with django_assert_num_queries(2):
        assert [site.health for site in Site.objects.with_last_check()] == [Health.HEALTHY] * 3


def test_datasets_and_active_experiments_are_counted():
    site = make_site()
    make_dataset(site)
    make_dataset(site, "gone", is_available=False)
    for started in (None, timezone.now(), timezone.now()):
        experiment = make_experiment(sites=0, started_at=started)
        Participation.objects.create(experiment=experiment, site=site, dataset=site.datasets.first())
    experiment.ended_at = timezone.now()
    experiment.save()
    counted = Site.objects.with_counts().get()
    assert (counted.dataset_count, counted.running_count) == (1, 1)


# --- retire -----------------------------------------------------------------------------------------


def test_a_retired_site_is_not_checked():
    site = make_site()
    services.retire(site, by=make_user())
    assert not Site.objects.active().exists()
    with pytest.raises(services.SiteRetired):
        services.request_check(site)
    services.record_check(site, report())  # one that was under way
    assert Site.objects.get().check_due_at is None


def test_a_site_in_an_experiment_under_way_is_not_retired():
    experiment = make_experiment(sites=1, started_at=timezone.now())
    site = experiment.participations.get().site
    with pytest.raises(services.SiteBusy):
        services.retire(site, by=make_user())
    experiment.ended_at = timezone.now()
    experiment.save()
    services.retire(site, by=make_user())


def test_a_pool_is_the_portals_own():
    pool = make_site("pool-1", is_pool=True)
    with pytest.raises(services.SiteIsPool):
        services.retire(pool, by=make_user())
    with pytest.raises(services.SiteIsPool):
        services.update(pool, city="Mainz")
    pool.refresh_from_db()
    assert (pool.is_retired, pool.city) == (False, "")


def test_reinstating_a_site_in_use_changes_nothing():
    site = make_site("mainz")
    services.reinstate(site, by=make_user())
    assert not site.check_is_pending
    assert not services.acts(site).exists()


def test_a_reinstated_site_is_checked_at_once():
    site = make_site()
    services.retire(site, by=make_user())
    services.reinstate(site, by=make_user())
    assert Site.objects.active().get().check_is_pending


def test_a_site_is_retired_once():
    site = make_site()
    services.retire(site, by=make_user())
    with pytest.raises(services.SiteRetired):
        services.retire(site, by=make_user())
