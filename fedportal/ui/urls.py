"""Addresses of the ui room, under ``/ui/``."""

from django.urls import path

from fedportal.ui import views

app_name = "ui"
urlpatterns = [
    path("", views.gallery, name="gallery"),
    path("theme/", views.set_theme, name="theme"),
    path("healthz/", views.healthz, name="healthz"),
]
