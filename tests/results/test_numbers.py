"""The report's numbers are those of the compare page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedportal.experiments.models import MEAN
from fedportal.monitoring import verdict
from fedportal.monitoring.comparison import MEASURES, Comparison, Scores
from fedportal.monitoring.families import family_of
from fedportal.results.figures import draw
from fedportal.results.numbers import collect
from fedportal.results.plans import ALL_BASELINES, FULL, QUICK, Entry, Hospital, Setting, Study
from fedportal.results.report import report
from fedportal.results.runs import Trial, trial_of
from fedportal.sites.models import Dataset
from tests import factories
from tests.monitoring.families import SITES, make_family

pytestmark = pytest.mark.django_db

MAIN = Entry("main", "FedAvg, reset", "reset", baselines=ALL_BASELINES)
OTHER = Entry("other", "FedAvg, keep", "keep")
NEVER = Entry("never", "FedAdam", "keep", "fedadam", {"learning_rate": 0.02})
SETTING = Setting(
    name="shifted",
    title="Unlike hospitals",
    text="They differ.",
    variant="missing-subtypes",
    train=8,
    validation=8,
    hospitals=tuple(Hospital(slug, slug.title(), "some") for slug in SITES),
    plan={"rounds": 6},
    entries=(MAIN, OTHER, NEVER),
)
STUDY = Study(size=16, patients=7, repeats=3, settings=(SETTING,))


@pytest.fixture
def trials() -> list[Trial]:
    main = make_family(repeats=3, rounds=6)
    other = make_family(main.owner, repeats=3, rounds=6, kinds=(), sites=("bonn", "kiel", "trier"))
    return [Trial(SETTING, MAIN, main), Trial(SETTING, OTHER, other)]


def test_estimates_and_sentences_are_those_of_the_compare_page(trials):
    family = family_of(trials[0].head)
    comparison = Comparison(family, Scores(family, MEASURES[0]), measure=MEASURES[0], region=MEAN)
    results = collect(STUDY, trials, [])
    found = results["settings"][0]["entries"][0]
    assert [(one["key"], one["dice"]["value"], one["dice"]["low"]) for one in found["models"]] == [
        (line.contender.key, line.mean.value, line.mean.low) for line in comparison.lines
    ]
    assert all(len(one["by_seed"]) == 3 for one in found["models"])
    federated = found["models"][0]
    assert sum(federated["by_seed"]) / 3 == pytest.approx(federated["dice"]["value"])
    assert found["said"] == verdict.headline(comparison) + verdict.about_sites(comparison)
    assert {curve["group"] for curve in found["curves"]} >= {"federated", "pooled", "local", "cyclic"}
    text = report(results, command="make results")
    assert all(sentence in text for sentence in found["said"])
    assert "Not run: FedAdam." in text


def test_figures_are_the_same_bytes_for_the_same_numbers(trials, tmp_path: Path):
    results = collect(STUDY, trials, [])
    first = {file.name: file.read_bytes() for file in draw(results, tmp_path / "a")}
    assert set(first) == {f"shifted-{name}.svg" for name in ("baselines", "strategies", "means")}
    assert {file.name: file.read_bytes() for file in draw(results, tmp_path / "b")} == first
    assert b"FedAvg, keep" in first["shifted-strategies.svg"]


def test_a_second_call_finds_the_experiment_of_the_first_and_only_that(trials):
    owner = trials[0].head.owner
    datasets = list(Dataset.objects.filter(site__slug__in=SITES))

    def again(entry: Entry, repeats: int = 3) -> Trial:
        return trial_of(SETTING, entry, repeats=repeats, owner=owner, datasets=datasets)

    first = again(NEVER)
    assert (first.head.strategy, first.head.strategy_options) == ("fedadam", {"learning_rate": 0.02})
    assert (first.head.plan["rounds"], first.head.plan["optimizer"]["treatment"]) == (6, "keep")
    assert again(NEVER).head == first.head
    assert again(NEVER, repeats=2).head != first.head
    changed = Entry("never", "FedAdam", "keep", "fedadam", {"learning_rate": 0.03})
    assert again(changed).head != first.head
    assert again(Entry("never", "FedAdam", "reset", "fedadam", {"learning_rate": 0.02})).head != first.head


def test_a_family_whose_run_failed_is_over_though_its_baselines_still_wait(trials):
    family = trials[0].head.family
    family.update(state="completed")
    family.filter(pk=trials[0].head.pk).update(state="failed", reason="No site answers.")
    family.filter(beside=trials[0].head).update(state="running")
    assert trials[0].is_over
    assert trials[0].failures[0].endswith("is “Failed”: No site answers.")
    family.filter(beside=family.filter(kind="federated").last()).update(state="running")
    assert not trials[0].is_over


DECLARED = [(setting, entry) for study in (FULL, QUICK) for setting in study.settings for entry in setting.entries]


@pytest.mark.parametrize(("setting", "entry"), DECLARED, ids=lambda one: one.name)
def test_every_declared_experiment_can_start(setting: Setting, entry: Entry):
    owner = factories.make_user()
    datasets = [factories.make_dataset(factories.make_site(one.slug)) for one in setting.hospitals]
    alone = replace(entry, baselines=())  # whether a pool can be made is a matter of real sites: test_command
    trial = trial_of(setting, alone, repeats=3, owner=owner, datasets=datasets)
    trial.start()
    trial.head.refresh_from_db()
    assert trial.head.state == "running"
    assert trial.steps_planned > trial.steps_done == 0
    assert not trial.is_over
