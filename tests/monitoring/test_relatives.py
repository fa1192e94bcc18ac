"""What belongs to an experiment, on its page and over the socket: repeats, baselines, the evaluation of all models."""

from __future__ import annotations

from html import unescape

import pytest
from django.test import Client
from django.utils import timezone

from fedportal.experiments import baselines, families, journal, services
from fedportal.experiments.models import CaseScore, Experiment, GlobalModel, Kind, Round, Subject
from fedportal.experiments.states import ExperimentState, RoundState
from fedportal.monitoring.case_table import Cell, case_table
from fedportal.monitoring.overview import overview, site_styles
from fedportal.monitoring.relatives import relatives_of
from fedportal.monitoring.tail import Reader
from tests import factories
from tests.monitoring import scenes

pytestmark = pytest.mark.django_db


@pytest.fixture
def head() -> Experiment:
    """Three seeds; the first with a pooled and two local-only baselines and the evaluation."""
    draft = scenes.make_running(factories.ada())
    Experiment.objects.filter(pk=draft.pk).update(state="draft", started_at=None, title="Brains")
    draft.refresh_from_db()
    chosen = {"baselines": ["pooled", "local_only", "ensemble"], "repeats": 3}
    services.update_draft(experiment=draft, by=draft.owner, fields=chosen)
    services.start(experiment=draft, by=draft.owner)
    return draft


@pytest.fixture
def browser(head) -> Client:
    client = Client()
    client.force_login(head.owner)
    return client


def page(browser, experiment: Experiment) -> str:
    return unescape(browser.get(f"/experiments/{experiment.key}/").content.decode())


def of_kind(head: Experiment, kind: Kind) -> Experiment:
    return head.companions.filter(kind=kind).order_by("pk").first()


def train(run: Experiment, *dices: float) -> None:
    """Let a run do rounds whose models reach these Dice."""
    Round.objects.filter(experiment=run).delete()
    scenes.make_model(run, 0)
    for number, dice in enumerate(dices, start=1):
        scenes.finish_round(scenes.open_round(run, number))
        GlobalModel.objects.filter(experiment=run, round_number=number).update(dice=dice)


def test_the_page_lists_what_stands_beside_a_run_with_state_progress_and_dice(browser, head):
    local = of_kind(head, Kind.LOCAL_ONLY)
    train(local, 0.4, 0.5)
    scenes.change(of_kind(head, Kind.POOLED), state="failed", reason="The disk is full.")
    scenes.make_model(of_kind(head, Kind.CROSS_SITE), 0, dice=0.9)  # that of the run itself
    found = {one.name: one for one in relatives_of(head).companions}
    assert list(found) == [
        "Local only: Hospital mainz", "Local only: Hospital ulm", "Pooled", "Cross-site evaluation"
    ]  # fmt: skip
    assert [one.state for one in found.values()] == [
        ExperimentState.RUNNING, RoundState.PENDING, ExperimentState.FAILED, RoundState.PENDING
    ]  # fmt: skip
    mainz = found["Local only: Hospital mainz"]
    assert (mainz.where, mainz.rounds_done, mainz.dice) == ("2 of 4 rounds", 2, 0.5)
    assert found["Cross-site evaluation"].dice is None
    shown = page(browser, head)
    for words in ("2 of 4 rounds", "0.500", "The disk is full.", f'href="/experiments/{local.key}/"'):
        assert words in shown
    assert f'href="/experiments/{head.key}/compare/"' in shown


def test_the_repeats_are_switched_between_and_their_spread_is_told(browser, head):
    runs = list(head.family.filter(kind=Kind.FEDERATED))
    train(runs[0], 0.5, 0.8)
    train(runs[1], 0.84)
    scenes.change(runs[0], state="completed")
    assert relatives_of(head).spread is None  # one number has no spread
    scenes.change(runs[1], state="completed")
    spread = relatives_of(runs[2]).spread
    assert (spread.count, round(spread.mean, 6), round(spread.deviation, 6)) == (2, 0.82, 0.028284)
    shown = page(browser, head)
    assert "Final Dice over 2 seeds" in shown
    assert "0.820 ± 0.028" in shown
    for seed, run in enumerate(runs):
        current = ' aria-current="page"' if run == head else ""
        assert f'<a href="/experiments/{run.key}/"{current}>Seed {seed}</a>' in shown
    assert "Repeat with seed 2 of" in page(browser, runs[2])
    assert relatives_of(runs[2]).of == head


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Kind.POOLED, "Pooled baseline of"),
        (Kind.LOCAL_ONLY, "Local-only baseline, Hospital mainz, of"),
        (Kind.CROSS_SITE, "Cross-site evaluation of"),
    ],
)
def test_a_companion_says_what_it_is_and_leads_back(browser, head, kind, says):
    companion = of_kind(head, kind)
    shown = page(browser, companion)
    assert f'{says} <a href="/experiments/{head.key}/">“Brains”</a>' in shown
    assert f"/experiments/{companion.key}/clone/" not in shown
    assert "Aggregation" not in shown
    assert "Global model</button>" not in shown
    assert f'action="/experiments/{companion.key}/baselines/"' not in shown
    for act, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelling")):
        assert f'action="/experiments/{companion.key}/{act}/"' in shown
        browser.post(f"/experiments/{companion.key}/{act}/")
        companion.refresh_from_db()
        assert companion.state == state


@pytest.mark.parametrize(
    ("kind", "says"),
    [(Kind.POOLED, "Pooled baseline of"), (Kind.LOCAL_ONLY, "Local-only baseline, Hospital mainz, of")],
)
def test_the_page_of_a_baseline_that_was_cancelled_and_trained_again_still_opens(browser, head, kind, says):
    cancelled = of_kind(head, kind)
    scenes.change(cancelled, state="cancelled")
    again = baselines.add(experiment=head, kinds=[kind.value], by=head.owner)[0]
    assert again.kind == kind
    for one in (cancelled, again):
        assert f'{says} <a href="/experiments/{head.key}/">“Brains”</a>' in page(browser, one)
    assert again in [one.experiment for one in relatives_of(head).companions]


def test_a_run_that_waits_for_others_says_so(browser, head):
    pooled = of_kind(head, Kind.POOLED)
    scenes.change(pooled, reason="Waits until “Brains” has ended.")
    assert "Waits until “Brains” has ended." in page(browser, pooled)
    assert "Waits until “Brains” has ended." in page(browser, head)
    assert overview(pooled).left == ""


def test_what_is_left_of_a_family_is_cancelled_after_its_first_run_has_ended(browser, head):
    def offered(experiment):
        return 'id="cancel-rest">' in page(browser, experiment)

    assert not offered(head)  # its own button cancels all of it
    scenes.change(head, state="completed", ended_at=timezone.now())
    assert offered(head)
    assert f'data-left="{head.family.count() - 1}"' in page(browser, head)
    assert not offered(of_kind(head, Kind.POOLED))
    browser.post(f"/experiments/{head.key}/cancel/")
    assert set(head.family.exclude(pk=head.pk).values_list("state", flat=True)) == {"cancelling"}
    assert not offered(head)
    head.refresh_from_db()
    assert head.state == "completed"


def test_a_lone_run_offers_baselines_to_those_who_may_control_it(browser, head):
    lone = scenes.make_running(head.owner, sites=("bonn", "kiel"))
    shown = page(browser, lone)
    assert "Nothing stands beside this run." in shown
    assert "Add baselines" in shown
    viewer = factories.eve()
    lone.viewers.add(viewer)
    browser.force_login(viewer)
    assert "Add baselines" not in page(browser, lone)


def measure(evaluation: Experiment) -> None:
    Subject.objects.create(experiment=evaluation, name="local-mainz", role="local", site="mainz")
    Subject.objects.create(experiment=evaluation, name="pooled-r2", role="pooled", round_number=2)
    numbers = {("global", "mainz"): 0.8, ("global", "ulm"): 0.6, ("local-mainz", "mainz"): 0.7}
    CaseScore.objects.bulk_create(
        CaseScore(
            experiment=evaluation, site=site, subject=subject, case=case, name=name, region=region,
            value=None if (case, region, name) == ("b", "ET", "hd95") else (dice + shift) * (10 if name == "hd95" else 1),
        )
        for (subject, site), dice in numbers.items()
        for case, shift in (("a", 0.1), ("b", -0.1))
        for region in ("WT", "ET")
        for name in ("dice", "hd95")
    )  # fmt: skip


def test_an_evaluation_shows_a_table_of_scores_in_place_of_curves(browser, head):
    evaluation = of_kind(head, Kind.CROSS_SITE)
    shown = page(browser, evaluation)
    assert "Nothing is measured yet" in shown
    assert 'id="curves-title"' not in shown
    assert "No model yet" not in shown
    measure(evaluation)
    lines = case_table(evaluation, site_styles(evaluation))
    assert [line.name for line in lines] == ["Federated", "Local only: Hospital mainz", "Pooled, round 2"]
    assert [round(cell.dice, 6) for cell in lines[0].cells] == [0.8, 0.6]
    assert round(lines[0].mean.dice, 6) == 0.7
    assert round(lines[0].cells[0].hd95, 6) == 8.5  # WT: 8; ET: 9, undefined in one of two cases
    assert [cell.dice for cell in lines[1].cells][1] is None
    assert lines[1].mean == Cell()  # of one of two sites: not to be compared with the others
    assert (lines[2].mean.dice, lines[2].mean.hd95) == (None, None)
    shown = page(browser, evaluation)
    for words in ("Federated", "0.700", "8.5 mm"):
        assert words in shown


def test_the_socket_tells_when_something_beside_a_run_goes_on(head):
    scenes.change(head, state="completed")
    reader = Reader(head.pk)
    reader.look([])
    assert reader.is_active  # what stands beside it is under way
    local = of_kind(head, Kind.LOCAL_ONLY)
    scenes.change(local, state="completed")
    families.tell_ended(local)
    sent, _ = reader.look([])
    assert '"id":"relatives"' in sent
    assert "The local-only baseline of Hospital mainz has ended" in sent
    head.members.update(state="completed")
    journal.record(head, "note", "…")
    reader.look([])
    assert not reader.is_active


def test_the_socket_of_an_evaluation_brings_its_table(head):
    evaluation = of_kind(head, Kind.CROSS_SITE)
    reader = Reader(evaluation.pk)
    reader.look([])
    measure(evaluation)
    journal.record(evaluation, "measured", "Mainz has measured.", round_number=1)
    sent, _ = reader.look([])
    assert "Mainz has measured." in sent
    assert "round 1<" not in sent
    assert '"id":"scores"' in sent
    assert "Pooled, round 2" in sent


def test_what_belongs_to_an_experiment_costs_the_same_for_many(head, django_assert_num_queries):
    few = scenes.make_running(head.owner, sites=("bonn", "kiel"))
    for experiment in (few, head):
        with django_assert_num_queries(4):  # family, participations with sites, newest rounds, Dice
            relatives_of(experiment)
