"""What the numbers say about three claims, and what recovers what: numbers in, sentences out.

A number that is compared with a threshold is the exact one; sentences show it rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedportal.experiments.plan import listed

HOLDS, FAILS, OPEN = "Holds", "Does not hold", "Open"
NEARLY_POOLED = 98.0
"""Percent of the pooled model's Dice."""
HALF = 0.5

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    text: str
    verdict: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Recovery:
    """What an experiment regains of the Dice that the first one of its setting loses against pooled training.

    ``gain``: over the first one. ``share``: of the loss, 1 is all of it; ``None`` where nothing is lost. ``by_seed``: the
    shares of single seeds; ``None`` where that seed lost nothing or was not measured.
    """

    entry: Json
    gain: float
    share: float | None
    by_seed: tuple[float | None, ...]


def claims(results: Json) -> list[Claim]:
    settings = [setting for setting in results["settings"] if setting["entries"]]
    return [_above_local(settings, len(results["settings"])), _nearly_pooled(settings), _recovered(settings)]


# --- above the best local-only model ----------------------------------------------------------------


def _above_local(settings: Sequence[Json], declared: int) -> Claim:
    text = "Federated is above the best local-only model, on the mean over the hospitals, in every setting."
    said, known = [], []
    for setting in settings:
        reference = setting["entries"][0]
        contrast = contrast_with(reference, "local")
        if contrast is None or contrast["gain"]["value"] is None:
            said.append(f"{setting['title']}: the local-only models were not measured.")
            continue
        known.append(contrast["gain"]["value"] > 0)
        said.append(f"{setting['title']}, {reference['title']}: {contrast['sentence']}")
        if below := [entry["title"] for entry in setting["entries"][1:] if _is_below(entry, best_local(reference))]:
            known.append(False)
            said.append(f"Below it there: {listed(below)}.")
        elif len(setting["entries"]) > 1:
            said.append(f"The other {len(setting['entries']) - 1} experiments of this setting are above it, too.")
    return Claim(text, _verdict(known, declared), tuple(said))


def _is_below(entry: Json, local: float | None) -> bool:
    dice = dice_of(entry)
    return dice is not None and local is not None and dice <= local


def best_local(entry: Json) -> float | None:
    """Return the mean over all hospitals of the best local-only model beside an experiment."""
    contrast = contrast_with(entry, "local")
    return dice_of(entry, contrast["other"]) if contrast else None


# --- as good as pooled --------------------------------------------------------------------------------


def _nearly_pooled(settings: Sequence[Json]) -> Claim:
    text = f"Where the hospitals are alike, federated reaches at least {NEARLY_POOLED:g} % of pooled training."
    said, known = [], []
    for setting in settings:
        if not setting["is_iid"]:
            continue
        reference = setting["entries"][0]
        contrast = contrast_with(reference, "pooled")
        if contrast is None or contrast["percentage"]["value"] is None:
            continue
        known.append(contrast["percentage"]["value"] >= NEARLY_POOLED)
        said.append(f"{setting['title']}, {reference['title']}: {percent(contrast['percentage'])} of pooled.")
    return Claim(text, _verdict(known, 1), tuple(said) or ("It was not measured.",))


# --- what recovers what -------------------------------------------------------------------------------


def _recovered(settings: Sequence[Json]) -> Claim:
    text = (
        "Where they are not alike, a better strategy or treatment recovers at least half of what plain FedAvg with reset "
        "loses against pooled training."
    )
    said, known = [], []
    for setting in settings:
        first = setting["entries"][0]
        if setting["is_iid"] or (first["strategy"], first["treatment"]) != ("fedavg", "reset"):
            continue
        lost = loss_against_pooled(setting)
        found = [one for one in recoveries(setting) if one.share is not None]
        if lost is None or not found:
            said.append(f"{setting['title']}: nothing was lost that could be recovered, or it was not measured.")
            continue
        best = max(found, key=lambda one: one.share or 0.0)
        enough = [one for one in found if (one.share or 0.0) >= HALF]
        known.append(bool(enough))
        said.append(f"{setting['title']}: {first['title']} loses {lost:.3f} Dice against pooled training.")
        if (best.share or 0.0) <= 0:
            said.append(f"None of the {len(found)} others that were tried recovers anything of it.")
            continue
        said.append(f"{best.entry['title']} recovers most of it: {_share(best.share)}{_by_seed(best)}.")
        if len(enough) > 1:
            others = [one.entry["title"] for one in enough if one is not best]
            said.append(f"At least half recover{'s' if len(others) == 1 else ''} {listed(others)}, too.")
        elif not enough:
            said.append(f"Of the {len(found)} others that were tried none recovers half.")
    return Claim(text, _verdict(known, 1), tuple(said) or ("It was not measured.",))


def loss_against_pooled(setting: Json) -> float | None:
    """Return by how much Dice the first experiment of a setting lies below the pooled model beside it."""
    first = setting["entries"][0]
    ours, pooled = dice_of(first), dice_of(first, "pooled")
    return None if ours is None or pooled is None else pooled - ours


def recoveries(setting: Json) -> list[Recovery]:
    """Return what each further experiment of a setting regains, in the order in which they are declared."""
    first = setting["entries"][0]
    plain, lost = dice_of(first), loss_against_pooled(setting)
    plain_of, pooled_of = _by_seed_of(first, "global"), _by_seed_of(first, "pooled")
    found = []
    for entry in setting["entries"][1:]:
        dice = dice_of(entry)
        if dice is None or plain is None:
            continue
        seeds = []
        for seed, value in _by_seed_of(entry, "global").items():
            before, pooled = plain_of.get(seed), pooled_of.get(seed)
            is_known = None not in (value, before, pooled) and pooled > before
            seeds.append((value - before) / (pooled - before) if is_known else None)
        share = (dice - plain) / lost if lost is not None and lost > 0 else None
        found.append(Recovery(entry, dice - plain, share, tuple(seeds)))
    return found


def about(recovery: Recovery, first: Json) -> str:
    """Return a recovery as a sentence."""
    gain = recovery.gain
    if abs(gain) < 0.0005:
        return f"{recovery.entry['title']} reaches the same as {first['title']}."
    word = "above" if gain > 0 else "below"
    text = f"{recovery.entry['title']} is {abs(gain):.3f} {word} {first['title']}"
    if gain <= 0:
        return f"{text}: it does not help here."
    if recovery.share is None:
        return f"{text}."
    return f"{text}: {_share(recovery.share)} of what that loses against pooled training{_by_seed(recovery)}."


# --- parts ----------------------------------------------------------------------------------------------


def model_of(entry: Json, key: str = "global") -> Json | None:
    return next((model for model in entry["models"] if model["key"] == key), None)


def dice_of(entry: Json, key: str = "global") -> float | None:
    model = model_of(entry, key)
    return model["dice"]["value"] if model else None


def contrast_with(entry: Json, role: str) -> Json | None:
    return next((contrast for contrast in entry["contrasts"] if contrast["role"] == role), None)


def percent(estimate: Json) -> str:
    """Return “98.4 % (95 % interval 96.0–100.2)”."""
    if estimate["low"] is None:
        return f"{estimate['value']:.1f} %"
    return f"{estimate['value']:.1f} % (95 % interval {estimate['low']:.1f}–{estimate['high']:.1f})"


def _by_seed_of(entry: Json, key: str) -> dict[int, float | None]:
    model = model_of(entry, key)
    return dict(zip(entry["seeds"], model["by_seed"], strict=True)) if model else {}


def _share(share: float | None) -> str:
    return f"{100 * (share or 0.0):.0f} %".replace("-", "−")


def _by_seed(recovery: Recovery) -> str:
    if len(recovery.by_seed) < 2:
        return ""
    shares = ["–" if share is None else _share(share).removesuffix(" %") for share in recovery.by_seed]
    return f" ({listed(shares)} % with the single seeds)"


def _verdict(known: Sequence[bool], needed: int) -> str:
    if not all(known):
        return FAILS
    return HOLDS if len(known) >= needed else OPEN
