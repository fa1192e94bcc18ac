"""The operators' view of experiments: to look, and to hand one over."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from fedportal.experiments import services
from fedportal.experiments.models import Experiment
from tests.experiments.test_pages import text_of
from tests.factories import eve, make_experiment, make_user, otto
from tests.monitoring import scenes

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator() -> Client:
    client = Client()
    client.force_login(otto())
    return client


def test_the_admin_shows_experiments_with_rounds_and_recipe(operator, draft):
    services.start(experiment=draft, by=draft.owner)
    assert draft.title in text_of(operator.get("/admin/experiments/experiment/?state__exact=running"))
    page = text_of(operator.get(f"/admin/experiments/experiment/{draft.pk}/change/"))
    assert '"learning_rate": 0.001' in page
    assert "Round 1 of" in page
    assert operator.get(f"/admin/experiments/round/{draft.rounds.get().pk}/change/").status_code == 200
    assert operator.get("/admin/experiments/round/").status_code == 200


def test_the_admin_hands_an_experiment_over_and_changes_nothing_else(operator, draft):
    title, friend = draft.title, eve()
    values = {"title": "Renamed", "owner": friend.pk, "state": "completed", "version": "9", "_save": "Save"}
    inlines = {f"{name}-{count}_FORMS": 0 for name in ("participations", "rounds") for count in ("TOTAL", "INITIAL")}
    operator.post(f"/admin/experiments/experiment/{draft.pk}/change/", values | inlines)
    draft.refresh_from_db()
    assert (draft.title, draft.owner, draft.state) == (title, friend, "draft")


def test_what_the_admin_changes_about_people_is_in_the_journal(operator, draft, owner):
    address = f"/admin/experiments/experiment/{draft.pk}/change/"
    inlines = {f"{name}-{count}_FORMS": 0 for name in ("participations", "rounds") for count in ("TOTAL", "INITIAL")}
    friend, steward = eve(), make_user("stella", role="steward")
    refused = operator.post(address, {"owner": steward.pk} | inlines)
    assert "Only researchers and operators can own an experiment." in text_of(refused)
    operator.post(address, {"owner": owner.pk, "viewers": [steward.pk]} | inlines)
    operator.post(address, {"owner": friend.pk, "viewers": [steward.pk]} | inlines)
    draft.refresh_from_db()
    assert (draft.owner, set(draft.viewers.all())) == (friend, {steward, owner})
    operator.post(address, {"owner": friend.pk, "viewers": [owner.pk]} | inlines)
    kinds = list(draft.events.order_by("pk").values_list("kind", flat=True))
    assert kinds[-3:] == ["shared", "handed_over", "unshared"]


def test_the_admin_adds_nothing_and_deletes_drafts_only(operator, draft):
    assert operator.get("/admin/experiments/experiment/add/").status_code == 403
    assert operator.get(f"/admin/experiments/experiment/{draft.pk}/delete/").status_code == 200
    services.start(experiment=draft, by=draft.owner)
    assert operator.get(f"/admin/experiments/experiment/{draft.pk}/delete/").status_code == 403


def test_a_draft_that_is_started_while_the_admin_asks_is_not_deleted(rf, draft):
    shown = Experiment.objects.get(pk=draft.pk)
    services.start(experiment=draft, by=draft.owner)
    with pytest.raises(services.NotADraft):
        admin.site.get_model_admin(Experiment).delete_model(rf.post("/"), shown)
    assert Experiment.objects.filter(pk=draft.pk).exists()


def test_a_list_of_experiments_is_searched_by_their_sites_and_asks_for_no_more_with_more_of_them(
    operator, draft, owner
):
    other = make_experiment(owner, title="Elsewhere")
    site = draft.participations.first().site
    found = text_of(operator.get(f"/admin/experiments/experiment/?q={site.slug}"))
    assert (draft.title in found, other.title in found) == (True, False)
    counts = []
    for more in (1, 5):
        for _ in range(more):
            make_experiment(owner)
        with CaptureQueriesContext(connection) as asked:
            operator.get("/admin/experiments/experiment/")
        counts.append(len(asked))
    assert counts[0] == counts[1]


def test_the_page_of_a_round_asks_for_no_more_with_more_sites(operator, owner):
    counts = []
    for sites in (2, 6):
        opened = scenes.open_round(make_experiment(owner, sites=sites), 1)
        with CaptureQueriesContext(connection) as asked:
            page = text_of(operator.get(f"/admin/experiments/round/{opened.pk}/change/"))
        assert all(str(run.participation.site) in page for run in opened.site_runs.all())
        counts.append(len(asked))
    assert counts[0] == counts[1]
