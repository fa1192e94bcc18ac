"""Only the API of this room, so that its tests need no other room's pages."""

from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView

urlpatterns = [
    path("api/", include("fedportal.experiments.api_urls")),
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
]
