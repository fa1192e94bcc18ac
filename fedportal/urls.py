"""All addresses of the portal."""

from django.contrib import admin
from django.contrib.auth.decorators import login_required
from django.urls import include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

urlpatterns = [
    path("", include("fedportal.monitoring.urls")),
    path("", include("fedportal.experiments.urls")),
    path("sites/", include("fedportal.sites.urls")),
    path("accounts/", include("fedportal.accounts.urls")),
    path("ui/", include("fedportal.ui.urls")),
    path("admin/", admin.site.urls),
    path("api/", include("fedportal.experiments.api_urls")),
    path("api/", include("fedportal.sites.api_urls")),
    path("api/", include("fedportal.monitoring.api_urls")),
    path("api/", include("fedportal.accounts.api_urls")),
    path("kaapana-backend/remote/", include("fedportal.relay.urls")),
    # as later versions of Kaapana call it
    path("kaapana-remote/remote/", include("fedportal.relay.urls", namespace="relay-sync")),
    path("api/", RedirectView.as_view(pattern_name="api-docs"), name="api-root"),
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("api/docs/", login_required(SpectacularSwaggerSplitView.as_view(url_name="schema")), name="api-docs"),
]
handler400 = "fedportal.ui.views.bad_request"
handler403 = "fedportal.ui.views.forbidden"
handler404 = "fedportal.ui.views.not_found"
handler500 = "fedportal.ui.views.server_error"
