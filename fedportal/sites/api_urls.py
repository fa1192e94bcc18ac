"""API addresses of the sites, under ``/api/``."""

from rest_framework.routers import SimpleRouter

from fedportal.sites.api import SiteViewSet

router = SimpleRouter()
router.register("sites", SiteViewSet, basename="api-site")
urlpatterns = router.urls
