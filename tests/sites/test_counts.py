import pytest
from django.contrib.auth.models import AnonymousUser

from fedportal.sites.counts import Count, case_counts, total_of
from tests.factories import ada, audrey, make_dataset, make_site, make_user, otto, stella

pytestmark = pytest.mark.django_db


@pytest.fixture
def dataset():
    return make_dataset(make_site("mainz"), train_cases=6, validation_cases=3)


def told(dataset, user) -> tuple[str, str, str]:
    counts = case_counts(dataset, user)
    return str(counts.train), str(counts.validation), str(counts.total)


def test_small_counts_are_for_operators_and_the_sites_own_stewards(dataset):
    steward, other = stella(), make_user("zoe", "steward")
    dataset.site.stewards.add(steward)
    make_site("bonn").stewards.add(other)
    for person in (otto(), steward):
        assert told(dataset, person) == ("6", "3", "9")
    for person in (ada(), audrey(), other, AnonymousUser(), None):
        assert told(dataset, person) == ("6", "fewer than 5", "fewer than 11")


@pytest.mark.parametrize(("number", "shown"), [(0, "fewer than 5"), (4, "fewer than 5"), (5, "5"), (6, "6")])
def test_the_threshold_itself_is_told(dataset, number, shown):
    dataset.train_cases = number
    assert told(dataset, ada())[0] == shown


def test_the_threshold_is_a_setting(dataset, settings):
    person = ada()
    settings.FEDPORTAL_SMALL_COUNT = 10
    assert told(dataset, person) == ("fewer than 10", "fewer than 10", "fewer than 19")
    settings.FEDPORTAL_SMALL_COUNT = 0
    assert told(dataset, person) == ("6", "3", "9")


def test_a_sum_never_gives_a_part_away():
    for parts in [(0, 0), (4, 4), (3, 100), (4, 5, 6)]:
        told_parts = [Count(number) if number >= 5 else Count(None, 5) for number in parts]
        total = total_of(told_parts)
        assert total.value is None
        assert sum(parts) < total.fewer_than
        assert total.fewer_than == sum(number if number >= 5 else 4 for number in parts) + 1, (
            "it depends on no hidden part"
        )
    assert total_of([Count(7), Count(8)]) == Count(15)
    assert total_of([]) == Count(0)


def test_a_persons_sites_are_asked_for_once(dataset, django_assert_num_queries):
    person = ada()
    with django_assert_num_queries(1):
        for _ in range(5):
            case_counts(dataset, person)


def test_small_counts_are_in_no_page_of_the_site_and_in_no_answer_of_the_api(client, dataset):
    dataset.train_cases, dataset.validation_cases = 4321, 3
    dataset.save()
    client.force_login(ada())
    shown = client.get("/sites/mainz/").content.decode()
    assert "4321 training" in shown
    assert "fewer than 5 held out" in shown
    (row,) = client.get("/api/sites/mainz/datasets/").json()
    assert (row["train_cases"], row["validation_cases"], row["fewer_than"]) == (4321, None, 5)
    client.force_login(otto())
    assert "3 held out" in client.get("/sites/mainz/").content.decode()
    (row,) = client.get("/api/sites/mainz/datasets/").json()
    assert (row["validation_cases"], row["fewer_than"]) == (3, None)
