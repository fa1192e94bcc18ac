"""The API of the sites: read for everybody who is signed in, write for operators, check also for stewards."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from fedportal.accounts.models import User
from fedportal.sites import services
from fedportal.sites.forms import SiteForm
from fedportal.sites.models import CHECKERS_ONLY, ConnectorKind, Dataset, Health, Site, SiteCheck
from fedportal.ui.permissions import ReadOnlyUnlessOperator, require


class StepSerializer(serializers.Serializer):
    """One step of a check. ``ok`` is null where the step was not reached."""

    name = serializers.CharField()
    ok = serializers.BooleanField(allow_null=True)
    message = serializers.CharField()
    remedy = serializers.CharField()
    seconds = serializers.FloatField()


class SiteCheckSerializer(serializers.ModelSerializer):
    steps = StepSerializer(many=True, read_only=True)

    class Meta:
        model = SiteCheck
        fields = ["at", "ok", "version", "seconds", "steps"]


class DatasetSerializer(serializers.ModelSerializer):
    """Counts are cases; spacing in mm and shape in voxels are medians over the cases."""

    channels = serializers.ListField(child=serializers.CharField(), read_only=True)
    labels = serializers.DictField(child=serializers.CharField(), read_only=True)
    spacing = serializers.ListField(child=serializers.FloatField(), read_only=True)
    shape = serializers.ListField(child=serializers.IntegerField(), read_only=True)
    problems = serializers.ListField(child=serializers.CharField(), read_only=True)

    class Meta:
        model = Dataset
        fields = [
            "name", "title", "train_cases", "validation_cases", "channels", "labels", "spacing", "shape", "problems",
            "seen_at", "is_available",
        ]  # fmt: skip


class SiteSerializer(serializers.ModelSerializer):
    """A site. ``config`` (its folders, nothing secret) is for operators; credentials are in no answer."""

    health = serializers.ChoiceField(choices=Health.choices, read_only=True)
    stewards = serializers.SlugRelatedField(slug_field="username", many=True, read_only=True)
    config = serializers.DictField(read_only=True, required=False)

    class Meta:
        model = Site
        fields = [
            "slug", "name", "city", "contact", "connector", "config", "health", "stewards", "registered_at",
            "retired_at", "last_contact_at", "check_due_at", "check_is_pending",
        ]  # fmt: skip

    def to_representation(self, instance: Site) -> dict[str, Any]:
        shown = super().to_representation(instance)
        if not self.context["request"].user.is_operator:
            del shown["config"]
        return shown


class SiteWriteSerializer(serializers.Serializer):
    """What registers or changes a site; checked by the same form as the page's. The slug cannot change."""

    slug = serializers.CharField()
    name = serializers.CharField()
    city = serializers.CharField(required=False, allow_blank=True)
    contact = serializers.CharField(required=False, allow_blank=True)
    connector = serializers.ChoiceField(choices=ConnectorKind.choices, required=False)
    stewards = serializers.SlugRelatedField(
        slug_field="username", many=True, required=False, queryset=User.objects.filter(is_active=True)
    )
    data_root = serializers.CharField()
    work_dir = serializers.CharField()
    threads = serializers.IntegerField(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if self.instance and attrs.get("slug", self.instance.slug) != self.instance.slug:
            raise serializers.ValidationError({"slug": ["The short name of a site cannot change."]})
        self.form = SiteForm(self._as_typed(attrs), instance=self.instance)
        if not self.form.is_valid():
            raise serializers.ValidationError(self.form.errors)
        return attrs

    def _as_typed(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """What the page's form would send: the values of the site, or the defaults, and over them the given ones."""
        form = SiteForm(instance=self.instance)
        typed = {name: form.get_initial_for_field(field, name) for name, field in form.fields.items()}
        typed |= attrs
        typed["stewards"] = [person.pk for person in typed["stewards"] or []]
        return typed

    def save(self, **kwargs: Any) -> Site:
        return self.form.store()


class SiteViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    """Registered sites."""

    permission_classes = [ReadOnlyUnlessOperator]
    serializer_class = SiteSerializer
    lookup_field = "slug"

    def get_queryset(self) -> QuerySet[Site]:
        return Site.objects.with_last_check().prefetch_related("stewards")

    def _answer(self, site: Site, code: int = status.HTTP_200_OK) -> Response:
        return Response(self.get_serializer(site).data, status=code)

    @extend_schema(request=SiteWriteSerializer, responses={201: SiteSerializer})
    def create(self, request: Request) -> Response:
        """Register a site (operators)."""
        registration = SiteWriteSerializer(data=request.data)
        registration.is_valid(raise_exception=True)
        return self._answer(registration.save(), status.HTTP_201_CREATED)

    @extend_schema(request=SiteWriteSerializer(partial=True), responses=SiteSerializer)
    def partial_update(self, request: Request, slug: str) -> Response:
        """Change some settings of a site (operators); it is checked anew."""
        change = SiteWriteSerializer(self.get_object(), data=request.data, partial=True)
        change.is_valid(raise_exception=True)
        change.save()
        return self._answer(self.get_object())

    @extend_schema(responses=DatasetSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def datasets(self, request: Request, slug: str) -> Response:
        """What the site offers, as its last check found it."""
        return Response(DatasetSerializer(self.get_object().datasets.all(), many=True).data)

    @extend_schema(responses=SiteCheckSerializer(many=True))
    @action(detail=True)
    def checks(self, request: Request, slug: str) -> Response:
        """The site's checks, newest first."""
        page = self.paginate_queryset(SiteCheck.objects.filter(site=self.get_object()))
        return self.get_paginated_response(SiteCheckSerializer(page, many=True).data)

    @extend_schema(request=None, responses={202: SiteSerializer})
    @action(detail=True, methods=["post"], permission_classes=[IsAuthenticated])
    def check(self, request: Request, slug: str) -> Response:
        """Ask for a check now (operators and the site's stewards)."""
        site = self.get_object()
        require(site.can_be_checked_by(request.user), CHECKERS_ONLY)
        services.request_check(site)
        return self._answer(site, status.HTTP_202_ACCEPTED)

    @extend_schema(request=None, responses=SiteSerializer)
    @action(detail=True, methods=["post"])
    def retire(self, request: Request, slug: str) -> Response:
        """Take a site out of use (operators). Its history stays."""
        site = self.get_object()
        services.retire(site)
        return self._answer(site)

    @extend_schema(request=None, responses=SiteSerializer)
    @action(detail=True, methods=["post"])
    def reinstate(self, request: Request, slug: str) -> Response:
        """Take a retired site back into use (operators)."""
        site = self.get_object()
        services.reinstate(site)
        return self._answer(site)
