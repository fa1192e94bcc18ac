import random

import numpy as np
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from fedportal.experiments.models import CaseScore, Experiment, Kind, Round, Subject
from fedportal.experiments.states import ExperimentState
from fedportal.monitoring import verdict
from fedportal.monitoring.families import family_of
from tests import factories
from tests.monitoring import families, scenes
from tests.monitoring.comparing import HD95, compared, page_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def head():
    return families.make_family(factories.ada(), title="Three hospitals")


# --- numbers --------------------------------------------------------------------------------------


def test_the_matrix_holds_the_means_of_the_case_scores(head):
    line = next(line for line in compared(head).lines if line.contender.key == "pooled")
    rows = CaseScore.objects.filter(subject="pooled", name="dice")
    by_site = {slug: np.mean(rows.filter(site=slug).values_list("value", flat=True)) for slug in families.SITES}
    assert [cell.estimate.value for cell in line.cells] == pytest.approx([by_site[s] for s in families.SITES])
    assert line.mean.value == pytest.approx(np.mean(list(by_site.values())))


def test_a_region_has_numbers_of_its_own(head):
    line = compared(head, region="TC").lines[0]
    rows = CaseScore.objects.filter(experiment=head, site="graz", name="dice", region="TC")
    assert line.cells[0].estimate.value == pytest.approx(np.mean(rows.values_list("value", flat=True)))


def test_the_order_in_which_scores_arrive_does_not_matter(head):
    before = compared(head).lines, compared(head).contrasts, compared(head).gains
    rows = list(CaseScore.objects.all())
    CaseScore.objects.all().delete()
    random.Random(3).shuffle(rows)
    for row in rows:
        row.pk = None
    CaseScore.objects.bulk_create(rows)
    assert (compared(head).lines, compared(head).contrasts, compared(head).gains) == before


def test_undefined_distances_count_nowhere_and_are_counted(head):
    comparison = compared(head, measure=HD95, region="ET")
    assert {cell.undefined for line in comparison.lines for cell in line.cells} == {1}
    rows = CaseScore.objects.filter(subject="pooled", name="hd95", region="ET", site="ulm", value__isnull=False)
    pooled = next(line for line in comparison.lines if line.contender.key == "pooled")
    assert pooled.cells[2].estimate.value == pytest.approx(np.mean(rows.values_list("value", flat=True)))
    assert len(rows) == 7


def test_a_shorter_distance_is_a_gain(head):
    comparison = compared(head, measure=HD95)
    assert all(gain.gain.value > 0 for gain in comparison.gains)
    worst = max(comparison.gains, key=lambda gain: gain.federated.value)
    assert [gain for gain in comparison.gains if gain.is_worst] == [worst]
    best = max(comparison.lines[0].cells, key=lambda cell: cell.shade)
    assert best.estimate.value == min(cell.estimate.value for cell in comparison.lines[0].cells)
    local = [line for line in comparison.lines if line.contender.role == "local"]
    assert comparison.best_local == min(local, key=lambda line: line.mean.value).contender


def test_of_two_evaluations_of_all_models_the_later_one_counts(head):
    later = families.member_of(head, head, Kind.CROSS_SITE, turn=4)
    families.measure(later, {"pooled": Subject.Role.POOLED}, value=lambda *_: 0.4)
    means = {line.contender.key: line.mean.value for line in compared(head).lines}
    assert means["pooled"] == pytest.approx(0.4)
    assert means["cyclic"] > 0.5  # which the later one did not measure


def test_the_runs_own_final_evaluation_goes_before_that_of_all_models(head):
    CaseScore.objects.filter(experiment__kind=Kind.CROSS_SITE, subject="global").update(value=0.0)
    assert compared(head).lines[0].mean.value > 0.5
    CaseScore.objects.filter(experiment=head, subject="global").delete()
    assert compared(head).lines[0].mean.value == 0.0


def test_where_sites_keep_layers_only_the_runs_own_evaluation_counts(client, head):
    Experiment.objects.filter(pk=head.pk).update(plan=head.plan | {"local_layers": "normalisation"})
    head.refresh_from_db()
    CaseScore.objects.filter(experiment=head, name="hd95").delete()
    assert compared(head).lines[0].mean.value > 0.5
    assert compared(head, measure=HD95).federated is None
    assert "keeps normalisation layers of its own" in page_of(client, head)


def test_a_model_that_was_not_measured_everywhere_has_no_mean_over_sites(head):
    CaseScore.objects.filter(subject="cyclic", site="ulm").delete()
    cyclic = next(line for line in compared(head).lines if line.contender.key == "cyclic")
    assert cyclic.mean.value is None
    assert cyclic.cells[2].estimate.value is None
    assert cyclic.cells[0].estimate.value is not None


def test_a_contrast_says_which_sites_it_leaves_out(client, head):
    CaseScore.objects.filter(subject="pooled", site="ulm").delete()
    assert "of pooled, without Ulm." in verdict.headline(compared(head))[0]
    assert "without Ulm</span>" in page_of(client, head)


def test_one_case_at_a_site_gives_no_interval_and_the_page_says_so(client):
    head = families.make_family(factories.ada(), cases=1)
    assert not compared(head).contrasts[0].gain.has_interval
    assert "too few cases for an interval" in page_of(client, head)


def test_repeats_are_one_number_with_one_interval(client):
    head = families.make_family(factories.ada(), repeats=3)
    comparison = compared(head)
    means = []
    for run in family_of(head).runs:
        evaluation = run.of(Kind.CROSS_SITE)[0]
        rows = CaseScore.objects.filter(experiment=evaluation, subject="global", name="dice")
        means.append(np.mean(rows.values_list("value", flat=True)))
    assert comparison.lines[0].mean.value == pytest.approx(np.mean(means))
    assert comparison.repeats == 3
    text = page_of(client, head)
    assert "Mean over 3 repeats" in text
    assert "The repeats have the seeds 0, 1, 2" in text


def test_models_of_an_earlier_round_can_be_compared(client, head):
    evaluation = family_of(head).evaluations[0]
    for name, role, site in (
        ("global-r3", "global", ""),
        ("pooled-r3", "pooled", ""),
        ("local-ulm-r3", "local", "ulm"),
    ):
        Subject.objects.create(experiment=evaluation, name=name, role=role, site=site, round_number=3)
    roles = {"global-r3": "global", "pooled-r3": "pooled", "local-ulm-r3": "local"}
    families.measure(evaluation, roles, with_rows=False, value=lambda *place: 0.4 if "pooled" in place[0] else 0.3)
    assert [line.contender.key for line in compared(head, at=3).lines] == ["global", "pooled", "local-ulm"]
    text = page_of(client, head, round=3)
    assert "Dice, mean over the regions, models after round 3" in text
    assert "Federated reached 75.0 % (95 % interval 75.0–75.0) of pooled." in text


# --- words ----------------------------------------------------------------------------------------


def test_the_headline_has_a_share_a_difference_and_their_intervals(client, head):
    comparison = compared(head)
    pooled = next(one for one in comparison.contrasts if one.other.key == "pooled").percentage
    local = next(one for one in comparison.contrasts if one.other.role == "local")
    reached, above, own = verdict.headline(comparison)
    assert reached == (
        f"Federated reached {pooled.value:.1f} % (95 % interval {pooled.low:.1f}–{pooled.high:.1f}) of pooled."
    )
    assert above == (
        f"It is {local.gain.value:.3f} (95 % interval {local.gain.low:.3f} to {local.gain.high:.3f}) "
        f"above the best local-only model, that of {local.other.site.title()}."
    )
    assert (
        local.other.key
        == max(
            (line for line in comparison.lines if line.contender.role == "local"), key=lambda line: line.mean.value
        ).contender.key
    )
    mean = comparison.lines[0].mean
    interval = f"{mean.low:.3f} to {mean.high:.3f}"
    assert own == f"Its own Dice is {mean.value:.3f} (95 % interval {interval}), mean over the 3 sites."
    text = page_of(client, head)
    assert all(sentence in text for sentence in (reached, above, own))


def test_what_does_not_help_is_said_as_plainly(head):
    CaseScore.objects.filter(subject="global", name="dice").update(value=0.3)
    comparison = compared(head)
    assert "below the best local-only model" in verdict.headline(comparison)[1]
    assert verdict.about_sites(comparison)[0].startswith("0 of 3 sites get a better model")
    assert "loses most" in verdict.about_sites(comparison)[1]


def test_a_difference_that_could_be_none_is_called_open(head):
    rows = CaseScore.objects.filter(subject="global", name="dice")
    for number, row in enumerate(CaseScore.objects.filter(subject="local-mainz", name="dice")):
        rows.filter(site=row.site, case=row.case, region=row.region).update(value=row.value + (-1) ** number * 0.01)
    assert verdict.UNSETTLED in verdict.headline(compared(head))[1]


def test_an_experiment_without_baselines_says_what_is_open(client):
    head = families.make_family(factories.ada(), kinds=())
    text = page_of(client, head)
    assert "The federated model&#x27;s Dice is" in text
    assert "there is no pooled baseline beside it" in text
    assert "there are no local-only baselines beside it" in text
    assert "Nothing stands beside this experiment yet." in text


def test_what_is_not_there_yet_is_said(client):
    head = scenes.make_running(factories.ada())
    text = page_of(client, head)
    assert "No case scores of the federated model yet." in text
    assert "Still to come: the federated run." in text


def test_a_long_way_to_go_is_counted(head):
    head.family.order_by().update(state=ExperimentState.RUNNING)
    Round.objects.all().delete()
    members = head.family.count()
    assert members > 5
    (note,) = family_of(head).notes()
    assert note.startswith("Still to come: the federated run")
    assert note.endswith(f" and {members - 4} more.")


def test_what_has_not_been_measured_yet_is_open(head):
    evaluation = Experiment.objects.filter(kind=Kind.CROSS_SITE)
    evaluation.update(state=ExperimentState.RUNNING)
    Subject.objects.filter(experiment__in=evaluation).exclude(role=Subject.Role.LOCAL).delete()
    above, own, pooled = verdict.headline(compared(head))
    assert above.startswith("Federated is 0.")
    assert own.startswith("Its own Dice is 0.")
    assert pooled.endswith("is open: the cross-site evaluation has not measured it yet.")


def test_what_will_not_be_measured_is_not_promised(client, head):
    CaseScore.objects.filter(subject="pooled").delete()
    assert verdict.headline(compared(head))[-1].endswith("is open: the pooled model has no number.")
    Experiment.objects.filter(kind=Kind.POOLED).update(state=ExperimentState.FAILED)
    assert "is open: the pooled baseline did not come to the end." in verdict.headline(compared(head))[-1]
    CaseScore.objects.all().delete()
    text = page_of(client, head)
    assert verdict.NEVER_MEASURED in text
    assert "yet" not in text


def test_what_no_case_has_a_score_of_is_not_compared(client, head):
    CaseScore.objects.filter(name="hd95").update(value=None)
    comparison = compared(head, measure=HD95)
    assert verdict.headline(comparison) == [
        "Federated cannot be compared with the pooled model: no case has a score of both.",
        "What a hospital reaches alone is open: no local-only model has a number at every site.",
    ]


def test_one_site_is_one_site(client):
    head = families.make_family(factories.ada(), sites=("graz",))
    assert verdict.about_sites(compared(head))[0].startswith("1 of 1 site gets a better model")


def test_members_say_how_far_they_are(client, head):
    pooled, cyclic, *_ = Experiment.objects.filter(kind__in=[Kind.POOLED, Kind.CYCLIC]).order_by("turn")
    evaluation = Experiment.objects.get(kind=Kind.CROSS_SITE)
    pooled.rounds.filter(number__gt=5).delete()
    Experiment.objects.filter(pk=pooled.pk).update(state=ExperimentState.RUNNING)
    Experiment.objects.filter(pk=cyclic.pk).update(state=ExperimentState.FAILED, reason="No site answered.")
    Experiment.objects.filter(pk=evaluation.pk).update(state=ExperimentState.RUNNING)
    assert set(family_of(head).notes()) == {
        "The pooled baseline is in round 5 of 6.",
        "The cyclic baseline stopped: No site answered.",
        "Still to come: the cross-site evaluation.",
    }
    text = page_of(client, head)
    assert "data-active" in text
    before = family_of(head).digest
    Experiment.objects.filter(pk=pooled.pk).update(state=ExperimentState.COMPLETED)
    assert family_of(head).digest != before
    part = client.get(reverse("monitoring:compare", args=[head.key]), {"part": "waiting"}).content.decode()
    assert "pooled" not in part
    assert family_of(head).digest in part


def test_the_settings_that_differ_stand_in_a_table_with_the_budget(client, head):
    other = families.make_family(head.owner, sites=("kiel",), title="Kiel alone", kinds=(), rounds=9)
    text = page_of(client, head, **{"with": other.key})
    assert "Gradient steps done" in text
    assert "9 rounds" in text
    assert "Kiel alone" in text


# --- who may see it, and as what -------------------------------------------------------------------


def test_every_member_leads_to_the_page_of_the_family(client, head):
    client.force_login(head.owner)
    member = head.members.first()
    answer = client.get(reverse("monitoring:compare", args=[member.key]))
    assert answer.url == reverse("monitoring:compare", args=[head.key])


@pytest.mark.parametrize("name", ["monitoring:compare", "monitoring:compare-cases", "monitoring:compare-table"])
def test_strangers_see_nothing(client, head, name):
    client.force_login(factories.eve())
    assert client.get(reverse(name, args=[head.key])).status_code == 404


def test_only_visible_experiments_are_laid_beside_it(client, head):
    foreign = families.make_family(factories.eve(), sites=("kiel",), title="Eve's own", kinds=())
    text = page_of(client, head, **{"with": foreign.key})
    assert "Eve&#x27;s own" not in text
    assert foreign.key not in text


def test_an_address_that_makes_no_sense_shows_the_usual(client, head):
    text = page_of(client, head, measure="weight", region="<b>", round="77")
    assert "Dice, mean over the regions" in text


def test_more_sites_repeats_and_rounds_take_no_more_queries(client, head, django_assert_num_queries):
    address = "monitoring:compare"
    client.force_login(head.owner)
    with CaptureQueriesContext(connection) as few:
        client.get(reverse(address, args=[head.key]))
    count = len(few)
    larger = families.make_family(head.owner, sites=("bonn", "kiel", "jena", "gera"), repeats=3, rounds=9, cases=9)
    client.get(reverse(address, args=[larger.key]))
    with django_assert_num_queries(count):
        client.get(reverse(address, args=[larger.key]))
