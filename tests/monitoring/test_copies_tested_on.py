"""A federated run that trained on a copy of a held-out case: its baselines did not, so the comparison says it."""

from __future__ import annotations

import pytest

from fedportal.experiments.models import Kind, RoundKind, SiteRun
from fedportal.experiments.states import SiteRunState
from fedportal.monitoring.families import family_of
from tests.factories import ada
from tests.monitoring.families import make_family

pytestmark = pytest.mark.django_db
SAID = "Among the training cases of Mainz are copies of cases that the comparison tests on."


@pytest.fixture
def head():
    made = make_family(ada())
    SiteRun.objects.filter(round__kind=RoundKind.TRAIN).update(train_cases=12)
    return made


def runs_of(kind: str, site: str):
    return SiteRun.objects.filter(
        round__experiment__kind=kind, round__kind=RoundKind.TRAIN, participation__site__slug=site
    )


@pytest.mark.parametrize("kind", [Kind.LOCAL_ONLY, Kind.CYCLIC])
def test_a_site_whose_baseline_left_cases_out_is_named(client, head, kind):
    runs_of(kind, "mainz").update(train_cases=11)
    assert len(family_of(head).warnings()) == 1
    client.force_login(head.owner)
    assert SAID in client.get(f"/experiments/{head.key}/compare/").content.decode()
    told = client.get(f"/api/experiments/{head.key}/comparison/").json()
    assert any(text.startswith(SAID) for text in told["warnings"])


def test_where_all_trained_on_the_same_nothing_is_said(client, head):
    client.force_login(head.owner)
    assert family_of(head).warnings() == []
    assert "copies of cases" not in client.get(f"/experiments/{head.key}/compare/").content.decode()


def test_a_turn_that_trained_on_nothing_yet_says_nothing(head):
    runs_of(Kind.CYCLIC, "ulm").update(train_cases=0)
    runs_of(Kind.LOCAL_ONLY, "graz").update(train_cases=11, state=SiteRunState.FAILED)
    assert family_of(head).warnings() == []


def test_a_federated_run_that_had_fewer_cases_than_its_baseline_has_no_advantage(head):
    runs_of(Kind.FEDERATED, "mainz").update(train_cases=11)
    assert family_of(head).warnings() == []
