"""A federated run that trained on a copy of a held-out case: baselines leave it out, so the comparison says it."""

from __future__ import annotations

import pytest

from fedportal.experiments import journal
from fedportal.experiments.models import Kind
from fedportal.monitoring.families import family_of
from tests.factories import ada
from tests.monitoring.families import make_family

pytestmark = pytest.mark.django_db
SAID = "Among the training cases of Mainz are copies of cases that the comparison tests on."


@pytest.fixture
def head():
    return make_family(ada(), kinds=())


def test_a_site_whose_evaluation_found_copies_is_named_once(client, head):
    for run in (head, head):
        journal.record(run, "copies", "Found.", site="mainz")
    assert len(family_of(head).warnings()) == 1
    client.force_login(head.owner)
    assert SAID in client.get(f"/experiments/{head.key}/compare/").content.decode()
    told = client.get(f"/api/experiments/{head.key}/comparison/").json()
    assert any(text.startswith(SAID) for text in told["warnings"])


def test_where_no_evaluation_found_any_nothing_is_said(client, head):
    client.force_login(head.owner)
    assert family_of(head).warnings() == []
    assert "copies of cases" not in client.get(f"/experiments/{head.key}/compare/").content.decode()


def test_what_was_found_in_a_repeat_is_told_of_the_family():
    head = make_family(ada(), kinds=(), repeats=2)
    journal.record(head.family.filter(kind=Kind.FEDERATED).last(), "copies", "Found.", site="ulm")
    assert "Ulm" in family_of(head).warnings()[0]
