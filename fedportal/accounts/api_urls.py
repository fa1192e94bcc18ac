"""API addresses of one's own account and of people, under ``/api/``."""

from django.urls import include, path
from rest_framework.routers import SimpleRouter

from fedportal.accounts import api
from fedportal.accounts.users_api import UserViewSet

router = SimpleRouter()
router.register("users", UserViewSet, basename="api-user")

urlpatterns = [
    path("me/", api.MeView.as_view(), name="api-me"),
    path("me/password/", api.MyPasswordView.as_view(), name="api-my-password"),
    path("me/tokens/", api.MyTokensView.as_view(), name="api-my-tokens"),
    path("me/tokens/<str:key>/", api.MyTokenView.as_view(), name="api-my-token"),
    path("", include(router.urls)),
]
