"""The pages that show and never change anything. Who may not see an experiment gets 404."""

from __future__ import annotations

from typing import Any

from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_safe

from fedportal.accounts.models import User
from fedportal.experiments.forms import BaselinesForm
from fedportal.experiments.models import Attempt, Event, Experiment, GlobalModel, Kind, LogPiece, Participation, SiteRun
from fedportal.experiments.recipe import ALL_SETTINGS, GROUPS, has_effect, value_of
from fedportal.experiments.services import STILL_TRAINING
from fedportal.experiments.states import NOT_DELIVERED, ExperimentState
from fedportal.monitoring.access import visible_experiment
from fedportal.monitoring.case_table import case_table
from fedportal.monitoring.dashboard import dashboard_of
from fedportal.monitoring.figures import collect, page_data, regions_of
from fedportal.monitoring.logs import lines_of
from fedportal.monitoring.overview import ROUNDS_SHOWN, explain, overview, round_rows, site_styles
from fedportal.monitoring.relatives import relatives_of
from fedportal.monitoring.rows import newest_cursor, page_rows
from fedportal.monitoring.scores import with_scores

EVENTS_SHOWN = 40
MODELS_PER_PAGE = 50
LINES_SHOWN = 500
"""The newest lines of a log; the API has all."""
TIMED = {
    "pull": "Fetching the global model",
    "load": "Reading the cases",
    "validate_incoming": "Measuring the global model",
    "train": "Training",
    "validate_local": "Measuring the local model",
    "push": "Waiting for the update to be sent",
}
"""The steps of a site run (keys of the manifest's seconds) in words."""


@require_safe
def dashboard(request: HttpRequest) -> HttpResponse:
    """The front page; with ``?part=live`` only what changes by itself, for ``dashboard.js``."""
    template = "monitoring/_dashboard.html" if request.GET.get("part") == "live" else "monitoring/dashboard.html"
    return render(request, template, {"board": dashboard_of(request.user)})


@require_safe
def experiment(request: HttpRequest, key: str) -> HttpResponse:
    """The live page of an experiment; a draft is still being composed."""
    found = visible_experiment(request.user, key)
    if found.is_draft:
        return redirect("experiments:edit", found.key)
    cursor = newest_cursor(found)
    view = overview(found)
    relatives = relatives_of(found)
    rows, is_thinned = page_rows(found)
    events = list(Event.objects.filter(experiment=found).order_by("-id")[: EVENTS_SHOWN + 1])
    context = {
        "experiment": found,
        "view": view,
        "events": events[:EVENTS_SHOWN],
        "has_older_events": len(events) > EVENTS_SHOWN,
        "has_older_rounds": bool(view.rows) and view.rows[-1].number > 1,
        "may_control": found.can_be_controlled_by(request.user),
        "relatives": relatives,
        "baselines_form": _baselines_form(found, request.user),
        "cancel_text": "What runs at the sites is ended, and what stands beside it is cancelled, too. The global models of the "
        "finished rounds stay.",
        "lines": case_table(found, view.styles) if found.kind == Kind.CROSS_SITE else [],
        "viewers": (found.head or found).viewers.order_by("username"),
        "settings_groups": _settings(found),
        "participations": Participation.objects.filter(experiment=found).select_related("site", "dataset"),
        "is_thinned": is_thinned,
        "data": page_data(
            collect(rows, start=found.started_at),
            view.styles,
            regions_of(found.plan),
            cursor=str(cursor),
            title=found.title,
            key=found.key,
            state=found.state,
            rounds=found.rounds_planned,
            model=view.model_word,
            socket=f"/ws/experiments/{found.key}/",
        ),
    }
    return render(request, "monitoring/experiment.html", context)


def _baselines_form(experiment: Experiment, user: User) -> BaselinesForm | None:
    may_have = experiment.kind == Kind.FEDERATED and experiment.can_be_controlled_by(user)
    return BaselinesForm(experiment=experiment) if may_have else None


NO_MATTER_BESIDE = {"aggregation", "stopping", "baselines", "repeats"}
"""Groups of settings that mean nothing for what stands beside a run."""


def _settings(experiment: Experiment) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the recipe for reading: (title of a group, [(label, value with unit)])."""
    used = [setting for setting in ALL_SETTINGS if has_effect(experiment, setting)]
    return [
        (group.title, [(s.label, s.show(value_of(experiment, s))) for s in used if s.group == group.name])
        for group in GROUPS
        if experiment.beside_id is None or group.name not in NO_MATTER_BESIDE
    ]


@require_safe
def rounds(request: HttpRequest, key: str) -> HttpResponse:
    """Lines of the matrix before round ``?before=``, newest first."""
    found = visible_experiment(request.user, key)
    rows = round_rows(found, site_styles(found), before=_number(request, "before"), count=ROUNDS_SHOWN)
    return render(request, "monitoring/_rounds.html", {"experiment": found, "rows": rows})


@require_safe
def feed(request: HttpRequest, key: str) -> HttpResponse:
    """Events before ``?before=``, newest first; with ``?site=`` only that site's."""
    found = visible_experiment(request.user, key)
    events = Event.objects.filter(experiment=found, id__lt=_number(request, "before")).order_by("-id")
    if site_slug := request.GET.get("site", ""):
        events = events.filter(site=site_slug)
    return render(request, "monitoring/_feed.html", {"events": events[:EVENTS_SHOWN], "experiment": found})


@require_safe
def site(request: HttpRequest, key: str, slug: str) -> HttpResponse:
    """A site's part: what it did in ``?round=`` (default: its newest), attempt ``?attempt=``, its log and what helps."""
    found = visible_experiment(request.user, key)
    part = get_object_or_404(Participation.objects.select_related("site", "dataset"), experiment=found, site__slug=slug)
    runs = SiteRun.objects.filter(participation=part).select_related("round").order_by("-round__number")
    numbers = list(runs.values_list("round__number", flat=True)[:500])
    chosen = runs.prefetch_related("attempts")
    if "round" in request.GET:
        chosen = chosen.filter(round__number=_number(request, "round"))
    run = chosen.first()
    if run is None and "round" in request.GET:
        raise Http404("The site had no part in that round.")
    context = {"experiment": found, "part": part, "run": run, "round_numbers": numbers, **_attempt(request, run)}
    context["may_retry"] = run is not None and _may_retry(request, found, run)
    template = "monitoring/_site.html" if request.GET.get("part") == "panel" else "monitoring/site.html"
    return render(request, template, context)


def _attempt(request: HttpRequest, run: SiteRun | None) -> dict[str, Any]:
    attempts: list[Attempt] = list(run.attempts.all()) if run else []
    wanted = _number(request, "attempt") if "attempt" in request.GET else None
    attempt = next((a for a in attempts if a.number == wanted), attempts[-1] if attempts else None)
    if attempt is None:
        return {"attempts": [], "attempt": None}
    pieces = LogPiece.objects.filter(attempt=attempt).order_by("offset")
    lines, offset = lines_of(pieces, is_over=attempt.ended_at is not None)
    return {
        "attempts": attempts,
        "attempt": attempt,
        "explanation": explain(attempt.exit_code, attempt.message),
        "lines": lines[-LINES_SHOWN:],
        "offset": offset,
        "timings": [(TIMED.get(name, name), seconds) for name, seconds in run.seconds.items()] if run else [],
    }


def _may_retry(request: HttpRequest, experiment: Experiment, run: SiteRun) -> bool:
    """Whether a retry is worth offering: the act itself asks again."""
    current = experiment.current_round
    is_live = current is not None and run.round_id == current.pk and current.status in STILL_TRAINING
    is_open = experiment.status in (ExperimentState.RUNNING, ExperimentState.PAUSED)
    return is_live and is_open and run.status in NOT_DELIVERED and experiment.can_be_controlled_by(request.user)


@require_safe
def models(request: HttpRequest, key: str) -> HttpResponse:
    """Every global model of an experiment, newest first."""
    found = visible_experiment(request.user, key)
    every = GlobalModel.objects.filter(experiment=found).order_by("-round_number")
    every = every.select_related("experiment", "bundle_request")
    page = Paginator(every, MODELS_PER_PAGE).get_page(request.GET.get("page"))
    context = {"experiment": found, "page_obj": page, "scored": with_scores(found, list(page))}
    return render(request, "monitoring/models.html", context)


def _number(request: HttpRequest, name: str) -> int:
    """Return a whole number of the query. Raises ``Http404`` for anything else: no page has such an address."""
    text = request.GET.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise Http404(f"{name} is not a number.")
    return int(text)
