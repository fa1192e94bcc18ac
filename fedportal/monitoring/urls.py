"""Addresses of what is only looked at: dashboard, experiment page and its parts, exports, downloads."""

from django.urls import path

from fedportal.monitoring import compare_exports, compare_views, converters, downloads, exports, views  # noqa: F401  (converters: experiment_key)

app_name = "monitoring"
urlpatterns = [
    path("", views.dashboard, name="dashboard"),
    path("experiments/<experiment_key:key>/", views.experiment, name="experiment"),
    path("experiments/<experiment_key:key>/compare/", compare_views.compare, name="compare"),
    path("experiments/<experiment_key:key>/compare/cases.csv", compare_exports.cases_csv, name="compare-cases"),
    path("experiments/<experiment_key:key>/compare/table.csv", compare_exports.table_csv, name="compare-table"),
    path("experiments/<experiment_key:key>/rounds/", views.rounds, name="rounds"),
    path("experiments/<experiment_key:key>/feed/", views.feed, name="feed"),
    path("experiments/<experiment_key:key>/sites/<slug:slug>/", views.site, name="site"),
    path("experiments/<experiment_key:key>/models/", views.models, name="models"),
    path("experiments/<experiment_key:key>/models/<int:number>/<str:kind>/", downloads.model_file, name="download"),
    path("experiments/<experiment_key:key>/export/metrics.csv", exports.metrics_csv, name="metrics-csv"),
    path("experiments/<experiment_key:key>/export/metrics.json", exports.metrics_json, name="metrics-json"),
    path("experiments/<experiment_key:key>/export/journal.csv", exports.journal_csv, name="journal-csv"),
    path("experiments/<experiment_key:key>/export/journal.json", exports.journal_json, name="journal-json"),
    path("experiments/<experiment_key:key>/export/<slug:chart>.plotly.json", exports.figure_json, name="figure-json"),
]
