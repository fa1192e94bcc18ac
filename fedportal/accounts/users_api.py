"""The API of people, for operators: who may sign in, and with which role. Passwords are write-only."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from fedportal.accounts import services
from fedportal.accounts.api import TokenSerializer, delete_token_of, tokens_of
from fedportal.accounts.models import User
from fedportal.ui.permissions import IsOperator
from fedportal.ui.serializers import StrictSerializer


class UserSerializer(StrictSerializer, serializers.ModelSerializer):
    """A person. Setting ``is_active`` to false closes the account.

    A new person without a ``password`` cannot sign in until one is set.
    """

    password = serializers.CharField(write_only=True, required=False, trim_whitespace=False, max_length=128)

    class Meta:
        model = User
        fields = [
            "username", "first_name", "last_name", "email", "role", "is_active", "password", "last_login", "date_joined",
        ]  # fmt: skip
        read_only_fields = ["last_login", "date_joined"]

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if self.instance and attrs.get("username", self.instance.username) != self.instance.username:
            raise serializers.ValidationError(
                {"username": ["A user name cannot be changed: the journal names people by it."]}
            )
        if "password" in attrs:
            person = self.instance or User(**{name: value for name, value in attrs.items() if name != "password"})
            try:
                validate_password(attrs["password"], person)
            except ValidationError as error:
                raise serializers.ValidationError({"password": error.messages}) from error
        return attrs


@extend_schema(tags=["users"])
class UserViewSet(viewsets.GenericViewSet):
    """The portal's people (operators). Accounts are closed, never deleted: the journal names them."""

    queryset = User.objects.order_by("username")
    serializer_class = UserSerializer
    permission_classes = [IsOperator]
    lookup_field = "username"
    lookup_value_regex = "[^/]+"

    def list(self, request: Request) -> Response:
        """List the portal's people (operators)."""
        page = self.paginate_queryset(self.get_queryset())
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    def retrieve(self, request: Request, username: str) -> Response:
        """Show one person (operators)."""
        return Response(self.get_serializer(self.get_object()).data)

    @extend_schema(responses={201: UserSerializer})
    def create(self, request: Request) -> Response:
        """Add a person (operators). Without a password, nobody can sign in to the account until one is set."""
        form = self.get_serializer(data=request.data)
        form.is_valid(raise_exception=True)
        person = services.create_user(**form.validated_data)
        return Response(self.get_serializer(person).data, status=status.HTTP_201_CREATED)

    def partial_update(self, request: Request, username: str) -> Response:
        """Change a person (operators). Only the fields that you send change. A new password ends the person's sessions."""
        person = self.get_object()
        form = self.get_serializer(person, data=request.data, partial=True)
        form.is_valid(raise_exception=True)
        services.change_user(person, by=request.user, **form.validated_data)
        return Response(self.get_serializer(person).data)

    @extend_schema(responses=TokenSerializer(many=True))
    @action(detail=True, pagination_class=None)
    def tokens(self, request: Request, username: str) -> Response:
        """List a person's API tokens, without their secrets (operators)."""
        return Response(tokens_of(self.get_object()))

    @extend_schema(responses={204: None}, parameters=[OpenApiParameter("key", str, OpenApiParameter.PATH)])
    @action(detail=True, methods=["delete"], url_path="tokens/(?P<key>[^/]+)", url_name="token")
    def token(self, request: Request, username: str, key: str) -> Response:
        """Delete a person's API token (operators). Programs that use it lose access at once."""
        return delete_token_of(self.get_object(), key)
