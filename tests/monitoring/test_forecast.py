import pytest

from fedportal.monitoring.forecast import SiteNow, in_words, left_in_words, notes, seconds_left, usual


def test_nothing_is_foretold_before_a_round_is_done():
    assert seconds_left(rounds=[], elapsed=3, to_come=5) is None
    assert left_in_words(None) == "Time left is known after the first round"


def test_the_rest_is_this_round_those_to_come_and_the_evaluation():
    assert seconds_left(rounds=[10, 12, 11], elapsed=4, to_come=3, evaluation=5) == 7 + 33 + 5


def test_a_round_that_takes_longer_than_usual_does_not_make_the_rest_shorter():
    assert seconds_left(rounds=[10], elapsed=60, to_come=2) == 20


def test_one_slow_round_changes_nothing_but_a_lasting_change_counts():
    assert usual([10, 10, 10, 10, 500]) == 10
    assert usual([10, 10, 20, 20, 20]) == 20
    assert usual([]) is None


def test_the_final_evaluation_counts_down_from_what_validating_takes():
    assert seconds_left(rounds=[10], elapsed=1, to_come=0, evaluation=4, evaluating=True) == 3
    assert seconds_left(rounds=[10], elapsed=9, to_come=0, evaluation=4, evaluating=True) == 0
    assert seconds_left(rounds=[10], elapsed=1, to_come=0, evaluating=True) is None


def test_a_late_site_is_named_with_its_usual_time():
    late = SiteNow("Mainz", running=19, usual=12, silent=1)
    assert notes([late]) == ["Waiting for Mainz: usually 12 s, now 19 s."]


@pytest.mark.parametrize(
    "site",
    [
        SiteNow("Mainz", running=None, usual=12, silent=900),
        SiteNow("Mainz", running=13, usual=12, silent=1),
        SiteNow("Mainz", running=2.5, usual=1, silent=1),
        SiteNow("Mainz", running=99, usual=None, silent=1),
    ],
    ids=["not at work", "as usual", "tiny rounds", "no history"],
)
def test_nobody_is_blamed_without_reason(site):
    assert notes([site]) == []


def test_a_silent_site_is_named_with_its_last_sign_of_life():
    assert notes([SiteNow("Mainz", running=300, usual=12, silent=240)]) == ["Mainz was last heard from 4 min ago."]


def test_a_run_that_waits_for_somebody_says_for_whom():
    site = SiteNow("Mainz", running=900, usual=12, silent=1, reason="It waits for the steward's confirmation.")
    assert notes([site]) == ["Mainz: It waits for the steward's confirmation."]


def test_thirty_silent_sites_do_not_push_the_curves_away():
    said = notes(SiteNow(f"Site {number}", running=300, silent=240) for number in range(30))
    assert said[3:] == [
        "Site 3 was last heard from 4 min ago.",
        "26 more sites are late or silent: the table below has them.",
    ]


def test_a_site_that_does_not_answer_is_named_even_before_its_run_has_begun():
    (said,) = notes([SiteNow("Mainz", unreached=240, next_try=39.6)])
    assert said == "Mainz has not answered for 4 min; it is tried again in 40 s."
    (said,) = notes([SiteNow("Mainz", running=300, silent=240, unreached=240)])
    assert said == "Mainz has not answered for 4 min; it is tried again now."


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3600, "60 min"),
        (7800, "2 h 10 min"),
        (86400, "24 h"),
        (300_000, "3 days"),
    ],
)
def test_spans_are_as_rough_as_a_forecast_deserves(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(2, "A few seconds left"), (44, "About 40 s left"), (200, "About 3 min left")]
)
def test_the_time_left_is_said_in_words(seconds, words):
    assert left_in_words(seconds) == words
