"""What trainers and schedulers write into logs and messages is kept, whatever it holds, on every database; and whatever
stands in an address is looked for."""

from __future__ import annotations

import pytest
from django.test import Client

from fedportal.experiments import journal
from fedportal.experiments.models import LogPiece
from fedportal.orchestrator.words import sentence
from tests.factories import otto
from tests.monitoring.scenes import make_running, open_round


@pytest.mark.django_db
def test_a_log_with_bytes_that_are_no_text_is_kept():
    attempt = open_round(make_running(), 1).site_runs.first().attempts.get()
    journal.append_log(attempt, 0, "epoch 1\0\ud800 done\n")
    assert LogPiece.objects.get().text == "epoch 1�? done\n"


def test_a_message_becomes_a_sentence_that_can_be_stored():
    assert sentence(" case\0 7 is \udfff broken") == "case� 7 is ? broken."


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("get", "/experiments/a%00/edit/"),
        ("get", "/experiments/{key}/compare/?with=%00"),
        ("get", "/experiments/{key}/feed/?before=5&site=%00"),
        ("get", "/api/experiments/?search=%00"),
        ("get", "/api/experiments/{key}/logs/?run=%00"),
        ("post", "/experiments/{key}/share/"),
        ("post", "/experiments/{key}/unshare/"),
    ],
)
def test_a_zero_in_an_address_or_a_name_is_no_fault_of_the_portal(method, address):
    operator = otto()
    browser = Client()
    browser.force_login(operator)
    answer = getattr(browser, method)(
        address.format(key=make_running(operator).key), {"username": "\0"} if method == "post" else None
    )
    assert answer.status_code < 500
