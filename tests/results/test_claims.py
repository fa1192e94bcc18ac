"""What the report says follows the numbers: other numbers, other sentences."""

from __future__ import annotations

from typing import Any

import pytest

from fedportal.results.claims import FAILS, HOLDS, OPEN, about, claims, recoveries
from fedportal.results.report import report

LOCAL = 0.40


def estimate(value: float | None, reach: float = 0.02) -> dict[str, float | None]:
    known = value is not None
    return {"value": value, "low": value - reach if known else None, "high": value + reach if known else None}


def model(key: str, role: str, dice: float) -> dict[str, Any]:
    return {
        "key": key,
        "role": role,
        "label": key.title(),
        "dice": estimate(dice),
        "sites": {"ulm": estimate(dice)},
        "regions": {"WT": estimate(dice)},
        "hd95": estimate(None),
        "by_seed": [dice - 0.01, dice + 0.01],
    }


def entry(title: str, dice: float, *, pooled: float | None = None, **more: str) -> dict[str, Any]:
    """An experiment; with ``pooled`` it has baselines: the pooled model and one local-only model of Dice 0.4."""
    models, contrasts = [model("global", "global", dice)], []
    if pooled is not None:
        models += [model("pooled", "pooled", pooled), model("local-ulm", "local", LOCAL)]
        contrasts = [
            contrast("pooled", "pooled", dice - pooled, 100 * dice / pooled),
            contrast("local-ulm", "local", dice - LOCAL, 100 * dice / LOCAL),
        ]
    return {
        "name": title.lower(),
        "title": title,
        "strategy": "fedavg",
        "treatment": "reset",
        "seeds": [0, 1],
        "unfinished": [],
        "models": models,
        "contrasts": contrasts,
        "gains": [],
        "said": ["Said by the compare page."] if contrasts else [],
        "work": [],
        "curves": [],
    } | more


def contrast(key: str, role: str, gain: float, percentage: float) -> dict[str, Any]:
    return {
        "other": key,
        "role": role,
        "label": key,
        "gain": estimate(gain),
        "percentage": estimate(percentage, 2.0),
        "sentence": f"Federated is {gain:+.3f} against {key}.",
    }


def setting(name: str, *entries: dict[str, Any], is_iid: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "title": name.title(),
        "text": "Some hospitals.",
        "variant": name,
        "train": 8,
        "validation": 4,
        "is_iid": is_iid,
        "hospitals": [{"slug": "ulm", "name": "Ulm", "patients": "all"}],
        "missing": [],
        "entries": list(entries),
        "recipe": [{"label": "Rounds", "value": "24 rounds"}],
        "regions": ["WT"],
        "differences": {"columns": [], "rows": []},
    }


def results(*settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "made": "2026-11-23T12:00:00+00:00",
        "sessions": [{"began": "2026-11-23T11:00:00+00:00", "seconds": 600.0, "commit": "abc", "cores": 2}],
        "versions": {"torch": "2"},
        "study": {"size": 32, "patients": 7, "repeats": 2},
        "settings": list(settings),
    }


def usual(*, iid: float = 0.89, plain: float = 0.60, better: float = 0.72) -> dict[str, Any]:
    return results(
        setting("shifted", entry("Plain", plain, pooled=0.80), entry("Better", better)),
        setting("iid", entry("Long", iid, pooled=0.90), is_iid=True),
    )


def test_all_claims_hold_where_the_numbers_say_so():
    above, pooled, recovered = claims(usual())
    assert (above.verdict, pooled.verdict, recovered.verdict) == (HOLDS, HOLDS, HOLDS)
    assert "98.9 % (95 % interval 96.9–100.9) of pooled" in pooled.sentences[0]
    assert "Plain loses 0.200 Dice" in recovered.sentences[0]
    assert recovered.sentences[1] == "Better recovers most of it: 60 % (60 and 60 % with the single seeds)."


@pytest.mark.parametrize(("dice", "verdict"), [(0.882, HOLDS), (0.8819, FAILS)])
def test_nearly_pooled_is_judged_by_the_exact_number(dice, verdict):
    assert claims(usual(iid=dice))[1].verdict == verdict


@pytest.mark.parametrize(("better", "verdict"), [(0.7001, HOLDS), (0.6999, FAILS), (0.55, FAILS)])
def test_half_of_the_loss_has_to_be_recovered(better, verdict):
    assert claims(usual(better=better))[2].verdict == verdict


def test_one_setting_or_experiment_below_the_best_local_only_model_is_enough_to_fail():
    assert claims(usual(iid=LOCAL - 0.01))[0].verdict == FAILS
    below = claims(usual(better=LOCAL - 0.01))[0]
    assert below.verdict == FAILS
    assert "Below it there: Better." in below.sentences


def test_what_was_not_measured_is_open():
    nothing = results(setting("shifted", entry("Plain", 0.6)), setting("iid", entry("Long", 0.9), is_iid=True))
    assert [claim.verdict for claim in claims(nothing)] == [OPEN, OPEN, OPEN]
    assert [claim.verdict for claim in claims(results(setting("shifted"), setting("iid")))] == [OPEN, OPEN, OPEN]


def test_a_setting_that_loses_nothing_has_nothing_to_recover():
    found = results(setting("shifted", entry("Plain", 0.85, pooled=0.80), entry("Better", 0.9)))
    assert claims(found)[2].verdict == OPEN
    assert recoveries(found["settings"][0])[0].share is None


def test_what_does_not_help_is_said():
    worse = usual(better=0.55)
    first, _ = worse["settings"][0]["entries"]
    said = about(recoveries(worse["settings"][0])[0], first)
    assert said == "Better is 0.050 below Plain: it does not help here."
    assert said in report(worse, command="make results")
    assert "What did not help: shifted, Better (not above Plain)." in report(worse, command="make results")
    assert "What did not help" not in report(usual(), command="make results")


def test_the_report_says_what_is_missing():
    found = usual()
    found["settings"][0]["missing"] = ["FedAdam"]
    found["settings"][0]["entries"][1]["unfinished"] = ["“Better” is “Failed”: no disk."]
    text = report(found, command="make results")
    assert "Not run: FedAdam." in text
    assert "**Not complete.** “Better” is “Failed”: no disk." in text


def test_the_report_has_every_experiment_with_its_numbers():
    text = report(usual(), command="make results")
    assert "10 min on 2 cores" in text
    assert "patients generated from other seeds than these, whose seed is 7" in text
    assert "| Better | 0.720 (0.700 to 0.740) | 0.710 · 0.730 | +0.120 | 60 % | – |" in text
    assert "| Plain | 0.600 (0.580 to 0.620) | 0.590 · 0.610 | – | – | – |" in text
    assert "| Pooled | 0.800 (0.780 to 0.820) |" in text
