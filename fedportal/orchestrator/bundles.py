"""The bundles that people ask for, made beside the rounds, in whatever state the experiment is.

A request is claimed by compare-and-set, with a lease that is renewed while its bundle is made. After the death of an
orchestrator it is made again: the same model packs to the same bytes under the same key.
"""

from __future__ import annotations

import logging
import shutil
import threading
from datetime import timedelta

from django.db import DatabaseError, close_old_connections, connection, transaction
from django.utils import timezone

from fedportal.connectors.errors import StoreUnreachable
from fedportal.experiments import journal
from fedportal.experiments.models import BundleRequest
from fedportal.experiments.states import ExperimentState
from fedportal.orchestrator import files, reading
from fedportal.orchestrator.outcomes import NewArtefact
from fedportal.orchestrator.settle import book_artefacts
from fedportal.orchestrator.sitework import Tools
from fedportal.orchestrator.steps.watching import STORE_SILENT

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=30)
"""A request whose orchestrator died is taken up by another after this time at the latest."""
STORE_PAUSE = timedelta(seconds=5)
WITH_RECIPES = (ExperimentState.COMPLETED, ExperimentState.CANCELLED)
"""What ended for good: the scores of its models do not change any more."""


class BundleMaker:
    """Makes one bundle at a time. ``worker`` is this orchestrator's name; nobody else bears it."""

    def __init__(self, tools: Tools, *, worker: str) -> None:
        self.tools, self.worker = tools, worker
        self._thread: threading.Thread | None = None
        self._claims().update(lease_until=None)  # those of a dead predecessor

    def look(self) -> threading.Thread | None:
        """Take up the oldest request, in a thread of its own; return the thread, ``None`` where there is nothing to
        take up. While a bundle is made: renew its lease."""
        now = timezone.now()
        if self._thread is not None and self._thread.is_alive():
            self._claims().update(lease_until=now + LEASE)
            return None
        for request in BundleRequest.objects.due(now).select_related("model__experiment"):
            if self._claim(request):
                self._thread = threading.Thread(
                    target=self._make, args=(request,), name=f"bundle {request.pk}", daemon=True
                )
                self._thread.start()
                return self._thread
        return None

    def _claims(self):
        return BundleRequest.objects.filter(claimed_by=self.worker, state=BundleRequest.State.MAKING)

    def _claim(self, request: BundleRequest) -> bool:
        """Take a request: of several orchestrators one makes the bundle."""
        as_read = {name: getattr(request, name) for name in ("state", "claimed_by", "lease_until")}
        unclaimed = BundleRequest.objects.filter(pk=request.pk, **as_read)
        making = BundleRequest.State.MAKING
        return bool(
            unclaimed.update(state=making, message="", claimed_by=self.worker, lease_until=timezone.now() + LEASE)
        )

    def _make(self, request: BundleRequest) -> None:
        close_old_connections()
        try:
            self.make(request)
        except DatabaseError:  # the lease runs out, and it is made again
            logger.exception("the bundle of %s could not be booked", request.model)
        finally:
            connection.close()

    def make(self, request: BundleRequest) -> None:
        """Make the bundle of a claimed request and book how that went."""
        model = reading.model_view(request.model)
        try:
            made = self._files(request)
        except StoreUnreachable:
            asked, later = BundleRequest.State.ASKED, timezone.now() + STORE_PAUSE
            self._claims().filter(pk=request.pk).update(
                state=asked, message=STORE_SILENT, claimed_by="", lease_until=later
            )
        except DatabaseError:
            raise
        except Exception as error:  # one bundle's trouble must not end the making of others
            logger.exception("the bundle of %s could not be made", request.model)
            self._book_failure(request, files.in_words(error), files.no_bundle(model, error))
        else:
            self._book(request, made)

    def _files(self, request: BundleRequest) -> list[NewArtefact]:
        experiment = request.model.experiment
        s = reading.with_models(experiment, timezone.now())
        model = next(model for model in s.models if model.id == request.model_id)
        folder = self.tools.spool / "bundles" / f"{s.key}-r{model.round_number}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            made = [files.put_bundle(s, model, folder, self.tools)]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        has_recipe = any(kind == "recipe" for kind in request.model.artefacts.values_list("kind", flat=True))
        if experiment.status in WITH_RECIPES and not has_recipe:
            made.append(files.put_recipe(s, model, self.tools))
        return made

    def _book(self, request: BundleRequest, made: list[NewArtefact]) -> None:
        with transaction.atomic():
            if not self._claims().filter(pk=request.pk).delete()[0]:
                return  # overtaken: whoever has it now makes the same
            book_artefacts(made)
            text = f"The MONAI bundle of the model of round {request.model.round_number} is ready."
            journal.record(request.model.experiment, "bundle_made", text, level="good")

    def _book_failure(self, request: BundleRequest, why: str, text: str) -> None:
        with transaction.atomic():
            failed = BundleRequest.State.FAILED
            if self._claims().filter(pk=request.pk).update(state=failed, message=why, claimed_by="", lease_until=None):
                journal.record(request.model.experiment, "no_bundle", text, level="warn")
