"""The API's answer to “who am I?”: whom a token belongs to and what that person may do."""

from __future__ import annotations

from rest_framework import generics, serializers

from fedportal.accounts.models import User


class MeSerializer(serializers.ModelSerializer):
    name = serializers.CharField(source="__str__", read_only=True)

    class Meta:
        model = User
        fields = [
            "username", "name", "first_name", "last_name", "email", "role", "may_compose", "is_operator",
            "sees_everything",
        ]  # fmt: skip
        read_only_fields = ["username", "role"]


class MeView(generics.RetrieveUpdateAPIView):
    """The person whom the credentials of this request belong to."""

    serializer_class = MeSerializer
    http_method_names = ["get", "patch", "head", "options"]

    def get_object(self) -> User:
        return self.request.user
