"""Curves of a site whose runs reach the object store but not the portal: their records stand in the log."""

from __future__ import annotations

import json

import pytest

from fedportal.experiments.models import Metric
from tests.orchestrator.fakes import Federation
from tests.orchestrator.rows import fresh, make_engine, make_running
from trainer.contract import MetricRecord, Phase

pytestmark = pytest.mark.django_db


def line(*steps: int) -> str:
    records = [MetricRecord(Phase.TRAIN, "loss", 0.5, step=step, progress=0.1, at=1.0).to_json() for step in steps]
    return json.dumps({"at": 1.0, "level": "debug", "message": "measured", "records": records}) + "\n"


def test_records_in_a_log_become_curves_while_the_run_works(federation: Federation):
    experiment = make_running(federation)
    engine = make_engine(federation)
    slug = sorted(federation.sites)[0]
    federation[slug].log = "begins\n" + line(1, 2) + '{"records": [{"phase": "no"}]}\n'
    for _ in range(20):
        engine.drive(experiment.pk)
        federation.clock.tick(1)
    found = Metric.objects.filter(experiment=fresh(experiment), site=slug, name="loss").order_by("step")
    assert [(metric.step, metric.value, metric.attempt) for metric in found] == [(1, 0.5, 1), (2, 0.5, 1)]
    federation[slug].log += line(2, 3)
    for _ in range(20):
        engine.drive(experiment.pk)
        federation.clock.tick(1)
    assert [metric.step for metric in found.all()] == [1, 2, 3]
