"""Addresses under /api/."""

from django.urls import include, path
from rest_framework.routers import SimpleRouter

from fedportal.experiments.api import ExperimentViewSet, PlanSchemaView
from fedportal.experiments.metrics_api import MetricsView

router = SimpleRouter()
router.register("experiments", ExperimentViewSet, basename="api-experiment")

urlpatterns = [
    path("", include(router.urls)),
    path("plan-schema/", PlanSchemaView.as_view(), name="api-plan-schema"),
    path("runs/<str:run>/metrics", MetricsView.as_view(), name="api-run-metrics"),
]
