"""The API of one's own account: who am I, my password, my tokens."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import update_session_auth_hash
from django.contrib.auth.forms import PasswordChangeForm
from django.http import Http404
from drf_spectacular.utils import extend_schema, extend_schema_view
from knox.models import AuthToken
from rest_framework import generics, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from fedportal.accounts import services
from fedportal.accounts.forms import TokenForm
from fedportal.accounts.models import User
from fedportal.ui.serializers import StrictSerializer

ACCOUNT = ["account"]
SECRETS_ARE_NOT_KEPT = {"Cache-Control": "no-store"}


class MeSerializer(StrictSerializer, serializers.ModelSerializer):
    name = serializers.CharField(source="__str__", read_only=True)

    class Meta:
        model = User
        fields = [
            "username", "name", "first_name", "last_name", "email", "role", "may_compose", "is_operator",
            "sees_everything",
        ]  # fmt: skip
        read_only_fields = ["username", "role"]


class PasswordSerializer(StrictSerializer):
    old_password = serializers.CharField(trim_whitespace=False, write_only=True)
    new_password = serializers.CharField(trim_whitespace=False, write_only=True)


class TokenSerializer(serializers.ModelSerializer):
    """An API token. ``key`` is the beginning of its secret; ``expires_at`` is null if it never expires."""

    key = serializers.CharField(source="token_key", read_only=True)
    created_at = serializers.DateTimeField(source="created", read_only=True)
    expires_at = serializers.DateTimeField(source="expiry", read_only=True, allow_null=True)

    class Meta:
        model = AuthToken
        fields = ["key", "created_at", "expires_at"]


class TokenOrderSerializer(StrictSerializer):
    days = serializers.ChoiceField(
        TokenForm.base_fields["days"].choices, help_text="Days until it expires; 0 means never."
    )


class NewTokenSerializer(TokenSerializer):
    """A new token with its secret, which cannot be read again."""

    token = serializers.CharField(help_text="Send it in the header ``Authorization: Token …``.")

    class Meta(TokenSerializer.Meta):
        fields = [*TokenSerializer.Meta.fields, "token"]


@extend_schema(tags=ACCOUNT)
@extend_schema_view(patch=extend_schema(description="Change your name and email address."))
class MeView(generics.RetrieveUpdateAPIView):
    """Show your own account."""

    serializer_class = MeSerializer
    http_method_names = ["get", "patch", "head", "options"]

    def get_object(self) -> User:
        return self.request.user


class MyPasswordView(APIView):
    @extend_schema(tags=ACCOUNT, request=PasswordSerializer, responses={204: None})
    def post(self, request: Request) -> Response:
        """Change your password. Your other sessions end; your API tokens stay valid."""
        asked = PasswordSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        old, new = asked.validated_data["old_password"], asked.validated_data["new_password"]
        form = PasswordChangeForm(request.user, {"old_password": old, "new_password1": new, "new_password2": new})
        if not form.is_valid():
            errors = {name.rstrip("12"): list(words) for name, words in form.errors.items()}
            raise serializers.ValidationError(errors)
        update_session_auth_hash(request._request, form.save())
        return Response(status=status.HTTP_204_NO_CONTENT)


class MyTokensView(APIView):
    @extend_schema(tags=ACCOUNT, responses=TokenSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List your API tokens, newest first, without their secrets."""
        return Response(tokens_of(request.user))

    @extend_schema(tags=ACCOUNT, request=TokenOrderSerializer, responses={201: NewTokenSerializer})
    def post(self, request: Request) -> Response:
        """Create an API token. This response is the only one that contains its secret."""
        order = TokenOrderSerializer(data=request.data)
        order.is_valid(raise_exception=True)
        row, secret = services.create_token(request.user, days=int(order.validated_data["days"]))
        made = {**TokenSerializer(row).data, "token": secret}
        return Response(made, status=status.HTTP_201_CREATED, headers=SECRETS_ARE_NOT_KEPT)


class MyTokenView(APIView):
    @extend_schema(tags=ACCOUNT, responses={204: None})
    def delete(self, request: Request, key: str) -> Response:
        """Delete one of your API tokens. Programs that use it lose access at once."""
        return delete_token_of(request.user, key)


def tokens_of(user: User) -> list[dict[str, Any]]:
    return TokenSerializer(user.auth_token_set.order_by("-created"), many=True).data


def delete_token_of(user: User, key: str) -> Response:
    if not services.delete_token(user, token_key=key):
        raise Http404
    return Response(status=status.HTTP_204_NO_CONTENT)
