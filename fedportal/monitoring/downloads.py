"""Downloads: who may is checked here, the bytes come from the object store.

A redirect to a presigned address: no web process carries weights, and a broken download resumes (HTTP Range)
because the store can.
"""

from __future__ import annotations

from datetime import timedelta

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from fedportal.experiments.models import Artefact, Experiment, GlobalModel
from fedportal.experiments.store import object_store
from fedportal.monitoring.access import visible_experiment

VALID = timedelta(hours=1)
"""How long the address works: long enough to resume a large download over a slow line."""
WEIGHTS = "weights"
EXTENSIONS = {WEIGHTS: "safetensors", Artefact.Kind.RECIPE.value: "json", Artefact.Kind.BUNDLE.value: "zip"}


@never_cache
@require_GET
def model_file(request: HttpRequest, key: str, number: int, kind: str) -> HttpResponse:
    """Redirect to a file of the global model of round ``number``: ``weights``, ``recipe`` or ``bundle``."""
    return redirect(address_of(visible_experiment(request.user, key), number, kind))


def address_of(experiment: Experiment, number: int, kind: str) -> str:
    """Return the presigned address of a file. Raises ``Http404`` where there is none."""
    model = GlobalModel.objects.filter(experiment=experiment, round_number=number).first()
    if model is None or kind not in EXTENSIONS:
        raise Http404("There is no such file.")
    if kind == WEIGHTS:
        object_key = model.key
    else:
        artefact = Artefact.objects.filter(model=model, kind=kind).first()
        if artefact is None:
            raise Http404("This file has not been made from this model. The bundle is made when somebody asks for it.")
        object_key = artefact.key
    return object_store().presign_get(object_key, VALID, filename=file_name(experiment, number, kind))


def file_name(experiment: Experiment, number: int, kind: str) -> str:
    """Return the name under which a browser saves a file: ``fedportal-<key>-r12.safetensors``."""
    middle = "" if kind == WEIGHTS else f"-{kind}"
    return f"fedportal-{experiment.key}-r{number}{middle}.{EXTENSIONS[kind]}"
