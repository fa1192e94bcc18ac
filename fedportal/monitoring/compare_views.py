"""The comparison of an experiment with its baselines, its repeats and other experiments, as a page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.http import urlencode
from django.views.decorators.http import require_safe

from fedportal.accounts.models import User
from fedportal.experiments.models import MEAN, Experiment, Kind
from fedportal.experiments.plan import listed
from fedportal.experiments.states import ExperimentState
from fedportal.monitoring import verdict
from fedportal.monitoring.access import visible_head
from fedportal.monitoring.board import MOST_OTHERS, Board, board_of
from fedportal.monitoring.compare_exports import withheld_sites
from fedportal.monitoring.comparison import MEASURES
from fedportal.monitoring.families import family_of
from fedportal.monitoring.overlay import as_json

OFFERED = 100
"""Experiments in the list from which others are added."""


@require_safe
def compare(request: HttpRequest, key: str) -> HttpResponse:
    """The compare page: ``?measure=``, ``?region=`` and ``?round=`` choose the numbers, ``?with=`` adds experiments.

    With ``?part=waiting`` only what is not there yet, for ``compare.js``.
    """
    head = visible_head(request.user, key)
    if head.key != key:
        return redirect("monitoring:compare", head.key)
    if head.is_draft:
        return redirect("experiments:edit", head.key)
    if request.GET.get("part") == "waiting":
        return render(request, "monitoring/_compare_waiting.html", {"family": family_of(head)})
    board, _ = board_of(request.user, head, dict(request.GET.lists()))
    comparison = board.comparison
    hidden = withheld_sites(request.user, board.family)
    context = {
        "experiment": head,
        "board": board,
        "family": board.family,
        "comparison": comparison,
        "measure": comparison.measure,
        "selectors": _selectors(board),
        "here": _address(board),
        "headline": verdict.headline(comparison),
        "contrasts": comparison.contrasts,
        "about_sites": verdict.about_sites(comparison),
        "subject": verdict.subject_of(comparison),
        "sees_cases": not hidden or len(hidden) < len(board.family.sites),
        "fewest": settings.FEDPORTAL_SMALL_COUNT,
        "withheld": listed([board.family.site_names.get(site, site) for site in hidden]),
        "offered": _offered(request.user, board),
        "shown_others": [
            (other, _address(board, others=_without(board, other.family.head.key))) for other in board.other_results
        ],
        "data": _data(board),
    }
    return render(request, "monitoring/compare.html", context)


def _selectors(board: Board) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Return what can be chosen: name, [(label, address, whether it is chosen)]."""
    choice = board.choice
    measures = [(one.title, _address(board, measure=one), one == choice.measure) for one in MEASURES]
    regions = [
        ("Mean" if region == MEAN else region, _address(board, region=region), region == choice.region)
        for region in board.regions
    ]
    rounds = [(f"Round {number}", _address(board, round=number), number == choice.round) for number in board.rounds]
    rounds.append(("End", _address(board, round=None), choice.round is None))
    found = [("Measure", measures), ("Region", regions)]
    return [*found, ("Models after", rounds)] if board.rounds else found


def _address(board: Board, **changes: Any) -> str:
    """Return the query of the page as it is now, with changes of the choice."""
    return "?" + urlencode(replace(board, choice=replace(board.choice, **changes)).query)


def _without(board: Board, key: str) -> tuple[str, ...]:
    return tuple(other for other in board.choice.others if other != key)


def _offered(user: User, board: Board) -> list[Experiment]:
    """Return the newest experiments that can be laid beside this one."""
    if len(board.others) >= MOST_OTHERS:
        return []
    rows = Experiment.objects.visible_to(user).heads().filter(kind=Kind.FEDERATED)
    rows = rows.exclude(state=ExperimentState.DRAFT).exclude(key__in=[board.family.head.key, *board.choice.others])
    return list(rows[:OFFERED])


def _data(board: Board) -> dict:
    """Return what the page hands to ``compare.js``."""
    comparison, choice = board.comparison, board.choice
    names = {site.slug: site.name for site in board.family.sites}
    return {
        "name": f"fedportal-{board.family.head.key}",
        "title": board.family.head.title,
        "measured": verdict.measured(comparison),
        "subject": verdict.subject_of(comparison),
        "chart": vars(choice.measure),
        "sites": names,
        "curves": as_json(board.curves),
        "gains": [vars(one.gain) | {"name": one.name} for one in comparison.gains if one.gain.value is not None],
        "contrasts": [
            vars(one.gain) | {"name": one.other.label} for one in comparison.contrasts if one.gain.value is not None
        ],
        "matrix": [
            {
                "label": line.contender.label,
                "values": [*(cell.estimate.value for cell in line.cells), line.mean.value],
            }
            for line in comparison.lines
        ],
    }
