"""Which sites a new draft begins with, and that its page says so."""

from __future__ import annotations

import pytest

from fedportal.experiments import services
from fedportal.experiments.proposal import MOST_UNASKED, propose
from fedportal.sites.services import retire
from tests.factories import ada, eve, make_dataset, make_experiment, make_site

pytestmark = pytest.mark.django_db


@pytest.fixture
def owner():
    return ada()


def sites_of(experiment) -> list[str]:
    return [part.site.slug for part in experiment.participations.all()]


def offer(*slugs: str) -> list:
    return [make_dataset(make_site(slug)) for slug in slugs]


def test_a_first_draft_begins_with_every_ready_site_where_they_are_few(owner, client):
    offer("a", "b")
    make_dataset(make_site("c", healthy=False))
    assert sites_of(services.create_draft(owner=owner)) == ["a", "b"]
    client.force_login(eve())
    page = client.get("/experiments/new/").content.decode()
    assert "A brain tumour preset begins with every site that is ready (2)." in page


def test_where_many_are_ready_a_first_draft_begins_without_a_site(owner, client):
    offer(*(f"s{number}" for number in range(MOST_UNASKED)))
    assert len(sites_of(services.create_draft(owner=eve()))) == MOST_UNASKED
    offer("one-more")
    assert sites_of(services.create_draft(owner=owner)) == []
    client.force_login(owner)
    page = client.get("/experiments/new/").content.decode()
    assert f"begins without a site, for {MOST_UNASKED + 1} are ready: choose them" in page


def test_a_draft_begins_with_what_is_ready_of_the_owners_last_experiment(owner, client):
    a, b, c, d = offer("a", "b", "c", "d")
    second = make_dataset(a.site, "Task01_Second")
    services.create_draft(owner=owner, participants=[d])
    services.create_draft(owner=owner, participants=[second, b, c])
    services.create_draft(owner=owner, preset="blank")
    services.create_draft(owner=eve(), participants=[d])
    b.is_available = False
    b.save()
    retire(c.site, by=owner)
    again = services.create_draft(owner=owner)
    assert [part.dataset for part in again.participations.all()] == [second]
    client.force_login(owner)
    page = client.get("/experiments/new/").content.decode()
    assert "begins with the sites of your last experiment that are ready (1)." in page


def test_when_nothing_of_the_last_experiment_is_ready_a_draft_begins_as_the_first_did(owner):
    make_experiment(owner, sites=1).participations.get().site.checks.all().delete()
    offer("a")
    assert sites_of(services.create_draft(owner=owner)) == ["a"]


def test_sites_without_a_dataset_in_order_are_not_proposed(owner):
    make_dataset(make_site(), problems=["An image is missing."])
    assert propose(owner).datasets == []
    assert "none has a dataset" in propose(owner).reason


def test_the_proposal_takes_as_many_queries_for_many_sites_as_for_few(owner, django_assert_num_queries):
    offer("a", "b")
    with django_assert_num_queries(4):
        propose(owner)
    offer("c", "d", "e")
    with django_assert_num_queries(4):
        propose(owner)
