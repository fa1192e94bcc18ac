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

from fedportal.sites import services
from fedportal.sites.forms import SiteForm
from fedportal.sites.models import ConnectorKind, Dataset, Health, Site, SiteCheck
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
    """A site as everybody may see it: neither its folders nor its credentials are in here."""

    health = serializers.ChoiceField(choices=Health.choices, read_only=True)
    stewards = serializers.SlugRelatedField(slug_field="username", many=True, read_only=True)

    class Meta:
        model = Site
        fields = [
            "slug", "name", "city", "connector", "health", "stewards", "registered_at", "retired_at",
            "last_contact_at", "check_is_pending",
        ]  # fmt: skip


class SiteRegistrationSerializer(serializers.Serializer):
    """What registers a site; checked by the same form as the page's."""

    slug = serializers.CharField()
    name = serializers.CharField()
    city = serializers.CharField(required=False, allow_blank=True)
    contact = serializers.EmailField(required=False, allow_blank=True)
    connector = serializers.ChoiceField(choices=ConnectorKind.choices, default=ConnectorKind.LOCAL)
    data_root = serializers.CharField()
    work_dir = serializers.CharField()
    threads = serializers.IntegerField(default=1)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        self.form = SiteForm(attrs)
        if not self.form.is_valid():
            raise serializers.ValidationError(self.form.errors)
        return attrs

    def create(self, validated_data: dict[str, Any]) -> Site:
        return self.form.store()


class SiteViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    """Registered sites."""

    permission_classes = [ReadOnlyUnlessOperator]
    serializer_class = SiteSerializer
    lookup_field = "slug"

    def get_queryset(self) -> QuerySet[Site]:
        return Site.objects.with_last_check().prefetch_related("stewards")

    @extend_schema(request=SiteRegistrationSerializer, responses={201: SiteSerializer})
    def create(self, request: Request) -> Response:
        """Register a site (operators)."""
        registration = SiteRegistrationSerializer(data=request.data)
        registration.is_valid(raise_exception=True)
        site = registration.save()
        return Response(SiteSerializer(site).data, status=status.HTTP_201_CREATED)

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
        require(site.can_be_checked_by(request.user), "Only operators and the site's stewards may ask for a check.")
        services.request_check(site)
        return Response(SiteSerializer(site).data, status=status.HTTP_202_ACCEPTED)
