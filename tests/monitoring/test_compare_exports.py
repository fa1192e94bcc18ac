"""The comparison as CSV and over the API: the numbers of the page."""

import csv
import io

import pytest
from django.urls import reverse

from fedportal.experiments.models import CaseScore
from fedportal.monitoring import verdict
from tests import factories
from tests.monitoring import families
from tests.monitoring.comparing import HD95, compared, page_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def head():
    return families.make_family(factories.ada(), title="Three hospitals")


def csv_of(client, head, name):
    answer = client.get(reverse(f"monitoring:compare-{name}", args=[head.key]))
    assert "attachment" in answer.headers["Content-Disposition"]
    return list(csv.DictReader(io.StringIO(answer.getvalue().decode())))


def test_the_table_as_csv_has_the_numbers_of_the_page(client, head):
    client.force_login(head.owner)
    rows = csv_of(client, head, "table")
    comparison = compared(head, region="WT")

    def one(**wanted):
        found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
        assert len(found) == 1
        return found[0]

    row = one(measure="dice", region="WT", model="pooled", against="", site="")
    mean = next(line.mean for line in comparison.lines if line.contender.key == "pooled")
    assert [float(row[name]) for name in ("value", "low", "high")] == [mean.value, mean.low, mean.high]
    row = one(measure="dice", region="WT", model="global", against="local-ulm", site="ulm")
    assert float(row["value"]) == comparison.gains[2].gain.value
    row = one(measure="dice", region="WT", model="global", against="pooled", site="")
    assert float(row["percent"]) == comparison.contrasts[1].percentage.value


def test_the_cases_as_csv_are_all_scores_by_pseudonym(client, head):
    client.force_login(head.owner)
    rows = csv_of(client, head, "cases")
    assert len(rows) == CaseScore.objects.count()
    undefined = [row for row in rows if row["value"] == ""]
    assert len(undefined) == CaseScore.objects.filter(value=None).count()
    assert {row["role"] for row in rows} == {"global", "best", "pooled", "ensemble", "cyclic", "local"}
    assert all(len(row["case"]) == 16 for row in rows)


def test_sites_with_a_withheld_number_of_cases_are_left_out_of_the_cases(client):
    head = families.make_family(factories.ada(), cases=4)
    assert "fewer than 5" in page_of(client, head)
    cases = reverse("monitoring:compare-cases", args=[head.key])
    assert "The single cases of Graz, Mainz and Ulm are left out for you" in page_of(client, head)
    assert cases not in page_of(client, head)
    assert csv_of(client, head, "cases") == []
    assert {row["cases"] for row in csv_of(client, head, "table")} == {""}
    client.force_login(factories.otto())
    assert len(csv_of(client, head, "cases")) == CaseScore.objects.count()
    assert cases in client.get(reverse("monitoring:compare", args=[head.key])).content.decode()


def test_the_api_gives_the_numbers_of_the_page(client, head):
    client.force_login(head.owner)
    address = reverse("api-experiment-comparison", args=[head.key])
    found = client.get(address, {"measure": "hd95", "region": "ET"}).json()
    comparison = compared(head, measure=HD95, region="ET")
    assert found["headline"] == verdict.headline(comparison)
    assert [line["mean"]["value"] for line in found["lines"]] == [line.mean.value for line in comparison.lines]
    assert found["lines"][0]["sites"][0]["undefined"] is None  # one case: a small number
    assert [gain["gain"]["low"] for gain in found["gains"]] == [gain.gain.low for gain in comparison.gains]
    assert client.get(address, {"region": "liver"}).status_code == 400
    assert client.get(address, {"with": "zzzzzzzz"}).json()["errors"]["with"]


def test_the_api_gives_the_cases_piece_by_piece(client, head):
    client.force_login(head.owner)
    address = reverse("api-experiment-case-scores", args=[head.key])
    seen, after = [], 0
    while found := client.get(address, {"after": after, "limit": 400}).json():
        if not found["results"]:
            break
        seen += found["results"]
        after = found["next"]
    assert len({row["id"] for row in seen}) == len(seen) == CaseScore.objects.count()
