"""API addresses of the sites, under ``/api/``."""

from rest_framework.routers import SimpleRouter

from fedportal.sites.api import ConnectorViewSet, SiteViewSet

router = SimpleRouter()
router.register("connectors", ConnectorViewSet, basename="api-connector")
router.register("sites", SiteViewSet, basename="api-site")
urlpatterns = router.urls
