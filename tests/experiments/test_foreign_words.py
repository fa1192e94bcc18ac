"""What trainers and schedulers write into logs and messages is kept, whatever it holds, on every database."""

from __future__ import annotations

import pytest

from fedportal.experiments import journal
from fedportal.experiments.models import LogPiece
from fedportal.orchestrator.words import sentence
from tests.monitoring.scenes import make_running, open_round


@pytest.mark.django_db
def test_a_log_with_bytes_that_are_no_text_is_kept():
    attempt = open_round(make_running(), 1).site_runs.first().attempts.get()
    journal.append_log(attempt, 0, "epoch 1\0\ud800 done\n")
    assert LogPiece.objects.get().text == "epoch 1�? done\n"


def test_a_message_becomes_a_sentence_that_can_be_stored():
    assert sentence(" case\0 7 is \udfff broken") == "case� 7 is ? broken."
