"""The API for reading: metrics, journal, rounds, models, logs. Long lists are read piece by piece after a cursor.

Ask with ``?after=<next of the last answer>`` until ``results`` is empty; asking again later continues there.
"""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from fedportal.experiments.bundles import bundle_of
from fedportal.experiments.models import Artefact, Attempt, Event, GlobalModel, LogPiece, Metric, Round, SiteRun
from fedportal.experiments.serializers import BundleSerializer
from fedportal.monitoring.access import visible_experiment
from fedportal.monitoring.downloads import WEIGHTS, address_of
from fedportal.monitoring.logs import lines_of
from fedportal.monitoring.rows import BATCH
from fedportal.sites.counts import told_cases

AFTER = OpenApiParameter("after", int, description="Only rows behind this id (0: from the beginning).", default=0)
LIMIT = OpenApiParameter("limit", int, description=f"How many rows at most, 1 to {BATCH}.", default=500)
BEFORE = OpenApiParameter("before", int, description="Only rounds before this number, newest first.")
READ = ["read"]


def whole_number(request: Request, name: str, *, default: int, low: int = 0, high: int = 10**18) -> int:
    """Return a whole number of the query. Raises ``ValidationError`` naming the parameter."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= 19 and low <= int(text) <= high):
        raise serializers.ValidationError({name: [f"A whole number from {low} to {high}."]})
    return int(text)


class MetricSerializer(serializers.ModelSerializer):
    """One number. ``phase``: train, incoming (global model at a site), local (after training), global (mean over the
    sites, each counting by its held-out cases). ``at`` is when it was measured; ``value`` is null where undefined; hd95 is in mm. ``cases``: how many it is
    the mean of, null where so small a number is only for operators and the site's steward."""

    cases = serializers.SerializerMethodField()

    class Meta:
        model = Metric
        fields = [
            "id", "at", "round_number", "site", "attempt", "phase", "name", "region", "step", "progress", "cases",
            "value",
        ]  # fmt: skip

    def get_cases(self, metric: Metric) -> int | None:
        return told_cases(self.context["request"].user, metric.site, metric.cases)


class EventSerializer(serializers.ModelSerializer):
    data = serializers.DictField(read_only=True)

    class Meta:
        model = Event
        fields = ["id", "at", "round_number", "site", "level", "kind", "text", "data"]


class AttemptSerializer(serializers.ModelSerializer):
    class Meta:
        model = Attempt
        fields = ["number", "run", "state", "exit_code", "message", "launched_at", "heard_at", "ended_at"]


class SiteRunSerializer(serializers.ModelSerializer):
    """``weight``: share in the aggregate, 0 to 1. ``seconds``: duration of each step at the site. Numbers of cases are
    null where so small a number is only for operators and the site's steward."""

    site = serializers.CharField(source="participation.site.slug", read_only=True)
    seconds = serializers.DictField(child=serializers.FloatField(), read_only=True)
    attempts = AttemptSerializer(many=True, read_only=True)
    train_cases = serializers.SerializerMethodField()
    validation_cases = serializers.SerializerMethodField()

    class Meta:
        model = SiteRun
        fields = [
            "site", "state", "attempt", "reason", "train_cases", "validation_cases", "steps", "weight", "update_norm",
            "update_sha256", "update_size", "seconds", "attempts",
        ]  # fmt: skip

    def get_train_cases(self, run: SiteRun) -> int | None:
        return self._told(run, run.train_cases)

    def get_validation_cases(self, run: SiteRun) -> int | None:
        return self._told(run, run.validation_cases)

    def _told(self, run: SiteRun, number: int) -> int | None:
        return told_cases(self.context["request"].user, run.participation.site.slug, number)


class RoundSerializer(serializers.ModelSerializer):
    site_runs = SiteRunSerializer(many=True, read_only=True)
    timings = serializers.DictField(read_only=True)

    class Meta:
        model = Round
        fields = ["number", "kind", "state", "reason", "started_at", "ended_at", "deadline_at", "timings", "site_runs"]


class ArtefactSerializer(serializers.ModelSerializer):
    class Meta:
        model = Artefact
        fields = ["kind", "sha256", "size"]


class GlobalModelSerializer(serializers.ModelSerializer):
    """The global model of a round (0: the initial one). ``files``: kind → address to GET, which redirects."""

    artefacts = ArtefactSerializer(many=True, read_only=True)
    scores = serializers.DictField(read_only=True)
    files = serializers.SerializerMethodField()
    bundle = serializers.SerializerMethodField()

    class Meta:
        model = GlobalModel
        fields = ["round_number", "sha256", "size", "created_at", "dice", "scores", "artefacts", "files", "bundle"]

    @extend_schema_field(BundleSerializer)
    def get_bundle(self, model: GlobalModel) -> dict[str, str]:
        return BundleSerializer(bundle_of(model)).data

    def get_files(self, model: GlobalModel) -> dict[str, str]:
        key, request = self.context["key"], self.context["request"]
        return {
            kind: request.build_absolute_uri(reverse("api-experiment-model-file", args=[key, model.round_number, kind]))
            for kind in (WEIGHTS, *(artefact.kind for artefact in model.artefacts.all()))
        }


class MetricPageSerializer(serializers.Serializer):
    next = serializers.IntegerField(help_text="Pass it as ``after`` to go on.")
    results = MetricSerializer(many=True)


class EventPageSerializer(serializers.Serializer):
    next = serializers.IntegerField(help_text="Pass it as ``after`` to go on.")
    results = EventSerializer(many=True)


class LogLineSerializer(serializers.Serializer):
    at = serializers.DateTimeField(allow_null=True)
    level = serializers.CharField(allow_blank=True)
    text = serializers.CharField()
    detail = serializers.CharField(allow_blank=True)


class LogSerializer(serializers.Serializer):
    run = serializers.CharField()
    next = serializers.IntegerField(help_text="Byte offset; pass it as ``after`` to go on.")
    is_over = serializers.BooleanField(help_text="Whether the attempt has ended: no more lines follow.")
    lines = LogLineSerializer(many=True)


class MetricsView(APIView):
    """Everything that was measured, in the order in which it came in."""

    @extend_schema(tags=READ, parameters=[AFTER, LIMIT], responses=MetricPageSerializer)
    def get(self, request: Request, key: str) -> Response:
        rows = Metric.objects.filter(experiment=visible_experiment(request.user, key))
        return _page(request, rows, MetricSerializer)


class JournalView(APIView):
    """What happened, one plain sentence each, oldest first."""

    @extend_schema(tags=READ, parameters=[AFTER, LIMIT], responses=EventPageSerializer)
    def get(self, request: Request, key: str) -> Response:
        rows = Event.objects.filter(experiment=visible_experiment(request.user, key))
        return _page(request, rows, EventSerializer)


def _page(request: Request, rows: Any, serializer: type[serializers.Serializer]) -> Response:
    after = whole_number(request, "after", default=0)
    limit = whole_number(request, "limit", default=500, low=1, high=BATCH)
    found = list(rows.filter(id__gt=after).order_by("id")[:limit])
    return Response(
        {
            "next": found[-1].pk if found else after,
            "results": serializer(found, many=True, context={"request": request}).data,
        }
    )


class RoundsView(APIView):
    """The newest rounds with every site's part and every attempt, newest first."""

    @extend_schema(tags=READ, parameters=[BEFORE, LIMIT], responses=RoundSerializer(many=True))
    def get(self, request: Request, key: str) -> Response:
        rows = Round.objects.filter(experiment=visible_experiment(request.user, key)).order_by("-number")
        before = whole_number(request, "before", default=10**9)
        limit = whole_number(request, "limit", default=100, low=1, high=BATCH)
        rows = rows.filter(number__lt=before).prefetch_related("site_runs__attempts", "site_runs__participation__site")
        return Response(RoundSerializer(rows[:limit], many=True, context={"request": request}).data)


class ModelsView(APIView):
    """Every global model with its checksum, its Dice and its files, oldest first."""

    @extend_schema(tags=READ, responses=GlobalModelSerializer(many=True))
    def get(self, request: Request, key: str) -> Response:
        experiment = visible_experiment(request.user, key)
        rows = GlobalModel.objects.filter(experiment=experiment).order_by("round_number")
        rows = rows.select_related("experiment", "bundle_request").prefetch_related("artefacts")
        return Response(GlobalModelSerializer(rows, many=True, context={"request": request, "key": key}).data)


class ModelFileView(APIView):
    """Redirects to the file in the object store; the address works for an hour and resumes (HTTP Range)."""

    @extend_schema(
        tags=READ,
        parameters=[OpenApiParameter("kind", str, "path", enum=["weights", "recipe", "bundle"])],
        responses={302: OpenApiResponse(description="Location: a presigned address of the object store.")},
    )
    def get(self, request: Request, key: str, number: int, kind: str) -> HttpResponse:
        return redirect(address_of(visible_experiment(request.user, key), number, kind))


class LogView(APIView):
    """The log of an attempt (``run``) from a byte offset on, the trainer's JSON lines taken apart."""

    @extend_schema(
        tags=READ,
        parameters=[
            OpenApiParameter("run", str, required=True, description="Name of the attempt: ``fp-…-a1``."),
            OpenApiParameter("after", int, description="Byte offset to go on from.", default=0),
        ],
        responses=LogSerializer,
    )
    def get(self, request: Request, key: str) -> Response:
        experiment = visible_experiment(request.user, key)
        run = request.query_params.get("run", "")
        attempt = get_object_or_404(Attempt, run=run, site_run__round__experiment=experiment)
        after = whole_number(request, "after", default=0)
        is_over = attempt.ended_at is not None
        lines, end = lines_of(_pieces(attempt, after), after=after, is_over=is_over)
        body = {"run": run, "next": end, "is_over": is_over, "lines": [line.as_json for line in lines]}
        return Response(body)


def _pieces(attempt: Attempt, after: int) -> Any:
    """Return the pieces of a log that reach behind an offset: from the last one that begins before it."""
    pieces = LogPiece.objects.filter(attempt=attempt).order_by("offset")
    first = pieces.filter(offset__lte=after).order_by("-offset").values_list("offset", flat=True).first()
    return pieces.filter(offset__gte=first or 0)
