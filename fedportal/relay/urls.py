"""Addresses of Kaapana's remote protocol. Their paths are fixed in Kaapana, below the portal's root."""

from django.urls import path

from fedportal.relay import views

app_name = "relay"
urlpatterns = [
    path("sync-client-remote", views.sync, name="sync"),
    path("job", views.job, name="job"),
    path("jobs", views.jobs, name="jobs"),
    path("workflow", views.workflow, name="workflow"),
    path("minio-presigned-url", views.presigned_url, name="presigned-url"),
]
