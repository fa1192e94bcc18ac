"""API addresses of the own account, under ``/api/``."""

from django.urls import path

from fedportal.accounts.api import MeView

urlpatterns = [path("me/", MeView.as_view(), name="api-me")]
