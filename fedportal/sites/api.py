"""The sites' API: everybody who is signed in may read, operators may write, stewards may request checks.

Input goes through the same forms as on the pages.
"""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from fedportal.accounts.models import User
from fedportal.connectors.fields import Field
from fedportal.sites import services
from fedportal.sites.connection import connectors
from fedportal.sites.counts import case_counts
from fedportal.sites.forms import CopiesForm, SiteForm, site_form
from fedportal.sites.models import CHECKERS_ONLY, ConnectorKind, Dataset, Health, SignIn, Site, SiteCheck
from fedportal.ui.permissions import IsOperator, ReadOnlyUnlessOperator, require
from fedportal.ui.serializers import StrictSerializer


class StepSerializer(serializers.Serializer):
    """One step of a check. ``ok`` is null if the step was not reached."""

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


class DatasetNameSerializer(StrictSerializer):
    site = serializers.SlugField(source="site.slug", max_length=15, help_text="Short name of the site.")
    dataset = serializers.CharField(source="name", max_length=120, help_text="Name of the dataset at that site.")


class CopiesSerializer(StrictSerializer):
    """The datasets of other sites whose every case this one holds. Checked by the same form as on the page."""

    copy_of = DatasetNameSerializer(many=True)

    def validate_copy_of(self, names: list[dict[str, Any]]) -> list[int]:
        found = []
        for name in names:
            slug, dataset = name["site"]["slug"], name["name"]
            other = Dataset.objects.filter(site__slug=slug, site__is_pool=False, name=dataset).first()
            if other is None:
                raise serializers.ValidationError(f"There is no dataset {dataset} at the site {slug}.")
            found.append(other.pk)
        return found

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        self.form = CopiesForm(attrs, instance=self.instance)
        if not self.form.is_valid():
            raise serializers.ValidationError(self.form.errors)
        return attrs


class DatasetSerializer(serializers.ModelSerializer):
    """Counts are cases; spacing (mm) and shape (voxels) are medians over the cases.

    A count below ``fewer_than`` is null unless you are an operator or one of the site's stewards.
    """

    train_cases = serializers.IntegerField(allow_null=True, read_only=True)
    validation_cases = serializers.IntegerField(allow_null=True, read_only=True)
    fewer_than = serializers.IntegerField(
        allow_null=True,
        read_only=True,
        source="pk",
        help_text="Counts below this number are withheld; null if none is.",
    )
    channels = serializers.ListField(child=serializers.CharField(), read_only=True)
    labels = serializers.DictField(child=serializers.CharField(), read_only=True)
    spacing = serializers.ListField(child=serializers.FloatField(), read_only=True)
    shape = serializers.ListField(child=serializers.IntegerField(), read_only=True)
    problems = serializers.ListField(child=serializers.CharField(), read_only=True)
    copy_of = DatasetNameSerializer(
        many=True, read_only=True, help_text="Datasets of other sites whose every case this one holds."
    )

    class Meta:
        model = Dataset
        fields = [
            "name", "title", "train_cases", "validation_cases", "fewer_than", "channels", "labels", "spacing", "shape", "problems",
            "seen_at", "is_available", "copy_of",
        ]  # fmt: skip

    def to_representation(self, instance: Dataset) -> dict[str, Any]:
        counts = case_counts(instance, self.context["request"].user)
        return super().to_representation(instance) | {
            "train_cases": counts.train.value,
            "validation_cases": counts.validation.value,
            "fewer_than": counts.train.fewer_than or counts.validation.fewer_than,
        }


class FieldSerializer(serializers.Serializer):
    """One value that a connector asks for. ``parts`` are the members of a JSON object."""

    name = serializers.CharField()
    label = serializers.CharField()
    help = serializers.CharField()
    kind = serializers.ChoiceField(["text", "url", "secret", "choice", "number", "flag", "file", "json"])
    required = serializers.BooleanField()
    default = serializers.JSONField(allow_null=True)
    choices = serializers.SerializerMethodField()
    advanced = serializers.BooleanField()
    least = serializers.IntegerField(allow_null=True)
    most = serializers.IntegerField(allow_null=True)
    unit = serializers.CharField()
    parts = serializers.SerializerMethodField()

    def get_choices(self, field: Field) -> list[str]:
        return [value for value, _ in field.choices]

    def get_parts(self, field: Field) -> list[str]:
        return [part.name for part in field.parts if not part.issued]


class ConnectorSerializer(serializers.Serializer):
    """A way to reach a site, and the values it needs: secrets go into ``secrets``, everything else into ``config``."""

    kind = serializers.CharField()
    title = serializers.CharField()
    summary = serializers.CharField()
    fields_ = FieldSerializer(many=True)

    def get_fields(self) -> dict[str, serializers.Field]:
        declared = super().get_fields()
        declared["fields"] = declared.pop("fields_")
        return declared


class SiteSerializer(serializers.ModelSerializer):
    """A site. Only operators see ``config`` (addresses and folders, no secrets) and the names of the ``stored_secrets``.
    Secrets themselves are never returned."""

    health = serializers.ChoiceField(choices=Health.choices, read_only=True)
    stewards = serializers.SlugRelatedField(slug_field="username", many=True, read_only=True)
    config = serializers.DictField(read_only=True, required=False)
    stored_secrets = serializers.SerializerMethodField(required=False)

    class Meta:
        model = Site
        fields = [
            "slug", "name", "city", "contact", "connector", "config", "stored_secrets", "health", "stewards",
            "registered_at", "retired_at", "last_contact_at", "unreached_since", "unreached_because", "next_try_at",
            "check_due_at", "check_is_pending", "checking_since",
        ]  # fmt: skip

    def get_stored_secrets(self, site: Site) -> list[str]:
        return sorted(site.secrets)

    def to_representation(self, instance: Site) -> dict[str, Any]:
        shown = super().to_representation(instance)
        if not self.context["request"].user.is_operator:
            del shown["config"], shown["stored_secrets"]
        return shown


class SiteWriteSerializer(StrictSerializer):
    """Values of a new or changed site, checked by the same form as on the page. The slug cannot be changed.

    ``config`` and ``secrets`` hold the connector's fields: see ``/api/connectors/``. A change affects only the fields
    that you send; an empty secret deletes the stored one.
    """

    slug = serializers.CharField()
    name = serializers.CharField()
    city = serializers.CharField(required=False, allow_blank=True)
    contact = serializers.CharField(required=False, allow_blank=True)
    connector = serializers.ChoiceField(choices=ConnectorKind.choices, required=False)
    stewards = serializers.SlugRelatedField(
        slug_field="username", many=True, required=False, queryset=User.objects.filter(is_active=True)
    )
    config = serializers.DictField(required=False)
    secrets = serializers.DictField(
        child=serializers.CharField(allow_blank=True, trim_whitespace=False), required=False, write_only=True
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if self.instance and attrs.get("slug", self.instance.slug) != self.instance.slug:
            raise serializers.ValidationError({"slug": ["A site's short name cannot be changed."]})
        kind = attrs.get("connector", self.instance.connector if self.instance else ConnectorKind.LOCAL)
        if kind not in connectors():
            raise serializers.ValidationError({"connector": ["This portal has no such connector."]})
        self.form = site_form(kind)(instance=self.instance)
        self._refuse_unknown(attrs)
        self.form = site_form(kind)(self._as_typed(attrs), instance=self.instance)
        if not self.form.is_valid():
            raise serializers.ValidationError(self._errors())
        return attrs

    def _names(self, place: str) -> set[str]:
        is_secret = place == "secrets"
        return {field.name for field in self.form.declared if (field.kind == "secret") == is_secret}

    def _refuse_unknown(self, attrs: dict[str, Any]) -> None:
        for place in ("config", "secrets"):
            if unknown := sorted(set(attrs.get(place, {})) - self._names(place)):
                words = f"This connector has no such field in {place}."
                raise serializers.ValidationError({place: {name: [words] for name in unknown}})

    def _as_typed(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """What the page's form would send: the site's values or the defaults, overridden by those given."""
        form: SiteForm = self.form
        typed = {name: form.get_initial_for_field(field, name) for name, field in form.fields.items()}
        typed |= {name: value for name, value in attrs.items() if name in SiteForm.Meta.fields}
        typed |= attrs.get("config", {})
        for name, secret in attrs.get("secrets", {}).items():
            typed |= {name: secret} if secret else {f"{name}-forget": "on"}
        typed["stewards"] = [person.pk for person in typed["stewards"] or []]
        return typed

    def _errors(self) -> dict[str, Any]:
        errors: dict[str, Any] = {}
        for name, words in self.form.errors.items():
            place = next((place for place in ("config", "secrets") if name in self._names(place)), None)
            (errors.setdefault(place, {}) if place else errors)[name] = list(words)
        return errors

    def save(self, *, by: User) -> Site:
        return self.form.store(by=by)


class SignInSerializer(serializers.ModelSerializer):
    """A sign-in of the portal at a site: open ``address`` and confirm ``user_code`` there."""

    class Meta:
        model = SignIn
        fields = ["state", "asked_at", "address", "user_code", "expires_at", "message", "remedy"]


class SiteKeySerializer(serializers.Serializer):
    site_key = serializers.CharField(help_text="Hexadecimal. The site keeps it as FEDPORTAL_SITE_KEY.")


class ConnectorViewSet(viewsets.ViewSet):
    """The connectors that this portal has."""

    permission_classes = [IsOperator]

    @extend_schema(responses=ConnectorSerializer(many=True))
    def list(self, request: Request) -> Response:
        """List the connectors, when to choose each, and the values it needs (operators)."""
        rows = [
            {
                "kind": kind,
                "title": connector.TITLE,
                "summary": connector.SUMMARY,
                "fields": [field for field in connector.FIELDS if not field.issued],
            }
            for kind, connector in connectors().items()
        ]
        return Response(ConnectorSerializer(rows, many=True).data)


@extend_schema_view(
    list=extend_schema(description="List the sites, including retired ones but not the portal's own pools."),
    retrieve=extend_schema(description="Show one site."),
)
class SiteViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    """Registered sites."""

    permission_classes = [ReadOnlyUnlessOperator]
    serializer_class = SiteSerializer
    lookup_field = "slug"

    def get_queryset(self) -> QuerySet[Site]:
        return Site.objects.with_last_check().prefetch_related("stewards")

    def filter_queryset(self, queryset: QuerySet[Site]) -> QuerySet[Site]:
        """Leave out pools, which the portal makes for pooled baselines. They are found by short name only."""
        return queryset.filter(is_pool=False) if self.action == "list" else queryset

    def _answer(self, site: Site, code: int = status.HTTP_200_OK) -> Response:
        return Response(self.get_serializer(site).data, status=code)

    @extend_schema(request=SiteWriteSerializer, responses={201: SiteSerializer})
    def create(self, request: Request) -> Response:
        """Register a site (operators)."""
        registration = SiteWriteSerializer(data=request.data)
        registration.is_valid(raise_exception=True)
        return self._answer(registration.save(by=request.user), status.HTTP_201_CREATED)

    @extend_schema(request=SiteWriteSerializer(partial=True), responses=SiteSerializer)
    def partial_update(self, request: Request, slug: str) -> Response:
        """Change a site's settings (operators). It is checked again."""
        change = SiteWriteSerializer(self.get_object(), data=request.data, partial=True)
        change.is_valid(raise_exception=True)
        change.save(by=request.user)
        return self._answer(self.get_object())

    @extend_schema(responses=DatasetSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def datasets(self, request: Request, slug: str) -> Response:
        """List the site's datasets as the last check found them."""
        found = self.get_object().datasets.prefetch_related("copy_of__site")
        return Response(DatasetSerializer(found, many=True, context=self.get_serializer_context()).data)

    @extend_schema(
        request=CopiesSerializer,
        responses=DatasetSerializer,
        parameters=[OpenApiParameter("name", str, OpenApiParameter.PATH, description="Name of the dataset.")],
    )
    @action(detail=True, methods=["patch"], url_path="datasets/(?P<name>[^/]+)")
    def dataset(self, request: Request, slug: str, name: str) -> Response:
        """Set the datasets of other sites whose every case this one holds (operators)."""
        dataset = get_object_or_404(Dataset, site=self.get_object(), name=name)
        change = CopiesSerializer(dataset, data=request.data)
        change.is_valid(raise_exception=True)
        dataset = change.form.store(by=request.user)
        return Response(DatasetSerializer(dataset, context=self.get_serializer_context()).data)

    @extend_schema(responses=SiteCheckSerializer(many=True))
    @action(detail=True)
    def checks(self, request: Request, slug: str) -> Response:
        """List the site's checks, newest first."""
        page = self.paginate_queryset(SiteCheck.objects.filter(site=self.get_object()))
        return self.get_paginated_response(SiteCheckSerializer(page, many=True).data)

    @extend_schema(request=None, responses={202: SiteSerializer})
    @action(detail=True, methods=["post"], permission_classes=[IsAuthenticated])
    def check(self, request: Request, slug: str) -> Response:
        """Request a check now (operators and the site's stewards)."""
        site = self.get_object()
        require(site.can_be_checked_by(request.user), CHECKERS_ONLY)
        services.request_check(site)
        return self._answer(site, status.HTTP_202_ACCEPTED)

    @extend_schema(request=None, responses=SiteSerializer)
    @action(detail=True, methods=["post"])
    def retire(self, request: Request, slug: str) -> Response:
        """Retire a site (operators). Its history is kept."""
        site = self.get_object()
        services.retire(site, by=request.user)
        return self._answer(site)

    @extend_schema(request=None, responses=SiteSerializer)
    @action(detail=True, methods=["post"])
    def reinstate(self, request: Request, slug: str) -> Response:
        """Put a retired site back into use (operators)."""
        site = self.get_object()
        services.reinstate(site, by=request.user)
        return self._answer(site)

    @extend_schema(request=None, responses=SiteKeySerializer)
    @action(detail=True, methods=["post"])
    def key(self, request: Request, slug: str) -> Response:
        """Show the key that the site keeps in its own environment (operators). Who viewed it is recorded."""
        return _secret({"site_key": services.show_key(self.get_object(), by=request.user)})

    @extend_schema(request=None, responses=OpenApiTypes.OBJECT)
    @action(detail=True, methods=["post"])
    def handout(self, request: Request, slug: str) -> Response:
        """Show the JSON object that people paste at the site (operators). Who viewed it is recorded."""
        return _secret(services.hand_out(self.get_object(), by=request.user))

    @extend_schema(methods=["GET"], responses=SignInSerializer, description="Show the latest sign-in (operators).")
    @extend_schema(methods=["POST"], request=None, responses={202: SignInSerializer})
    @action(detail=True, methods=["get", "post"], url_path="sign-in", permission_classes=[IsOperator])
    def sign_in(self, request: Request, slug: str) -> Response:
        """Start a sign-in of the portal at the site (operators). A person confirms its code there."""
        site = self.get_object()
        if request.method == "POST":
            asked = services.request_sign_in(site, by=request.user)
            return Response(SignInSerializer(asked).data, status=status.HTTP_202_ACCEPTED)
        return Response(SignInSerializer(get_object_or_404(SignIn, site=site)).data)

    @extend_schema(request=None, responses={204: None})
    @action(detail=True, methods=["post"])
    def reissue(self, request: Request, slug: str) -> Response:
        """Replace the credentials that the portal issued to the site (operators). The old ones stop working at once."""
        services.reissue(self.get_object(), by=request.user)
        return Response(status=status.HTTP_204_NO_CONTENT)


def _secret(document: dict[str, Any]) -> Response:
    return Response(document, headers={"Cache-Control": "no-store"})
