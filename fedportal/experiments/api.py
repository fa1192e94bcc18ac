"""The API for experiments: all that the pages do. Errors leave as problem documents (``ui/errors.py``)."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import permissions, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import Serializer
from rest_framework.views import APIView

from fedportal.accounts.models import User
from fedportal.aggregation.strategies import STRATEGIES
from fedportal.experiments import baselines, services
from fedportal.experiments.bundles import READY, ask_for_bundle
from fedportal.experiments.models import CONTROLLERS_ONLY, Experiment, GlobalModel, Kind
from fedportal.experiments.plan import PRESETS, preset_plan
from fedportal.experiments.readiness import checklist
from fedportal.experiments.recipe import SETTINGS
from fedportal.experiments.serializers import (
    BaselinesSerializer,
    BundleSerializer,
    CheckSerializer,
    ExperimentRowSerializer,
    ExperimentSerializer,
    NewExperimentSerializer,
    PersonSerializer,
    PlanSchemaSerializer,
    ProblemSerializer,
)
from fedportal.sites.models import Site
from fedportal.ui.permissions import OPERATORS_ONLY, require


class MayControl(permissions.BasePermission):
    """Reading is decided by the queryset; writing is for owner and operators, cloning for all who may compose, a
    bundle for all who may download."""

    message = CONTROLLERS_ONLY

    def has_permission(self, request: Request, view: Any) -> bool:
        if view.action in ("create", "clone") and not request.user.may_compose:
            self.message = "Only researchers and operators may create experiments."
            return False
        return True

    def has_object_permission(self, request: Request, view: Any, experiment: Experiment) -> bool:
        if request.method in permissions.SAFE_METHODS or view.action in ("clone", "make_bundle"):
            return True
        return experiment.can_be_controlled_by(request.user)


PROBLEMS = dict.fromkeys((400, 403, 404, 409), ProblemSerializer)
CHANGED = {200: ExperimentSerializer, **PROBLEMS}
CREATED = {201: ExperimentSerializer, **PROBLEMS}
DRAFT_EXAMPLE = OpenApiExample(
    "The reference experiment at three sites, for 20 rounds",
    request_only=True,
    value={
        "preset": "laptop",
        "title": "Brain tumour, laptop size",
        "participants": [
            {"site": "heidelberg", "dataset": "Task01_BrainTumour"},
            {"site": "mainz", "dataset": "Task01_BrainTumour"},
            {"site": "essen", "dataset": "Task01_BrainTumour"},
        ],
        "plan": {"rounds": 20, "optimizer": {"learning_rate": 0.002}},
        "min_sites": 2,
    },
)
CHANGE_EXAMPLE = OpenApiExample(
    "A lower learning rate",
    request_only=True,
    value={"plan": {"optimizer": {"learning_rate": 0.0005}}},
)
PERSON_EXAMPLE = OpenApiExample("A colleague", request_only=True, value={"username": "grace"})
BASELINES_EXAMPLE = OpenApiExample(
    "Pooled and local only", request_only=True, value={"baselines": ["pooled", "local_only"]}
)
STATE = OpenApiParameter("state", str, description="Only experiments in this state.")
MINE = OpenApiParameter("mine", bool, description="Only your own.")
KIND = OpenApiParameter("kind", str, enum=Kind.values, description="Only this kind, baselines and repeats, too.")
HEAD = OpenApiParameter("head", str, description="Only the family of the experiment with this key, itself included.")
SEARCH = OpenApiParameter("search", str, description="Words in the title or the question, or a key.")


@extend_schema_view(
    list=extend_schema(parameters=[STATE, MINE, SEARCH, KIND, HEAD], responses=ExperimentRowSerializer(many=True)),
    create=extend_schema(request=NewExperimentSerializer, responses=CREATED, examples=[DRAFT_EXAMPLE]),
    partial_update=extend_schema(responses=CHANGED, examples=[CHANGE_EXAMPLE]),
)
@extend_schema(tags=["experiments"])
class ExperimentViewSet(viewsets.GenericViewSet):
    """Experiments that you may see: your own, shared ones, those at your sites; operators and auditors see all."""

    queryset = Experiment.objects.none()
    serializer_class = ExperimentSerializer
    permission_classes = [permissions.IsAuthenticated, MayControl]
    lookup_field = "key"
    lookup_value_regex = "[a-z0-9]{4,10}"

    def get_queryset(self) -> QuerySet[Experiment]:
        visible = Experiment.objects.visible_to(self.request.user).with_progress()
        return visible.select_related("owner", "cloned_from", "head", "beside")

    def list(self, request: Request) -> Response:
        """Experiments, newest first. Their repeats and baselines are left out unless ``kind`` or ``head`` asks for them."""
        params = request.query_params
        rows = self.get_queryset().of_family(params.get("head", ""), kind=params.get("kind", ""))
        if not params.get("head") and not params.get("kind"):
            rows = rows.listed_for(request.user)
        rows = rows.matching(
            state=params.get("state", ""),
            owner=request.user if params.get("mine") in ("1", "true", "True") else None,
            search=params.get("search", ""),
        )
        page = self.paginate_queryset(rows)
        return self.get_paginated_response(ExperimentRowSerializer(page, many=True).data)

    def create(self, request: Request) -> Response:
        """Create a draft from a preset; ``plan`` and the other fields say what is to be otherwise.

        Without ``participants`` it begins with the sites of your last experiment that are ready; else with all that are
        ready, or with none when those are more than 10. A blank one begins with none.
        """
        values = self._checked(NewExperimentSerializer(data=request.data, context={"request": request}))
        participants = values.pop("participations", None)
        experiment = services.create_draft(
            owner=request.user,
            preset=values.pop("preset"),
            title=values.pop("title", None),
            participants=participants,
            plan=values.pop("plan", {}),
            fields=values,
        )
        return self._shown(experiment, status.HTTP_201_CREATED)

    def retrieve(self, request: Request, key: str) -> Response:
        """An experiment with its plan, its sites and how far it is."""
        return Response(self.get_serializer(self.get_object()).data)

    def partial_update(self, request: Request, key: str) -> Response:
        """Change a draft: only what is sent is changed."""
        experiment = self.get_object()
        values = self._checked(ExperimentSerializer(experiment, data=request.data, context={"request": request}))
        services.update_draft(
            experiment=experiment,
            by=request.user,
            participants=values.pop("participations", None),
            plan=values.pop("plan", {}),
            fields=values,
        )
        return self._shown(experiment)

    @extend_schema(responses={204: None, **PROBLEMS})
    def destroy(self, request: Request, key: str) -> Response:
        """Delete a draft."""
        services.delete_draft(experiment=self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(responses=CheckSerializer(many=True))
    @action(detail=True, pagination_class=None, filter_backends=[])
    def readiness(self, request: Request, key: str) -> Response:
        """Whether the experiment can start, and what is in the way."""
        return Response(CheckSerializer(checklist(self.get_object()), many=True).data)

    @extend_schema(request=None, responses=CHANGED)
    @action(detail=True, methods=["post"])
    def start(self, request: Request, key: str) -> Response:
        """Start a draft. 409 with the reasons when it is not ready."""
        return self._act(services.start)

    @extend_schema(request=None, responses=CHANGED)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, key: str) -> Response:
        """Pause: what runs at the sites goes on, nothing new is started."""
        return self._act(services.pause)

    @extend_schema(request=None, responses=CHANGED)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, key: str) -> Response:
        """Resume a paused experiment, or take up a failed one from its failed round."""
        return self._act(services.resume)

    @extend_schema(request=None, responses=CHANGED)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, key: str) -> Response:
        """Cancel for good; what runs at the sites is ended."""
        return self._act(services.cancel)

    @extend_schema(request=None, responses=CREATED)
    @action(detail=True, methods=["post"])
    def clone(self, request: Request, key: str) -> Response:
        """Make a draft of your own with the same plan and sites."""
        twin = services.clone(experiment=self.get_object(), by=request.user)
        return self._shown(twin, status.HTTP_201_CREATED)

    @extend_schema(request=None, responses=CHANGED, parameters=[OpenApiParameter("site", str, OpenApiParameter.PATH)])
    @action(detail=True, methods=["post"], url_path="sites/(?P<site>[a-z0-9-]{1,15})/retry")
    def retry(self, request: Request, key: str, site: str) -> Response:
        """Let a site that failed in the round under way try again."""
        experiment = self.get_object()
        row = get_object_or_404(Site, slug=site, participations__experiment=experiment)
        services.retry_site(experiment=experiment, site=row, by=request.user)
        return self._shown(experiment)

    @extend_schema(request=BaselinesSerializer, responses=CHANGED, examples=[BASELINES_EXAMPLE])
    @action(detail=True, methods=["post"], url_path="baselines")
    def add_baselines(self, request: Request, key: str) -> Response:
        """Add baselines to an experiment that has started. What is there is not made twice; ``family`` has all."""
        experiment = self.get_object()
        asked = BaselinesSerializer(data=request.data, context={"experiment": experiment})
        baselines.add(experiment=experiment, kinds=self._checked(asked)["baselines"], by=request.user)
        return self._shown(experiment)

    @extend_schema(request=PersonSerializer, responses=CHANGED, examples=[PERSON_EXAMPLE])
    @action(detail=True, methods=["post"])
    def share(self, request: Request, key: str) -> Response:
        """Let somebody see the experiment."""
        experiment, person = self.get_object(), self._person(request)
        services.share(experiment=experiment, user=person, by=request.user)
        return self._shown(experiment)

    @extend_schema(request=PersonSerializer, responses=CHANGED, examples=[PERSON_EXAMPLE])
    @action(detail=True, methods=["post"])
    def unshare(self, request: Request, key: str) -> Response:
        """Let somebody see the experiment no longer."""
        experiment, person = self.get_object(), self._person(request, among=User.objects.all())
        services.unshare(experiment=experiment, user=person, by=request.user)
        return self._shown(experiment)

    @extend_schema(request=PersonSerializer, responses=CHANGED, examples=[PERSON_EXAMPLE])
    @action(detail=True, methods=["post"], url_path="hand-over")
    def hand_over(self, request: Request, key: str) -> Response:
        """Give the experiment to another owner (operators)."""
        experiment = self.get_object()
        require(request.user.is_operator, OPERATORS_ONLY)
        services.hand_over(experiment=experiment, to=self._person(request), by=request.user)
        return self._shown(experiment)

    def _person(self, request: Request, *, among: QuerySet[User] | None = None) -> User:
        people = User.objects.filter(is_active=True) if among is None else among
        return self._checked(PersonSerializer(data=request.data, context={"people": people}))["username"]

    @extend_schema(
        request=None,
        responses={200: BundleSerializer, 202: BundleSerializer, **PROBLEMS},
        parameters=[OpenApiParameter("number", int, OpenApiParameter.PATH)],
    )
    @action(detail=True, methods=["post"], url_path="models/(?P<number>[0-9]{1,6})/make-bundle")
    def make_bundle(self, request: Request, key: str, number: str) -> Response:
        """Have the MONAI bundle of a round's global model made; ``/models/`` says when it is there. 200: it is."""
        models = GlobalModel.objects.filter(experiment=self.get_object()).select_related("experiment")
        bundle = ask_for_bundle(model=get_object_or_404(models, round_number=int(number)), by=request.user)
        code = status.HTTP_200_OK if bundle.state == READY else status.HTTP_202_ACCEPTED
        return Response(BundleSerializer(bundle).data, status=code)

    def _act(self, service: Any) -> Response:
        experiment = self.get_object()
        service(experiment=experiment, by=self.request.user)
        return self._shown(experiment)

    def _shown(self, experiment: Experiment, code: int = status.HTTP_200_OK) -> Response:
        fresh = (
            Experiment.objects.with_progress()
            .select_related("owner", "cloned_from", "head", "beside")
            .get(pk=experiment.pk)
        )
        return Response(self.get_serializer(fresh).data, status=code)

    def _checked(self, serializer: Serializer) -> dict[str, Any]:
        serializer.is_valid(raise_exception=True)
        return dict(serializer.validated_data)


class PlanSchemaView(APIView):
    """Every setting of an experiment with help, unit, range and default; the strategies; and the presets."""

    @extend_schema(tags=["experiments"], responses=PlanSchemaSerializer)
    def get(self, request: Request) -> Response:
        presets = [
            {"name": preset.name, "title": preset.title, "text": preset.text, "plan": preset_plan(preset)}
            for preset in PRESETS.values()
        ]
        known = {"settings": SETTINGS, "strategies": STRATEGIES.values(), "presets": presets}
        return Response(PlanSchemaSerializer(known).data)
