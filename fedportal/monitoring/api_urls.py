"""Addresses under /api/: what was measured and what happened, to read."""

from django.urls import path

from fedportal.monitoring import api, converters  # noqa: F401  (converters: experiment_key)
from fedportal.monitoring.compare_api import CaseScoresView, ComparisonView
from fedportal.monitoring.dashboard_api import DashboardView

urlpatterns = [
    path("dashboard/", DashboardView.as_view(), name="api-dashboard"),
    path("experiments/<experiment_key:key>/comparison/", ComparisonView.as_view(), name="api-experiment-comparison"),
    path(
        "experiments/<experiment_key:key>/comparison/cases/",
        CaseScoresView.as_view(),
        name="api-experiment-case-scores",
    ),
    path("experiments/<experiment_key:key>/metrics/", api.MetricsView.as_view(), name="api-experiment-metrics"),
    path("experiments/<experiment_key:key>/journal/", api.JournalView.as_view(), name="api-experiment-journal"),
    path("experiments/<experiment_key:key>/rounds/", api.RoundsView.as_view(), name="api-experiment-rounds"),
    path("experiments/<experiment_key:key>/models/", api.ModelsView.as_view(), name="api-experiment-models"),
    path(
        "experiments/<experiment_key:key>/models/<int:number>/<str:kind>/",
        api.ModelFileView.as_view(),
        name="api-experiment-model-file",
    ),
    path("experiments/<experiment_key:key>/logs/", api.LogView.as_view(), name="api-experiment-logs"),
]
