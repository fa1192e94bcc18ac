"""``docs/results.md`` from the numbers: tables, and sentences that follow them. Nothing here knows an outcome beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedportal.experiments.plan import listed
from fedportal.results.claims import about, claims, model_of, recoveries

Json = Mapping[str, Any]
NONE = "–"


def report(results: Json, *, command: str, figures: str = "results") -> str:
    """Return the document. ``figures``: the folder of the figures and of ``results.json``, seen from the document."""
    parts = [
        _head(results, command, figures),
        _short(results),
        _method(results),
        *(_setting(place, setting, figures) for place, setting in enumerate(results["settings"], start=1)),
    ]
    return "\n\n".join(line.rstrip() for part in parts for line in part) + "\n"


# --- around the settings ------------------------------------------------------------------------------


def _head(results: Json, command: str, figures: str) -> Iterable[str]:
    sessions = results["sessions"]
    seconds = sum(session["seconds"] for session in sessions)
    cores = listed(sorted({str(session["cores"]) for session in sessions}))
    commits = listed(list(dict.fromkeys(session["commit"] for session in sessions)))
    times = "" if len(sessions) < 2 else f", in {len(sessions)} sessions"
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    yield "# What federated training reaches"
    yield (
        f"Made by `{command}` on {results['made'][:10]}: {seconds / 60:.0f} min on {cores} cores without a GPU{times}; commit {commits}; "
        f"{versions}. All numbers, with more digits: [{figures}/results.json]({figures}/results.json). The text follows the numbers: "
        "to change it, run the command again."
    )
    if any(session["commit"].endswith("+") for session in sessions):
        yield "A commit with a + had files changed."


def _short(results: Json) -> Iterable[str]:
    yield "## In short"
    yield "\n".join(f"- **{claim.verdict}:** {claim.text} {' '.join(claim.sentences)}" for claim in claims(results))
    for setting in results["settings"]:
        if unhelpful := [one.entry["title"] for one in _recoveries(setting) if one.gain <= 0]:
            first = setting["entries"][0]["title"]
            yield f"What did not help: {setting['title'].lower()}, {listed(unhelpful)} (not above {first})."


def _recoveries(setting: Json) -> list[Any]:
    return recoveries(setting) if setting["entries"] else []


def _method(results: Json) -> Iterable[str]:
    study = results["study"]
    seeds = "one seed"
    if study["repeats"] > 1:
        seeds = f"{study['repeats']} seeds, which differ in the initial weights and in the order and augmentation of the cases"
    yield "## How it was measured"
    yield (
        "The whole way of the product: the portal's services, its orchestrator, an object store and the trainer as a process of each "
        f"hospital. The data are generated (no patients): {study['size']}³ voxels, four MR contrasts. They show how methods compare, not how "
        "well a clinic's tumours are segmented."
    )
    yield (
        f"Each experiment is run with {seeds}. A baseline has the seed of its run. *Pooled* trains one model on all cases in one place, *local only* one at each hospital, the *ensemble* averages their "
        "probabilities, *cyclic* hands one model from hospital to hospital. All of them make as many gradient steps as the federated run "
        "makes at all hospitals together; *local only* shares them out. No baseline trains on a held-out case."
    )
    yield (
        "Every final model segments every held-out case. Dice is the mean over the regions and cases of a hospital, then over the "
        "hospitals. Intervals are 95 % bootstrap intervals over cases and seeds, comparisons within one experiment are paired "
        "([decision 0089](decisions/0089-intervals-over-cases-within-sites.md)); they are about these hospitals, not about others. Numbers and "
        "intervals are those of the compare page, from the same functions. Between experiments there is no interval; the single seeds "
        "show how far chance goes. Rates, rounds and momentum were chosen by trying some on patients generated from other seeds than "
        f"these, whose seed is {study['patients']}: no case here had a part in the choice."
    )
    yield (
        "*Reset, keep, aggregate* say what becomes of the optimizer's memory between rounds: it starts fresh, stays at the hospital, or is "
        "averaged like the weights. The strategies are described in [strategies.md](strategies.md)."
    )


# --- a setting ----------------------------------------------------------------------------------------


def _setting(place: int, setting: Json, figures: str) -> Iterable[str]:
    yield f"## {place}. {setting['title']}"
    yield f"{setting['text']} Each has {setting['train']} training and {setting['validation']} held-out cases."
    yield table(("Hospital", "Patients"), [(one["name"], one["patients"]) for one in setting["hospitals"]])
    if setting["missing"]:
        yield f"Not run: {listed(setting['missing'])}."
    if not setting["entries"]:
        return
    first = setting["entries"][0]
    yield table([one["label"] for one in setting["recipe"]], [[one["value"] for one in setting["recipe"]]])
    yield f"### {first['title']} and its baselines"
    yield from _unfinished(setting["entries"])
    yield _models(setting, first)
    yield " ".join(first["said"])
    yield f"![Dice over the rounds]({figures}/{setting['name']}-baselines.svg)"
    if any(gain["own"]["value"] is not None for gain in first["gains"]):
        yield "What a hospital gets from joining, on its own held-out cases:"
        yield _gains(first)
    if len(setting["entries"]) > 1:
        yield "### Treatments and strategies"
        yield _comparison(setting)
        yield "\n".join(f"- {about(one, first)}" for one in recoveries(setting))
        yield f"![Dice over the rounds]({figures}/{setting['name']}-strategies.svg)"
        if setting["differences"]["rows"]:
            yield "In these settings they differ:"
            differences = setting["differences"]
            yield table(("", *differences["columns"]), [(row["label"], *row["values"]) for row in differences["rows"]])
    yield f"![Final models with intervals]({figures}/{setting['name']}-means.svg)"


def _unfinished(entries: Sequence[Json]) -> Iterable[str]:
    found = [sentence for entry in entries for sentence in entry["unfinished"]]
    if found:
        yield f"**Not complete.** {' '.join(found)}"


def _models(setting: Json, entry: Json) -> str:
    """The cross-site matrix with regions, surface distance and work."""
    names = {hospital["slug"]: hospital["name"] for hospital in setting["hospitals"]}
    work = {row["label"]: row["steps"] for row in entry["work"]}
    rows = [
        (
            model["label"],
            interval(model["dice"]),
            *(number(model["sites"].get(slug)) for slug in names),
            *(number(model["regions"].get(region)) for region in setting["regions"]),
            number(model["hd95"], 1),
            _steps(work.get(model["label"])),
        )
        for model in entry["models"]
    ]
    return table(("Model", "Dice", *names.values(), *setting["regions"], "HD95, mm", "Gradient steps"), rows)


def _steps(steps: int | None) -> str:
    return NONE if steps is None else f"{steps:,}".replace(",", " ")


def _gains(entry: Json) -> str:
    rows = [
        (
            f"{gain['name']}{' (worst)' if gain['is_worst'] else ''}",
            interval(gain["federated"]),
            interval(gain["own"]),
            interval(gain["gain"], sign=True),
            str(gain["cases"]),
        )
        for gain in entry["gains"]
    ]
    return table(("Hospital", "Federated", "Its own model alone", "Gain", "Cases"), rows)


def _comparison(setting: Json) -> str:
    regained = {one.entry["name"]: one for one in recoveries(setting)}
    rows = []
    for entry in setting["entries"]:
        model, one = model_of(entry), regained.get(entry["name"])
        rows.append(
            (
                entry["title"],
                interval(model["dice"]) if model else NONE,
                " · ".join(NONE if value is None else f"{value:.3f}" for value in model["by_seed"]) if model else NONE,
                signed(one.gain) if one else NONE,
                NONE if one is None or one.share is None else f"{100 * one.share:.0f} %".replace("-", "−"),
                number(model["hd95"], 1) if model else NONE,
            )
        )
    return table(("Experiment", "Dice", "Single seeds", "Against the first", "Of its loss regained", "HD95, mm"), rows)


# --- words and tables -----------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def number(estimate: Json | None, places: int = 3) -> str:
    return NONE if estimate is None or estimate["value"] is None else f"{estimate['value']:.{places}f}"


def interval(estimate: Json, *, sign: bool = False) -> str:
    """Return “0.842 (0.801 to 0.880)”."""
    if estimate["value"] is None:
        return NONE
    show = signed if sign else "{:.3f}".format
    if estimate["low"] is None:
        return show(estimate["value"])
    return f"{show(estimate['value'])} ({show(estimate['low'])} to {show(estimate['high'])})"


def signed(value: float) -> str:
    text = f"{value:+.3f}".replace("-", "−")
    return text if float(f"{value:.3f}") else "0.000"
