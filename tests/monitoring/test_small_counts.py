"""No page, no answer and no export tells a researcher a number of cases that is too small."""

import json

import pytest

from fedportal.experiments.models import Metric, SiteRun
from fedportal.sites.models import Dataset
from tests.factories import ada, make_experiment, otto, stella
from tests.monitoring.scenes import finish_round, make_running, open_round
from trainer.contract import Phase

pytestmark = pytest.mark.django_db


@pytest.fixture
def people():
    return {"ada": ada(), "stella": stella(), "otto": otto()}


@pytest.fixture
def experiment(people):
    """A finished round at mainz, whose steward stella is, and at ulm: 3 cases held out at each, 4 trained with."""
    experiment = make_running(people["ada"], rounds=1)
    finish_round(open_round(experiment, 1))
    SiteRun.objects.update(train_cases=4, validation_cases=3)
    Dataset.objects.update(train_cases=4, validation_cases=3)
    for run in SiteRun.objects.all():
        Metric.objects.create(
            experiment=experiment, site_run=run, site=run.participation.site.slug, attempt=1, round_number=1,
            phase=Phase.INCOMING, name="dice", region="ET", step=9, cases=3, value=0.5,
        )  # fmt: skip
    Metric.objects.filter(phase=Phase.GLOBAL, region="ET").update(step=9, cases=6)
    experiment.participations.first().site.stewards.add(people["stella"])
    return experiment


@pytest.mark.parametrize(
    ("who", "told", "of_all"),
    [
        ("ada", {"mainz": None, "ulm": None}, None),
        ("stella", {"mainz": 3, "ulm": None}, None),
        ("otto", {"mainz": 3, "ulm": 3}, 6),
    ],
)
def test_the_api_and_the_exports_withhold_them(client, experiment, people, who, told, of_all):
    client.force_login(people[who])
    api, pages = f"/api/experiments/{experiment.key}/", f"/experiments/{experiment.key}/export/"
    metrics = [row for row in client.get(f"{api}metrics/").json()["results"] if row["step"] == 9]
    assert {row["site"]: row["cases"] for row in metrics} == told | {"": of_all}
    exported = json.loads(b"".join(client.get(f"{pages}metrics.json").streaming_content))["metrics"]
    assert {row["site"]: row["cases"] for row in exported if row["step"] == 9} == told | {"": of_all}
    lines = b"".join(client.get(f"{pages}metrics.csv").streaming_content).decode().splitlines()
    shown = {cells[3]: cells[10] for cells in (line.split(",") for line in lines) if cells[8] == "9"}
    assert shown == {site: str(number or "") for site, number in (told | {"": of_all}).items()}
    (opened,) = client.get(f"{api}rounds/").json()
    assert {run["site"]: run["validation_cases"] for run in opened["site_runs"]} == told
    trained = {site: number and 4 for site, number in told.items()}
    assert {run["site"]: run["train_cases"] for run in opened["site_runs"]} == trained


def test_the_live_page_and_a_sites_part_withhold_them(client, experiment, people):
    address = f"/experiments/{experiment.key}/"
    client.force_login(people["ada"])
    assert "fewer than 5 cases to train on, fewer than 5 held out" in client.get(address).content.decode()
    shown = client.get(f"{address}sites/mainz/").content.decode()
    assert "fewer than 5 training and fewer than 5 held-out" in shown
    assert "<dd>fewer than 5</dd>" in shown
    client.force_login(people["stella"])
    shown = client.get(address).content.decode()
    assert "4 cases to train on, 3 held out" in shown
    assert "fewer than 5 cases to train on, fewer than 5 held out" in shown
    assert "<dd>4</dd>" in client.get(f"{address}sites/mainz/").content.decode()


def test_what_is_sent_to_everybody_at_once_withholds_them_from_everybody(client, experiment, people):
    client.force_login(people["otto"])
    assert "<span>fewer than 5 cases</span>" in client.get(f"/experiments/{experiment.key}/").content.decode()


def test_the_composer_withholds_them(client, people):
    draft = make_experiment(people["ada"], sites=1)
    Dataset.objects.update(train_cases=6, validation_cases=3)
    client.force_login(people["ada"])
    shown = client.get(f"/experiments/{draft.key}/edit/sites/").content.decode()
    assert "6 to train on, fewer than 5 held out." in shown
    assert "fewer than 11 cases" in shown
    assert (
        "6 to train on, fewer than 5 held out" in client.get(f"/experiments/{draft.key}/edit/review/").content.decode()
    )
    client.force_login(people["otto"])
    assert "6 to train on, 3 held out." in client.get(f"/experiments/{draft.key}/edit/sites/").content.decode()


def test_the_sentence_about_an_experiment_adds_up_only_what_may_be_told(client, people):
    draft = make_experiment(people["ada"], sites=2)
    client.force_login(people["ada"])
    review = f"/experiments/{draft.key}/edit/review/"
    assert "at 2 sites with 16 training cases" in client.get(review).content.decode()
    Dataset.objects.filter(pk=Dataset.objects.first().pk).update(train_cases=3)
    assert "at 2 sites with fewer than 13 training cases" in client.get(review).content.decode()
