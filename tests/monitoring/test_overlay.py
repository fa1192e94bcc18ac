import pytest
from django.utils import timezone

from fedportal.experiments.models import Experiment, Kind, Metric, Round, SiteRun, Subject
from fedportal.monitoring.families import family_of
from fedportal.monitoring.overlay import EVERYWHERE, POINTS, curves
from tests import factories
from tests.monitoring import families
from trainer.contract import Phase

pytestmark = pytest.mark.django_db


@pytest.fixture
def head():
    return families.make_family(factories.ada(), rounds=6)


def lines(head, others=(), *, measure="dice", region="mean"):
    found = curves(family_of(head), [family_of(other) for other in others], measure=measure, region=region)
    return {curve.label: curve for curve in found}


def value(experiment, number, site, region="mean"):
    return Metric.objects.get(
        experiment=experiment, round_number=number, site=site, region=region, phase=Phase.INCOMING
    ).value


def test_the_federated_line_is_the_mean_over_sites_of_each_rounds_model(head):
    line = lines(head)["Federated"]
    assert line.rounds == [0, 1, 2, 3, 4, 5, 6]  # measured in the round after
    at_sites = [value(head, 3, slug) for slug in families.SITES]
    assert line.values[EVERYWHERE][2] == pytest.approx(sum(at_sites) / 3, abs=1e-5)
    assert line.values["mainz"][2] == pytest.approx(at_sites[1], abs=1e-5)


def test_a_region_has_a_line_of_its_own(head):
    assert lines(head, region="WT")["Federated"].values["ulm"][0] == pytest.approx(
        value(head, 1, "ulm", "WT"), abs=1e-5
    )


def test_gradient_steps_are_those_of_all_sites_together(head):
    found = lines(head)
    assert found["Federated"].steps == [0, 36, 72, 108, 144, 180, 216]
    assert found["Local only"].steps == found["Federated"].steps  # three models of one site each
    assert found["Pooled"].steps[-1] == 72  # one site of twelve steps a round


def test_time_begins_when_the_first_round_is_sent_out_not_when_it_waits_for_its_turn(head):
    pooled = Experiment.objects.get(kind=Kind.POOLED)
    Experiment.objects.filter(pk=pooled.pk).update(started_at=timezone.now() - timezone.timedelta(days=2))
    assert lines(head)["Pooled"].seconds[:3] == [1.0, 5.0, 9.0]


def test_local_only_is_each_model_at_its_own_site(head):
    line = lines(head)["Local only"]
    locals_ = Experiment.objects.filter(kind=Kind.LOCAL_ONLY)
    own = {one.participations.get().site.slug: value(one, 4, one.participations.get().site.slug) for one in locals_}
    assert line.values["ulm"][3] == pytest.approx(own["ulm"], abs=1e-5)
    assert line.values[EVERYWHERE][3] == pytest.approx(sum(own.values()) / 3, abs=1e-5)


def test_of_a_baseline_that_was_trained_again_the_newer_one_counts(head):
    old = Experiment.objects.get(kind=Kind.POOLED)
    part = old.participations.get()
    new = families.member_of(head, head, Kind.POOLED, turn=9, sites=[part], rounds=3)
    families.add_curves(new, final=0.5)
    assert lines(head)["Pooled"].rounds == [0, 1, 2, 3]
    assert old not in family_of(head).members


def test_once_round_all_sites_is_a_round_of_cyclic_transfer(head):
    cyclic = Experiment.objects.get(kind=Kind.CYCLIC)
    for number in range(1, 19):  # only the site whose turn it is measures
        own = families.SITES[(number - 1) % 3]
        Metric.objects.filter(experiment=cyclic, round_number=number).exclude(site=own).delete()
    line = lines(head)["Cyclic"]
    assert line.rounds[:4] == [0, 0.333, 0.667, 1]
    assert line.rounds[-1] == 6
    assert line.values[EVERYWHERE][:2] == [None, None]
    newest = [value(cyclic, number, families.SITES[(number - 1) % 3]) for number in (3, 4, 5)]
    assert line.values[EVERYWHERE][4] == pytest.approx(sum(newest) / 3, abs=1e-5)


def test_the_ensemble_stands_where_it_was_measured(head):
    evaluation = Experiment.objects.get(kind=Kind.CROSS_SITE)
    Subject.objects.create(experiment=evaluation, name="ensemble-r2", role="ensemble", round_number=2)
    families.measure(evaluation, {"ensemble-r2": "ensemble"}, with_rows=False, value=lambda *_: 0.25)
    line = lines(head)["Ensemble"]
    assert line.rounds == [2, 6]
    assert line.values[EVERYWHERE][0] == 0.25
    assert line.steps == [72, 216]


def test_a_newer_attempt_replaces_what_the_older_one_measured(head):
    run = SiteRun.objects.get(round__experiment=head, round__number=3, participation__site__slug="ulm")
    old = Metric.objects.get(site_run=run, region="mean")
    old.pk, old.attempt, old.value = None, 2, 0.999
    old.save()
    assert lines(head)["Federated"].values["ulm"][2] == 0.999


def test_an_undefined_measurement_is_a_gap(head):
    Metric.objects.filter(experiment=head, round_number=3, site="ulm").update(value=None)
    line = lines(head)["Federated"]
    assert line.values["ulm"][2] is None
    rest = [value(head, 3, slug) for slug in ("graz", "mainz")]
    assert line.values[EVERYWHERE][2] == pytest.approx(sum(rest) / 2, abs=1e-5)


def test_repeats_and_other_experiments_have_lines_of_their_own():
    head = families.make_family(factories.ada(), repeats=2, kinds=("pooled",))
    other = families.make_family(head.owner, sites=("kiel",), kinds=(), title="Kiel")
    found = lines(head, [other])
    assert list(found) == [
        "Federated, repeat 1", "Pooled, repeat 1", "Federated, repeat 2", "Pooled, repeat 2", "Kiel",
    ]  # fmt: skip
    assert found["Federated, repeat 1"].group == found["Federated, repeat 2"].group
    assert found["Kiel"].group == other.key


def test_a_long_run_is_drawn_thinned_with_its_last_model():
    head = factories.make_experiment(sites=1, rounds=1000)
    part = head.participations.get()
    began = timezone.now()
    Round.objects.bulk_create(Round(experiment=head, number=n, dispatched_at=began) for n in range(1, 1002))
    SiteRun.objects.bulk_create(SiteRun(round=opened, participation=part) for opened in head.rounds.all())
    Metric.objects.bulk_create(
        Metric(
            experiment=head, site_run=run, site=part.site.slug, round_number=run.round.number,
            phase=Phase.INCOMING, name="dice", region="mean", value=0.5, at=began,
        )
        for run in SiteRun.objects.select_related("round")
    )  # fmt: skip
    line = lines(head)["Federated"]
    assert len(line.rounds) <= POINTS + 1
    assert line.rounds[-1] == 1000
