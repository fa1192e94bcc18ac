"""MONAI bundles on request: any round's global model can have one. The final and the best get theirs without asking."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import transaction
from django.utils import timezone

from fedportal.accounts.models import User
from fedportal.experiments import journal
from fedportal.experiments.models import Artefact, BundleRequest, GlobalModel
from fedportal.ui.errors import DomainError

READY, NONE = "ready", "none"
STATES = (NONE, *BundleRequest.State.values, READY)


class NothingToBundle(DomainError):
    """The initial model was not trained yet: nobody segments with it. Ask for the bundle of a later round."""


@dataclass(frozen=True)
class Bundle:
    """How far the bundle of a model is. ``state``: one of :data:`STATES`. ``message``: a sentence where one helps."""

    state: str
    message: str = ""

    @property
    def is_awaited(self) -> bool:
        return self.state in (BundleRequest.State.ASKED, BundleRequest.State.MAKING)

    @property
    def may_be_asked_for(self) -> bool:
        return self.state in (NONE, BundleRequest.State.FAILED)


def bundle_of(model: GlobalModel) -> Bundle:
    """Return how far a model's bundle is. Fetch ``artefacts``, ``bundle_request`` and ``experiment`` along for lists."""
    if any(artefact.kind == Artefact.Kind.BUNDLE for artefact in model.artefacts.all()):
        return Bundle(READY)
    request = getattr(model, "bundle_request", None)
    if request is None:
        return Bundle(NONE)
    if request.message or request.state != BundleRequest.State.ASKED:
        return Bundle(request.state, request.message)
    if model.dice is None and model.experiment.is_active:
        return Bundle(request.state, "It is made as soon as the sites have measured the model.")
    return Bundle(request.state, "It waits for the orchestrator.")


def ask_for_bundle(*, model: GlobalModel, by: User) -> Bundle:
    """Have the orchestrator make the bundle of a model. Asking again changes nothing, except after a failure.

    Raises :class:`NothingToBundle` for the initial model.
    """
    if not model.round_number:
        raise NothingToBundle
    with transaction.atomic():
        if not Artefact.objects.filter(model=model, kind=Artefact.Kind.BUNDLE).exists():
            request, is_new = BundleRequest.objects.get_or_create(model=model, defaults={"asked_by": by})
            failed = BundleRequest.objects.filter(pk=request.pk, state=BundleRequest.State.FAILED)
            again = failed.update(
                state=BundleRequest.State.ASKED, message="", asked_at=timezone.now(), asked_by=by, lease_until=None
            )
            if is_new or again:
                text = f"{by} asked for the MONAI bundle of the model of round {model.round_number}."
                journal.record(model.experiment, "bundle_asked", text, by=by.username)
    return bundle_of(GlobalModel.objects.select_related("experiment", "bundle_request").get(pk=model.pk))
