"""Where running attempts post their metric records. No session, no user: each attempt has a token of its own.

A busy experiment posts here twice a second and site, so this does three short queries in one transaction and nothing else.
"""

from __future__ import annotations

import hmac
from http import HTTPStatus

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from drf_spectacular.utils import OpenApiExample, extend_schema, inline_serializer
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from fedportal.experiments import journal
from fedportal.experiments.models import Attempt
from fedportal.experiments.serializers import ProblemSerializer
from fedportal.experiments.states import SITE_RUN_OVER, ExperimentState, SiteRunState
from fedportal.ui.errors import DomainError
from trainer.contract import (
    ContractError,
    MetricRecord,
    attempt_key,
    metric_from_json,
    metrics_token,
    site_key,
    site_of,
)
from trainer.contract.checks import read_json

MAX_BYTES = 2**20
MAX_RECORDS = 1000
GIVEN_UP = SITE_RUN_OVER - {SiteRunState.ADMITTED}
"""Site runs whose trainer works for nobody. The last records of an admitted one may come after its update."""


class TooLarge(DomainError):
    """A post of metrics has at most 1 MiB and 1000 records: send it in parts."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class WrongToken(DomainError):
    """The token does not belong to this run."""

    status = HTTPStatus.UNAUTHORIZED


class UnknownRun(DomainError):
    """There is no run of this name."""

    status = HTTPStatus.NOT_FOUND


class RunIsOver(DomainError):
    """Nobody waits for this run any more: nothing more is recorded, and it may end."""

    status = HTTPStatus.GONE


class NewerAttempt(DomainError):
    """A newer attempt has taken the place of this one: nothing more is recorded."""


class MetricRecordSerializer(serializers.Serializer):
    """One number, as in ``trainer.contract.MetricRecord``. For the API's page: the contract itself reads the records."""

    phase = serializers.ChoiceField(choices=["train", "incoming", "local"])
    name = serializers.CharField(max_length=32, help_text="loss, dice, hd95 (mm), learning_rate, seconds")
    value = serializers.FloatField(allow_null=True, help_text="null where undefined")
    region = serializers.CharField(max_length=40, required=False, help_text="a region of the task, “mean”, or empty")
    step = serializers.IntegerField(min_value=0, required=False, help_text="optimizer steps done in this round")
    progress = serializers.FloatField(
        min_value=0, max_value=1, required=False, help_text="share of this round's training"
    )
    cases = serializers.IntegerField(min_value=0, required=False, help_text="how many cases it is the mean of")
    at = serializers.FloatField(min_value=0, required=False, help_text="seconds since 1970")


class MetricsSerializer(serializers.Serializer):
    run = serializers.CharField(help_text="the run's name, as in the address")
    records = MetricRecordSerializer(many=True, help_text=f"at most {MAX_RECORDS}")
    finished = serializers.BooleanField(required=False, help_text="the manifest is in the object store")


class MetricsView(APIView):
    """Store metric records of a running attempt. Sending a record again changes nothing."""

    authentication_classes = ()
    permission_classes = ()

    @extend_schema(
        tags=["runs"],
        auth=[{"attemptToken": []}],
        request=MetricsSerializer,
        responses={
            200: inline_serializer("MetricsAccepted", {"accepted": serializers.IntegerField()}),
            **dict.fromkeys((400, 401, 404, 409, 410, 413), ProblemSerializer),
        },
        examples=[
            OpenApiExample(
                "A loss while training",
                request_only=True,
                value={
                    "run": "fp-k3x9mq2a-r4-mainz-a1",
                    "records": [
                        {
                            "phase": "train",
                            "name": "loss",
                            "value": 0.42,
                            "step": 8,
                            "progress": 0.66,
                            "at": 1790000000.5,
                        }
                    ],
                    "finished": False,
                },
            ),
            OpenApiExample("Stored", response_only=True, value={"accepted": 1}),
        ],
    )
    def post(self, request: Request, run: str) -> Response:
        # the token first: a stranger costs no query and learns nothing about which runs there are
        _authenticate(request, run)
        records, finished = _read(request, run)
        # filled in once, the objects that journal.ingest walks through need no further query
        attempt = (
            Attempt.objects.select_related("site_run__round__experiment", "site_run__participation__site")
            .filter(run=run)
            .first()
        )
        if attempt is None:
            raise UnknownRun
        site_run = attempt.site_run
        experiment = site_run.round.experiment
        if experiment.ended_at is not None or experiment.status is ExperimentState.CANCELLING:
            raise RunIsOver
        if site_run.status in GIVEN_UP:
            raise RunIsOver
        if attempt.number != site_run.attempt:
            raise NewerAttempt
        with transaction.atomic():
            journal.ingest(site_run, attempt.number, records)
            Attempt.objects.filter(pk=attempt.pk).update(heard_at=timezone.now())
            if finished:
                experiment.wake()
        return Response({"accepted": len(records)})


def _authenticate(request: Request, run: str) -> None:
    scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
    try:
        site = site_key(settings.FEDPORTAL_ATTEMPT_SECRET, site_of(run))
    except ContractError as error:
        raise WrongToken from error
    expected = metrics_token(attempt_key(site, run))
    if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), expected.encode()):
        raise WrongToken


def _read(request: Request, run: str) -> tuple[list[MetricRecord], bool]:
    """Return the records and whether the run is finished. Refuses what is too large or malformed, naming the record."""
    if int(request.META.get("CONTENT_LENGTH") or 0) > MAX_BYTES:
        raise TooLarge
    data = request.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise TooLarge
    try:
        body = read_json(data, nan=True)
    except ContractError as error:
        raise _refused("body", f"{error}.") from error
    if not isinstance(body, dict):
        raise _refused("body", "an object with run, records and finished is expected")
    if body.get("run") != run:
        raise _refused("run", "is not the run of this address")
    rows, finished = body.get("records", []), body.get("finished", False)
    if not isinstance(rows, list):
        raise _refused("records", "a list is expected")
    if not isinstance(finished, bool):
        raise _refused("finished", "true or false is expected")
    if len(rows) > MAX_RECORDS:
        raise TooLarge
    records = []
    for number, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise ContractError("metric: an object is expected")
            records.append(metric_from_json(row))
        except ContractError as error:
            raise _refused(f"records[{number}]", str(error)) from error
    return records, finished


def _refused(where: str, text: str) -> exceptions.ValidationError:
    return exceptions.ValidationError({where: [text]})
