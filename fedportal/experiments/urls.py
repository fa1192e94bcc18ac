"""Addresses of the experiments' pages; an experiment's own page belongs to ``monitoring``."""

from django.urls import path

from fedportal.experiments import views

app_name = "experiments"
urlpatterns = [
    path("experiments/", views.ExperimentList.as_view(), name="list"),
    path("experiments/new/", views.NewExperiment.as_view(), name="create"),
    path("experiments/<str:key>/edit/", views.Composer.as_view(), name="edit"),
    path("experiments/<str:key>/edit/<str:section>/", views.Composer.as_view(), name="edit"),
    path("experiments/<str:key>/start/", views.start, name="start"),
    path("experiments/<str:key>/pause/", views.pause, name="pause"),
    path("experiments/<str:key>/resume/", views.resume, name="resume"),
    path("experiments/<str:key>/cancel/", views.cancel, name="cancel"),
    path("experiments/<str:key>/clone/", views.clone, name="clone"),
    path("experiments/<str:key>/delete/", views.delete, name="delete"),
    path("experiments/<str:key>/baselines/", views.add_baselines, name="baselines"),
    path("experiments/<str:key>/share/", views.share, name="share"),
    path("experiments/<str:key>/unshare/", views.unshare, name="unshare"),
    path("experiments/<str:key>/make-bundle/<int:number>/", views.make_bundle, name="make-bundle"),
    path("experiments/<str:key>/retry/<slug:slug>/", views.retry, name="retry"),
]
