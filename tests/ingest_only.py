"""Settings and addresses of a portal that only takes metric records: as much of it as an orchestrator needs."""

from django.urls import path

from fedportal.settings import *  # noqa: F403

ROOT_URLCONF = "tests.ingest_only"


def _urlpatterns():
    from fedportal.experiments.metrics_api import MetricsView

    return [path("api/runs/<str:run>/metrics", MetricsView.as_view())]


def __getattr__(name):
    if name == "urlpatterns":
        return _urlpatterns()
    raise AttributeError(name)
