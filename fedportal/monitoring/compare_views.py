"""The comparison of an experiment with its baselines, its repeats and other experiments: page and exports."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_safe

from fedportal.experiments.models import MEAN
from fedportal.monitoring import verdict
from fedportal.monitoring.access import visible_experiment
from fedportal.monitoring.comparison import MEASURES, Comparison, Scores
from fedportal.monitoring.families import family_of


@require_safe
def compare(request: HttpRequest, key: str) -> HttpResponse:
    """The compare page: ``?measure=`` and ``?region=`` choose the numbers."""
    found = visible_experiment(request.user, key)
    if not found.is_head:
        return redirect("monitoring:compare", found.head.key)
    if found.is_draft:
        return redirect("experiments:edit", found.key)
    family = family_of(found)
    measure = next((one for one in MEASURES if one.name == request.GET.get("measure")), MEASURES[0])
    scores = Scores(family, measure)
    region = request.GET.get("region", MEAN)
    comparison = Comparison(family, scores, measure=measure, region=region if region in scores.regions else MEAN)
    context = {
        "experiment": found,
        "family": family,
        "comparison": comparison,
        "measures": MEASURES,
        "regions": [MEAN, *scores.regions],
        "headline": verdict.headline(comparison),
        "about_sites": verdict.about_sites(comparison),
        "contrasts": [(one, verdict.about(comparison, one)) for one in comparison.contrasts],
        "subject": verdict.subject_of(comparison),
        "notes": family.notes(),
    }
    return render(request, "monitoring/compare.html", context)
