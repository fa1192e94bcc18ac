import csv
import io
import json

import pytest
from django.urls import reverse

from fedportal.accounts.models import User
from fedportal.experiments import journal
from fedportal.experiments.models import Metric
from fedportal.monitoring.exports import as_csv, as_file
from fedportal.monitoring.rows import BATCH
from tests import factories
from tests.monitoring import scenes

pytestmark = pytest.mark.django_db


@pytest.fixture
def running():
    experiment = scenes.make_running(factories.ada())
    opened = scenes.open_round(experiment, 1)
    scenes.train(opened, "mainz", range(1, 4))
    journal.ingest(scenes.run_of(opened, "ulm"), 1, [scenes.dice(0.5), scenes.dice(None, region="ET")])
    journal.record(experiment, "note", '=HYPERLINK("http://evil")', site="ulm", round_number=1, more={"a": 1})
    return experiment


@pytest.fixture
def export(client, running):
    client.force_login(running.owner)

    def fetch(name, *args):
        answer = client.get(reverse(f"monitoring:{name}", args=[running.key, *args]))
        assert answer.status_code == 200
        assert "attachment" in answer.headers["Content-Disposition"]
        return answer.getvalue().decode()

    return fetch


def test_the_csv_has_every_number_with_an_empty_field_where_undefined(export):
    rows = list(csv.DictReader(io.StringIO(export("metrics-csv"))))
    assert [row["value"] for row in rows] == ["0.5", "0.5", "0.5", "0.5", ""]
    assert rows[0]["site"] == "mainz"
    assert rows[0]["at"].endswith("+00:00")
    assert len(rows) == Metric.objects.count()


def test_the_json_of_the_metrics_is_one_document(export, running):
    document = json.loads(export("metrics-json"))
    assert document["experiment"] == running.key
    assert [m["value"] for m in document["metrics"]] == [0.5, 0.5, 0.5, 0.5, None]


def test_an_export_of_nothing_is_still_a_document(client):
    empty = scenes.make_running(sites=("bonn",))
    client.force_login(empty.owner)
    answer = client.get(reverse("monitoring:journal-json", args=[empty.key]))
    assert json.loads(answer.getvalue())["events"] == []


def test_a_spreadsheet_runs_nothing_that_somebody_wrote(export):
    [row] = csv.DictReader(io.StringIO(export("journal-csv")))
    assert row["text"].startswith("'=HYPERLINK")
    assert json.loads(row["data"]) == {"more": {"a": 1}}


def test_the_journal_as_json_is_as_it_was_written(export):
    [event] = json.loads(export("journal-json"))["events"]
    assert event["text"] == '=HYPERLINK("http://evil")'
    assert (event["site"], event["round_number"], event["kind"]) == ("ulm", 1, "note")


def test_a_chart_leaves_as_a_plotly_figure(export, running):
    figure = json.loads(export("figure-json", "dice"))
    assert {trace["name"] for trace in figure["data"]} == {
        "Hospital ulm · mean · global model on the site's held-out cases",
        "Hospital ulm · ET · global model on the site's held-out cases",
    }
    assert figure["layout"]["title"]["text"] == f"{running.title}: Dice"


async def test_a_download_goes_out_while_it_is_read():
    made = []

    def rows():
        for number in range(3 * BATCH):
            made.append(number)
            yield f"{number}\n"

    parts = aiter(as_file(rows(), "text/csv", "numbers.csv"))
    first = await anext(parts)
    assert first.startswith(b"0\n1\n")
    assert len(made) == BATCH, "the rest is not in memory yet"
    text = first + b"".join([part async for part in parts])
    assert text.decode().split() == [str(number) for number in range(3 * BATCH)]


@pytest.mark.django_db(transaction=True)
async def test_a_server_of_asgi_sends_the_same_rows(running, async_client):
    await async_client.aforce_login(await User.objects.aget(pk=running.owner_id))
    answer = await async_client.get(reverse("monitoring:metrics-csv", args=[running.key]))
    rows = list(csv.DictReader(io.StringIO(b"".join([part async for part in answer]).decode())))
    assert len(rows) == await Metric.objects.filter(experiment=running).acount()
    assert {row["site"] for row in rows} == {"mainz", "ulm"}


@pytest.mark.parametrize("start", list("=+-@\t\r"))
def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe(start):
    _, line = as_csv(("text",), [{"text": f"{start}cmd()"}])
    assert line.lstrip('"').startswith("'")
