"""What a plan comes to: the sentence of the review and the gradient steps."""

from __future__ import annotations

import pytest

from fedportal.experiments import services
from fedportal.experiments.models import Experiment
from fedportal.experiments.review import planned_steps, sentence, step_table
from fedportal.sites.models import Dataset
from tests.factories import ada, make_experiment, otto

pytestmark = pytest.mark.django_db


@pytest.fixture
def draft() -> Experiment:
    """12 rounds of one epoch; three sites with 8 cases each, 2 to a step."""
    return make_experiment(ada(), rounds=12)


def choose(draft: Experiment, *baselines: str, **fields: int) -> None:
    services.update_draft(experiment=draft, by=draft.owner, fields={"baselines": list(baselines), **fields})
    draft.refresh_from_db()


def test_the_sentence_says_what_it_is_compared_with(draft):
    plain = sentence(draft)
    assert plain.endswith("within 6 hours.")
    choose(draft, "pooled", "local_only")
    assert sentence(draft).removeprefix(plain[:-1]) == (
        "; compared with pooled and local-only training of the same 144 gradient steps."
    )
    choose(draft, "local_only", "ensemble", "cyclic", repeats=3)
    assert sentence(draft).removeprefix(plain[:-1]) == (
        "; compared with local-only and cyclic training of the same 144 gradient steps and the ensemble of the "
        "local-only models; all of it with 3 seeds."
    )


def test_a_last_batch_that_is_not_full_makes_the_steps_about_the_same(draft):
    Dataset.objects.update(train_cases=7)  # 4 steps at each site, but 11 for the 21 cases in one place
    choose(draft, "pooled")
    assert "pooled training of about the same 144 gradient steps" in sentence(draft)
    choose(draft, "cyclic")
    assert "cyclic training of the same 144 gradient steps" in sentence(draft)


def test_the_steps_of_all_that_is_chosen_are_counted_for_every_seed(draft):
    choose(draft, "pooled", "local_only", "ensemble", repeats=3)
    table = step_table(draft, draft.owner)
    assert {row.name: row.count for row in table.rows} == {
        "federated": 144, "pooled": 144, "local_only": 144, "ensemble": 0, "cyclic": 144,
    }  # fmt: skip
    assert [count for _, count in table.rows[0].sites] == [48, 48, 48]
    assert table.together == 3 * 3 * 144


def test_steps_that_would_tell_a_small_number_of_cases_are_told_to_operators_only(draft):
    Dataset.objects.filter(pk=Dataset.objects.first().pk).update(train_cases=3)
    choose(draft, "cyclic")
    assert {row.count for row in planned_steps(draft, draft.owner)} == {None}
    assert step_table(draft, draft.owner).together is None
    assert "cyclic training of the same number of gradient steps" in sentence(draft)
    assert step_table(draft, otto()).together == 2 * (48 + 48 + 24)


def test_an_incomplete_plan_has_no_steps(draft):
    services.update_draft(experiment=draft, by=draft.owner, plan={"task": {"regions": []}})
    draft.refresh_from_db()
    assert (planned_steps(draft, draft.owner), step_table(draft, draft.owner).together) == ([], 0)
    choose(draft, "pooled")
    assert "pooled training of the same number of gradient steps" in sentence(draft)
